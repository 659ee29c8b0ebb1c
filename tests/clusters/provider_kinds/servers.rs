//! The key servers, each set up as docs/providers.md says.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use harness::fakes::{Fake, Service};
use harness::ministack::{AccessKey, MiniStack};
use harness::openbao::OpenBao;
use harness::pykmip::PyKmip;
use harness::softhsm::SoftHsm;
use keyring::configured::ProviderKind;
use serde_json::{Value, json};

use crate::story::{KeyServer, Subject};

// Vault

pub(crate) fn vault(folder: &Path) -> Option<Subject<'static>> {
    let policy = r#"
        path "secret/data/keys/*" { capabilities = ["read", "create", "update"] }"#;
    let vault = Vault::start(policy)?;
    Some(vault.subject(ProviderKind::Vault, folder, BTreeMap::new()))
}

pub(crate) fn vault_transit(folder: &Path) -> Option<Subject<'static>> {
    // As docs/providers.md has it, and what it takes to move from the first key to the second.
    let policy = r#"
        path "transit/decrypt/first" { capabilities = ["update"] }
        path "transit/decrypt/second" { capabilities = ["update"] }
        path "transit/datakey/plaintext/+" { capabilities = ["update"] }
        path "transit/encrypt/second" { capabilities = ["update"] }
        path "transit/keys/+" { capabilities = ["read"] }"#;
    let vault = Vault::start(policy)?;
    vault.server.mount_transit("transit", None);
    vault.server.transit_key("first", json!({ "derived": true }));
    let key = BTreeMap::from([("key", "first".to_owned())]);
    Some(vault.subject(ProviderKind::VaultTransit, folder, key))
}

struct Vault {
    server: OpenBao,
    policy: &'static str,
}

impl Vault {
    fn start(policy: &'static str) -> Option<Self> {
        let vault = Self { server: OpenBao::start()?, policy };
        vault.allow_keys();
        Some(vault)
    }

    fn allow_keys(&self) {
        self.server.policy("keys", self.policy);
    }

    fn subject<'a>(
        self,
        kind: ProviderKind,
        folder: &Path,
        mut settings: BTreeMap<&'static str, String>,
    ) -> Subject<'a> {
        let token = self.server.token(&["keys"], "1h");
        settings.insert("address", self.server.address());
        settings.insert("token_file", write(folder, "token", &token));
        let secrets = vec![token, self.server.root_token().to_owned()];
        Subject { kind, settings, secrets, server: Box::new(self), refused: "KE067", gone: "KE062" }
    }
}

impl KeyServer for Vault {
    fn make_other_kek(&mut self) -> Option<(&'static str, String)> {
        self.server.transit_key("second", json!({ "derived": true }));
        Some(("key", "second".to_owned()))
    }

    fn retire_first_kek(&mut self) {
        let deletable = json!({ "deletion_allowed": true });
        self.server.expect(None, "POST", "transit/keys/first/config", deletable);
        self.server.expect(None, "DELETE", "transit/keys/first", Value::Null);
    }

    fn hang(&mut self) -> bool {
        self.server.pause();
        true
    }

    fn go_on(&mut self) {
        self.server.resume();
    }

    fn refuse(&mut self) {
        self.server.policy("keys", r#"path "secret/data/other" { capabilities = ["read"] }"#);
    }

    fn allow(&mut self) {
        self.allow_keys();
    }

    fn go_away(&mut self) {
        self.server.stop();
    }
}

// AWS KMS

const REGION: &str = "eu-central-1";

pub(crate) fn aws_kms(folder: &Path) -> Option<Subject<'static>> {
    let server = MiniStack::start()?;
    let first = server.create_key(REGION, false);
    let actions = ["kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt", "kms:DescribeKey"];
    let statement = json!({ "Effect": "Allow", "Action": actions, "Resource": "*" });
    let policy = json!({ "Version": "2012-10-17", "Statement": [statement] });
    let AccessKey { id, secret } = server.create_user("postgresql", &policy);
    let credentials =
        format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    Some(Subject {
        kind: ProviderKind::AwsKms,
        settings: BTreeMap::from([
            ("key_id", first.clone()),
            ("region", REGION.to_owned()),
            ("endpoint", server.address()),
            ("credentials_file", write(folder, "credentials", &credentials)),
        ]),
        secrets: vec![secret, "AWS4-HMAC".to_owned(), "Signature=".to_owned()],
        server: Box::new(AwsKms { server, keys: vec![first] }),
        refused: "KE067",
        gone: "KE062",
    })
}

