//! Records of segments, as `src/nexus/storage/object_store/segment_file.py` writes them.
//!
//! Only what a warm read needs is here: whether the bytes at a place are the sealed record of an
//! object. The twin in Python finds, writes and salvages records, and has the format.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What stands before the bytes of an object.
pub const HEADER_BYTES: usize = 64;

/// An object's id.
pub type ObjectId = [u8; 32];

const ID_AT: usize = 16;
const CHECK_AT: usize = 48;
const SEAL_AT: usize = 56;

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
        let mut record = vec![7; HEADER_BYTES];
        record[ID_AT..CHECK_AT].copy_from_slice(object_id);
        let check = u64_at(&record, CHECK_AT).expect("it is within the header");
        record[SEAL_AT..].copy_from_slice(&xxh3_64_with_seed(data, check).to_le_bytes());
        record.extend(data);
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
