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
//! The command also sends the protocol of `-p` with a rule (`NFTA_RULE_COMPAT`, see
//! [`Transaction::add_rule_of`](crate::net::nft::Transaction::add_rule_of)); without `-p` that says nothing.

use std::net::SocketAddr;

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::Expressions;

use super::Protocol;
use super::rule::{
    AddressMatch, COMMENT_MAX, LinkMatch, Match, Membership, PORTS_MAX, Rule, Target, Transport, cut,
};
use crate::net::nft::expr::{self, MetaKey, Operator, Register, Side};
use crate::net::nft::{self, Destination, Expr, Verdict};

/// Attributes of `match` and `target` alike (linux/netfilter/nf_tables_compat.h).
const NAME: u16 = 1;
const REVISION: u16 = 2;
const INFO: u16 = 3;

/// Length of struct nf_nat_ipv4_multi_range_compat (linux/netfilter/nf_nat.h), rounded up to eight bytes.
const RANGES_V4: usize = 24;
/// Length of struct nf_nat_range (linux/netfilter/nf_nat.h).
const RANGE_V6: usize = 40;

/// The same of struct nf_nat_range2, and its flags.
const RANGE_V2: usize = 48;
const NF_NAT_RANGE_MAP_IPS: u32 = 1;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;

/// Lengths of the structs of matches, rounded up to eight bytes, and values in them.
const XT_MULTIPORT_V1: usize = 48;
const MULTIPORT_DESTINATION: u8 = 1;
const XT_SCTP_INFO: usize = 296;
const XT_SCTP_DEST_PORTS: u32 = 2;

/// Length of struct xt_conntrack_mtinfo3 (linux/netfilter/xt_conntrack.h), rounded up to eight bytes; where its
/// `match_flags` and `state_mask` stand, and what is in them.
const XT_CONNTRACK: usize = 168;
const MATCH_FLAGS: usize = 146;
const STATE_MASK: usize = 150;
const XT_CONNTRACK_STATE: u16 = 1;
const ESTABLISHED: u16 = 1 << 1;
const RELATED: u16 = 1 << 2;
/// `XT_ADDRTYPE_LOCAL`: a bit by its number `RTN_LOCAL`.
const ADDRESS_LOCAL: u16 = 1 << 2;

/// Where the destination port stands in the headers of TCP, UDP and SCTP.
const DESTINATION_PORT: u32 = 2;

/// Where the transport protocol stands in the header of IPv4.
const IPV4_PROTOCOL: u32 = 9;

/// Which command has written a rule: they differ in where and how they test the transport protocol (`-p`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edition {
    /// 1.8.9, for one: first of all, by what the kernel has found it to be.
    Early,
    /// 1.8.13, for one: behind addresses and links, and with IPv4 by the byte in the header.
    Late,
}

impl Rule {
    /// The rule as expressions of nf_tables, byte for byte as `iptables-nft` 1.8.9 makes them; later ones read them.
    pub fn expressions(&self, protocol: Protocol) -> Vec<Expr> {
        self.expressions_of(Edition::Early, protocol)
    }

    /// Whether a rule that is there is this one, whichever `iptables-nft` has made it.
    pub fn is(&self, found: &nft::Rule, protocol: Protocol) -> bool {
        let is_of = |edition| found.consists_of(&self.expressions_of(edition, protocol));
        is_of(Edition::Early) || (self.transport.is_some() && is_of(Edition::Late))
    }

