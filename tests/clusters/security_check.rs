//! Each finding of `enc_security_check` appears when there is reason for it, and goes when there is none.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use cluster_tests::{DATABASE, Session, builder, connect, create_extension, keyring_file};
use harness::cluster::{Cluster, SUPERUSER};
use postgres::{Client, NoTls};

/// What a check finds, an object for each.
fn objects(session: &mut Client, check: &str) -> Vec<String> {
    let sql =
        format!("SELECT object FROM enc_security_check() WHERE check_name = '{check}' ORDER BY 1");
    session.texts(&sql).into_iter().flatten().collect()
}

#[track_caller]
fn appears(session: &mut Client, check: &str, object: &str) {
    let objects = objects(session, check);
    assert!(
        objects.iter().any(|each| each.contains(object)),
        "{check}: {objects:?} has no {object}"
    );
}

#[track_caller]
fn is_gone(session: &mut Client, check: &str) {
    assert_eq!(objects(session, check), Vec::<String>::new(), "{check}");
}

/// A cluster with a key and a table, in which nothing is to be found but that the keys are in a file.
fn start(test: &str) -> Option<Cluster> {
    start_on_port(test, 5432)
}

fn start_on_port(test: &str, port: u16) -> Option<Cluster> {
    let cluster = builder(test)?
        .port(port)
        .setting("log_min_error_statement", "panic")
        .setting("log_parameter_max_length", "0")
        .start();
    let outside = cluster.directory().join("keyring.json");
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    session.run("LOAD 'encryption_ext'");
    session.run(&format!("ALTER SYSTEM SET encryption_ext.keyring_file = '{}'", outside.display()));
    cluster.reload();
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k'); CREATE TABLE t (id integer, v encrypted_text('k'));
         INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 5000) n",
    );
    Some(cluster)
}

/// Sets a soft limit of the operating system's for this process and what it starts from now on.
fn limit(resource: &str, value: &str) -> bool {
    let (pid, limit) = (std::process::id().to_string(), format!("--{resource}={value}:"));
    Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status()
        .is_ok_and(|status| status.success())
}

#[test]
fn settings() {
    let Some(cluster) = start("settings") else { return };
    let mut session = connect(&cluster);
    session.run("LOAD 'auto_explain'");
    let found = session.texts("SELECT DISTINCT check_name FROM enc_security_check() ORDER BY 1");
    println!("{found:?}");
    for (check, setting, bad, good) in [
        ("log_statement", "log_statement", "ddl", "none"),
        ("log_statement_of_error", "log_min_error_statement", "error", "panic"),
        ("log_error_verbosity", "log_error_verbosity", "verbose", "terse"),
        ("log_trees", "debug_print_plan", "on", "off"),
        ("auto_explain", "auto_explain.log_min_duration", "0", "-1"),
        ("log_parameters", "log_parameter_max_length_on_error", "-1", "0"),
    ] {
        is_gone(&mut session, check);
        session.run(&format!("SET {setting} = '{bad}'"));
        appears(&mut session, check, setting);
        session.run(&format!("SET {setting} = '{good}'"));
        is_gone(&mut session, check);
    }
    session.run("SET log_min_duration_statement = 1000");
    is_gone(&mut session, "log_parameters");
    session.run("SET log_parameter_max_length = -1");
    appears(&mut session, "log_parameters", "log_min_duration_statement");
}

#[test]
fn providers_and_files() {
    let Some(cluster) = start("providers_and_files") else { return };
    let mut session = connect(&cluster);
    appears(&mut session, "file_provider", "file");
    is_gone(&mut session, "keyring_in_data_directory");
    is_gone(&mut session, "secret_file_permissions");
    is_gone(&mut session, "plain_http");
    is_gone(&mut session, "provider_settings");

    let keyring = cluster.directory().join("keyring.json");
    let mode = |mode| fs::set_permissions(&keyring, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o640);
    appears(&mut session, "secret_file_permissions", "file: path");
    mode(0o600);
    is_gone(&mut session, "secret_file_permissions");
    // A link counts for what it leads to.
    std::os::unix::fs::symlink(cluster.data_directory(), cluster.directory().join("link")).unwrap();
    let inside = cluster.directory().join("link/keyring.json");
    fs::copy(&keyring, &inside).unwrap();
    session.run(&format!("SET encryption_ext.keyring_file = '{}'", inside.display()));
    appears(&mut session, "keyring_in_data_directory", "link/keyring.json");
    session.run("RESET encryption_ext.keyring_file");
    is_gone(&mut session, "keyring_in_data_directory");

    let token = cluster.directory().join("token");
    fs::write(&token, "x").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o604)).unwrap();
    session.run(&format!(
        "SET encryption_ext.provider = 'vault'; SET encryption_ext.vault_address = 'http://127.0.0.1:8200';
         SET encryption_ext.vault_token_file = '{}'",
        token.display()
    ));
    appears(&mut session, "plain_http", "vault: address");
    appears(&mut session, "secret_file_permissions", "vault: token_file");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    session.run("SET encryption_ext.vault_address = 'https://127.0.0.1:8200'");
    is_gone(&mut session, "plain_http");
    is_gone(&mut session, "secret_file_permissions");
    session.run("SET encryption_ext.provider = 'nowhere'");
    appears(&mut session, "provider_settings", "nowhere");
    session.run("RESET encryption_ext.provider");
    is_gone(&mut session, "provider_settings");
    assert!(!keyring_file(&cluster).exists());
}

