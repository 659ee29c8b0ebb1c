use std::cell::Cell;
use std::collections::HashSet;

use super::*;

const PROCESS: u32 = 4711;

/// Randomness that can be foretold: every draw of a thread gets bytes of the next number.
fn counted(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    thread_local!(static DRAWS: Cell<u8> = const { Cell::new(0) });
    let draw = DRAWS.get() + 1;
    DRAWS.set(draw);
    bytes.fill(draw);
    Ok(())
}

fn ones(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    bytes.fill(0xff);
    Ok(())
}

fn nothing(_: &mut [u8]) -> Result<(), getrandom::Error> {
    Err(getrandom::Error::UNSUPPORTED)
}

fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// The sequence that the source draws from, which the test may put near its limits.
fn sequence(source: &mut NonceSource) -> &mut Sequence {
    source.sequence.as_mut().unwrap()
}

#[test]
fn a_new_source_has_drawn_nothing() {
    assert!(NonceSource::new().sequence.is_none());
}

#[test]
fn salt_and_counter_are_drawn_and_the_counter_counts() {
    let mut source = NonceSource::with_random(counted);
    let nonces: Vec<_> = (0..3).map(|_| source.next(PROCESS, 11).unwrap()).collect();
    for nonce in &nonces {
        assert_eq!(nonce.salt(), &[1; 12]);
    }
    assert_eq!(nonces[0].counter(), &[2; 12]);
    assert_eq!(nonces[1].counter(), &[2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]);
    assert_eq!(nonces[2].counter(), &[2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 4]);
}

#[test]
fn the_counter_wraps_without_touching_the_salt() {
    let mut source = NonceSource::with_random(ones);
    assert_eq!(source.next(PROCESS, 0).unwrap().as_bytes(), &[0xff; 24]);
    let wrapped = source.next(PROCESS, 0).unwrap();
    assert_eq!((wrapped.salt(), wrapped.counter()), (&[0xff; 12], &[0; 12]));
}

#[test]
fn the_counter_carries_through_all_its_bytes() {
    let mut source = NonceSource::with_random(counted);
    source.next(PROCESS, 0).unwrap();
    sequence(&mut source).counter = 0x00ff_ffff_ffff_ffff_ffff_ffff;
    source.next(PROCESS, 0).unwrap();
    assert_eq!(source.next(PROCESS, 0).unwrap().counter(), &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn another_process_draws_anew() {
    let mut source = NonceSource::with_random(counted);
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[1; 12]);
    assert_eq!(source.next(PROCESS + 1, 0).unwrap().salt(), &[3; 12]);
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[5; 12]);
}

#[test]
fn a_salt_serves_at_most_2_to_the_32_values() {
    let mut source = NonceSource::with_random(counted);
    source.next(PROCESS, 0).unwrap();
    sequence(&mut source).values = (1 << 32) - 1;
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[1; 12]);
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[3; 12]);
    assert_eq!(sequence(&mut source).values, 1);
}

#[test]
fn a_salt_serves_at_most_2_to_the_36_blocks() {
    let mut source = NonceSource::with_random(counted);
    source.next(PROCESS, 0).unwrap();
    sequence(&mut source).blocks = (1 << 36) - 3;
    assert_eq!(source.next(PROCESS, 32).unwrap().salt(), &[1; 12], "two blocks and the tag's");
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[3; 12], "the tag's block is too many");
    assert_eq!(sequence(&mut source).blocks, 1);

    sequence(&mut source).blocks = (1 << 36) - 3;
    assert_eq!(source.next(PROCESS, 33).unwrap().salt(), &[5; 12], "a part of a block counts");
}

#[test]
fn blocks_of_a_value() {
    assert_eq!([0, 1, 16, 17, 1 << 20].map(blocks), [1, 2, 2, 3, (1 << 16) + 1]);
    assert_eq!(blocks(usize::MAX), (1 << 60) + 1);
}

#[test]
fn a_transaction_does_not_start_with_a_salt_older_than_five_minutes() {
    let start = Instant::now();
    let mut source = NonceSource::with_random(counted);
    source.transaction_start(start);
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[1; 12]);
    source.transaction_start(start + minutes(5));
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[1; 12]);
    source.transaction_start(start + minutes(5) + Duration::from_nanos(1));
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[3; 12]);
    source.transaction_start(start + minutes(9));
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[3; 12], "its own age counts");
}

#[test]
fn a_transaction_does_not_start_with_a_salt_of_unknown_age() {
    let mut source = NonceSource::with_random(counted);
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[1; 12]);
    source.transaction_start(Instant::now());
    assert_eq!(source.next(PROCESS, 0).unwrap().salt(), &[3; 12]);
}

#[test]
fn without_randomness_there_is_no_nonce() {
    let mut source = NonceSource::with_random(nothing);
    assert_eq!(source.next(PROCESS, 0), Err(getrandom::Error::UNSUPPORTED));

    let mut source = NonceSource::with_random(counted);
    source.next(PROCESS, 0).unwrap();
    sequence(&mut source).values = NonceSource::MAX_VALUES;
    source.fill_random = nothing;
    assert_eq!(source.next(PROCESS, 0), Err(getrandom::Error::UNSUPPORTED));
    assert!(source.sequence.is_none(), "the exhausted salt is not used again");
}

#[test]
fn a_million_nonces_of_ten_processes_are_all_different() {
    let mut seen = HashSet::new();
    // As after a fork: every process goes on with its parent's source.
    let mut source = NonceSource::new();
    for process_id in 1..=10 {
        for _ in 0..100_000 {
            assert!(seen.insert(source.next(process_id, 32).unwrap()));
        }
    }
    assert_eq!(seen.iter().map(Nonce::salt).collect::<HashSet<_>>().len(), 10);
}
