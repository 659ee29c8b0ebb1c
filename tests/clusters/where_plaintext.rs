//! Where plaintext can appear: a thousand plaintexts in encrypted columns, and the same number in plain
//! ones, are searched for in every place that a server writes to or sends to. docs/threat-model.md has the
//! table of what is found.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use cluster_tests::{
    Binary, DATABASE, Session, builder, connect, contains_any, create_extension, data_key, files,
    hex,
};
use harness::cluster::{Cluster, backend_pid};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::Client;

/// How many plaintexts there are.
const COUNT: usize = 1000;

/// How the values are sent to the server.
#[derive(Clone, Copy, PartialEq)]
enum Sent {
    AsParameters,
    AsLiterals,
}

/// Texts that are searched for, in all the forms in which they may be written.
struct Needles {
    automaton: AhoCorasick,
    /// Which text a pattern is of.
    text_of: Vec<usize>,
}

impl Needles {
    fn new(texts: &[String]) -> Self {
        let mut patterns: Vec<Vec<u8>> = Vec::new();
        let mut text_of = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            // The last digits in base64 depend on what follows.
            let base64 = STANDARD_NO_PAD.encode(text);
            let base64 = base64[..text.len() / 3 * 4].to_owned();
            for form in
                [text.clone(), base64, hex(text.as_bytes()), hex(text.as_bytes()).to_uppercase()]
            {
                patterns.push(form.into_bytes());
                text_of.push(n);
            }
        }
        Self { automaton: AhoCorasick::new(patterns).unwrap(), text_of }
    }

    /// How many of the texts are in the bytes.
    fn count(&self, haystacks: &[Vec<u8>]) -> usize {
        let mut found = BTreeSet::new();
        for haystack in haystacks {
            let matches = self.automaton.find_iter(haystack);
            found.extend(matches.map(|found| self.text_of[found.pattern().as_usize()]));
        }
        found.len()
    }
}

/// What is found of encrypted and of plain columns, place by place.
struct Report {
    secrets: Needles,
    controls: Needles,
    rows: Vec<(&'static str, usize)>,
}

impl Report {
    /// Searches a place, in which values of plain columns must be.
    #[track_caller]
    fn search(&mut self, place: &'static str, haystacks: &[Vec<u8>]) {
        let controls = self.controls.count(haystacks);
        assert!(controls > 0, "{place}: the search finds nothing of a plain column");
        self.search_only(place, haystacks);
    }

    /// Searches a place for values of encrypted columns alone.
    fn search_only(&mut self, place: &'static str, haystacks: &[Vec<u8>]) {
        let found = self.secrets.count(haystacks);
        self.rows.push((place, found));
    }
}

/// The contents of all files below a folder. One may vanish meanwhile.
fn contents(folder: &Path) -> Vec<Vec<u8>> {
    files(folder).iter().filter_map(|file| fs::read(file).ok()).collect()
}

/// The files of relations, their forks and segments.
fn relation_files(cluster: &Cluster, session: &mut Client, relations: &str) -> Vec<Vec<u8>> {
    let paths =
        session.texts(&format!("SELECT pg_relation_filepath(oid) FROM ({relations}) AS r (oid)"));
    let paths: Vec<PathBuf> =
        paths.iter().flatten().map(|path| cluster.data_directory().join(path)).collect();
    assert!(!paths.is_empty());
    let of_relation = |file: &PathBuf| {
        let name = file.to_str().unwrap();
        paths.iter().any(|path| {
            let rest = name.strip_prefix(path.to_str().unwrap());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '.']))
        })
    };
    let all = files(&cluster.data_directory().join("base"));
    all.iter().filter(|file| of_relation(file)).map(|file| fs::read(file).unwrap()).collect()
}

