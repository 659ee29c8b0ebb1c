//! Calls that hang, fail and are cancelled.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use keyring::call::call;
use keyring::provider::ProviderErrorKind;

/// The number of abandoned calls is the process's, and the tests are threads of one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn never() -> bool {
    false
}

fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

#[test]
fn an_answer_comes_at_once() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let start = Instant::now();
    for i in 0..100 {
        assert_eq!(call(in_ms(5000), &never, move || i).unwrap(), i);
    }
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn a_call_that_hangs_ends_at_the_deadline_and_its_answer_is_dropped() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Answer;
    impl Drop for Answer {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (release, wait) = mpsc::channel::<()>();
    let start = Instant::now();
    let result = call(in_ms(100), &never, move || {
        let _ = wait.recv();
        Answer
    });
    let took = start.elapsed();
    assert_eq!(result.err().unwrap().kind, ProviderErrorKind::TimedOut);
    assert!((100..250).contains(&took.as_millis()), "{took:?}");
    assert_eq!(DROPPED.load(Ordering::SeqCst), 0);
    drop(release);
    wait_until(|| DROPPED.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_cancel_ends_the_wait() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let (release, wait) = mpsc::channel::<()>();
    let cancel_at = in_ms(50);
    let asked = AtomicUsize::new(0);
    let start = Instant::now();
    let interrupt = || {
        asked.fetch_add(1, Ordering::SeqCst);
        Instant::now() >= cancel_at
    };
    let result = call(in_ms(5000), &interrupt, move || {
        let _ = wait.recv();
    });
    let took = start.elapsed();
    assert_eq!(result.unwrap_err().kind, ProviderErrorKind::Interrupted);
    assert!((50..150).contains(&took.as_millis()), "{took:?}");
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked >= 4, "asked {asked} times");
    drop(release);

    // When the cancel is there already, nothing is begun.
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&begun);
    let result = call(in_ms(5000), &|| true, move || counter.fetch_add(1, Ordering::SeqCst));
    assert_eq!(result.unwrap_err().kind, ProviderErrorKind::Interrupted);
    assert_eq!(begun.load(Ordering::SeqCst), 0);
}

#[test]
fn a_panic_is_an_error() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let start = Instant::now();
    let result = call(in_ms(5000), &never, || panic!("a panic that a test wants"));
    assert_eq!(result.unwrap_err().kind, ProviderErrorKind::Unreachable);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(call(in_ms(5000), &never, || 1).unwrap(), 1);
}

#[test]
fn calls_that_hang_do_not_pile_up() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let mut releases = Vec::new();
    for _ in 0..4 {
        let (release, wait) = mpsc::channel::<()>();
        releases.push(release);
        let result = call(in_ms(20), &never, move || {
            let _ = wait.recv();
        });
        assert_eq!(result.unwrap_err().kind, ProviderErrorKind::TimedOut);
    }
    let start = Instant::now();
    let result = call(in_ms(5000), &never, || 1);
    assert_eq!(result.unwrap_err().kind, ProviderErrorKind::Unreachable);
    assert!(start.elapsed() < Duration::from_millis(5));
    releases.clear();
    wait_until(|| call(in_ms(5000), &never, || 1).is_ok());
}

/// PostgreSQL's handlers must only ever run on its one thread.
#[test]
fn signals_are_blocked_in_the_thread_and_nowhere_else() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let blocked = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let before = blocked();
    let inside = call(in_ms(5000), &never, blocked).unwrap();
    assert_eq!(blocked(), before);
    for signal in [1, 2, 3, 10, 12, 13, 14, 15, 17, 27] {
        assert_ne!(inside & (1 << (signal - 1)), 0, "signal {signal} is not blocked");
    }
    assert_eq!(before & (1 << 14), 0, "SIGTERM is blocked in the tests");
}

fn wait_until(is_done: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_done() {
        assert!(start.elapsed() < Duration::from_secs(5));
        thread::sleep(Duration::from_millis(1));
    }
}
