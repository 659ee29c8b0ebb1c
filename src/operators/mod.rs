//! Operators and operator classes: what values mean to queries.

mod analyze;
mod comparison;
mod ordered_index;
