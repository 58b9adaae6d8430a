//! Records of segments, as `src/nexus/storage/object_store/segment_file.py` writes them.
//!
//! What each read and each write needs is here: the record of an object, and whether the bytes at a
//! place are one. The twin in Python finds and salvages records besides, and has the format.

use crate::xxh3::{xxh3_64, xxh3_64_with_seed};

/// What stands before the bytes of an object.
pub const HEADER_BYTES: usize = 64;

/// An object's id.
pub type ObjectId = [u8; 32];

/// What a record's length is a multiple of.
pub const UNIT_BYTES: usize = 8;

const MAGIC: &[u8; 4] = b"NXOB";
const SIZE_AT: usize = 4;
const STORED_AT: usize = 8;
const ID_AT: usize = 16;
const CHECK_AT: usize = 48;
const SEAL_AT: usize = 56;

/// How long the record of an object of a size is.
pub fn record_bytes(size_bytes: usize) -> usize {
    (HEADER_BYTES + size_bytes).next_multiple_of(UNIT_BYTES)
}

/// Fill `record`, zeros of [`record_bytes`], with the record of an object.
pub fn fill_record(
    record: &mut [u8],
    object_id: &ObjectId,
    data: &[u8],
    size: u32,
    stored_at_ns: u64,
) {
    record[..SIZE_AT].copy_from_slice(MAGIC);
    record[SIZE_AT..STORED_AT].copy_from_slice(&size.to_le_bytes());
    record[STORED_AT..ID_AT].copy_from_slice(&stored_at_ns.to_le_bytes());
    record[ID_AT..CHECK_AT].copy_from_slice(object_id);
    let check = xxh3_64(&record[..CHECK_AT]);
    record[CHECK_AT..SEAL_AT].copy_from_slice(&check.to_le_bytes());
    record[SEAL_AT..HEADER_BYTES].copy_from_slice(&xxh3_64_with_seed(data, check).to_le_bytes());
    record[HEADER_BYTES..HEADER_BYTES + data.len()].copy_from_slice(data);
}

/// The bytes of an object, if a record that was read is that of the object and sealed.
pub fn sealed_bytes<'a>(record: &'a [u8], object_id: &ObjectId) -> Option<&'a [u8]> {
    let (header, data) = record.split_at_checked(HEADER_BYTES)?;
    if header[ID_AT..CHECK_AT] != object_id[..] {
        return None;
    }
    let (check, seal) = (u64_at(header, CHECK_AT)?, u64_at(header, SEAL_AT)?);
    (xxh3_64_with_seed(data, check) == seal).then_some(data)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(object_id: &ObjectId, data: &[u8]) -> Vec<u8> {
        let mut record = vec![0; record_bytes(data.len())];
        fill_record(&mut record, object_id, data, data.len() as u32, 7);
        record.truncate(HEADER_BYTES + data.len());
        record
    }

    #[test]
    fn a_record_gives_its_bytes() {
        assert_eq!(
            sealed_bytes(&record(&[1; 32], b"some"), &[1; 32]),
            Some(&b"some"[..])
        );
        assert_eq!(
            sealed_bytes(&record(&[1; 32], b""), &[1; 32]),
            Some(&b""[..])
        );
    }

    #[test]
    fn another_objects_record_gives_nothing() {
        assert_eq!(sealed_bytes(&record(&[1; 32], b"some"), &[2; 32]), None);
    }

    #[test]
    fn a_record_cut_anywhere_gives_nothing() {
        let whole = record(&[1; 32], b"some");
        for end in 0..whole.len() {
            assert_eq!(sealed_bytes(&whole[..end], &[1; 32]), None);
        }
    }

    #[test]
    fn a_flipped_bit_in_id_seal_or_bytes_gives_nothing() {
        let whole = record(&[1; 32], b"some");
        for bit in ID_AT * 8..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealed_bytes(&damaged, &[1; 32]), None);
        }
    }
}
