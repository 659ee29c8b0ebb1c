//! What a program complains of, without what looks like a secret.
//!
//! Programs print what they were given: a key that they could not parse, a token that was refused, a
//! whole request. What is shown has none of
//!
//! * 16 or more digits of base16 in groups, as in `01:23:45` and in hex dumps,
//! * what follows `password=`, `token:` and the like, `Bearer` and `Basic`,
//! * words that begin as tokens of Vault and access keys of AWS do,
//! * runs of 16 or more characters of base64, base64url and base16, unless they look like a path,
//! * control characters.
//!
//! It is a net, not a proof: a program that handles keys should not print them.

use zeroize::Zeroizing;

/// How much is shown, in characters.
const MAX_LEN: usize = 300;

/// What stands for what was removed.
const REMOVED: &str = "[removed]";

/// From this length on, in characters, what could be a key is taken for one: 64 bits in base16.
const KEY_LEN: usize = 16;

/// What names end with whose values are secret.
const SECRET_NAMES: [&str; 9] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "pin",
    "credential",
    "credentials",
    "authorization",
];

/// What is followed by a secret in an `Authorization` header.
const SCHEMES: [&str; 2] = ["bearer", "basic"];

/// What Vault's tokens (the first six) and AWS's access keys begin with.
const TOKEN_PREFIXES: [&str; 8] = ["hvs.", "hvb.", "hvr.", "s.", "b.", "r.", "AKIA", "ASIA"];

/// The end of what a program printed, on one line.
pub(super) fn redact(printed: &[u8]) -> String {
    let text = Zeroizing::new(readable(printed));
    let text = Zeroizing::new(without_groups(&text));
    let text = Zeroizing::new(without_named(&text));
    let text = Zeroizing::new(without_runs(&text));
    end(&text)
}

fn readable(printed: &[u8]) -> String {
    let mut text = String::with_capacity(printed.len() * 3);
    for c in String::from_utf8_lossy(printed).chars() {
        match c {
            c if c.is_ascii_graphic() || c.is_alphanumeric() => text.push(c),
            c if c.is_whitespace() => text.push(' '),
            // Nothing, not a space: text in UTF-16 has a NUL after each character.
            _ => {}
        }
    }
    text
}

/// Without digits of base16 in groups.
fn without_groups(text: &str) -> String {
    const SEPARATORS: [char; 6] = [' ', ':', ',', '-', '[', ']'];

    let mut result = String::with_capacity(text.len());
    let mut groups = Zeroizing::new(String::with_capacity(text.len()));
    let mut digits = 0;
    for piece in text.split_inclusive(SEPARATORS) {
        let group = piece.trim_end_matches(SEPARATORS);
        let is_group = group.bytes().all(|b| b.is_ascii_hexdigit());
        if is_group {
            groups.push_str(piece);
            digits += group.len();
        } else {
            push_groups(&mut result, &groups, digits);
            result.push_str(piece);
            groups.clear();
            digits = 0;
        }
    }
    push_groups(&mut result, &groups, digits);
    result
}

fn push_groups(result: &mut String, groups: &str, digits: usize) {
    match digits >= KEY_LEN {
        true if groups.starts_with(' ') => result.extend([" ", REMOVED, " "]),
        true => result.extend([REMOVED, " "]),
        false => result.push_str(groups),
    }
}

/// Without what has a name or a beginning that says that it is secret.
fn without_named(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut is_next_secret = false;
    for word in text.split_whitespace() {
        let secret = if is_next_secret { Some(0) } else { start_of_secret(word) };
        let value = word[secret.unwrap_or(0)..].trim_matches(|c: char| !c.is_alphanumeric());
        let is_scheme = SCHEMES.iter().any(|scheme| value.eq_ignore_ascii_case(scheme));
        match secret {
            Some(at) if at < word.len() && !is_scheme => result.extend([&word[..at], REMOVED]),
            _ => result.push_str(word),
        }
        result.push(' ');
        is_next_secret = is_scheme || secret == Some(word.len());
    }
    result
}

/// Where in a word something secret begins; at its end if the next word is.
fn start_of_secret(word: &str) -> Option<usize> {
    let is_delimiter = |c: char| !c.is_alphanumeric() && !"._-".contains(c);
    let of_prefix = TOKEN_PREFIXES.iter().filter_map(|prefix| {
        let begins = |at: usize| word[..at].chars().next_back().is_none_or(is_delimiter);
        word.match_indices(prefix).map(|(at, _)| at).find(|at| begins(*at))
    });
    let of_name = word.match_indices(['=', ':']).map(|(at, _)| at).find_map(|at| {
        let name = word[..at].trim_end_matches(is_delimiter);
        let name = &name[name.rfind(|c: char| !c.is_alphanumeric()).map_or(0, |before| {
            before + name[before..].chars().next().map_or(1, char::len_utf8)
        })..];
        ends_with_any(&SECRET_NAMES, name).then_some(at + 1)
    });
    of_prefix.chain(of_name).min()
}

/// Names are written together too: `accessToken`.
fn ends_with_any(candidates: &[&str], name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    candidates.iter().any(|candidate| name.ends_with(candidate))
}

