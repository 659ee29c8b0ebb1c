//! Reads what `encryption_ext` has encrypted, for the day when there is no server: values, columns of CSV
//! files, and plain dumps. docs/offline-reader.md is its manual.
//!
//! | module | what it has |
//! | --- | --- |
//! | `cli` | the command line |
//! | `keys`, `settings`, `catalog` | from a value's key and version to its cipher |
//! | `values` | opening and counting values |
//! | `nested`, `copy`, `sql` | how values are written where they stand, and how plaintexts are |
//! | `script` | a dump, part by part |
//! | `dump`, `plain_schema`, `csv`, `armor_lines` | what is read |
//! | `input`, `output`, `progress`, `error` | the rest |
#![forbid(unsafe_code)]

mod armor_lines;
mod catalog;
mod cli;
mod copy;
mod csv;
mod dump;
mod error;
mod input;
mod keys;
mod nested;
mod output;
mod plain_schema;
mod progress;
mod script;
mod settings;
mod sql;
mod values;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{self, ExitCode};

use clap::Parser;
use envelope::KeyName;

use catalog::Catalog;
use cli::{Cli, Command, CsvCommand, DumpCommand, KeyOptions, OutputOptions, ValuesCommand};
use dump::Decryption;
use error::Error;
use input::{Input, Lines};
use keys::Keys;
use output::Output;
use settings::Providers;
use values::Values;

/// Memory that is freed is overwritten: plaintexts, and what libraries have held of keys and tokens.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