#[test]
fn limits_of_the_operating_system() {
    let test = "limits_of_the_operating_system";
    if !limit("core", "0") {
        return harness::skip(test, "there is no prlimit");
    }
    let Some(mut cluster) = start(test) else { return };
    let use_key = |cluster: &Cluster| {
        let mut session = connect(cluster);
        session.run("SELECT v FROM t LIMIT 1");
        session
    };
    let unlocked = |session: &mut Client| -> i64 {
        session.value("SELECT unlocked_bytes FROM enc_stat_cache")
    };
    let mut session = use_key(&cluster);
    is_gone(&mut session, "core_dumps");
    if unlocked(&mut session) == 0 {
        is_gone(&mut session, "unlocked_memory");
    }
    let former = Command::new("prlimit")
        .args(["--memlock", "--output", "SOFT", "--noheadings"])
        .output()
        .unwrap();
    let former = String::from_utf8(former.stdout).unwrap();
    if !limit("core", "1048576") || !limit("memlock", "0") {
        return harness::skip(test, "limits can't be set");
    }
    cluster.restart();
    limit("core", "0");
    limit("memlock", former.trim());
    let mut session = use_key(&cluster);
    appears(&mut session, "core_dumps", "this session");
    // Who may do as it likes (CAP_IPC_LOCK) locks memory in spite of the limit.
    if unlocked(&mut session) > 0 {
        appears(&mut session, "unlocked_memory", "this session");
    }
}

