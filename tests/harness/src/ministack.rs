//! MiniStack, a simulation of AWS. It checks signatures, clocks, IAM policies and the states of
//! keys; the ciphertexts of its KMS are not authenticated.

use std::time::Duration;

use serde_json::{Value, json};

use crate::aws::{self, Endpoint, element};
use crate::python::PythonServer;

/// The account that everything is in.
pub const ACCOUNT: &str = "000000000000";

/// A running MiniStack. It is killed when dropped.
pub struct MiniStack {
    server: PythonServer,
    endpoint: Endpoint,
}

/// What a user or a role signs requests with.
#[derive(Clone)]
pub struct AccessKey {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

/// A session of a user, for a time.
#[derive(Clone)]
pub struct Session {
    /// What requests are signed with.
    pub key: AccessKey,
    /// What goes with them.
    pub token: String,
}

impl MiniStack {
    /// Starts it on a free port of 127.0.0.1, by plain HTTP, with all checks of signatures and
    /// policies. `None` if it could not be had.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::launch(&[("AUTH", "true"), ("SERVICES", "kms,iam,sts")])
    }

    /// The same without these checks, and as an EC2 instance and an ECS task that have a role: with
    /// `/latest/` for the former, where tokens are required (IMDSv2), and `/v2/credentials/` for the
    /// latter.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start_with_metadata() -> Option<Self> {
        Self::launch(&[("MINISTACK_IMDS_V2_REQUIRED", "1")])
    }

    fn launch(environment: &[(&str, &str)]) -> Option<Self> {
        let server = PythonServer::start("ministack", |python, port| {
            python
                .args(["-m", "ministack"])
                .env("BIND_HOST", "127.0.0.1")
                .env("GATEWAY_PORT", port.to_string())
                .env("MINISTACK_ACCOUNT_ID", ACCOUNT)
                .envs(environment.iter().copied());
        })?;
        let endpoint = Endpoint::new(server.address());
        Some(Self { server, endpoint })
    }

    /// Where all its services are.
    #[must_use]
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Makes a symmetric key in a region, which answers with its ARN.
    ///
    /// # Panics
    ///
    /// If it is refused.
    #[must_use]
    pub fn create_key(&self, region: &str, is_multi_region: bool) -> String {
        aws::create_key(&self.endpoint, region, &json!({ "MultiRegion": is_multi_region }))
    }

    /// An action of KMS in a region, by the root user.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub fn kms(&self, region: &str, action: &str, body: &Value) -> Value {
        aws::kms(&self.endpoint, region, action, body)
    }

    /// Makes a user with one policy, and an access key of it.
    ///
    /// # Panics
    ///
    /// If it is refused.
    #[must_use]
    pub fn create_user(&self, name: &str, policy: &Value) -> AccessKey {
        self.iam("CreateUser", &[("UserName", name)]);
        self.put_user_policy(name, policy);
        self.create_access_key(name)
    }

    /// Makes one more access key of a user.
    ///
    /// # Panics
    ///
    /// If it is refused.
    #[must_use]
    pub fn create_access_key(&self, user: &str) -> AccessKey {
        access_key(&self.iam("CreateAccessKey", &[("UserName", user)]))
    }

    /// Replaces the policy of a user.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub fn put_user_policy(&self, user: &str, policy: &Value) {
        let document = policy.to_string();
        let parameters =
            [("UserName", user), ("PolicyName", "only"), ("PolicyDocument", &document)];
        self.iam("PutUserPolicy", &parameters);
    }

    /// Makes a role with one policy that whoever `trust` names may assume, which answers with its
    /// ARN.
    ///
    /// # Panics
    ///
    /// If it is refused.
    #[must_use]
    pub fn create_role(&self, name: &str, trust: &Value, policy: &Value) -> String {
        let (trust, policy) = (trust.to_string(), policy.to_string());
        let answer =
            self.iam("CreateRole", &[("RoleName", name), ("AssumeRolePolicyDocument", &trust)]);
        let policy = [("RoleName", name), ("PolicyName", "only"), ("PolicyDocument", &policy)];
        self.iam("PutRolePolicy", &policy);
        element(&answer, "Arn").to_owned()
    }

    /// Assumes a role, as anybody may whose web identity token it trusts, for a time of whole
    /// seconds.
    ///
    /// # Panics
    ///
    /// If it is refused.
    #[must_use]
    pub fn assume_role(&self, role_arn: &str, token: &str, lifetime: Duration) -> Session {
        let answer = self.endpoint.query(
            "sts",
            "AssumeRoleWithWebIdentity",
            &[
                ("RoleArn", role_arn),
                ("RoleSessionName", "test"),
                ("WebIdentityToken", token),
                ("DurationSeconds", &lifetime.as_secs().to_string()),
            ],
        );
        let token = element(&answer, "SessionToken").to_owned();
        Session { key: access_key(&answer), token }
    }

    /// An action of IAM, by the root user. The answer is XML.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub fn iam(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        self.endpoint.query("iam", action, parameters)
    }

    /// The process.
    pub fn process(&mut self) -> &mut PythonServer {
        &mut self.server
    }
}

fn access_key(answer: &str) -> AccessKey {
    AccessKey {
        id: element(answer, "AccessKeyId").to_owned(),
        secret: element(answer, "SecretAccessKey").to_owned(),
    }
}