/// A port that leads to a server's, and all that passes.
struct Wire {
    port: u16,
    passed: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    fn tap(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let passed = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&passed);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let (client_too, server_too) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                for (mut from, mut to) in [(client, server), (server_too, client_too)] {
                    let record = Arc::clone(&record);
                    thread::spawn(move || {
                        let mut buffer = [0; 65536];
                        while let Ok(len @ 1..) = from.read(&mut buffer) {
                            record.lock().unwrap().extend(&buffer[..len]);
                            if to.write_all(&buffer[..len]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { port, passed }
    }

    fn passed(&self) -> Vec<u8> {
        self.passed.lock().unwrap().clone()
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sets the soft limit of core files for this process and what it starts.
fn allow_core_files(allow: bool) -> bool {
    let limit = if allow { "--core=unlimited:" } else { "--core=0:" };
    let pid = std::process::id().to_string();
    Command::new("prlimit")
        .args(["--pid", &pid, limit])
        .status()
        .is_ok_and(|status| status.success())
}

/// Plants the values, makes each place appear, and searches it.
fn run(test: &str, sent: Sent) -> Option<Vec<(&'static str, usize)>> {
    let port = free_port();
    let has_core_files = allow_core_files(true);
    let builder = builder(test)?
        .port(port)
        .log_level("debug5")
        .setting("listen_addresses", "127.0.0.1")
        .setting("log_error_verbosity", "verbose")
        .setting("log_statement", "all")
        .setting("log_min_duration_statement", "0")
        // What a parameter's value is, is nobody's business but the client's.
        .setting("log_parameter_max_length", "0")
        .setting("log_parameter_max_length_on_error", "0")
        .setting("track_activity_query_size", "200kB")
        .setting("wal_level", "logical")
        .setting("wal_compression", "off");
    let cluster = builder.start();
    allow_core_files(false);
    create_extension(&cluster, DATABASE);
    let mut session = connect(&cluster);
    let word = |n: usize| format!("{:016x}", (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let secrets: Vec<_> = (0..COUNT).map(|n| format!("nEEdle/{n}/{}", word(n))).collect();
    let controls: Vec<_> = (0..COUNT).map(|n| format!("cOntrol/{n}/{}", word(n + COUNT))).collect();
    let mut report = Report {
        secrets: Needles::new(&secrets),
        controls: Needles::new(&controls),
        rows: Vec::new(),
    };
    session.run(
        "SELECT enc_create_key('k');
         CREATE TABLE t (id integer PRIMARY KEY, v encrypted_text('k'), b encrypted_bytea('k'), long encrypted_text('k'),
                         plain text, plain_long text);
         ALTER TABLE t ALTER plain_long SET STORAGE EXTERNAL;
         ALTER TABLE t REPLICA IDENTITY FULL;
         CREATE INDEX ON t USING hash (v); CREATE INDEX ON t (enc_digest(v)); CREATE INDEX ON t (plain) INCLUDE (b)",
    );
    session.run("SELECT pg_create_logical_replication_slot('slot', 'test_decoding')");
    session.run("SELECT pg_create_physical_replication_slot('all', true)");

    // Everything below is written again by an update, so that streams and WAL have it twice.
    let insert = session.prepare("INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6)").unwrap();
    let padding = "-".repeat(3000);
    for n in 0..COUNT {
        let (secret, control) = (&secrets[n], &controls[n]);
        let (long, plain_long) = (format!("{secret}{padding}"), format!("{control}{padding}"));
        match sent {
            Sent::AsParameters => {
                let binary = |text: &str| Binary(text.as_bytes().to_vec());
                let (v, b, long) = (binary(secret), binary(secret), binary(&long));
                let id = i32::try_from(n).unwrap();
                session.execute(&insert, &[&id, &v, &b, &long, &control, &plain_long]).unwrap();
            }
            Sent::AsLiterals => session.run(&format!(
                "INSERT INTO t VALUES ({n}, '{secret}', '{secret}', '{long}', '{control}', '{plain_long}')"
            )),
        }
    }
    session.run("UPDATE t SET id = id + 10000; ANALYZE t; CHECKPOINT");

    let data = cluster.data_directory();
    report.search("heap", &relation_files(&cluster, &mut session, "SELECT 't'::regclass"));
    report.search(
        "TOAST",
        &relation_files(
            &cluster,
            &mut session,
            "SELECT reltoastrelid FROM pg_class WHERE oid = 't'::regclass",
        ),
    );
    report.search(
        "index",
        &relation_files(
            &cluster,
            &mut session,
            "SELECT indexrelid FROM pg_index WHERE indrelid = 't'::regclass",
        ),
    );
    report.search("WAL", &contents(&data.join("pg_wal")));

    // Temporary files are there as long as their cursor is open.
    session.run("SET work_mem = '64kB'; SET hash_mem_multiplier = 1; SET max_parallel_workers_per_gather = 0");
    for (place, settings, query) in [
        (
            "temporary files of sorts",
            "SET enable_hashjoin = on",
            "SELECT v, b, plain FROM t, generate_series(1, 20) ORDER BY v",
        ),
        (
            "temporary files of hash joins",
            "SET enable_mergejoin = off; SET enable_nestloop = off",
            "SELECT l.v, l.b, l.plain, r.v, r.b, r.plain FROM t l, (SELECT * FROM t, generate_series(1, 20)) r WHERE l.v = r.v",
        ),
        (
            "temporary files of tuplestores",
            "SET enable_sort = on",
            "SELECT v, b, plain, count(*) OVER () FROM t, generate_series(1, 20)",
        ),
        (
            "temporary files of a sort by what is decrypted (v::text)",
            "SET enable_sort = on",
            "SELECT v::text, plain FROM t, generate_series(1, 20) ORDER BY v::text",
        ),
    ] {
        session.run(&format!("{settings}; BEGIN; DECLARE c CURSOR FOR {query}; MOVE 1 FROM c"));
        let temporary = contents(&data.join("base/pgsql_tmp"));
        assert!(!temporary.is_empty(), "{query} writes no temporary file");
        report.search(place, &temporary);
        session.run("ROLLBACK");
    }
    session.run("RESET ALL");

    let statistics =
        "SELECT string_agg(s::text, ' ') FROM pg_stats s WHERE tablename <> 'pg_statistic'";
    report.search("pg_stats", &[session.text(statistics).into_bytes()]);

    let dump = cluster.command("pg_dump").output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    report.search("dump", &[dump.stdout]);

    // What a superuser's standby and subscriber are sent, on its way.
    let wire = Wire::tap(port);
    let over_wire = |program: &str| {
        let mut command = cluster.command(program);
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", wire.port.to_string())
            .env("PGSSLMODE", "disable")
            // Decoding has much to say at that level, and nothing else to be searched for.
            .env("PGOPTIONS", "-c log_min_messages=warning");
        command
    };
    let folder = cluster.directory().join("received");
    let backup = over_wire("pg_basebackup")
        .arg("--pgdata")
        .arg(&folder)
        .args(["--wal-method=stream", "--no-sync", "--checkpoint=fast"])
        .output();
    let backup = backup.unwrap();
    assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
    report.search("base backup", &contents(&folder));
    report.search("base backup on the wire", &[wire.passed()]);
    wire.passed.lock().unwrap().clear();
    let end = session.text("SELECT pg_current_wal_lsn()");
    let received = over_wire("pg_recvlogical")
        .args([
            "--dbname",
            DATABASE,
            "--slot",
            "slot",
            "--start",
            "--file",
            "/dev/null",
            "--endpos",
            &end,
            "--no-loop",
        ])
        .output()
        .unwrap();
    assert!(received.status.success(), "{}", String::from_utf8_lossy(&received.stderr));
    report.search("logical replication on the wire", &[wire.passed()]);
    wire.passed.lock().unwrap().clear();
    let folder = cluster.directory().join("wal");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let received = over_wire("pg_receivewal")
        .arg("--directory")
        .arg(&folder)
        .args(["--slot", "all", "--endpos", &end, "--no-loop"])
        .output()
        .unwrap();
    assert!(received.status.success(), "{}", String::from_utf8_lossy(&received.stderr));
    report.search("physical replication on the wire", &[wire.passed()]);

    // What others see of a session at work.
    let (mut working, mut watching) = (connect(&cluster), connect(&cluster));
    let pid = backend_pid(&mut working);
    let texts = secrets.clone();
    let work = thread::spawn(move || {
        match sent {
            Sent::AsParameters => {
                let query = "SELECT count(*), pg_sleep(2) FROM t WHERE v = ANY ($1::text[])";
                drop(working.query(query, &[&texts]).unwrap());
            }
            Sent::AsLiterals => {
                let list = texts.iter().fold(String::new(), |mut list, text| {
                    let _ = write!(list, "'{text}',");
                    list
                });
                working.run(&format!("SELECT count(*), pg_sleep(2) FROM t WHERE v IN ({list}'')"));
            }
        }
        working
    });
    thread::sleep(Duration::from_millis(1000));
    let activity =
        format!("SELECT query FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'");
    report.search_only("pg_stat_activity", &[watching.text(&activity).into_bytes()]);
    let mut working = work.join().unwrap();

    // Errors that quote values, with all that the log can be told of them.
    working.run("SET log_min_error_statement = panic; SET log_statement = none; SET log_min_duration_statement = -1");
    for (n, secret) in secrets.iter().enumerate() {
        let id = n + 10_000;
        drop(working.simple_query(&format!("UPDATE t SET id = NULL WHERE id = {id}")));
        drop(working.simple_query(&format!("SELECT v::text::date FROM t WHERE id = {id}")));
        let mut copy = working.copy_in("COPY t FROM STDIN").unwrap();
        copy.write_all(format!("{id}\t{secret}\n").as_bytes()).unwrap();
        drop(copy.finish());
    }
    drop(working.simple_query("INSERT INTO t (id, plain) SELECT id, plain FROM t"));
    report.search_only("server log at its most verbose", &[cluster.log().into_bytes()]);

    // Last, since the server restarts after it.
    match has_core_files.then(|| core_of_killed(&cluster)).flatten() {
        Some(core) => {
            for name in ["k", "database"] {
                let key = data_key(&cluster, name, 1);
                let forms = [key.to_vec(), STANDARD_NO_PAD.encode(key).into_bytes()];
                assert!(!contains_any(&core, &forms), "key \"{name}\" is in a core file");
            }
            report.search(CORE, &[core]);
        }
        None => harness::skip(test, "a killed backend leaves no core file on this machine"),
    }
    Some(report.rows)
}

const CORE: &str = "core file of a killed backend";

/// The core file of a backend that has just read all values.
fn core_of_killed(cluster: &Cluster) -> Option<Vec<u8>> {
    let mut session = connect(cluster);
    session.query("SELECT v, b, plain FROM t", &[]).unwrap();
    kill(Pid::from_raw(backend_pid(&mut session)), Signal::SIGABRT).unwrap();
    let is_core = |file: &PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core"))
    };
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        // The server says how the process ended once the file was written.
        let is_over = cluster.log().contains("was terminated by signal 6");
        let core = files(&cluster.data_directory()).into_iter().find(is_core);
        if let (true, Some(core)) = (is_over, core) {
            return Some(fs::read(core).unwrap());
        }
        thread::sleep(Duration::from_millis(50));
    }
    None
}

/// The table of the document: a place, and what is found if values are sent as parameters, and as
/// literals.
fn documented() -> Vec<[String; 3]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/threat-model.md");
    let document = fs::read_to_string(path).unwrap();
    let rows = document.lines().skip_while(|line| !line.starts_with("| place |"));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<_> =
            row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
        [cells[0].clone(), cells[1].clone(), cells[2].clone()]
    })
    .collect()
}

/// As the document says it: all, none, or some, where their number is a matter of chance.
fn in_words(found: usize) -> &'static str {
    match found {
        0 => "0",
        COUNT => "1,000",
        _ => "some",
    }
}

#[test]
fn plaintext_is_where_the_document_says() {
    let test = "plaintext_is_where_the_document_says";
    let Some(parameters) = run(test, Sent::AsParameters) else { return };
    let Some(literals) = run(test, Sent::AsLiterals) else { return };
    let documented = documented();
    let mut table = String::new();
    for ((place, found), (same, found_literals)) in parameters.iter().zip(&literals) {
        assert_eq!(place, same);
        let _ = writeln!(table, "| {place} | {found} | {found_literals} |");
    }
    println!("{table}");
    for ((place, found), (_, found_literals)) in parameters.iter().zip(&literals) {
        let row = documented.iter().find(|row| row[0] == *place);
        let row = row.unwrap_or_else(|| panic!("the document has no row {place:?}"));
        // In a core file it may be any, but never none.
        let agrees = |found: usize, said: &str| match said {
            "some" => found > 0,
            _ => said == in_words(found),
        };
        assert!(agrees(*found, &row[1]) && agrees(*found_literals, &row[2]), "{row:?}: {table}");
    }
    let places = |place: &str| parameters.iter().any(|(each, _)| *each == place) || place == CORE;
    for [place, ..] in &documented {
        assert!(places(place), "the document has a row {place:?} that is not searched");
    }
}
