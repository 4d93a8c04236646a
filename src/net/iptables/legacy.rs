//! iptables where it is not nf_tables: which of its tables are there. A table is read and replaced as a whole, under a
//! lock that belongs to the command, so changes go through [`Commands`](super::Commands).

use std::fs;

use super::{Protocol, TableName, entries};
use crate::net::Result;

/// Whether this namespace has legacy tables of a protocol in use. Without, nothing can be in them.
///
/// The kernel lists a table here once somebody used it in this namespace.
pub fn has_tables(protocol: Protocol) -> bool {
    table_names(protocol).is_some_and(|names| !names.is_empty())
}

/// Whether this namespace has the legacy `nat` table of a protocol.
pub fn has_nat(protocol: Protocol) -> bool {
    has_table(protocol, TableName::Nat)
}

/// Whether this namespace has a legacy table of a protocol.
pub fn has_table(protocol: Protocol, table: TableName) -> bool {
    table_names(protocol).is_some_and(|names| names.lines().any(|name| name == table.name()))
}

/// Whether the legacy `nat` table of a protocol has a chain; nothing is executed.
pub fn nat_has_chain(protocol: Protocol, chain: &str) -> Result<bool> {
    // Asking for the entries of a table would make the table.
    if has_nat(protocol) { entries::nat_has_chain(protocol, chain) } else { Ok(false) }
}

/// Whether the legacy `nat` table of a protocol has a chain, and may have a rule that lists one of some ports
/// (`-m multiport --dports`); nothing is executed.
pub fn nat_may_name(protocol: Protocol, chain: &str, ports: &[u16]) -> Result<bool> {
    if has_nat(protocol) { entries::nat_may_name(protocol, chain, ports) } else { Ok(false) }
}

/// Whether the kernel has legacy tables of a protocol, in use or not.
pub fn is_supported(protocol: Protocol) -> bool {
    table_names(protocol).is_some() || module_is_there(protocol)
}

/// `None` where the kernel does not have legacy tables, or has not loaded them.
fn table_names(protocol: Protocol) -> Option<String> {
    // Not /proc/net: that is the namespace of the first thread, not of this one.
    let path = match protocol {
        Protocol::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Protocol::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(path).ok()
}

/// Whether the command could load the module.
fn module_is_there(protocol: Protocol) -> bool {
    let (directory, module) = match protocol {
        Protocol::Ipv4 => ("ipv4", "ip_tables.ko"),
        Protocol::Ipv6 => ("ipv6", "ip6_tables.ko"),
    };
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let directory = format!("/lib/modules/{}/kernel/net/{directory}/netfilter", release.trim());
    let compressions = ["", ".xz", ".zst", ".gz"];
    compressions.iter().any(|end| fs::exists(format!("{directory}/{module}{end}")).unwrap_or(false))
}
