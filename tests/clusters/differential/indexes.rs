//! Indexes on the encrypted tables, some at a time, and whether queries used them.

use std::collections::BTreeMap;
use std::fmt::Write;

use cluster_tests::Session;
use fastrand::Rng;
use postgres::Client;

/// By name, what follows `CREATE … INDEX name`.
const INDEXES: [(&str, &str); 17] = [
    ("t_a_hash", "ON t USING hash (a)"),
    ("t_b_hash", "ON t USING hash (b)"),
    ("t_i_hash", "ON t USING hash (i)"),
    ("t_bin_hash", "ON t USING hash (bin)"),
    ("t_a_hash_partial", "ON t USING hash (a) WHERE id % 2 = 0"),
    ("t_coalesce_hash", "ON t USING hash (coalesce(a, b))"),
    ("t_case_hash", "ON t USING hash ((CASE WHEN n < 50 THEN a END))"),
    ("u_a_hash", "ON u USING hash (a)"),
    ("u_c_hash", "ON u USING hash (c)"),
    ("r_a_hash", "ON r USING hash (a)"),
    ("t_a_digest", "ON t (enc_digest(a))"),
    ("t_b_digest", "ON t (enc_digest(b)) WHERE b IS NOT NULL"),
    ("t_w_digest", "ON t (enc_digest(w))"),
    ("t_bin_digest", "ON t (enc_digest(bin), n)"),
    ("u_a_digest", "ON u (enc_digest(a))"),
    ("u_c_digest", "ON u (enc_digest(c)) INCLUDE (id)"),
    ("r_a_digest", "ON r (enc_digest(a))"),
];

/// Those that exist, and what they were used for.
#[derive(Default)]
pub struct Indexes {
    existing: Vec<&'static str>,
    changes: usize,
    scans: BTreeMap<&'static str, i64>,
}

impl Indexes {
    /// Puts others in the place of those that exist.
    pub fn change(&mut self, session: &mut Client, rng: &mut Rng) {
        self.drop_all(session);
        self.changes += 1;
        for (n, (name, definition)) in INDEXES.into_iter().enumerate() {
            // Each has its turn, whatever else is drawn.
            if (n + self.changes).is_multiple_of(4) || rng.u32(..4) == 0 {
                let unique = if name == "t_w_digest" { "UNIQUE" } else { "" };
                session.run(&format!("CREATE {unique} INDEX {name} {definition}"));
                self.existing.push(name);
            }
        }
        if rng.bool() {
            session.run("ANALYZE t, u, r");
        }
    }

    /// Drops those that exist, and counts how often they were scanned.
    pub fn drop_all(&mut self, session: &mut Client) {
        session.run("RESET ALL; SET search_path = encrypted, public");
        session.run("SELECT pg_stat_force_next_flush()");
        for name in self.existing.drain(..) {
            // An index of a partitioned table has its scans in those of the partitions.
            let scans: i64 = session.value(&format!(
                "SELECT coalesce(sum(pg_stat_get_numscans(index)), 0)::bigint
                   FROM (SELECT '{name}'::regclass AS index
                         UNION SELECT relid FROM pg_partition_tree('{name}')) AS indexes"
            ));
            *self.scans.entry(name).or_default() += scans;
            session.run(&format!("DROP INDEX {name}"));
        }
    }

    pub fn report(&self) -> String {
        let mut report = String::new();
        for (name, scans) in &self.scans {
            writeln!(report, "{name:<16} {scans:>6} scans").unwrap();
        }
        report
    }

    /// Both kinds must have answered queries.
    pub fn assert_used(&self) {
        for kind in ["_hash", "_digest"] {
            let scans = self.scans.iter().filter(|(name, _)| name.contains(kind));
            let scans: i64 = scans.map(|(_, scans)| scans).sum();
            assert!(scans > 200, "indexes {kind} were hardly used: {scans} scans");
        }
    }
}
