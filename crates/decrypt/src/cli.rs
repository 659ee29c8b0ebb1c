//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Reads what encryption_ext has encrypted, without a server: values, CSV files, and plain dumps of
/// pg_dump. Needs the keys: a keyring file, or the key server that the database used.
#[derive(Debug, Parser)]
#[command(name = "encryption_ext-decrypt", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What is to be read.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  A dump, with keys from a keyring file, for a server without the extension:
    encryption_ext-decrypt dump db.sql --keyring keyring.json --without-extension --output plain.sql
  A custom-format dump, with keys from Vault:
    pg_restore -f db.sql db.dump
    encryption_ext-decrypt dump db.sql --set vault_address=https://vault.example.com:8200 \\
        --set vault_token_file=/root/vault-token --output plain.sql
  Whether a backup can be read, with the server's own settings; nothing is written:
    encryption_ext-decrypt dump db.sql --settings postgresql.auto.conf --check
  Columns of a CSV file:
    encryption_ext-decrypt csv users.csv --column email --column phone --keyring keyring.json
  A value:
    encryption_ext-decrypt values enc:1:AQF0SjPB... --keyring keyring.json

Exit status:
  0    all of it was read
  1    stopped by an error: wrong usage, a key that can't be had, a value that can't be opened
  2    finished with --keep-going or --check, and some values could not be opened
  130  interrupted; 141 if whoever read the output stopped reading

docs/offline-reader.md has more.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Values, as arguments or one on each line of standard input
    #[command(after_help = EXAMPLES)]
    Values(ValuesCommand),
    /// Columns of a CSV file
    #[command(after_help = EXAMPLES)]
    Csv(CsvCommand),
    /// A plain dump of pg_dump or pg_dumpall
    #[command(after_help = EXAMPLES)]
    Dump(DumpCommand),
}

/// `values`
#[derive(Debug, Args)]
pub struct ValuesCommand {
    /// Values (enc:1:...). Without any, each line of standard input is one
    #[arg(value_name = "VALUE")]
    pub values: Vec<String>,
    /// End each plaintext with a zero byte instead of a newline
    #[arg(short = '0', long, conflicts_with = "raw")]
    pub null: bool,
    /// Write the plaintext and nothing after it, encrypted_bytea as bytes instead of \x...
    #[arg(long)]
    pub raw: bool,
    /// Where keys come from.
    #[command(flatten)]
    pub keys: KeyOptions,
    /// Where plaintext goes.
    #[command(flatten)]
    pub output: OutputOptions,
}

/// `csv`
#[derive(Debug, Args)]
pub struct CsvCommand {
    /// The file; standard input without it
    pub file: Option<PathBuf>,
    /// A column to decrypt, by its name or its number from 1. May be given several times
    #[arg(short, long = "column", value_name = "NAME", required = true)]
    pub columns: Vec<String>,
    /// What separates fields; \t is a tab
    #[arg(short, long, default_value = ",", value_parser = delimiter)]
    pub delimiter: u8,
    /// The first line is no header
    #[arg(long)]
    pub no_header: bool,
    /// Where keys come from.
    #[command(flatten)]
    pub keys: KeyOptions,
    /// Where plaintext goes.
    #[command(flatten)]
    pub output: OutputOptions,
}

/// `dump`
#[derive(Debug, Args)]
pub struct DumpCommand {
    /// The plain dump; standard input without it
    pub file: Option<PathBuf>,
    /// Make columns text and bytea, and leave out what needs the extension: for a server without it
    #[arg(long)]
    pub without_extension: bool,
    /// Where keys come from.
    #[command(flatten)]
    pub keys: KeyOptions,
    /// Where plaintext goes.
    #[command(flatten)]
    pub output: OutputOptions,
}

/// Where keys come from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Keys")]
pub struct KeyOptions {
    /// A keyring file, as the provider "file" has it (mode 0600, yours or root's)
    #[arg(short, long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// The catalog of keys: what enc_export_keys() returned, or a plain dump of schema "encryption".
    /// A dump that is given as a file has it in itself
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// A setting of a provider by the extension's name for it, such as vault_address=https://...
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// A postgresql.conf or postgresql.auto.conf, for the settings encryption_ext.* in it
    #[arg(long = "settings", value_name = "FILE")]
    pub settings_files: Vec<PathBuf>,
    /// The file of named providers, as encryption_ext.provider_file names it
    #[arg(long, value_name = "FILE")]
    pub provider_file: Option<PathBuf>,
    /// The provider of all keys: a type such as vault, or a name in --provider-file. Needed where no
    /// catalog names it; in its place where one does
    #[arg(short, long, value_name = "NAME")]
    pub provider: Option<String>,
    /// The name of a key, where no catalog has it. May be given several times
    #[arg(long = "key", value_name = "NAME")]
    pub names: Vec<String>,
}

/// Where plaintext goes, and what happens on the way.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputOptions {
    /// The file to write, readable by you alone; standard output without it
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(short, long, requires = "output")]
    pub force: bool,
    /// Leave a value that can't be opened as it is, and go on. Exit status 2 at the end
    #[arg(long)]
    pub keep_going: bool,
    /// Open everything, write nothing, and print how many values of each key were opened
    #[arg(long, conflicts_with = "output")]
    pub check: bool,
    /// Show progress also where standard error is no terminal
    #[arg(long)]
    pub progress: bool,
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text {
        "\\t" => Ok(b'\t'),
        _ => match text.as_bytes() {
            [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => Ok(*byte),
            _ => Err("it must be one ASCII character, and no quote or newline".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn delimiters() {
        assert_eq!(delimiter(";"), Ok(b';'));
        assert_eq!(delimiter("\\t"), Ok(b'\t'));
        for text in ["", ",,", "\"", "\n", "é"] {
            assert!(delimiter(text).is_err());
        }
    }
}
