//! iptables: the rules of the reference plugins, which other programs read and change with the `iptables` commands.
//!
//! There are two kernels behind that command. The newer one is nf_tables: a rule is written there as the command
//! would write it ([`Rule::expressions`]), without executing anything, and `iptables -S` cannot tell the difference.
//! The older one has no interface but the command's own ([`Commands`]).

pub mod commands;
mod entries;
pub mod filter;
pub mod legacy;
mod native;
pub mod rule;

use super::nft::{Family, Table};
pub use commands::Commands;
use commands::find;
pub use filter::Filter;
pub use native::{comment_of, link_name, native_destination, native_ports};
pub use rule::{AddressMatch, LinkMatch, Match, Rule, Target, Transport};

/// A protocol, each with its own command and tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// IPv4: `iptables`.
    Ipv4,
    /// IPv6: `ip6tables`.
    Ipv6,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// What its commands' names begin with.
    fn command(self) -> &'static str {
        match self {
            Self::Ipv4 => "iptables",
            Self::Ipv6 => "ip6tables",
        }
    }

    /// The `nat` table that the nf_tables variant keeps for it.
    pub fn nat(self) -> Table<'static> {
        match self {
            Self::Ipv4 => Table::new(Family::Ip, "nat"),
            Self::Ipv6 => Table::new(Family::Ip6, "nat"),
        }
    }

    /// The `filter` table that the nf_tables variant keeps for it.
    pub fn filter(self) -> Table<'static> {
        match self {
            Self::Ipv4 => Table::new(Family::Ip, "filter"),
            Self::Ipv6 => Table::new(Family::Ip6, "filter"),
        }
    }
}

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableName {
    /// `-t filter`
    Filter,
    /// `-t nat`
    Nat,
}

impl TableName {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// Which kernel interface the command stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-nft`: nf_tables.
    Nft,
    /// `iptables-legacy`: ip_tables.
    Legacy,
}

impl Variant {
    /// What the names of its commands have behind that of the protocol.
    fn suffix(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// The variant that the system's `iptables` is; `None` without that command. Nothing is executed.
pub fn installed(protocol: Protocol) -> Option<Variant> {
    let path = find(&format!("{}-restore", protocol.command()))?;
    let binary = path.canonicalize().ok()?;
    let name = binary.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    Some(match name {
        // All commands of a variant are one binary. `xtables-compat-multi` is an old name of the nf_tables one.
        _ if name.contains("nft") || name.contains("compat") => Variant::Nft,
        _ if name.contains("legacy") || name == "xtables-multi" => Variant::Legacy,
        // A script that chooses: so do we, as such scripts do, by what is in use.
        _ if legacy::has_tables(protocol) => Variant::Legacy,
        _ => Variant::Nft,
    })
}

#[cfg(test)]
mod tests;
