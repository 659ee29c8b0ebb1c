//! The two sides that are compared.

/// A schema, with tables of the same names and rows as the other's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    Plain,
    Encrypted,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Plain, Self::Encrypted];

    pub fn schema(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Encrypted => "encrypted",
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Plain => "text",
            Self::Encrypted => "encrypted_text",
        }
    }

    pub fn bytea(self) -> &'static str {
        match self {
            Self::Plain => "bytea",
            Self::Encrypted => "encrypted_bytea",
        }
    }

    /// Fills in what differs between the sides: `{side}`, `{T}` and `{B}`, and `{T('key')}`.
    pub fn words(self, template: &str) -> String {
        fill(template, |hole| self.word(hole).unwrap_or_else(|| format!("{{{hole}}}")))
    }

    pub fn word(self, hole: &str) -> Option<String> {
        let (word, key) = hole.split_at(hole.find('(').unwrap_or(hole.len()));
        let word = match word {
            "side" => self.schema(),
            "T" => self.text(),
            "B" => self.bytea(),
            _ => return None,
        };
        Some(if self == Self::Plain { word.to_owned() } else { format!("{word}{key}") })
    }
}

/// A template with each `{hole}` replaced.
pub fn fill(template: &str, mut replace: impl FnMut(&str) -> String) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, from)) = rest.split_once('{') {
        let (hole, after) = from.split_once('}').expect("a hole ends");
        filled += before;
        filled += &replace(hole);
        rest = after;
    }
    filled + rest
}
