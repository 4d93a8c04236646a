//! User data: bytes that the kernel keeps with a rule or an element and does not look into.
//!
//! `nft` and `iptables` agree on a list of entries of type, length and value (one byte each for the first two).
//! Type 0 is a comment for rules as well as for elements; its text ends with a NUL (libnftnl/udata.h).

use super::set::KeyType;

const COMMENT: u8 = 0;

/// Of our own: the list of `enum udata_type` (libnftnl/udata.h) counts from zero and has two entries.
const OWNER: u8 = 0xb8;

/// Longest comment in bytes that `nft` takes when it reads its own listing again (`NFTNL_UDATA_COMMENT_MAXLEN`).
pub const COMMENT_MAX: usize = 128;

/// A comment as user data; what is longer than [`COMMENT_MAX`] is cut at a character.
pub(super) fn encode(comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(COMMENT_MAX);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = Vec::with_capacity(end + 3);
    // At most 129, so it fits.
    bytes.extend_from_slice(&[COMMENT, (end + 1) as u8]);
    bytes.extend_from_slice(&comment.as_bytes()[..end]);
    bytes.push(0);
    bytes
}

/// An owner as user data: as [`encode`], but under a type of our own, which `nft` and `iptables` step over. For rules
/// that others read and expect without a comment.
pub(super) fn encode_owner(owner: &str) -> Vec<u8> {
    let mut bytes = encode(owner);
    bytes[0] = OWNER;
    bytes
}

/// The owner in user data, if there is one.
pub fn decode_owner(bytes: &[u8]) -> Option<String> {
    entry(bytes, OWNER)
}

/// The byte order of a set's key as user data of the set, where type 0 means that (`NFTNL_UDATA_SET_KEYBYTEORDER`).
pub(super) fn encode_key_byte_order(order: u32) -> Vec<u8> {
    const KEY_BYTE_ORDER: u8 = 0;
    let mut bytes = vec![KEY_BYTE_ORDER, 4];
    bytes.extend_from_slice(&order.to_ne_bytes());
    bytes
}

/// What the parts of a set's key are, where types do not tell: as `nft` keeps a declaration by `typeof`.
///
/// It is user data of the set, of type 3 (`NFTNL_UDATA_SET_KEY_TYPEOF`), in which each expression is its number in
/// `nft` (type 0) and what that needs to know (type 1); of a concatenation these are its parts, each under its place.
pub(super) fn encode_typeof(parts: &[KeyType]) -> Vec<u8> {
    const KEY_TYPEOF: u8 = 3;
    // `enum expr_types` of nftables.
    const PAYLOAD: u32 = 7;
    const META: u32 = 9;
    const CONCATENATION: u32 = 13;
    // Numbers of headers and of their fields (`enum proto_desc_id`; eth_hdr_fields, ip_hdr_fields, ...), of
    // `NFT_META_IIFNAME`, and of nft's base of the transport header.
    const ETHER: u32 = 17;
    const ETHER_SOURCE: u32 = 2;
    const IIFNAME: u32 = 6;
    const TRANSPORT: u32 = 3;

    fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
        // Four parts of at most fifty bytes fit into the 255 that a list may have.
        [&[kind, value.len() as u8], value].concat()
    }
    fn numbers(values: &[u32]) -> Vec<u8> {
        (0..).zip(values).flat_map(|(kind, value)| entry(kind, &value.to_ne_bytes())).collect()
    }
    fn expression(number: u32, data: &[u8]) -> Vec<u8> {
        [entry(0, &number.to_ne_bytes()), entry(1, data)].concat()
    }
    let part = |part: &KeyType| match *part {
        KeyType::Ifname => expression(META, &numbers(&[IIFNAME])),
        KeyType::EtherAddress => expression(PAYLOAD, &numbers(&[ETHER, ETHER_SOURCE])),
        KeyType::Transport { offset, len } => expression(PAYLOAD, &numbers(&[0, 0, TRANSPORT, offset, len])),
        // Sets that mix these with bits of a header are not needed; nft prints such a key without names.
        KeyType::Ipv4Address | KeyType::Ipv6Address | KeyType::InetProtocol | KeyType::InetService => {
            Vec::new()
        }
    };
    let parts: Vec<u8> = (0..).zip(parts).flat_map(|(place, one)| entry(place, &part(one))).collect();
    // A concatenation has no byte order of its own.
    [encode_key_byte_order(0), entry(KEY_TYPEOF, &expression(CONCATENATION, &parts))].concat()
}

/// The comment in user data, if there is one.
pub fn decode(bytes: &[u8]) -> Option<String> {
    entry(bytes, COMMENT)
}

fn entry(mut bytes: &[u8], wanted: u8) -> Option<String> {
    while let [kind, len, rest @ ..] = bytes {
        let value = rest.get(..usize::from(*len))?;
        if *kind == wanted {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        bytes = &rest[usize::from(*len)..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_reads_back() {
        assert_eq!(encode("ab"), [0, 3, b'a', b'b', 0]);
        assert_eq!(decode(&encode("net/id/eth0")).as_deref(), Some("net/id/eth0"));
        assert_eq!(decode(&encode(&"ä".repeat(100))).unwrap(), "ä".repeat(64));
        let owner = encode_owner("net/id/eth0");
        assert_eq!((decode(&owner), decode_owner(&owner).as_deref()), (None, Some("net/id/eth0")));
    }

    #[test]
    fn other_entries_are_stepped_over_and_cut_ones_end_the_list() {
        assert_eq!(decode(&[2, 1, 9, 0, 2, b'x', 0]).as_deref(), Some("x"));
        assert_eq!(decode(&[2, 200, 9]), None);
        assert_eq!(decode(&[]), None);
    }
}
