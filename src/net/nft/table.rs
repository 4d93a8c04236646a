//! Tables and the families that they belong to.

use std::fmt;

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableMessage};

use super::chain::Chain;

/// The packets that a table sees (`NFPROTO_*`, linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Frames that a bridge forwards.
    Bridge,
}

impl Family {
    /// The family as `nft` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        }
    }

    pub(in crate::net) fn number(self) -> NetfilterProtoFamily {
        match self {
            Self::Inet => NetfilterProtoFamily::Inet,
            Self::Ip => NetfilterProtoFamily::IPv4,
            Self::Ip6 => NetfilterProtoFamily::IPv6,
            Self::Bridge => NetfilterProtoFamily::Bridge,
        }
    }
}

/// A table: `inet bridgehead`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    /// Which packets it sees.
    pub family: Family,
    /// Its name, unique in the family.
    pub name: &'a str,
}

impl<'a> Table<'a> {
    /// A table of a name.
    pub const fn new(family: Family, name: &'a str) -> Self {
        Self { family, name }
    }

    /// One of its chains.
    pub const fn chain(self, name: &'a str) -> Chain<'a> {
        Chain { table: self, name }
    }

    pub(super) fn added(self) -> NfTablesMessage {
        NfTablesMessage::NewTable(TableMessage {
            attributes: vec![TableAttribute::Name(self.name.to_owned())],
        })
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} {}", self.family.name(), self.name)
    }
}
