//! `msgpack::Reader` on any bytes.
//!
//! What is read as a value is as long as what is gone past, and a value that is written is read as
//! the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus_kernel::msgpack::{Reader, write_scalar};

fuzz_target!(|data: &[u8]| {
    let mut gone_past = Reader::new(data);
    let skipped = gone_past.skip();
    let mut reader = Reader::new(data);
    let Ok(value) = reader.scalar() else { return };
    assert_eq!(skipped, Ok(()));
    assert_eq!(reader.finish(), gone_past.finish());
    let mut stored = Vec::new();
    write_scalar(&mut stored, value).expect("what was read has a form");
    let mut reader = Reader::new(&stored);
    let second = reader.scalar().expect("what was stored");
    assert_eq!(reader.finish(), Ok(()));
    let mut again = Vec::new();
    write_scalar(&mut again, second).expect("what was read has a form");
    // Bytes, since a number that is none equals nothing.
    assert_eq!(again, stored);
});
