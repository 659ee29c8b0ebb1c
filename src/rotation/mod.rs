//! Rotation of whole columns: what the procedures in `sql/` ask about each value, and what they
//! can't do in SQL.

mod constants;
mod nested;
mod proof;
mod schedule;
mod target;
mod values;
mod verify;
pub(crate) mod worker;
