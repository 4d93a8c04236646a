//! Rules that choose a routing table (ip-rule(8)).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Rtnl, attributes, ip_of, u32_of};
use crate::net::Result;
use crate::net::netlink::Message;

/// Length of struct fib_rule_hdr, and its attributes (linux/fib_rules.h).
const HEADER: usize = 12;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;

/// A rule by which packets are looked up in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is for IPv4; otherwise for IPv6.
    pub is_ipv4: bool,
    /// The only address whose packets it is for, if there is only one.
    pub source: Option<IpAddr>,
    /// The table.
    pub table: u32,
    /// Its place among the rules, lower first.
    pub priority: Option<u32>,
}

/// The request for a rule: packets from an address are looked up in a table. The kernel gives it the place before those
/// that are there. `EEXIST` where it is there.
pub fn add(source: IpAddr, table: u32) -> Message {
    let message = RouteNetlinkMessage::NewRule(message(source, table, None));
    Message::new(format!("add rule from {source} lookup {table}"), NLM_F_CREATE | NLM_F_EXCL, message)
}

/// The request that deletes a rule; `ENOENT` where it is not there.
pub fn delete(source: IpAddr, table: u32, priority: Option<u32>) -> Message {
    let message = RouteNetlinkMessage::DelRule(message(source, table, priority));
    Message::new(format!("delete rule from {source} lookup {table}"), 0, message)
}

fn message(source: IpAddr, table: u32, priority: Option<u32>) -> RuleMessage {
    let mut message = RuleMessage::default();
    let (family, len) = match source {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.family = family;
    message.header.src_len = len;
    message.header.table = u8::try_from(table).unwrap_or_default();
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Source(source));
    message.attributes.push(RuleAttribute::Table(table));
    message.attributes.extend(priority.map(RuleAttribute::Priority));
    message
}

impl Rtnl {
    /// The rules of both families that choose a table.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        let found = self.dump("list the rules", RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
        Ok(found.iter().filter_map(|body| parse(body)).collect())
    }
}

/// Reads an answer (RTM_NEWRULE); `None` where it chooses no table.
pub fn parse(body: &[u8]) -> Option<Rule> {
    let is_ipv4 = match i32::from(*body.first()?) {
        nix::libc::AF_INET => true,
        nix::libc::AF_INET6 => false,
        _ => return None,
    };
    if *body.get(7)? != FR_ACT_TO_TBL {
        return None;
    }
    let src_len = *body.get(2)?;
    let mut rule = Rule { is_ipv4, source: None, table: u32::from(*body.get(4)?), priority: None };
    for (kind, value) in attributes(body, HEADER) {
        match kind {
            FRA_SRC if src_len == if is_ipv4 { 32 } else { 128 } => rule.source = ip_of(value),
            FRA_PRIORITY => rule.priority = u32_of(value),
            FRA_TABLE => rule.table = u32_of(value)?,
            _ => {}
        }
    }
    Some(rule)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    #[test]
    fn what_is_asked_for_is_read_again() {
        for (source, table) in [("10.1.0.5", 100), ("fd00::5", 70_000)] {
            let source: IpAddr = source.parse().unwrap();
            let message = message(source, table, Some(9));
            let mut body = vec![0; message.buffer_len()];
            message.emit(&mut body);
            let wanted = Rule { is_ipv4: source.is_ipv4(), source: Some(source), table, priority: Some(9) };
            assert_eq!(parse(&body), Some(wanted));
            body[2] = 24;
            assert_eq!(parse(&body).unwrap().source, None);
            for len in 0..body.len() {
                parse(&body[..len]);
            }
        }
    }
}
