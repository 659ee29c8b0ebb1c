//! What operators and auditors are shown, on a standby and while a provider is out of reach.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster_tests::key_server::{READ, READ_ONLY, Setup, fails};
use cluster_tests::replication::{catch_up, replace_by_base_backup};
use cluster_tests::{DATABASE, Session, builder, connect, create_extension, keyring_file};
use harness::cluster::{Cluster, SUPERUSER};
use harness::openbao::{ClientAuthority, OpenBao};
use postgres::Client;

/// The rows that are not `ok`, without the times in them.
fn problems(session: &mut Client) -> Vec<String> {
    let rows = session.texts(
        "SELECT concat_ws(' ', check_name, subject, status,
                          regexp_replace(detail, '\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d UTC', '<time>', 'g'))
           FROM enc_health() WHERE status <> 'ok'",
    );
    rows.into_iter().flatten().collect()
}

#[test]
fn a_standby_answers_for_monitoring_roles() {
    let test = "a_standby_answers_for_monitoring_roles";
    let Some(described) = builder(test) else { return };
    let primary = described.setting("wal_keep_size", "64MB").start();
    create_extension(&primary, DATABASE);
    let mut admin = connect(&primary);
    admin.run(
        "CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
         SELECT enc_create_key('k', purpose => 'a test', labels => '{gdpr}', rotation_period => '1 day');
         CREATE TABLE t (email text, v encrypted_text('k'));
         INSERT INTO t VALUES ('x', 'y')",
    );
    let mut standby = Cluster::builder(cluster_tests::MAJOR).port(5433).create();
    replace_by_base_backup(&standby, &primary, &["--write-recovery-conf"]);
    standby.configure("encryption_ext.keyring_file", keyring_file(&primary).to_str().unwrap());
    standby.start();
    catch_up(&mut admin, &mut connect(&standby));

    let mut session = standby.connect("monitor", DATABASE);
    assert_eq!(session.text("SELECT pg_is_in_recovery()"), "t");
    let stat = "SELECT concat_ws(' ', name, active_version, rotation_period, scope, check_value_ok) FROM enc_stat_key WHERE name = 'k'";
    // A standby that shares keys has fetched them when it was started.
    let known = match session.text("SHOW shared_preload_libraries").as_str() {
        "" => "backend",
        _ => "server t",
    };
    assert_eq!(session.text(stat), format!("k 1 1 day {known}"));
    assert!(session.value::<i64>("SELECT count(*) FROM enc_health()") > 10);
    assert_eq!(problems(&mut session), [""; 0]);
    assert_eq!(session.text("SELECT enc_ready()"), "t");
    let evidence = "SELECT enc_evidence('-infinity', 'infinity')";
    assert_eq!(session.text(&format!("{evidence} ->> 'in_recovery'")), "true");
    assert_eq!(session.text(&format!("{evidence} #>> '{{log,chains,0,ok}}'")), "true");
    assert_eq!(
        session.text(&format!("{evidence} #>> '{{likely_personal_data,0,column}}'")),
        "public.t.email"
    );
    assert!(
        session
            .text("SELECT enc_evidence_markdown('-infinity', 'infinity')")
            .contains("| k | columns | postgres | a test | gdpr | 1 |")
    );

    // What changes something is refused.
    let mut superuser = connect(&standby);
    superuser.fails("SELECT enc_set_key_info('k', purpose => 'x')", "25006");

    // Overdue there as on the primary; a key without an active version there as here.
    admin.run("UPDATE encryption.key_version SET activated_at = now() - interval '2 days'");
    catch_up(&mut admin, &mut connect(&standby));
    assert_eq!(problems(&mut session), ["rotation k warning it was due at <time>"]);
    assert_eq!(session.text("SELECT enc_ready()"), "t");
    admin.run("SELECT enc_disable_key_version('k', 1, force => true)");
    catch_up(&mut admin, &mut connect(&standby));
    let error = session.fails("SELECT enc_ready()", "KE141");
    assert_eq!(
        error.detail(),
        Some("active_version of k: no version is active: nothing can be encrypted.")
    );

    // What a probe sees of it is the exit code.
    let ready = |cluster: &Cluster, user: &str| {
        cluster.psql(user, DATABASE, &["-XAtc", "SELECT enc_ready()"]).status.code()
    };
    assert_eq!(ready(&standby, "monitor"), Some(1));
    admin.run("SELECT enc_enable_key_version('k', 1); SELECT enc_activate_key_version('k', 1)");
    catch_up(&mut admin, &mut connect(&standby));
    assert_eq!(ready(&standby, "monitor"), Some(0));
    assert_eq!(ready(&primary, SUPERUSER), Some(0));
}

