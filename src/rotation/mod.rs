//! Rotation of whole columns: what the procedures in `sql/` ask about each value, and what they
//! can't do in SQL.

mod nested;
mod target;
mod values;
