//! The seal around a stored record. Twin: `nexus.core.record_seal`, which has the format.

use crate::xxh3::xxh3_64;

const SEAL_BYTES: usize = 8;

/// What stands before the payload of a stored value: the seal and the revision.
pub const PREFIX_BYTES: usize = 16;

/// A payload as it was sealed.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsealed<'a> {
    /// What the record says.
    pub payload: &'a [u8],
    /// The revision that wrote it.
    pub revision: u64,
    /// The checksum that proved it.
    pub seal: u64,
}

/// Fill `value`, of `PREFIX_BYTES` and the payload's length, and return its seal.
///
/// `scratch` is memory to work in: the key and what is sealed are hashed as one.
pub fn seal(
    key: &[u8],
    payload: &[u8],
    at: [u8; 8],
    value: &mut [u8],
    scratch: &mut Vec<u8>,
) -> u64 {
    scratch.clear();
    scratch.extend(key);
    scratch.extend(at);
    scratch.extend(payload);
    let seal = xxh3_64(scratch);
    value[..SEAL_BYTES].copy_from_slice(&seal.to_be_bytes());
    value[SEAL_BYTES..].copy_from_slice(&scratch[key.len()..]);
    seal
}

/// What a stored value holds, if its seal matches.
pub fn unseal<'a>(key: &[u8], value: &'a [u8], scratch: &mut Vec<u8>) -> Option<Unsealed<'a>> {
    let (prefix, payload) = value.split_at_checked(PREFIX_BYTES)?;
    scratch.clear();
    scratch.extend(key);
    scratch.extend(&value[SEAL_BYTES..]);
    let seal = xxh3_64(scratch);
    let (stored, revision) = prefix.split_at(SEAL_BYTES);
    (stored == seal.to_be_bytes()).then(|| Unsealed {
        payload,
        revision: revision
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
        seal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: &[u8], payload: &[u8], revision: u64) -> (Vec<u8>, u64) {
        let mut value = vec![0; PREFIX_BYTES + payload.len()];
        let seal = seal(
            key,
            payload,
            revision.to_be_bytes(),
            &mut value,
            &mut Vec::new(),
        );
        (value, seal)
    }

    #[test]
    fn what_was_sealed_comes_back() {
        for payload in [&b""[..], b"some bytes"] {
            let (value, seal) = sealed(b"key", payload, 1 << 40);
            let expected = Unsealed {
                payload,
                revision: 1 << 40,
                seal,
            };
            assert_eq!(unseal(b"key", &value, &mut Vec::new()), Some(expected));
        }
    }

    #[test]
    fn damage_anywhere_shows() {
        let (value, _) = sealed(b"key", b"some bytes", 7);
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(b"key", &damaged, &mut Vec::new()), None);
        }
        for end in 0..value.len() {
            assert_eq!(unseal(b"key", &value[..end], &mut Vec::new()), None);
        }
        assert_eq!(
            unseal(b"yek", &value, &mut Vec::new()),
            None,
            "under another key"
        );
    }
}