/// Without long runs of what could be base64.
fn without_runs(text: &str) -> String {
    let is_digit = |c: char| c.is_ascii_alphanumeric() || "+/_-=".contains(c);
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_digit) {
        let (before, from) = rest.split_at(start);
        let (run, after) = from.split_at(from.find(|c| !is_digit(c)).unwrap_or(from.len()));
        result.push_str(before);
        result.push_str(if run.len() < KEY_LEN || is_path(run) { run } else { REMOVED });
        rest = after;
    }
    result.push_str(rest);
    result
}

/// Whether a run of base64 digits is more likely a path: slashes and short names in lower case. Of 16
/// random digits one in a million is like that.
fn is_path(run: &str) -> bool {
    run.contains('/')
        && run.bytes().all(|b| b.is_ascii_lowercase() || b"/_-".contains(&b))
        && run.split('/').all(|name| name.len() < KEY_LEN)
}

/// The last characters, with single spaces.
fn end(text: &str) -> String {
    let text = Zeroizing::new(text.split_whitespace().collect::<Vec<_>>().join(" "));
    match text.char_indices().rev().nth(MAX_LEN) {
        None => text.to_string(),
        Some((before, c)) => format!("...{}", &text[before + c.len_utf8()..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn shows(printed: &str, shown: &str) {
        assert_eq!(redact(printed.as_bytes()), shown);
    }

    #[test]
    fn what_helps_is_shown() {
        for text in [
            "",
            "Error: connection refused",
            "cat: /etc/postgresql/keys/user_pii.2: No such file or directory",
            "2026-11-24 04:45:16 access denied (code 403)",
            "2026-11-24T04:45:16Z dial tcp 127.0.0.1:8200: i/o timeout",
            "Schlüssel fehlt",
            "no such key: user_pii, version 3",
        ] {
            shows(text, text);
        }
        shows("one\ntwo\r\n\tthree\n", "one two three");
    }

    #[test]
    fn keys_are_not() {
        let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let base16 = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        for key in [base64, &base64[..16], base16, &base16[..16], "abcdefabcdefabcdef"] {
            shows(&format!("bad key {key}."), "bad key [removed].");
            shows(&format!("key={key}"), "[removed]");
            shows(&format!("{{\"key\":\"{key}\"}}"), "{\"key\":\"[removed]\"}");
        }
        shows("/+ab/cdefghijklmnopq/", "[removed]");
        shows("/ab/cdefghijklmnopqrs", "[removed]");
        shows("correct-horse-battery-staple", "[removed]");
        shows("UTF-16: A\0B\0C\0D\0E\0F\0G\0H\0I\0J\0K\0L\0M\0N\0O\0P\0", "UTF-16: [removed]");
    }

    #[test]
    fn nor_are_dumps_of_them() {
        shows("key: 00:01:02:03:04:05:06:07 end", "key: [removed] end");
        shows("00000000 0001 0203 0405 0607 0809 ..", "[removed] ..");
        shows("[0 1 2 3 4 5 6 7 8 9 10 11 12] x", "[removed] x");
        shows("[200, 1, 12, 99, 33, 45, 1, 255, 0, 17]", "[removed]");
    }

    #[test]
    fn nor_is_what_is_said_to_be_secret() {
        shows("password=hunter2 user=x", "password=[removed] user=x");
        shows("--db-password=hunter2,a", "--db-password=[removed]");
        shows("Password: hunter2 rejected", "Password: [removed] rejected");
        shows("\"accessToken\": \"hunter2\" x", "\"accessToken\": [removed] x");
        shows("{\"accessToken\":\"hunter2\"}", "{\"accessToken\":[removed]");
        shows("X-Vault-Token:hunter2", "X-Vault-Token:[removed]");
        shows("Authorization: Bearer hunter2 x", "Authorization: Bearer [removed] x");
        // The first word is as long as a key, and so looks like one.
        shows("authorization=basic hunter2 x", "[removed] [removed] x");
        shows("(bearer) hunter2 x", "(bearer) [removed] x");
        shows("invalid PIN: 1234", "invalid PIN: [removed]");
    }

    #[test]
    fn nor_are_tokens() {
        for token in ["s.a1", "hvs.a1", "hvb.x", "b.y", "r.z", "AKIA1", "ASIA2"] {
            shows(&format!("bad {token} x"), "bad [removed] x");
            shows(&format!("bad \"{token}\""), "bad \"[removed]");
            shows(&format!("bad=({token})"), "bad=([removed]");
        }
        shows("these are words. They end.", "these are words. They end.");
    }

    #[test]
    fn it_is_short_and_printable() {
        let long = redact(format!("secret {}", "word ".repeat(1000)).as_bytes());
        assert_eq!(long.len(), 3 + MAX_LEN);
        assert!(long.ends_with(" word word"), "{long}");
        let odd = redact(b"\x1b[31mred\x07 \xff\xfe \xe2\x80\xae ok\x00");
        assert_eq!(odd, "[31mred ok");
        // What is cut had its secrets removed before.
        let key = "A".repeat(44);
        let end = redact(format!("{key} {}", "x ".repeat(149)).as_bytes());
        assert!(!end.contains('A'), "{end}");
    }
}
