//! `Metadata::decode` and `Event::decode` on any bytes.
//!
//! What is read has one stored form, which is read as the same and stored as the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus_kernel::metadata_codec::{Event, Metadata};

fuzz_target!(|data: &[u8]| {
    if let Ok(read) = Metadata::decode(data) {
        let mut stored = Vec::new();
        read.encode(&mut stored).expect("what was read has a form");
        let mut again = Vec::new();
        let second = Metadata::decode(&stored).expect("what was stored");
        second.encode(&mut again).expect("what was read has a form");
        // Bytes, since a number that is none equals nothing.
        assert_eq!(again, stored);
    }
    if let Ok(read) = Event::decode(data) {
        let mut stored = Vec::new();
        read.encode(&mut stored).expect("what was read has a form");
        assert_eq!(Event::decode(&stored), Ok(read));
    }
});