struct AwsKms {
    server: MiniStack,
    /// The key encryption keys, the one that is used last.
    keys: Vec<String>,
}

impl AwsKms {
    fn set_state(&self, action: &str, key: &str) {
        self.server.kms(REGION, action, &json!({ "KeyId": key }));
    }
}

impl KeyServer for AwsKms {
    fn make_other_kek(&mut self) -> Option<(&'static str, String)> {
        let key = self.server.create_key(REGION, false);
        self.keys.push(key.clone());
        Some(("key_id", key))
    }

    fn retire_first_kek(&mut self) {
        self.set_state("DisableKey", &self.keys[0]);
    }

    fn hang(&mut self) -> bool {
        self.server.process().pause();
        true
    }

    fn go_on(&mut self) {
        self.server.process().resume();
    }

    fn refuse(&mut self) {
        self.set_state("DisableKey", &self.keys[1]);
    }

    fn allow(&mut self) {
        self.set_state("EnableKey", &self.keys[1]);
    }

    fn go_away(&mut self) {
        self.server.process().stop();
    }
}

// Google Cloud KMS

const RING: &str = "projects/example/locations/europe-west3/keyRings/ring";
const SERVICE_ACCOUNT: &str = "postgresql@example.iam.gserviceaccount.com";

pub(crate) fn google_cloud_kms(folder: &Path) -> Option<Subject<'static>> {
    let server = GoogleCloudKms(Fake::start(Service::GcpKms)?);
    let fake = &server.0;
    let parent = RING.trim_end_matches("/keyRings/ring");
    fake.administer("POST", &format!("/v1/{parent}/keyRings?keyRingId=ring"), &json!({}));
    server.create_key("first");
    let account = fake.control("service_account", &json!({ "email": SERVICE_ACCOUNT }));
    Some(Subject {
        kind: ProviderKind::GcpKms,
        settings: BTreeMap::from([
            ("key", format!("{RING}/cryptoKeys/first")),
            ("endpoint", fake.address()),
            ("ca_file", write(folder, "ca.pem", &read(fake.ca_file()))),
            ("credentials_file", write(folder, "account.json", &account.to_string())),
        ]),
        // Access tokens, JSON Web Tokens, the private key.
        secrets: ["ya29.", "eyJ", "PRIVATE KEY", "Bearer "].map(str::to_owned).to_vec(),
        server: Box::new(server),
        refused: "KE067",
        gone: "KE062",
    })
}

struct GoogleCloudKms(Fake);

impl GoogleCloudKms {
    fn create_key(&self, name: &str) {
        let path = format!("/v1/{RING}/cryptoKeys?cryptoKeyId={name}");
        self.0.administer("POST", &path, &json!({ "purpose": "ENCRYPT_DECRYPT" }));
    }

    fn permit(&self, permissions: &[&str]) {
        let permissions = json!({ "of": SERVICE_ACCOUNT, "are": permissions });
        self.0.control("permissions", &permissions);
    }
}

impl KeyServer for GoogleCloudKms {
    fn make_other_kek(&mut self) -> Option<(&'static str, String)> {
        self.create_key("second");
        Some(("key", format!("{RING}/cryptoKeys/second")))
    }

    fn retire_first_kek(&mut self) {
        let version = format!("/v1/{RING}/cryptoKeys/first/cryptoKeyVersions/1?updateMask=state");
        self.0.administer("PATCH", &version, &json!({ "state": "DISABLED" }));
    }

    fn hang(&mut self) -> bool {
        self.0.process().pause();
        true
    }

    fn go_on(&mut self) {
        self.0.process().resume();
    }

    fn refuse(&mut self) {
        self.permit(&["cloudkms.cryptoKeyVersions.useToEncrypt"]);
    }

    fn allow(&mut self) {
        self.permit(&["*"]);
    }

    fn go_away(&mut self) {
        self.0.process().stop();
    }
}

// Azure Key Vault

const APPLICATION: &str = "aaaaaaaa-0000-0000-0000-000000000000";

