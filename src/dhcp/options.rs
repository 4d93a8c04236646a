//! Options of DHCP as bytes by their codes (RFC 2132), and what some of them mean.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Codes of options.
pub mod code {
    #![allow(missing_docs, reason = "the names are those of RFC 2132, in its order")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTERS: u8 = 3;
    pub const DNS_SERVERS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const STATIC_ROUTES: u8 = 33;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const REQUESTED_OPTIONS: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const USER_CLASS: u8 = 77;
    pub const CLASSLESS_ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// The names that a configuration may call options by; others are called by their code.
const NAMES: [(&str, u8); 6] = [
    ("dhcp-client-identifier", code::CLIENT_ID),
    ("subnet-mask", code::SUBNET_MASK),
    ("routers", code::ROUTERS),
    ("host-name", code::HOST_NAME),
    ("user-class", code::USER_CLASS),
    ("vendor-class-identifier", code::VENDOR_CLASS),
];

/// The code of an option that is called by its name or by its code.
pub fn code_of(name: &str) -> Option<u8> {
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, code)| *code);
    named.or_else(|| name.parse().ok().filter(|code| !matches!(*code, code::PAD | code::END)))
}

/// The names of options, for an error that says what would be right.
pub fn names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}

/// The options of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// Gives an option a value, in place of the one that it had.
    pub fn set(&mut self, code: u8, value: impl Into<Vec<u8>>) {
        self.0.insert(code, value.into());
    }

    /// Takes over the options of another message, in place of those of the same codes.
    pub fn extend(&mut self, others: &Self) {
        self.0.extend(others.0.clone());
    }

    /// The value of an option.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// Reads options as far as they are whole. The value of one that comes more than once is joined (RFC 3396).
    pub fn read(&mut self, mut bytes: &[u8]) {
        while let Some((&code, rest)) = bytes.split_first() {
            bytes = rest;
            match code {
                code::PAD => continue,
                code::END => return,
                _ => {}
            }
            let Some((&len, rest)) = bytes.split_first() else { return };
            let Some((value, rest)) = rest.split_at_checked(usize::from(len)) else { return };
            self.0.entry(code).or_default().extend_from_slice(value);
            bytes = rest;
        }
    }

    /// The options as bytes, the message's type first; what is longer than an option can be is in several.
    pub fn write(&self, into: &mut Vec<u8>) {
        let first = self.0.get_key_value(&code::MESSAGE_TYPE);
        let rest = self.0.iter().filter(|(code, _)| **code != code::MESSAGE_TYPE);
        for (code, value) in first.into_iter().chain(rest) {
            let mut parts: Vec<&[u8]> = value.chunks(usize::from(u8::MAX)).collect();
            if parts.is_empty() {
                parts.push(&[]);
            }
            for part in parts {
                into.extend([*code, part.len() as u8]);
                into.extend_from_slice(part);
            }
        }
        into.push(code::END);
    }

    /// The first byte of an option.
    pub fn byte(&self, code: u8) -> Option<u8> {
        self.get(code)?.first().copied()
    }

    /// An option that is a number of seconds.
    pub fn seconds(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    /// An option that is a list of addresses; empty where it is not there.
    pub fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let (addresses, _) = self.get(code).unwrap_or_default().as_chunks::<4>();
        addresses.iter().map(|octets| Ipv4Addr::from(*octets)).collect()
    }

    /// An option that is text; some servers end it with a NUL.
    pub fn text(&self, code: u8) -> Option<String> {
        let text = String::from_utf8_lossy(self.get(code)?).trim_end_matches('\0').to_owned();
        Some(text).filter(|text| !text.is_empty())
    }

    /// The length of the prefix that option 1 says; none where it is no mask.
    pub fn prefix_len(&self) -> Option<u8> {
        let mask = u32::from(*self.addresses(code::SUBNET_MASK).first()?);
        (mask.leading_ones() + mask.trailing_zeros() == 32 || mask == 0).then(|| mask.leading_ones() as u8)
    }

    /// The routes of option 121: network, length of its prefix, next hop (RFC 3442). None where it is not there or not
    /// what it should be.
    pub fn classless_routes(&self) -> Option<Vec<(Ipv4Addr, u8, Ipv4Addr)>> {
        let mut bytes = self.get(code::CLASSLESS_ROUTES)?;
        let mut routes = Vec::new();
        while let Some((&len, rest)) = bytes.split_first() {
            // Only as many octets of the network as its prefix touches.
            let (network, rest) = rest.split_at_checked(usize::from(len.div_ceil(8)))?;
            let (router, rest) = rest.split_first_chunk::<4>()?;
            let mut octets = [0; 4];
            octets.get_mut(..network.len())?.copy_from_slice(network);
            routes.push((octets.into(), len, Ipv4Addr::from(*router)));
            bytes = rest;
        }
        routes.iter().all(|(_, len, _)| *len <= 32).then_some(routes)
    }

    /// The routes of option 33, whose networks are those of the classes.
    pub fn static_routes(&self) -> Vec<(Ipv4Addr, u8, Ipv4Addr)> {
        let (routes, _) = self.get(code::STATIC_ROUTES).unwrap_or_default().as_chunks::<8>();
        let mut found = Vec::new();
        for [a, b, c, d, router @ ..] in routes {
            let (network, len) = match a {
                0..128 => ([*a, 0, 0, 0], 8),
                128..192 => ([*a, *b, 0, 0], 16),
                192..224 => ([*a, *b, *c, 0], 24),
                _ => ([*a, *b, *c, *d], 32),
            };
            // A default route is not for this option to give (RFC 2132, section 5.8).
            if *a != 0 {
                found.push((network.into(), len, Ipv4Addr::from(*router)));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes() {
        assert_eq!(code_of("host-name"), Some(12));
        assert_eq!(code_of("121"), Some(121));
        for wrong in ["", "0", "255", "256", "-1", "hostname"] {
            assert_eq!(code_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut options = Options::default();
        options.set(code::HOST_NAME, *b"pod");
        options.set(code::MESSAGE_TYPE, [1]);
        options.set(200, vec![7; 300]);
        options.set(201, Vec::new());
        let mut bytes = Vec::new();
        options.write(&mut bytes);
        assert_eq!(bytes[..3], [53, 1, 1]);
        let mut read = Options::default();
        read.read(&bytes);
        assert_eq!(read, options);
    }

    #[test]
    fn options_that_are_cut_are_left_out() {
        let mut options = Options::default();
        options.read(&[0, 0, 12, 3, b'p', b'o', b'd', 3, 4, 10, 0]);
        assert_eq!(options.text(code::HOST_NAME).as_deref(), Some("pod"));
        assert_eq!(options.get(code::ROUTERS), None);
    }

    #[test]
    fn masks_are_whole() {
        let prefix = |mask: [u8; 4]| {
            let mut options = Options::default();
            options.set(code::SUBNET_MASK, mask);
            options.prefix_len()
        };
        assert_eq!(prefix([255, 255, 255, 0]), Some(24));
        assert_eq!(prefix([255; 4]), Some(32));
        assert_eq!(prefix([255, 0, 255, 0]), None);
    }

    #[test]
    fn routes_of_both_kinds() {
        let mut options = Options::default();
        options.set(code::CLASSLESS_ROUTES, [0, 10, 0, 0, 1, 24, 192, 0, 2, 10, 0, 0, 2]);
        let routes = options.classless_routes().unwrap();
        assert_eq!(routes[0], ([0, 0, 0, 0].into(), 0, [10, 0, 0, 1].into()));
        assert_eq!(routes[1], ([192, 0, 2, 0].into(), 24, [10, 0, 0, 2].into()));
        options.set(code::CLASSLESS_ROUTES, [33, 1, 2, 3, 4, 5, 10, 0, 0, 1]);
        assert_eq!(options.classless_routes(), None);
        options.set(code::STATIC_ROUTES, [192, 0, 2, 9, 10, 0, 0, 2, 0, 0, 0, 0, 10, 0, 0, 3]);
        assert_eq!(options.static_routes(), [([192, 0, 2, 0].into(), 24, [10, 0, 0, 2].into())]);
    }
}