    pub(super) fn expressions_of(&self, edition: Edition, protocol: Protocol) -> Vec<Expr> {
        let transport = self.transport.map(|transport| {
            let load = if edition == Edition::Late && protocol == Protocol::Ipv4 {
                expr::load_network_header(IPV4_PROTOCOL, 1, Register::Reg1)
            } else {
                expr::load_meta(MetaKey::L4Proto, Register::Reg1)
            };
            [load, expr::compare(Operator::Equal, &[transport.number()])]
        });
        let (first, behind) = match edition {
            Edition::Early => (transport, None),
            Edition::Late => (None, transport),
        };
        let mut expressions = Vec::with_capacity(8);
        expressions.extend(first.into_iter().flatten());
        for (side, test) in [(Side::Source, self.source), (Side::Destination, self.destination)] {
            let Some(AddressMatch { network, membership }) = test else { continue };
            let operator = match membership {
                Membership::In => Operator::Equal,
                Membership::NotIn => Operator::NotEqual,
            };
            expressions.extend(expr::address_in(side, operator, network));
        }
        for (key, test) in [(MetaKey::Iifname, &self.inbound), (MetaKey::Oifname, &self.outbound)] {
            let Some(LinkMatch { name, membership }) = test else { continue };
            let operator = match membership {
                Membership::In => Operator::Equal,
                Membership::NotIn => Operator::NotEqual,
            };
            expressions.push(expr::load_meta(key, Register::Reg1));
            expressions.push(expr::compare(operator, &link_name(name)));
        }
        expressions.extend(behind.into_iter().flatten());
        if let Some(comment) = &self.comment {
            let mut comment = cut(comment).as_bytes().to_vec();
            comment.resize(COMMENT_MAX + 1, 0);
            expressions.push(extension("match", "comment", 0, comment));
        }
        for test in &self.matches {
            match test {
                Match::LocalDestination => {
                    expressions.push(extension("match", "addrtype", 1, local_destination()));
                }
                Match::Port(port) if self.transport == Some(Transport::Sctp) => {
                    expressions.push(extension("match", "sctp", 0, sctp_port(*port)));
                }
                Match::Port(port) => {
                    expressions.push(expr::load_transport_header(DESTINATION_PORT, 2, Register::Reg1));
                    expressions.push(expr::compare(Operator::Equal, &port.to_be_bytes()));
                }
                Match::Ports(ports) => {
                    expressions.push(extension("match", "multiport", 1, multiport(ports)));
                }
                Match::Mark(bits) => {
                    expressions.push(expr::load_meta(MetaKey::Mark, Register::Reg1));
                    expressions.push(expr::mask(&bits.to_ne_bytes()));
                    expressions.push(expr::compare(Operator::Equal, &bits.to_ne_bytes()));
                }
                Match::Established => expressions.push(extension("match", "conntrack", 3, established())),
            }
        }
        expressions.push(expr::counter());
        expressions.push(match &self.target {
            Target::Accept => expr::verdict(&Verdict::Accept),
            Target::Drop => expr::verdict(&Verdict::Drop),
            Target::Return => expr::verdict(&Verdict::Return),
            Target::Chain(chain) => expr::verdict(&Verdict::Jump(chain.clone())),
            Target::Masquerade => extension("target", "MASQUERADE", 0, masquerade(protocol)),
            Target::Dnat(to) => extension("target", "DNAT", 2, destination(*to)),
            Target::Mark(bits) => {
                // struct xt_mark_tginfo2: what is set, and what is cleared before.
                extension("target", "MARK", 2, [bits.to_ne_bytes(), bits.to_ne_bytes()].concat())
            }
        });
        expressions
    }
}

/// The comment that the command shows for a rule of nf_tables.
pub fn comment_of(rule: &nft::Rule) -> Option<String> {
    let mut text = match_of(rule, "comment")?;
    text.truncate(text.iter().position(|&byte| byte == 0).unwrap_or(text.len()));
    String::from_utf8(text).ok()
}

/// The ports of `-m multiport --dports` in a rule of nf_tables; ranges are none.
pub fn native_ports(rule: &nft::Rule) -> Option<Vec<u16>> {
    ports_in(&match_of(rule, "multiport")?)
}

/// The ports in a struct xt_multiport_v1 that lists destinations.
pub(super) fn ports_in(info: &[u8]) -> Option<Vec<u16>> {
    let (&[kind, count], ports) = info.split_first_chunk::<2>()?;
    let ports = ports.as_chunks::<2>().0.iter().map(|bytes| u16::from_ne_bytes(*bytes));
    (kind == MULTIPORT_DESTINATION).then(|| ports.take(usize::from(count).min(PORTS_MAX)).collect())
}

