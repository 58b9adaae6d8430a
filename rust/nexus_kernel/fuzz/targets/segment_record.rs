//! `segment_record::sealed_bytes` on any bytes, as they are and behind a seal that holds.
//!
//! A record that is sealed gives its bytes; changed anywhere behind its first fields, nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus_kernel::segment_record::{HEADER_BYTES, ObjectId, sealed_bytes};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const ID_AT: usize = 16;
const CHECK_AT: usize = 48;
const SEAL_AT: usize = 56;

fuzz_target!(|data: &[u8]| {
    let Some(id) = data.get(ID_AT..CHECK_AT) else {
        assert_eq!(sealed_bytes(data, &[0; 32]), None);
        return;
    };
    let id: ObjectId = id.try_into().expect("32 bytes");
    if let Some(found) = sealed_bytes(data, &id) {
        assert_eq!(found, &data[HEADER_BYTES..]);
    }
    if data.len() < HEADER_BYTES {
        return;
    }
    let mut record = data.to_vec();
    let check = u64::from_le_bytes(data[CHECK_AT..SEAL_AT].try_into().expect("8 bytes"));
    let seal = xxh3_64_with_seed(&data[HEADER_BYTES..], check);
    record[SEAL_AT..HEADER_BYTES].copy_from_slice(&seal.to_le_bytes());
    assert_eq!(sealed_bytes(&record, &id), Some(&data[HEADER_BYTES..]));
    let flipped = ID_AT + data[0] as usize % (record.len() - ID_AT);
    record[flipped] ^= 1 << (data[1] % 8);
    assert_eq!(sealed_bytes(&record, &id), None);
});
