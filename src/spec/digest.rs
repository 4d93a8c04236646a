//! Names made by hash: what must be found again later, in a place that takes only a few characters.

use sha2::{Digest, Sha512};

/// The first `chars` lower-case hexadecimal digits (at most all 128) of the SHA-512 of the parts written one after
/// another, with nothing between them.
///
/// The reference plugins name chains, links and table entries so; its digits must match theirs, because either
/// suite removes what the other has made.
pub fn sha512_hex(parts: &[&str], chars: usize) -> String {
    let mut hasher = Sha512::new();
    for part in parts {
        hasher.update(part.as_bytes());
    }
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    hasher.finalize().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).take(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_reference() {
        assert_eq!(sha512_hex(&["test", "1234"], 24), "2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(sha512_hex(&["unit-test"], 16), "6fd94d501e58f0aa");
    }

    #[test]
    fn the_parts_are_joined_without_a_mark() {
        assert_eq!(sha512_hex(&["test1", "234"], 128), sha512_hex(&["test", "1234"], 128));
    }

    #[test]
    fn all_digits_of_a_known_vector() {
        // FIPS 180-2, appendix C.1: "abc".
        assert_eq!(
            sha512_hex(&["abc"], 1000),
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        );
    }
}