/// What a rule of nf_tables wants a packet's destination to be, also where the command has written it as a match.
pub fn native_destination(rule: &nft::Rule) -> Destination {
    let mut destination = rule.destination();
    // Structs xt_tcp and xt_udp have the ports of the source first, struct xt_sctp_info has them behind.
    for (name, at) in [("sctp", 0), ("tcp", 4), ("udp", 4)] {
        if destination.port.is_none()
            && let Some(info) = match_of(rule, name)
            && let Some(&[first, second, ..]) = info.get(at..)
        {
            destination.port = Some(u16::from_ne_bytes([first, second]));
        }
    }
    destination
}

/// What a match of xtables is told, if a rule has it.
fn match_of(rule: &nft::Rule, name: &str) -> Option<Vec<u8>> {
    rule.expressions().find_map(|expression| {
        let Expressions::Other { expression_type, attributes } = expression else { return None };
        let value = |kind: u16| attributes.iter().find(|it| it.kind() == kind).map(value_of);
        let found = value(NAME)?;
        let is_it = expression_type == "match" && found.strip_suffix(&[0]) == Some(name.as_bytes());
        if is_it { value(INFO) } else { None }
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

/// struct xt_addrtype_info_v1 (linux/netfilter/xt_addrtype.h): source, destination, flags.
fn local_destination() -> Vec<u8> {
    [&0u16.to_ne_bytes()[..], &ADDRESS_LOCAL.to_ne_bytes(), &0u32.to_ne_bytes()].concat()
}

/// A whole name, which ends with a NUL; the command writes one without for names that begin so.
pub fn link_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// struct xt_conntrack_mtinfo3, which is told of nothing but states.
fn established() -> Vec<u8> {
    let mut info = vec![0; XT_CONNTRACK];
    info[MATCH_FLAGS..][..2].copy_from_slice(&XT_CONNTRACK_STATE.to_ne_bytes());
    info[STATE_MASK..][..2].copy_from_slice(&(RELATED | ESTABLISHED).to_ne_bytes());
    info
}

/// struct xt_sctp_info (linux/netfilter/xt_sctp.h): ranges of destination and source ports, a map of chunks and how it
/// is matched, four flags of chunks and how many of these are used, what counts, what is inverted. The command says of
/// an unused flag that it is of chunk -1.
fn sctp_port(port: u16) -> Vec<u8> {
    const CHUNKS: usize = 256 + 4;
    let mut info = Vec::with_capacity(XT_SCTP_INFO);
    for number in [port, port, 0, 0] {
        info.extend_from_slice(&number.to_ne_bytes());
    }
    info.resize(info.len() + CHUNKS, 0);
    info.extend_from_slice(&[[0xff, 0, 0]; 4].concat());
    for number in [0, XT_SCTP_DEST_PORTS, 0] {
        info.extend_from_slice(&number.to_ne_bytes());
    }
    info.resize(XT_SCTP_INFO, 0);
    info
}

/// struct xt_multiport_v1 (linux/netfilter/xt_multiport.h): what is compared, how many, the ports, which of them begin a
/// range, and whether it is inverted.
fn multiport(ports: &[u16]) -> Vec<u8> {
    let ports = &ports[..ports.len().min(PORTS_MAX)];
    // At most fifteen.
    let mut info = vec![MULTIPORT_DESTINATION, ports.len() as u8];
    for at in 0..PORTS_MAX {
        info.extend_from_slice(&ports.get(at).unwrap_or(&0).to_ne_bytes());
    }
    info.resize(XT_MULTIPORT_V1, 0);
    info
}

/// struct nf_nat_range2 (linux/netfilter/nf_nat.h): flags, first and last address, first and last port, a base.
fn destination(to: SocketAddr) -> Vec<u8> {
    let mut address = expr::octets(to.ip());
    address.resize(16, 0);
    let port = to.port().to_be_bytes();
    let flags = NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED;
    let mut range = [&flags.to_ne_bytes()[..], &address, &address, &port, &port].concat();
    range.resize(RANGE_V2, 0);
    range
}

fn extension(kind: &str, name: &str, revision: u32, info: Vec<u8>) -> Expr {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let attributes = vec![
        DefaultNla::new(NAME, name),
        DefaultNla::new(REVISION, revision.to_be_bytes().to_vec()),
        DefaultNla::new(INFO, info),
    ];
    expr::other(kind, attributes)
}