const FAILED: u8 = 1;
const INCOMPLETE: u8 = 2;
const INTERRUPTED: i32 = 130;
/// As if SIGPIPE had ended it.
const READER_GONE: u8 = 141;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help_or_error) => {
            // Nothing can be done if it can't be shown.
            let _ = help_or_error.print();
            return ExitCode::from(if help_or_error.use_stderr() { FAILED } else { 0 });
        }
    };
    let result = remove_the_unfinished_when_interrupted().and_then(|()| match cli.command {
        Command::Values(command) => decrypt_values(&command),
        Command::Csv(command) => decrypt_csv(&command),
        Command::Dump(command) => decrypt_dump(&command),
    });
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(INCOMPLETE),
        Err(Error::ReaderGone) => ExitCode::from(READER_GONE),
        Err(error) => {
            say(format_args!("{error}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Writes a line to standard error.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    // Nobody is told then, and there is nobody to tell that.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn remove_the_unfinished_when_interrupted() -> Result<(), Error> {
    ctrlc::set_handler(|| {
        output::remove_unfinished();
        process::exit(INTERRUPTED);
    })
    .map_err(|error| Error::new(format!("could not get ready for an interrupt: {error}")))
}

/// Gives how many values could not be opened, as the others do.
fn decrypt_values(command: &ValuesCommand) -> Result<u64, Error> {
    let mut values = Values::new(keys(&command.keys)?, keeps_going(&command.output));
    values.raw_bytes = command.raw;
    values.encoding = values::Encoding::AsIs;
    let mut output = output(&command.output)?;
    let end: &[u8] = match (command.raw, command.null) {
        (true, _) => b"",
        (_, true) => b"\0",
        _ => b"\n",
    };
    match command.values.as_slice() {
        [] => {
            let input = Input::open(None, command.output.progress)?;
            armor_lines::decrypt_lines(input, &mut output, &mut values, end)?;
        }
        arguments => armor_lines::decrypt_arguments(arguments, &mut output, &mut values, end)?,
    }
    output.finish()?;
    report(&mut values, &command.output)
}

fn decrypt_csv(command: &CsvCommand) -> Result<u64, Error> {
    let mut values = Values::new(keys(&command.keys)?, keeps_going(&command.output));
    let input = Input::open(command.file.as_deref(), command.output.progress)?;
    let mut output = output(&command.output)?;
    let form = csv::Form { delimiter: command.delimiter, has_header: !command.no_header };
    csv::decrypt(input, &mut output, &mut values, &command.columns, form)?;
    output.finish()?;
    report(&mut values, &command.output)
}

fn decrypt_dump(command: &DumpCommand) -> Result<u64, Error> {
    let mut keys = keys(&command.keys)?;
    let file = command.file.as_deref().filter(|file| is_file(file));
    // A file is read for its catalog first: rows, and defaults of columns, come before it.
    let learns = command.keys.keys.is_none();
    if let Some(file) = file.filter(|_| learns) {
        dump::find_catalogs(Input::open(Some(file), command.output.progress)?, &mut keys)?;
    }
    let input = Input::open(command.file.as_deref(), command.output.progress)?;
    let mut values = Values::new(keys, keeps_going(&command.output));
    let output = output(&command.output)?;
    let learns = learns && file.is_none();
    if learns {
        values.keys().catalog_follows();
    }
    Decryption::new(&mut values, output, command.without_extension, learns).run(input)?;
    report(&mut values, &command.output)
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

fn keeps_going(options: &OutputOptions) -> bool {
    options.keep_going || options.check
}

fn output(options: &OutputOptions) -> Result<Output, Error> {
    match &options.output {
        _ if options.check => Ok(Output::Nothing),
        Some(path) => Output::file(path, options.force),
        None => Ok(Output::stdout()),
    }
}

fn keys(options: &KeyOptions) -> Result<Keys, Error> {
    let mut providers = Providers::default();
    for path in &options.settings_files {
        let contents = fs::read_to_string(path).map_err(|error| Error::opening(path, &error))?;
        providers
            .set_from_conf(&contents)
            .map_err(|error| error.at(format!("\"{}\"", path.display())))?;
    }
    for setting in &options.settings {
        let (name, value) = setting.split_once('=').ok_or_else(|| {
            Error::new(format!("--set {setting} has no value"))
                .with_hint("Write it as --set NAME=VALUE, such as --set vault_mount=secret.")
        })?;
        providers.set(name, value)?;
    }
    if let Some(path) = &options.provider_file {
        providers.set_provider_file(path);
    }
    let names = options.names.iter().map(|name| {
        KeyName::parse(name)
            .map_err(|why| Error::new(format!("\"{name}\" is not the name of a key: {why}")))
    });
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let given = match &options.keys {
        Some(path) => catalog(path)?,
        None => Catalog::default(),
    };
    let keyring = options.keyring.clone().or_else(|| providers.keyring_file());
    Keys::new(keyring, options.provider.clone(), providers, names, given)
}

/// The catalog in a file: JSON of `enc_export_keys()`, or a dump.
fn catalog(path: &Path) -> Result<Catalog, Error> {
    let failed = |error: Error| error.at(format!("\"{}\"", path.display()));
    let mut lines = Lines::new(Input::open(Some(path), false)?);
    let is_json = lines.peek()?.trim_ascii_start().first() == Some(&b'{');
    let catalog = match is_json {
        true => {
            let document = fs::read(path).map_err(|error| Error::opening(path, &error))?;
            let mut catalog = Catalog::default();
            catalog.add_export(&document).map_err(failed)?;
            catalog
        }
        false => dump::read_catalog(lines).map_err(failed)?,
    };
    match catalog.is_empty() {
        true => Err(failed(Error::new("there are no keys in it").with_hint(
            "Give what enc_export_keys() returned, or a plain dump that has the schema \"encryption\".",
        ))),
        false => Ok(catalog),
    }
}

/// Tells what there was, and gives how many values could not be opened.
fn report(values: &mut Values, options: &OutputOptions) -> Result<u64, Error> {
    let (failures, stray) = (values.failures(), values.stray());
    let counts = values.counts();
    if options.check {
        values::write_counts(counts, &mut io::stdout().lock())
            .map_err(|error| Error::writing("standard output", &error))?;
    } else {
        for count in counts.iter().filter(|count| count.opened > 0 && !count.is_checked) {
            say(format_args!(
                "note: version {} of key \"{}\" was not compared with a check value, as no catalog was \
                 given; each of its values was authentic",
                count.version, count.key
            ));
        }
    }
    if stray > 0 {
        say(format_args!(
            "note: {stray} texts with \"enc:1:\" in them are no values and were left"
        ));
    }
    match failures {
        0 => {}
        1 => say(format_args!("error: a value could not be opened")),
        _ => say(format_args!("error: {failures} values could not be opened")),
    }
    Ok(failures)
}
