//! What Vault's login `kubernetes` asks of a Kubernetes API server: whether a service account's token
//! is good ("TokenReview" of the API group authentication.k8s.io).

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::openbao::{JwtIssuer, authority};

/// An API server that reviews tokens and does nothing else. It knows the service accounts that a test
/// has made, and takes their tokens only.
pub struct TokenReviewer {
    issuer: JwtIssuer,
    port: u16,
    /// The tokens, each with the name of its service account.
    tokens: Arc<Mutex<Vec<(String, String)>>>,
}

/// The id of all service accounts.
const UID: &str = "0f2c9ba6-6b1e-4b3e-9d0f-1f2a3b4c5d6e";

/// The namespace of all service accounts.
const NAMESPACE: &str = "databases";

impl TokenReviewer {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&tokens);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that is gone needs no answer.
                let _ = review(stream, &known);
            }
        });
        Self { issuer: JwtIssuer::new(), port, tokens }
    }

    /// The parameters for Vault's `auth/kubernetes/config`.
    #[must_use]
    pub fn config(&self) -> Value {
        json!({
            "kubernetes_host": format!("http://127.0.0.1:{}", self.port),
            "token_reviewer_jwt": self.issuer.sign(&claims("vault")),
            // Asked for also where there is no TLS.
            "kubernetes_ca_cert": authority().1,
            "disable_local_ca_jwt": true,
        })
    }

    /// The parameters for a role of that login that takes the tokens of one service account.
    #[must_use]
    pub fn role(&self, account: &str, policies: &[&str]) -> Value {
        json!({
            "bound_service_account_names": [account],
            "bound_service_account_namespaces": [NAMESPACE],
            "token_policies": policies,
            "token_ttl": "1h",
        })
    }

    /// Issues a token of a service account.
    #[must_use]
    pub fn issue(&self, account: &str) -> String {
        let token = self.issuer.sign(&claims(account));
        self.tokens().push((token.clone(), account.to_owned()));
        token
    }

    /// Takes none of the tokens that were issued so far any more.
    pub fn revoke_all(&self) {
        self.tokens().clear();
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Vec<(String, String)>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn claims(account: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    json!({
        "iss": "https://kubernetes.default.svc",
        "sub": format!("system:serviceaccount:{NAMESPACE}:{account}"),
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "kubernetes.io": {
            "namespace": NAMESPACE,
            "serviceaccount": { "name": account, "uid": UID },
        },
    })
}

fn review(mut stream: TcpStream, known: &Mutex<Vec<(String, String)>>) -> io::Result<()> {
    let body = read_request(&mut stream)?;
    let request: Value = serde_json::from_slice(&body)?;
    let token = request["spec"]["token"].as_str().unwrap_or_default();
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let status = match known.iter().find(|(issued, _)| issued == token) {
        Some((_, account)) => json!({
            "authenticated": true,
            "user": {
                "username": format!("system:serviceaccount:{NAMESPACE}:{account}"),
                "uid": UID,
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{NAMESPACE}")],
            },
        }),
        None => json!({ "authenticated": false, "error": "the token is not known" }),
    };
    let answer = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": request["spec"],
        "status": status,
    })
    .to_string();
    write!(
        stream,
        "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{answer}",
        answer.len()
    )
}

/// The body of a request with a Content-Length.
fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let len = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|len| len.trim().parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok(body)
}
