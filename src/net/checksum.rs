//! The checksum of the Internet (RFC 1071).

/// The checksum over parts, of which only the last may have an odd length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u32::from(*byte))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_the_rfc_is_had_in_any_parts() {
        // RFC 1071, section 3: the sum is ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&bytes]), !0xddf2);
        assert_eq!(checksum(&[&bytes[..2], &[], &bytes[2..]]), !0xddf2);
        assert_eq!(checksum(&[&bytes[..7]]), checksum(&[&bytes[..7], &[0]]));
        assert_eq!((checksum(&[]), checksum(&[&[0xff; 6]])), (0xffff, 0));
    }
}
