//! `commit_log::records` on any bytes, as they are and behind a checksum that holds.
//!
//! What is read is a prefix of the bytes, byte for byte, and its revisions go up by one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus_kernel::commit_log::{encode, records};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const IDENTITY: u64 = 7;
const FILE_HEADER: &[u8; 16] = b"nexuslog\0\0\0\0\0\0\0\0"; // the nonce is 0
const SEALED_FROM: usize = 8;
const BODY_SIZE_AT: usize = 16;
const HEADER_BYTES: usize = 20;

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&[FILE_HEADER, data].concat());
    check(&[FILE_HEADER, sealed(data).as_slice()].concat());
});

fn check(bytes: &[u8]) {
    let found = records(bytes, IDENTITY);
    for pair in found.windows(2) {
        assert_eq!(pair[0].revision.checked_add(1), Some(pair[1].revision));
    }
    let Some((header, records)) = bytes.split_at_checked(FILE_HEADER.len()) else {
        return assert!(found.is_empty());
    };
    let nonce = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
    let mut written = Vec::new();
    for record in &found {
        let encoded = encode(
            &mut written,
            IDENTITY ^ nonce,
            record.revision,
            &record.operations,
        );
        encoded.expect("what was read is small enough");
    }
    assert!(records.starts_with(&written));
}

/// Records that are whole: each begins where the one before says that it ends.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let mut start = 0;
    while let Some(size) = bytes.get(start + BODY_SIZE_AT..start + HEADER_BYTES) {
        let left = bytes.len() - start - HEADER_BYTES;
        let size = u32::from_le_bytes(size.try_into().expect("four bytes")) as usize;
        let size = size.min(left);
        let end = start + HEADER_BYTES + size;
        let stored = u32::try_from(size).expect("inputs are small").to_le_bytes();
        bytes[start + BODY_SIZE_AT..start + HEADER_BYTES].copy_from_slice(&stored);
        let checksum = xxh3_64_with_seed(&bytes[start + SEALED_FROM..end], IDENTITY);
        bytes[start..start + SEALED_FROM].copy_from_slice(&checksum.to_le_bytes());
        start = end;
    }
    bytes
}
