//! What the simulations of AWS have in common: the protocols of its services.

use serde_json::Value;
use ureq::Agent;

/// The access key of the account's root user in both simulations, whose requests need no signature.
const ROOT: &str = "test";

/// An endpoint of a simulated AWS.
pub(crate) struct Endpoint {
    address: String,
    agent: Agent,
}

impl Endpoint {
    pub(crate) fn new(address: String) -> Self {
        let agent = Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_idle_connections(0)
            .build()
            .into();
        Self::with_agent(address, agent)
    }

    /// One that is reached by this agent, which takes a status of an error for an answer.
    pub(crate) fn with_agent(address: String, agent: Agent) -> Self {
        Self { address, agent }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// An action of a service with the protocol "AWS JSON 1.1".
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub(crate) fn json(&self, service: &str, region: &str, target: &str, body: &Value) -> Value {
        let mut response = self
            .agent
            .post(&self.address)
            .header("Authorization", authorization(service, region))
            .header("X-Amz-Target", target)
            .content_type("application/x-amz-json-1.1")
            .send(body.to_string())
            .expect("the simulation can be reached");
        let text = response.body_mut().read_to_string().expect("the answer is text");
        assert_eq!(response.status(), 200, "{target}: {text}");
        // An action without a result answers with nothing.
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// An action of a service with the protocol "AWS query". The answer is XML.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub(crate) fn query(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> String {
        let mut response = self
            .agent
            .post(&self.address)
            .header("Authorization", authorization(service, "us-east-1"))
            .send_form([("Action", action)].into_iter().chain(parameters.iter().copied()))
            .expect("the simulation can be reached");
        let text = response.body_mut().read_to_string().expect("the answer is text");
        assert_eq!(response.status(), 200, "{action}: {text}");
        text
    }

    /// Sends JSON that is no action of AWS.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> String {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address))
            .header("Content-Type", "application/json")
            .body(body.to_string())
            .expect("the request is well-formed");
        let mut response = self.agent.run(request).expect("the simulation can be reached");
        let text = response.body_mut().read_to_string().expect("the answer is text");
        assert_eq!(response.status().as_u16() / 100, 2, "{method} {path}: {text}");
        text
    }
}

/// An action of KMS in a region.
pub(crate) fn kms(endpoint: &Endpoint, region: &str, action: &str, body: &Value) -> Value {
    endpoint.json("kms", region, &format!("TrentService.{action}"), body)
}

/// Makes a key, which answers with its ARN.
pub(crate) fn create_key(endpoint: &Endpoint, region: &str, key: &Value) -> String {
    let answer = kms(endpoint, region, "CreateKey", key);
    answer["KeyMetadata"]["Arn"].as_str().expect("an ARN is text").to_owned()
}

/// The contents of the first element with this name.
pub(crate) fn element<'a>(xml: &'a str, name: &str) -> &'a str {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let start = xml.find(&open).map(|at| at + open.len());
    let text = start.and_then(|start| xml[start..].split(&close).next());
    text.expect("the answer has the element")
}

fn authorization(service: &str, region: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={ROOT}/20260101/{region}/{service}/aws4_request, \
         SignedHeaders=host, Signature=0"
    )
}