pub(crate) fn azure_key_vault(folder: &Path) -> Option<Subject<'static>> {
    let server = AzureKeyVault(Fake::start(Service::AzureKeyVault)?);
    let fake = &server.0;
    server.create_key("first");
    let secret = fake.control("client", &json!({ "id": APPLICATION }));
    let secret = secret["secret"].as_str().unwrap();
    Some(Subject {
        kind: ProviderKind::AzureKeyVault,
        settings: BTreeMap::from([
            ("address", fake.address()),
            ("authority", fake.address()),
            ("key", "first".to_owned()),
            ("tenant_id", "11111111-2222-3333-4444-555555555555".to_owned()),
            ("client_id", APPLICATION.to_owned()),
            ("client_secret_file", write(folder, "secret", secret)),
            ("ca_file", write(folder, "ca.pem", &read(fake.ca_file()))),
        ]),
        secrets: ["eyJ", "Bearer ", secret].map(str::to_owned).to_vec(),
        server: Box::new(server),
        refused: "KE067",
        gone: "KE062",
    })
}

struct AzureKeyVault(Fake);

impl AzureKeyVault {
    fn create_key(&self, name: &str) {
        let path = format!("/keys/{name}/create?api-version=7.4");
        self.0.administer("POST", &path, &json!({ "kty": "RSA", "key_size": 2048 }));
    }

    fn permit(&self, permissions: &[&str]) {
        self.0.control("permissions", &json!({ "of": APPLICATION, "are": permissions }));
    }
}

impl KeyServer for AzureKeyVault {
    fn make_other_kek(&mut self) -> Option<(&'static str, String)> {
        self.create_key("second");
        Some(("key", "second".to_owned()))
    }

    fn retire_first_kek(&mut self) {
        let key = self.0.administer("GET", "/keys/first?api-version=7.4", &Value::Null);
        let version = key["key"]["kid"].as_str().unwrap().rsplit('/').next().unwrap();
        let path = format!("/keys/first/{version}?api-version=7.4");
        self.0.administer("PATCH", &path, &json!({ "attributes": { "enabled": false } }));
    }

    fn hang(&mut self) -> bool {
        self.0.process().pause();
        true
    }

    fn go_on(&mut self) {
        self.0.process().resume();
    }

    fn refuse(&mut self) {
        self.permit(&["get", "wrapKey"]);
    }

    fn allow(&mut self) {
        self.permit(&["*"]);
    }

    fn go_away(&mut self) {
        self.0.process().stop();
    }
}

// KMIP

pub(crate) fn kmip(folder: &Path) -> Option<Subject<'static>> {
    let server = PyKmip::start()?;
    let client = server.client("postgresql");
    let other = server.client("somebody else");
    let (certificate, key) = (read(client.certificate_file), read(client.key_file));
    let secrets: Vec<_> = key.lines().filter(|line| !line.contains("---")).collect();
    Some(Subject {
        kind: ProviderKind::Kmip,
        settings: BTreeMap::from([
            ("address", server.address()),
            ("ca_file", write(folder, "ca.pem", &read(server.ca_file()))),
            ("client_certificate_file", write(folder, "client.pem", &certificate)),
            ("client_key_file", write(folder, "client.key", &key)),
            ("name_prefix", "postgresql/".to_owned()),
        ]),
        secrets: secrets.into_iter().map(str::to_owned).collect(),
        server: Box::new(Kmip {
            server,
            folder: folder.to_owned(),
            client: (certificate, key),
            other: (read(other.certificate_file), read(other.key_file)),
        }),
        // A key of another client looks like one that does not exist.
        refused: "KE068",
        gone: "KE062",
    })
}

struct Kmip {
    server: PyKmip,
    folder: PathBuf,
    /// The certificates, and their keys, of the client that has made the keys and of another one.
    client: (String, String),
    other: (String, String),
}

impl Kmip {
    fn log_in_as(&self, (certificate, key): &(String, String)) {
        write(&self.folder, "client.pem", certificate);
        write(&self.folder, "client.key", key);
    }
}

impl KeyServer for Kmip {
    fn hang(&mut self) -> bool {
        self.server.pause();
        true
    }

    fn go_on(&mut self) {
        self.server.resume();
    }

    fn refuse(&mut self) {
        self.log_in_as(&self.other);
    }

    fn allow(&mut self) {
        self.log_in_as(&self.client);
    }

