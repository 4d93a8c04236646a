//! An IP address with a prefix length, read strictly.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address and the length of its network's prefix, e.g. `10.1.0.5/16`; host bits are kept.
///
/// Stricter than `ipnetwork`, which takes a bare address and netmask notation: the reference refuses both, and a
/// forgotten prefix length must not become a /32 unseen. An IPv4-mapped IPv6 address counts as IPv4, as in Go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix(IpNetwork);

impl Prefix {
    /// A prefix of an address; `None` where the length is more than the family has bits.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        IpNetwork::new(address, len).ok().map(Self)
    }

    /// The prefix that holds only this address: /32 or /128.
    pub fn host(address: IpAddr) -> Self {
        Self(IpNetwork::from(address))
    }

    /// The address, host bits included.
    pub fn address(self) -> IpAddr {
        self.0.ip()
    }

    /// Length of the prefix in bits.
    pub fn prefix_len(self) -> u8 {
        self.0.prefix()
    }

    /// Whether this is a default route's prefix (length 0).
    pub fn is_default(self) -> bool {
        self.prefix_len() == 0
    }

    /// The network: the same prefix with its host bits cleared.
    pub fn network(self) -> Self {
        Self(IpNetwork::new(self.0.network(), self.prefix_len()).unwrap_or(self.0))
    }

    /// The network's first address after the network address itself; what a gateway has when nobody says.
    pub fn first_host(self) -> IpAddr {
        match self.0.network() {
            IpAddr::V4(a) => IpAddr::V4(u32::from(a).wrapping_add(1).into()),
            IpAddr::V6(a) => IpAddr::V6(u128::from(a).wrapping_add(1).into()),
        }
    }

    /// Whether an address lies in this network.
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    /// Whether an address of this network is one that a host can have: neither the network's own, which in IPv6 is that of
    /// its routers (RFC 4291, section 2.6.1), nor, in IPv4, that of broadcasts.
    pub fn has_host(self, address: IpAddr) -> bool {
        let broadcast = match self.0 {
            IpNetwork::V4(network) => Some(IpAddr::V4(network.broadcast())),
            IpNetwork::V6(_) => None,
        };
        self.contains(address) && address != self.0.network() && Some(address) != broadcast
    }

    /// Whether the two networks share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.0.network()) || other.contains(self.0.network())
    }

    /// Whether this is IPv4.
    pub fn is_ipv4(self) -> bool {
        self.0.is_ipv4()
    }

    /// Whether this is IPv6.
    pub fn is_ipv6(self) -> bool {
        self.0.is_ipv6()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix_len())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no address with a prefix length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPrefix(String);

impl fmt::Display for InvalidPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid CIDR address {:?}: want an address and a prefix length such as 10.1.0.0/16",
            self.0
        )
    }
}

impl std::error::Error for InvalidPrefix {}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let invalid = || InvalidPrefix(text.to_owned());
        let (address, len) = text.split_once('/').ok_or_else(invalid)?;
        let parsed: IpAddr = address.parse().map_err(|_| invalid())?;
        if len.is_empty() || len.len() > 3 || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let len: u8 = len.parse().map_err(|_| invalid())?;
        // ::ffff:10.1.0.5/112 is 10.1.0.5/16 to Go's net package and so to everyone who wrote such a file.
        let (parsed, len) = match (parsed.to_canonical(), parsed) {
            (v4 @ IpAddr::V4(_), IpAddr::V6(_)) if (96..=128).contains(&len) => (v4, len - 96),
            _ => (parsed, len),
        };
        Self::new(parsed, len).ok_or_else(invalid)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_an_address_with_a_length_is_a_prefix() {
        for bad in [
            "10.1.0.0",
            "10.1.0.0/255.255.0.0",
            "010.1.0.0/16",
            "10.1.0.0/33",
            "::/129",
            "10.1.0.0/",
            "/8",
            "10.1.0.0/+8",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_have_neither_the_first_address_nor_in_ipv4_the_last() {
        let has_host = |network: &str, address: &str| {
            network.parse::<Prefix>().unwrap().has_host(address.parse().unwrap())
        };
        for (network, hosts, others) in [
            ("10.1.0.0/24", ["10.1.0.1", "10.1.0.254"], ["10.1.0.0", "10.1.0.255"]),
            ("10.1.0.7/30", ["10.1.0.5", "10.1.0.6"], ["10.1.0.7", "10.1.0.8"]),
            ("fd00::/120", ["fd00::1", "fd00::ff"], ["fd00::", "fd00::100"]),
        ] {
            assert!(hosts.iter().all(|it| has_host(network, it)), "{network}");
            assert!(!others.iter().any(|it| has_host(network, it)), "{network}");
        }
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!("::ffff:10.1.0.5/112".parse::<Prefix>().unwrap().to_string(), "10.1.0.5/16");
    }

    #[test]
    fn overlap_is_mutual() {
        let p = |s: &str| s.parse::<Prefix>().unwrap();
        assert!(p("10.0.0.0/8").overlaps(p("10.9.0.0/16")) && p("10.9.0.0/16").overlaps(p("10.0.0.0/8")));
        assert!(!p("10.1.0.0/16").overlaps(p("10.2.0.0/16")));
    }

    proptest! {
        #[test]
        fn text_reads_back(bits: u128, len in 0u8..=128, v4: bool) {
            let prefix = if v4 {
                Prefix::new(IpAddr::V4((bits as u32).into()), len % 33).unwrap()
            } else {
                Prefix::new(IpAddr::V6(bits.into()), len).unwrap()
            };
            // Mapped addresses read back as IPv4, on purpose.
            prop_assume!(prefix.address().to_canonical() == prefix.address());
            prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
            prop_assert!(prefix.contains(prefix.network().address()));
        }
    }
}
