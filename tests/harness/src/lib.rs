//! Starts and stops the real components that tests need, each on a free loopback port or a
//! socket in a temporary folder, and says so when one can't be had.

mod aws;
pub mod cluster;
pub mod fakes;
pub mod kubernetes;
pub mod microburst;
pub mod ministack;
pub mod moto;
pub mod openbao;
pub mod prometheus;
pub mod proxy;
pub mod pykmip;
pub mod python;
mod server;
mod skip;
pub mod softhsm;

pub use server::free_port;
pub use skip::skip;