    fn go_away(&mut self) {
        self.server.stop();
    }
}

// A command

pub(crate) fn command(folder: &Path) -> Option<Subject<'static>> {
    let server = Store { folder: folder.to_owned() };
    server.behave("");
    let program = folder.join("store");
    let script = format!(
        "#!/bin/sh\n\
         cd {} || exit 1\n\
         case $(cat behaviour) in\n\
         hang) exec sleep 600 ;;\n\
         refuse) exit 3 ;;\n\
         fail) echo \"no connection, token=hunter2hunter2, last answer:\" $(cat $1.$2) >&2; exit 1 ;;\n\
         esac\n\
         [ -e $1.$2 ] || exit 3\n\
         cat $1.$2\n",
        folder.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    Some(Subject {
        kind: ProviderKind::Command,
        settings: BTreeMap::from([("command", format!("{} %n %v", program.display()))]),
        secrets: vec!["hunter2".to_owned()],
        server: Box::new(server),
        refused: "KE069",
        gone: "KE062",
    })
}

struct Store {
    folder: PathBuf,
}

impl Store {
    fn behave(&self, how: &str) {
        write(&self.folder, "behaviour", how);
    }
}

impl KeyServer for Store {
    fn make_version(&mut self, key: &str, version: u32) -> bool {
        let random = read("/proc/sys/kernel/random/uuid").replace('-', "");
        let random = random.trim();
        write(&self.folder, &format!("{key}.{version}"), &format!("{random}{random}"));
        true
    }

    fn hang(&mut self) -> bool {
        self.behave("hang");
        true
    }

    fn go_on(&mut self) {
        self.behave("");
    }

    fn refuse(&mut self) {
        self.behave("refuse");
    }

    fn allow(&mut self) {
        self.behave("");
    }

    fn go_away(&mut self) {
        self.behave("fail");
    }
}

// PKCS #11

const TOKEN: &str = "database server";

/// A token whose files belong to the server's user.
pub(crate) struct Token<'a> {
    softhsm: &'a SoftHsm,
    user: (u32, u32),
}

impl<'a> Token<'a> {
    pub(crate) fn set_up(softhsm: &'a SoftHsm, module: &Path, folder: &Path) -> Subject<'a> {
        let owner = fs::metadata(folder).unwrap();
        let token = Self { softhsm, user: (owner.uid(), owner.gid()) };
        softhsm.make_token(TOKEN);
        softhsm.import_aes_key(TOKEN, "first", "01", &[1; 32]);
        let pin_file = softhsm.pin_file();
        token.give();
        Subject {
            kind: ProviderKind::Pkcs11,
            settings: BTreeMap::from([
                ("module", text(module)),
                ("token_label", TOKEN.to_owned()),
                ("pin_file", text(&pin_file)),
                ("key_label", "first".to_owned()),
            ]),
            secrets: vec![SoftHsm::PIN.to_owned(), SoftHsm::SO_PIN.to_owned()],
            server: Box::new(token),
            refused: "KE079",
            gone: "KE062",
        }
    }

    fn give(&self) {
        self.softhsm.give_to(self.user.0, self.user.1);
    }

    fn rename(&self, from: &str, to: &str) {
        let folder = self.softhsm.folder();
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
}

impl KeyServer for Token<'_> {
    fn make_other_kek(&mut self) -> Option<(&'static str, String)> {
        self.softhsm.import_aes_key(TOKEN, "second", "02", &[2; 32]);
        self.give();
        Some(("key_label", "second".to_owned()))
    }

    /// Another token with the same labels: what this database has was not wrapped in it.
    fn refuse(&mut self) {
        self.rename("tokens", "good");
        fs::create_dir(self.softhsm.folder().join("tokens")).unwrap();
        self.softhsm.make_token(TOKEN);
        self.softhsm.import_aes_key(TOKEN, "second", "02", &[3; 32]);
        self.give();
    }

    fn allow(&mut self) {
        self.rename("tokens", "other");
        self.rename("good", "tokens");
    }

    fn go_away(&mut self) {
        self.rename("tokens", "away");
        fs::create_dir(self.softhsm.folder().join("tokens")).unwrap();
        self.give();
    }
}

// Files

/// Writes a file that the server can read, and gives its path.
fn write(folder: &Path, name: &str, contents: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, contents).unwrap();
    text(&path)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}
