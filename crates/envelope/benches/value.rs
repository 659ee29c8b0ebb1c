//! Nanoseconds per value: `cargo bench -p envelope`.
//!
//! Sealing and opening as a backend does it for each value, with the derived cipher at hand, by the
//! length of the plaintext; and deriving that cipher, which a new salt costs once.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use envelope::{
    DataKey, Header, KeyCipher, KeyId, KeyName, KeyVersion, NonceSource, OVERHEAD, PlaintextKind,
    Sealed, ValueCipher,
};

const PLAINTEXT_LENGTHS: [usize; 7] = [11, 32, 64, 256, 1024, 8192, 1 << 20];
const PROCESS_ID: u32 = 1;

/// One key, and a writer that has sealed with it before.
struct Writer {
    name: KeyName,
    key_id: KeyId,
    key: KeyCipher,
    nonces: NonceSource,
    cipher: ValueCipher,
}

impl Writer {
    fn new() -> Self {
        let key = KeyCipher::new(&DataKey::new([0x42; 32]));
        let mut nonces = NonceSource::new();
        let nonce = nonces.next(PROCESS_ID, 0).expect("the system has random bytes");
        let cipher = key.derive(nonce.salt());
        let name = KeyName::parse("user_pii").expect("it is a key's name");
        Self { key_id: name.id(), name, key, nonces, cipher }
    }

    fn seal(&mut self, plaintext: &[u8], value: &mut [u8]) {
        let nonce = self.nonces.next(PROCESS_ID, plaintext.len());
        let header = Header {
            kind: PlaintextKind::Text,
            key_id: self.key_id,
            key_version: KeyVersion::FIRST,
            nonce: nonce.expect("the system has random bytes"),
        };
        self.cipher.seal(header, &self.name, plaintext, value).expect("it is short enough");
    }

    fn open(&self, value: &[u8], plaintext: &mut [u8]) {
        let sealed = Sealed::parse(value).expect("it is a value");
        self.cipher.open(&sealed, &self.name, plaintext).expect("it is authentic");
    }
}

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for len in PLAINTEXT_LENGTHS {
        let mut writer = Writer::new();
        let plaintext = vec![b'a'; len];
        let mut value = vec![0; len + OVERHEAD];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |bencher| {
            bencher.iter(|| writer.seal(black_box(&plaintext), black_box(&mut value)));
        });
    }
}

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for len in PLAINTEXT_LENGTHS {
        let mut writer = Writer::new();
        let mut plaintext = vec![b'a'; len];
        let mut value = vec![0; len + OVERHEAD];
        writer.seal(&plaintext, &mut value);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |bencher| {
            bencher.iter(|| writer.open(black_box(&value), black_box(&mut plaintext)));
        });
    }
}

fn derive(criterion: &mut Criterion) {
    let key = Writer::new().key;
    criterion.bench_function("derive", |bencher| {
        bencher.iter(|| key.derive(black_box(&[7; 12])));
    });
}

criterion_group!(benches, seal, open, derive);
criterion_main!(benches);