#[test]
fn an_outage_shows_with_the_time_of_its_effect() {
    let test = "an_outage_shows_with_the_time_of_its_effect";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    let mut session = setup.connect();
    session.run("SET timezone = 'UTC'; SET encryption_ext.cache_ttl = 1; SET encryption_ext.cache_stale_grace = 8");
    assert_eq!(session.text(READ), "first");
    // (What a literal is made of: so that this session holds all versions.)
    session.run("SELECT 'x'::encrypted_text");
    assert_eq!(problems(&mut session), [""; 0]);
    let fetched = Instant::now();
    setup.server.stop();
    thread::sleep(Duration::from_millis(1100));

    // Statements go on, and readiness with them.
    assert_eq!(session.text(READ), "first");
    session.run("SELECT 'x'::encrypted_text");
    let seen = problems(&mut session);
    println!("{seen:#?}");
    assert_eq!(seen.len(), 3, "{seen:#?}");
    for (key, row) in ["database", "k"].iter().zip(&seen) {
        let expected = format!(
            "cache {key} warning provider \"vault\" has been failing; at this rate statements fail from <time>"
        );
        assert_eq!(*row, expected);
    }
    assert!(seen[2].starts_with("provider vault warning "), "{}", seen[2]);
    assert!(seen[2].contains("could not reach Vault"), "{}", seen[2]);
    assert_eq!(session.text("SELECT enc_ready()"), "t");
    let until = "SELECT abs(extract(epoch FROM usable_until - cached_until) - 8) < 0.001
                    AND extract(epoch FROM usable_until - clock_timestamp()) BETWEEN 0 AND 8
                   FROM enc_stat_key WHERE name = 'k'";
    assert_eq!(session.text(until), "t");
    let said: f64 = session.value(
        "SELECT extract(epoch FROM to_timestamp(substring(detail FROM 'fail from (.*) UTC'), 'YYYY-MM-DD HH24:MI:SS') - clock_timestamp())::float8
           FROM enc_health() WHERE check_name = 'cache' AND subject = 'k'",
    );
    let left = 9.0 - fetched.elapsed().as_secs_f64();
    assert!((said - left).abs() < 1.5, "said {said}, left {left}");

    // At that time they do fail.
    thread::sleep(Duration::from_millis(9200).saturating_sub(fetched.elapsed()));
    for _ in 0..5 {
        drop(session.simple_query(READ).unwrap_err());
    }
    fails(&mut session, READ, "KE080");
    let error = session.fails("SELECT enc_ready()", "KE141");
    let detail = error.detail().unwrap();
    assert!(detail.contains("cache of k: provider \"vault\" has been failing"), "{detail}");
    assert!(detail.contains("provider of vault: "), "{detail}");

    // Until the provider is back.
    setup.server.restart();
    let back = Instant::now();
    while session.simple_query(READ).is_err() {
        assert!(back.elapsed() < Duration::from_secs(30), "the breaker doesn't close");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(problems(&mut session), [""; 0]);
    assert_eq!(session.text("SELECT enc_ready()"), "t");

    // A login that fails is told as what it is.
    let mut login = setup.connect();
    login.run("SET encryption_ext.cache_ttl = 1; SET encryption_ext.cache_stale_grace = 60");
    assert_eq!(login.text(READ), "first");
    setup.server.revoke(std::fs::read_to_string(setup.file("token")).unwrap().trim());
    thread::sleep(Duration::from_millis(1200));
    assert_eq!(login.text(READ), "first");
    let logins = problems(&mut login);
    assert!(logins.iter().any(|row| row.starts_with("login vault warning ")), "{logins:#?}");
}

#[test]
fn a_certificate_that_ends_soon_is_told() {
    let test = "a_certificate_that_ends_soon_is_told";
    let Some(mut setup) = Setup::with_key(test, OpenBao::start_with_tls, READ_ONLY) else { return };
    let (certificate, key) = ClientAuthority::new().sign("db1");
    let certificate = setup.write("client.pem", &certificate);
    let key = setup.write("client.key", &key);
    setup.configure_file("vault_client_certificate_file", &certificate);
    setup.configure_file("vault_client_key_file", &key);
    setup.cluster.configure("shared_preload_libraries", "encryption_ext");
    setup.cluster.configure("encryption_ext.warm_up", "off");
    setup.cluster.configure("timezone", "UTC");
    setup.cluster.restart();
    connect(&setup.cluster).run("CREATE ROLE monitor LOGIN IN ROLE pg_monitor");
    let mut monitor = setup.cluster.connect("monitor", DATABASE);
    let certificates = "SELECT concat_ws('|', check_name, status, detail) FROM enc_health()
                         WHERE check_name ~ 'certificate' AND subject = 'vault' ORDER BY check_name";

    // Nobody has asked yet, and the view doesn't.
    let known =
        "SELECT num_nulls(certificate_expires, client_certificate_expires) FROM enc_stat_provider";
    assert_eq!(monitor.value::<i32>(known), 2);
    let rows = monitor.texts(certificates);
    assert_eq!(rows, [Some("certificate|ok|none was used by this server".to_owned())]);

    // A monitoring session sees what the requests of another have shown.
    let mut reader = setup.connect();
    assert_eq!(reader.text(READ), "first");
    let ends_text = "SELECT concat_ws('|', certificate_expires, client_certificate_expires) FROM enc_stat_provider";
    assert_eq!(monitor.text(ends_text), "4096-01-01 00:00:00+00|4096-01-01 00:00:00+00");
    let end = "ends at 4096-01-01 00:00:00 UTC";
    let expected = [
        format!("certificate|ok|the certificate of its server {end}"),
        format!("client_certificate|ok|the certificate that it is shown {end}"),
    ];
    assert_eq!(monitor.texts(certificates).into_iter().flatten().collect::<Vec<_>>(), expected);

    // What all sessions share is told as what the server knows.
    let told = "SELECT count(*) FILTER (WHERE detail LIKE '%this server%') > 5
                       AND count(*) FILTER (WHERE detail LIKE '%session%') = 0 FROM enc_health()";
    assert_eq!(monitor.text(told), "t");

    // Replaced at the server by one that ends on another day.
    let mut replace = |ends: SystemTime| {
        setup.server.replace_certificate(ends);
        let seconds = ends.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let is_seen = format!(
            "SELECT certificate_expires = to_timestamp({seconds}) FROM enc_stat_provider WHERE provider = 'vault'"
        );
        let started = Instant::now();
        while monitor.text(&is_seen) != "t" {
            assert!(started.elapsed() < Duration::from_secs(20), "{}", monitor.text(ends_text));
            thread::sleep(Duration::from_millis(50));
            reader.run("SELECT enc_flush_cache()");
            drop(reader.simple_query(READ));
        }
        let rows = monitor.texts(
            "SELECT concat_ws('|', status, regexp_replace(detail, ' at .*', ''), remedy) FROM enc_health()
              WHERE check_name = 'certificate'",
        );
        rows.into_iter().flatten().collect::<Vec<_>>()
    };
    let day = Duration::from_secs(86_400);
    let remedy =
        "Renew it at the server, and SELECT * FROM enc_check_provider('vault');".to_owned();
    let now = SystemTime::now();
    assert_eq!(replace(now + 8 * day), ["ok|the certificate of its server ends"]);
    let soon = format!("warning|the certificate of its server ends|{remedy}");
    assert_eq!(replace(now + 3 * day), [soon]);
    // One that has ended isn't accepted, and its end is told all the same.
    let ended = format!("warning|the certificate of its server ended|{remedy}");
    assert_eq!(replace(now - day), [ended]);
    let refused = "SELECT concat_ws(' ', errors_unreachable > 0, last_failure > last_success) FROM enc_stat_provider";
    assert_eq!(connect(&setup.cluster).text(refused), "t t");
    assert_eq!(replace(now + 8 * day), ["ok|the certificate of its server ends"]);
}

#[test]
fn what_is_said_of_a_key_is_dumped_and_restored() {
    let Some(cluster) = cluster_tests::start("what_is_said_of_a_key_is_dumped_and_restored") else {
        return;
    };
    let mut session = connect(&cluster);
    session.run(
        "SELECT enc_create_key('k', purpose => 'a test €', labels => '{pci,gdpr}', rotation_period => '90 days');
         SELECT enc_create_key('plain')",
    );
    const INFO: &str =
        "SELECT concat_ws('|', name, purpose, labels, rotation_period) FROM enc_keys ORDER BY name";
    let expected = session.texts(INFO);
    session.run(cluster_tests::NO_RAW_CASTS);
    let dump = cluster.command("pg_dump").args(["--format=custom", "--file=db.dump"]).output();
    assert!(dump.unwrap().status.success());
    session.run("CREATE DATABASE copy");
    for _ in 0..2 {
        let restored = cluster
            .command("pg_restore")
            .args(["--dbname=copy", "--clean", "--if-exists", "db.dump"])
            .output();
        let restored = restored.unwrap();
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        let mut copy = cluster.connect(SUPERUSER, "copy");
        assert_eq!(copy.texts(INFO), expected);
        // What is there stays when a dump meets it.
        copy.run("SELECT enc_set_key_info('k', purpose => 'there', labels => '{}')");
        let data = ["--dbname=copy", "--data-only", "db.dump"];
        let again = cluster.command("pg_restore").args(data).output().unwrap();
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        let there = copy.text("SELECT purpose FROM enc_keys WHERE name = 'k'");
        assert_eq!(there, "there");
    }
}
