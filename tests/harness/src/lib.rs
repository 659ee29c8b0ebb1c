//! Starts and stops the real components that tests need, each on a free loopback port or a
//! socket in a temporary folder, and says so when one can't be had.

pub mod cluster;
pub mod openbao;
mod skip;

pub use skip::skip;
