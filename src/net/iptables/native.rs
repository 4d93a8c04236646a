//! A rule as the nf_tables variant of iptables writes it: `ip` and `ip6` tables with the names of the old ones,
//! addresses as native expressions, and everything else as an xtables extension in a `match` or `target` expression.
//!
//! ```text
//! -A CNI-x ! -d 224.0.0.0/4 -m comment --comment "c" -j MASQUERADE
//!   [ payload load 4b @ network header + 16 => reg 1 ]
//!   [ bitwise reg 1 = ( reg 1 & 0x000000f0 ) ^ 0x00000000 ]
//!   [ cmp neq reg 1 0x000000e0 ]
//!   [ match name comment rev 0 ]
//!   [ counter pkts 0 bytes 0 ]
//!   [ target name MASQUERADE rev 0 ]
//! ```
//!
//! The command also sends the protocol of `-p` with a rule (`NFTA_RULE_COMPAT`); without `-p` that says nothing.

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::Expressions;

use super::Protocol;
use super::rule::{AddressMatch, COMMENT_MAX, Membership, Rule, Target};
use crate::net::nft::expr::{self, Operator, Side};
use crate::net::nft::{self, Expr, Verdict};

/// Attributes of `match` and `target` alike (linux/netfilter/nf_tables_compat.h).
const NAME: u16 = 1;
const REVISION: u16 = 2;
const INFO: u16 = 3;

/// Length of struct nf_nat_ipv4_multi_range_compat (linux/netfilter/nf_nat.h), rounded up to eight bytes.
const RANGES_V4: usize = 24;
/// Length of struct nf_nat_range (linux/netfilter/nf_nat.h).
const RANGE_V6: usize = 40;

impl Rule {
    /// The rule as expressions of nf_tables, byte for byte as `iptables-nft` 1.8 makes them.
    pub fn expressions(&self, protocol: Protocol) -> Vec<Expr> {
        let mut expressions = Vec::with_capacity(8);
        for (side, test) in [(Side::Source, self.source), (Side::Destination, self.destination)] {
            let Some(AddressMatch { network, membership }) = test else { continue };
            let operator = match membership {
                Membership::In => Operator::Equal,
                Membership::NotIn => Operator::NotEqual,
            };
            expressions.extend(expr::address_in(side, operator, network));
        }
        let mut comment = self.cut_comment().as_bytes().to_vec();
        comment.resize(COMMENT_MAX + 1, 0);
        expressions.push(extension("match", "comment", comment));
        expressions.push(expr::counter());
        expressions.push(match &self.target {
            Target::Accept => expr::verdict(&Verdict::Accept),
            Target::Chain(chain) => expr::verdict(&Verdict::Jump(chain.clone())),
            Target::Masquerade => extension("target", "MASQUERADE", masquerade(protocol)),
        });
        expressions
    }
}

/// The comment that the command shows for a rule of nf_tables.
pub fn comment_of(rule: &nft::Rule) -> Option<String> {
    rule.expressions().find_map(|expression| {
        let Expressions::Other { expression_type, attributes } = expression else { return None };
        let value = |kind: u16| attributes.iter().find(|it| it.kind() == kind).map(value_of);
        if expression_type != "match" || value(NAME)? != b"comment\0" {
            return None;
        }
        let mut text = value(INFO)?;
        text.truncate(text.iter().position(|&byte| byte == 0).unwrap_or(text.len()));
        String::from_utf8(text).ok()
    })
}

fn value_of(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}

/// What MASQUERADE is told: no ports. IPv4 counts its ranges, of which there is one.
fn masquerade(protocol: Protocol) -> Vec<u8> {
    match protocol {
        Protocol::Ipv4 => {
            let mut ranges = vec![0; RANGES_V4];
            ranges[..4].copy_from_slice(&1u32.to_ne_bytes());
            ranges
        }
        Protocol::Ipv6 => vec![0; RANGE_V6],
    }
}

fn extension(kind: &str, name: &str, info: Vec<u8>) -> Expr {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let attributes =
        vec![DefaultNla::new(NAME, name), DefaultNla::new(REVISION, vec![0; 4]), DefaultNla::new(INFO, info)];
    expr::other(kind, attributes)
}
