//! What starting any server takes.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

/// A port of 127.0.0.1 that nobody listens on at the moment.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}

pub(crate) fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} did not come in 30 s");
        thread::sleep(Duration::from_millis(20));
    }
}
