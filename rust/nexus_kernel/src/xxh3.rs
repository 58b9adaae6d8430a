//! XXH3-64, with the instructions of the processor at hand: what checks bytes everywhere but where
//! content is named.

use twox_hash::XxHash3_64;

/// The hash of bytes.
pub fn xxh3_64(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The hash of bytes, with a seed.
pub fn xxh3_64_with_seed(bytes: &[u8], seed: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_specification() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(xxh3_64_with_seed(b"", 0), xxh3_64(b""));
        let bytes: Vec<u8> = (0..70_000_u32).map(|number| number as u8).collect();
        let found = [1, 16, 128, 240, 1_000, 65_536].map(|count| xxh3_64(&bytes[..count]));
        assert_eq!(
            found,
            [
                0xc44b_dff4_074e_ecdb,
                0x8355_e3a6_f617_70db,
                0x85c6_174c_7ff4_c46b,
                0x375a_384d_957f_e865,
                0xd33d_d80b_46f6_0e50,
                0x9a1d_b56d_610a_5516,
            ]
        );
        assert_eq!(xxh3_64_with_seed(&bytes[..1_000], 7), 0xfb6e_8de2_c753_ce8b);
    }
}