#[test]
fn connections() {
    let test = "connections";
    let port = free_port();
    let Some(mut cluster) = start_on_port(test, port) else { return };
    let mut session = connect(&cluster);
    for check in ["tls_off", "tls_optional", "superuser_without_tls"] {
        is_gone(&mut session, check);
    }
    cluster.configure("listen_addresses", "127.0.0.1, 0.0.0.0");
    let hba = cluster.data_directory().join("pg_hba.conf");
    let local = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("{local}host all app 10.0.0.0/8 scram-sha-256\n")).unwrap();
    cluster.restart();
    let mut session = connect(&cluster);
    appears(&mut session, "tls_off", "pg_hba.conf, line");
    fs::write(&hba, &local).unwrap();
    is_gone(&mut session, "tls_off");

    // TLS, which then is optional or not.
    let certified = Command::new("openssl")
        .args(["req", "-new", "-x509", "-days", "2", "-nodes", "-subj", "/CN=test", "-out"])
        .arg(cluster.data_directory().join("server.crt"))
        .arg("-keyout")
        .arg(cluster.data_directory().join("server.key"))
        .output()
        .is_ok_and(|output| output.status.success());
    if certified
        && session
            .text("SELECT count(*) FROM pg_settings WHERE name = 'ssl_library' AND setting <> ''")
            == "1"
    {
        let key = cluster.data_directory().join("server.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let owner = fs::metadata(cluster.data_directory()).unwrap();
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(&key, Some(owner.uid()), Some(owner.gid())).unwrap();
        cluster.configure("ssl", "on");
        fs::write(&hba, format!("{local}host all app 10.0.0.0/8 scram-sha-256\n")).unwrap();
        cluster.restart();
        session = connect(&cluster);
        appears(&mut session, "tls_optional", "pg_hba.conf, line");
        is_gone(&mut session, "tls_off");
        fs::write(&hba, format!("{local}hostssl all app 10.0.0.0/8 scram-sha-256\n")).unwrap();
        is_gone(&mut session, "tls_optional");
    } else {
        harness::skip("connections: tls_optional", "there is no openssl, or the server has no TLS");
    }

    let mut over_tcp = postgres::Config::new();
    over_tcp
        .host("127.0.0.1")
        .port(port)
        .user(SUPERUSER)
        .dbname(DATABASE)
        .ssl_mode(postgres::config::SslMode::Disable);
    let over_tcp = over_tcp.connect(NoTls).unwrap();
    appears(&mut session, "superuser_without_tls", "of postgres from 127.0.0.1");
    over_tcp.close().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    is_gone(&mut session, "superuser_without_tls");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn keys_and_their_catalog() {
    let Some(cluster) = start("keys_and_their_catalog") else { return };
    let mut session = connect(&cluster);
    for check in [
        "rotation_due",
        "version_past_grace",
        "grant_to_public",
        "catalog_readable",
        "catalog_writable",
    ] {
        is_gone(&mut session, check);
    }
    session.run("UPDATE encryption.key_version SET activated_at = now() - interval '13 months' WHERE version = 1");
    appears(&mut session, "rotation_due", "version 1 of key \"k\"");
    session.run("SELECT enc_rotate_key('k'), enc_rotate_key('database')");
    is_gone(&mut session, "rotation_due");
    is_gone(&mut session, "version_past_grace");
    session.run("UPDATE encryption.key_version SET deprecated_at = now() - interval '91 days' WHERE version = 1");
    appears(&mut session, "version_past_grace", "version 1 of key \"k\"");
    session.run("SELECT enc_destroy_key_version('k', 1, accept_data_loss => true)");
    assert!(!objects(&mut session, "version_past_grace").join(" ").contains("\"k\""));

    session.run("SELECT enc_grant('k', 'public', 'decrypt')");
    appears(&mut session, "grant_to_public", "key \"k\"");
    session.run("SELECT enc_revoke('k', 'public')");
    is_gone(&mut session, "grant_to_public");

    session.run("CREATE ROLE nosy; GRANT SELECT ON encryption.key_version TO nosy");
    appears(&mut session, "catalog_readable", "encryption.key_version");
    session
        .run("REVOKE SELECT ON encryption.key_version FROM nosy; GRANT pg_read_all_data TO nosy");
    appears(&mut session, "catalog_readable", "nosy");
    session.run("REVOKE pg_read_all_data FROM nosy; GRANT UPDATE ON encryption.key_grant TO nosy");
    is_gone(&mut session, "catalog_readable");
    appears(&mut session, "catalog_writable", "encryption.key_grant");
    session.run("REVOKE UPDATE ON encryption.key_grant FROM nosy; GRANT pg_write_all_data TO nosy");
    appears(&mut session, "catalog_writable", "nosy");
    session.run("REVOKE pg_write_all_data FROM nosy");
    is_gone(&mut session, "catalog_writable");

    // Others than superusers see what they may.
    session.run("CREATE ROLE watcher; GRANT pg_monitor TO watcher; SET ROLE watcher");
    appears(&mut session, "file_provider", "file");
    session.run("RESET ROLE; SET ROLE nosy");
    session.fails("SELECT * FROM enc_security_check()", "42501");
    session.fails("SELECT * FROM encryption.server_findings()", "42501");
}

#[test]
fn columns_and_indexes() {
    let Some(cluster) = start("columns_and_indexes") else { return };
    let mut session = connect(&cluster);
    for check in
        ["plaintext_column", "index_on_few_values", "index_condition", "statistics_of_digests"]
    {
        is_gone(&mut session, check);
    }
    session.run(
        "CREATE TABLE person (id integer, email text, \"Phone_Number\" varchar(20), date_of_birth date, remark text,
                              email_id integer, birth_date character(10), subaddress text)",
    );
    let found = objects(&mut session, "plaintext_column");
    assert_eq!(
        found,
        ["public.person.\"Phone_Number\"", "public.person.birth_date", "public.person.email"]
    );
    session.run("CALL enc_encrypt_column('person', 'email', 'k', 'execute'); ");
    session.run("CALL enc_encrypt_column('person', 'email', 'k', 'finish')");
    session.run("ALTER TABLE person DROP COLUMN \"Phone_Number\", DROP COLUMN birth_date");
    is_gone(&mut session, "plaintext_column");

    session.run(
        "CREATE TABLE few (id integer, colour encrypted_text('k'), name encrypted_text('k'));
         INSERT INTO few SELECT n, (n % 3)::text, n::text FROM generate_series(1, 3000) n;
         CREATE INDEX by_name ON few USING hash (name); CREATE INDEX by_colour ON few USING hash (colour); ANALYZE few",
    );
    assert_eq!(objects(&mut session, "index_on_few_values"), ["public.by_colour"]);
    session.run(
        "DROP INDEX by_colour; CREATE INDEX by_colour ON few (enc_digest(colour)); ANALYZE few",
    );
    assert_eq!(objects(&mut session, "index_on_few_values"), ["public.by_colour"]);
    assert_eq!(objects(&mut session, "statistics_of_digests"), ["public.by_colour"]);
    let remedy = session
        .text("SELECT remedy FROM enc_security_check() WHERE check_name = 'statistics_of_digests'");
    session.run(&format!("SET allow_system_table_mods = on; {remedy}"));
    session.run("ANALYZE few");
    is_gone(&mut session, "statistics_of_digests");
    session.run("DROP INDEX by_colour");
    is_gone(&mut session, "index_on_few_values");

    session.run("CREATE INDEX red ON few (id) WHERE colour = '1'");
    assert_eq!(objects(&mut session, "index_condition"), ["public.red"]);
    session.run("DROP INDEX red; CREATE INDEX red ON few (id) WHERE colour IS NOT NULL AND id > 7");
    println!("{:?}", objects(&mut session, "index_condition"));
}
