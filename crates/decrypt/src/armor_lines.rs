//! Values one by one: a line of input or an argument each.

use crate::error::Error;
use crate::input::{Input, Lines, split_end};
use crate::output::Output;
use crate::values::Values;

/// Opens each of some texts.
pub fn decrypt_arguments(
    arguments: &[String],
    output: &mut Output,
    values: &mut Values,
    end: &[u8],
) -> Result<(), Error> {
    for (at, argument) in arguments.iter().enumerate() {
        let place = || format!("argument {}", at + 1);
        decrypt_one(argument.trim().as_bytes(), output, values, &place, end)?;
    }
    Ok(())
}

/// Opens each line. A blank one, such as psql's for null, stays blank.
pub fn decrypt_lines(
    input: Input,
    output: &mut Output,
    values: &mut Values,
    end: &[u8],
) -> Result<(), Error> {
    let mut lines = Lines::new(input);
    loop {
        let line = lines.number() + 1;
        let Some(text) = lines.next_line()? else { return Ok(()) };
        let place = || format!("line {line}");
        decrypt_one(split_end(text).0.trim_ascii(), output, values, &place, end)?;
    }
}

fn decrypt_one(
    armor: &[u8],
    output: &mut Output,
    values: &mut Values,
    place: &dyn Fn() -> String,
    end: &[u8],
) -> Result<(), Error> {
    let mut out = Vec::new();
    if !armor.is_empty() && !values.open(armor, place, &mut out)? {
        out.extend_from_slice(armor);
    }
    out.extend_from_slice(end);
    output.write(&out)
}
