//! Chains, and the hooks that base chains hang on.

use std::fmt;

use netlink_packet_core::Parseable;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, InetHookNumber, NfTablesMessage,
};

use super::attribute;
use super::table::{Family, Table};

/// `NF_ACCEPT`, `NF_DROP` (linux/netfilter.h).
const ACCEPT: u32 = 1;
const DROP: u32 = 0;

/// Attributes of a chain and of its hook (linux/netfilter/nf_tables.h), and `NF_INET_FORWARD` (linux/netfilter.h).
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const HOOK_FORWARD: u32 = 2;

/// A chain of rules: `inet bridgehead postrouting`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chain<'a> {
    /// The table that it is in.
    pub table: Table<'a>,
    /// Its name, at most 127 bytes (`NFT_CHAIN_MAXNAMELEN`, linux/netfilter/nf_tables.h).
    pub name: &'a str,
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} {} {}", self.table.family.name(), self.table.name, self.name)
    }
}

/// What the kernel counts of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainState {
    /// Its number. What is made in a table, chains and rules alike, is numbered upwards.
    pub handle: u64,
    /// How many rules it has, plus how many rules and elements lead to it.
    pub uses: u32,
}

impl ChainState {
    /// Reads the attributes of a message; `None` without these two.
    pub fn parse(attributes: &[u8]) -> Option<Self> {
        let (mut handle, mut uses) = (None, None);
        for attribute in ChainMessage::parse(attributes).ok()?.attributes {
            match attribute {
                ChainAttribute::Handle(number) => handle = Some(number),
                ChainAttribute::Use(number) => uses = Some(number),
                _ => {}
            }
        }
        Some(Self { handle: handle?, uses: uses? })
    }
}

/// What a base chain does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `type filter`
    Filter,
    /// `type nat`: sees the first packet of a connection only.
    Nat,
}

/// Where in a packet's way a base chain stands (`NF_INET_*`, linux/netfilter.h; a bridge counts the same).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `hook prerouting`
    Prerouting,
    /// `hook input`
    Input,
    /// `hook forward`
    Forward,
    /// `hook output`
    Output,
    /// `hook postrouting`
    Postrouting,
}

/// What makes a chain a base chain: `type nat hook postrouting priority 100; policy accept;`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What it does.
    pub kind: Kind,
    /// Where it stands.
    pub hook: Hook,
    /// Its rank among the chains of that hook; lower comes first.
    pub priority: i32,
}

impl Table<'_> {
    pub(super) fn chains_wanted(self) -> NfTablesMessage {
        NfTablesMessage::GetChain(ChainMessage {
            attributes: vec![ChainAttribute::Table(self.name.to_owned())],
        })
    }
}

/// A base chain for what the host forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// The family of its table.
    pub family: Family,
    /// The name of its table.
    pub table: String,
    /// Its own name.
    pub chain: String,
    /// Whether it drops what none of its rules decides on.
    pub drops: bool,
}

impl Forwarding {
    /// Reads the attributes of a chain; `None` for any other.
    pub(super) fn parse(family: Family, attributes: &[u8]) -> Option<Self> {
        let hook = attribute(attributes, NFTA_CHAIN_HOOK)?;
        if attribute(hook, NFTA_HOOK_HOOKNUM)? != HOOK_FORWARD.to_be_bytes() {
            return None;
        }
        let (table, chain) = parse_names(attributes)?;
        let drops = attribute(attributes, NFTA_CHAIN_POLICY) == Some(&DROP.to_be_bytes()[..]);
        Some(Self { family, table, chain, drops })
    }
}

/// The names of table and chain in the attributes of a chain; `None` where they cannot be read.
pub(super) fn parse_names(attributes: &[u8]) -> Option<(String, String)> {
    let (mut table, mut chain) = (None, None);
    for attribute in ChainMessage::parse(attributes).ok()?.attributes {
        match attribute {
            ChainAttribute::Table(name) => table = Some(name),
            ChainAttribute::Name(name) => chain = Some(name),
            _ => {}
        }
    }
    Some((table?, chain?))
}

impl Chain<'_> {
    fn naming(self) -> Vec<ChainAttribute> {
        vec![ChainAttribute::Table(self.table.name.to_owned()), ChainAttribute::Name(self.name.to_owned())]
    }

    pub(super) fn wanted(self) -> NfTablesMessage {
        NfTablesMessage::GetChain(ChainMessage { attributes: self.naming() })
    }

    pub(super) fn added(self) -> NfTablesMessage {
        NfTablesMessage::NewChain(ChainMessage { attributes: self.naming() })
    }

    pub(super) fn deleted(self) -> NfTablesMessage {
        NfTablesMessage::DeleteChain(ChainMessage { attributes: self.naming() })
    }

    pub(super) fn added_as_base(self, base: Base) -> NfTablesMessage {
        let mut attributes = self.naming();
        let hook = match base.hook {
            Hook::Prerouting => InetHookNumber::PreRouting,
            Hook::Input => InetHookNumber::LocalIn,
            Hook::Forward => InetHookNumber::Forward,
            Hook::Output => InetHookNumber::LocalOut,
            Hook::Postrouting => InetHookNumber::PostRouting,
        };
        attributes.push(ChainAttribute::Hook(vec![
            HookAttribute::Number(HookNumber::Inet(hook)),
            HookAttribute::Priority(base.priority.cast_unsigned()),
        ]));
        attributes.push(ChainAttribute::Policy(ACCEPT));
        let kind = match base.kind {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
        };
        attributes.push(ChainAttribute::Type(kind.to_owned()));
        NfTablesMessage::NewChain(ChainMessage { attributes })
    }
}
