//! Expressions: the instructions that a rule is made of.
//!
//! A rule loads something into a register, compares it or looks it up, and ends with a verdict or a statement.
//! Registers are 16 bytes wide ([`Register::Reg1`] and so on) and can be addressed in words of 4 as well
//! ([`Register::Reg32_00`] is the beginning of `Reg1`); a concatenation is parts side by side, each rounded up to
//! whole words.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    Payload, VerdictAttribute,
};
pub use netlink_packet_netfilter::nftables::{MetaKey, Operator, Register};

use super::verdict::Verdict;

/// `NFT_PAYLOAD_*_HEADER` (linux/netfilter/nf_tables.h).
const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// `NFTA_EXTHDR_*` (linux/netfilter/nf_tables.h).
const NFTA_EXTHDR_DREG: u16 = 1;
const NFTA_EXTHDR_TYPE: u16 = 2;
const NFTA_EXTHDR_OFFSET: u16 = 3;
const NFTA_EXTHDR_LEN: u16 = 4;
/// `NFT_REG_1`, in the number that stands in an attribute.
const REG_1: u32 = 1;

/// `NEXTHDR_FRAGMENT` (linux/ipv6.h).
const IPV6_FRAGMENT: u8 = 44;

/// `NFTA_FIB_*`, and what is asked of it: which kind of address the destination is (linux/netfilter/nf_tables.h).
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
/// `RTN_LOCAL` (linux/rtnetlink.h).
const LOCAL: u32 = 2;

/// `NFTA_CT_*`, `NFT_CT_*` (linux/netfilter/nf_tables.h).
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_DESTINATION_PORT: u32 = 12;
/// Bits of states: `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED` (linux/netfilter/nf_conntrack_common.h).
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
/// `IP_CT_DIR_ORIGINAL` (linux/netfilter/nf_conntrack_tuple_common.h).
const ORIGINAL: u8 = 0;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const DESTINATION_IS_TRANSLATED: u32 = 1 << 5;

/// `NFTA_NAT_*`, `NFT_NAT_DNAT` (linux/netfilter/nf_tables.h).
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const DNAT: u32 = 1;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6` (linux/netfilter.h).
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expr(pub(super) ListAttribute<ExpressionAttribute>);

impl From<Expressions> for Expr {
    fn from(expressions: Expressions) -> Self {
        Self(expressions.into())
    }
}

/// Which of a packet's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `saddr`
    Source,
    /// `daddr`
    Destination,
}

/// `[ payload load <len>b @ network header + <offset> => reg <register> ]`
pub fn load_network_header(offset: u32, len: u32, register: Register) -> Expr {
    load_payload(NETWORK_HEADER, offset, len, register)
}

/// `[ payload load <len>b @ link header + <offset> => reg <register> ]`
pub fn load_link_header(offset: u32, len: u32, register: Register) -> Expr {
    load_payload(LINK_HEADER, offset, len, register)
}

/// `[ payload load <len>b @ transport header + <offset> => reg <register> ]`: goes on only if the packet is well-formed,
/// is not a fragment but the first, and has those bytes. Behind IPv6, extension headers are stepped over.
pub fn load_transport_header(offset: u32, len: u32, register: Register) -> Expr {
    load_payload(TRANSPORT_HEADER, offset, len, register)
}

/// `[ exthdr load 2b @ 44 + 2 => reg 1 ]`: the two bytes of an IPv6 fragment header that begin with the offset; goes on
/// only if there is such a header.
pub fn load_ipv6_fragment_offset() -> Expr {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let attributes = vec![
        number(NFTA_EXTHDR_DREG, REG_1),
        DefaultNla::new(NFTA_EXTHDR_TYPE, vec![IPV6_FRAGMENT]),
        number(NFTA_EXTHDR_OFFSET, 2),
        number(NFTA_EXTHDR_LEN, 2),
    ];
    other("exthdr", attributes)
}

fn load_payload(base: u32, offset: u32, len: u32, register: Register) -> Expr {
    let attributes = vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
    ];
    Expressions::Payload(attributes).into()
}

/// `[ meta load <key> => reg <register> ]`
pub fn load_meta(key: MetaKey, register: Register) -> Expr {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(register)]).into()
}

/// `[ cmp <operator> reg 1 <value> ]`
pub fn compare(operator: Operator, value: &[u8]) -> Expr {
    let attributes = vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ];
    Expressions::Cmp(attributes).into()
}

/// `[ bitwise reg 1 = ( reg 1 & <mask> ) ^ 0 ]`
pub fn mask(mask: &[u8]) -> Expr {
    let attributes = vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
    ];
    Expressions::Bitwise(attributes).into()
}

/// `[ lookup reg 1 set <set> ]`: goes on only if the set has what stands in register 1 and behind.
pub fn lookup(set: &str) -> Expr {
    Expressions::Lookup(vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(Register::Reg1)]).into()
}

/// `[ lookup reg 1 set <map> dreg 0 ]`, in `nft` syntax `vmap @<map>`: takes the verdict that the map has.
pub fn lookup_verdict(map: &str) -> Expr {
    let attributes = vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::DestinationRegister(Register::Verdict),
    ];
    Expressions::Lookup(attributes).into()
}

/// `[ lookup reg 1 set <map> dreg 1 ]`: puts what the map has into register 1 and behind; goes on only if it has
/// something.
pub fn lookup_data(map: &str) -> Expr {
    let attributes = vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::DestinationRegister(Register::Reg1),
    ];
    Expressions::Lookup(attributes).into()
}

/// `fib daddr type local`: packets to an address of this host.
pub fn destination_is_local() -> [Expr; 2] {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let attributes = vec![
        number(NFTA_FIB_DREG, REG_1),
        number(NFTA_FIB_RESULT, FIB_ADDRESS_TYPE),
        number(NFTA_FIB_FLAGS, FIB_DESTINATION),
    ];
    [other("fib", attributes), compare(Operator::Equal, &LOCAL.to_ne_bytes())]
}

/// `ct status dnat`: packets whose destination was translated.
pub fn destination_is_translated() -> [Expr; 3] {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    [
        other("ct", vec![number(NFTA_CT_DREG, REG_1), number(NFTA_CT_KEY, CT_STATUS)]),
        mask(&DESTINATION_IS_TRANSLATED.to_ne_bytes()),
        compare(Operator::NotEqual, &[0; 4]),
    ]
}

/// `ct state established,related`: packets of connections that somebody else has begun.
pub fn is_established() -> [Expr; 3] {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    [
        other("ct", vec![number(NFTA_CT_DREG, REG_1), number(NFTA_CT_KEY, CT_STATE)]),
        mask(&(ESTABLISHED | RELATED).to_ne_bytes()),
        compare(Operator::NotEqual, &[0; 4]),
    ]
}

/// `[ ct load proto_dst => reg <register>, dir original ]`: the port that the connection was meant for.
pub fn load_original_port(register: Register) -> Expr {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let attributes = vec![
        number(NFTA_CT_DREG, register.into()),
        number(NFTA_CT_KEY, CT_DESTINATION_PORT),
        DefaultNla::new(NFTA_CT_DIRECTION, vec![ORIGINAL]),
    ];
    other("ct", attributes)
}

/// `dnat ip to <address> . <port>`, or `ip6`: both stand in register 1 and behind. Only in a `nat` chain.
pub fn translate_destination(example: IpAddr) -> Expr {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let (family, port) = if example.is_ipv4() { (IPV4, Register::Reg32_01) } else { (IPV6, Register::Reg2) };
    let attributes = vec![
        number(NFTA_NAT_TYPE, DNAT),
        number(NFTA_NAT_FAMILY, family.into()),
        number(NFTA_NAT_REG_ADDR_MIN, REG_1),
        number(NFTA_NAT_REG_PROTO_MIN, port.into()),
    ];
    other("nat", attributes)
}

/// `[ immediate reg 0 <verdict> ]`
pub fn verdict(verdict: &Verdict) -> Expr {
    let attributes = vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict.attributes())),
    ];
    Expressions::Immediate(attributes).into()
}

/// `masquerade`: the address of the link that the packet leaves by becomes its source. Only in a `nat` chain.
pub fn masquerade() -> Expr {
    other("masq", vec![])
}

/// `counter`
pub fn counter() -> Expr {
    // NFTA_COUNTER_BYTES and NFTA_COUNTER_PACKETS, 64 bits each.
    other("counter", vec![DefaultNla::new(1, vec![0; 8]), DefaultNla::new(2, vec![0; 8])])
}

/// An expression of a type that the message crate does not know.
pub(crate) fn other(expression_type: &str, attributes: Vec<DefaultNla>) -> Expr {
    Expressions::Other { expression_type: expression_type.to_owned(), attributes }.into()
}

/// `meta nfproto ipv4` or `ipv6`: what must stand before a look into the network header of an `inet` table.
pub fn family_is(address: IpAddr) -> [Expr; 2] {
    let family = if address.is_ipv4() { IPV4 } else { IPV6 };
    [load_meta(MetaKey::Nfproto, Register::Reg1), compare(Operator::Equal, &[family])]
}

/// `ip saddr`, `ip6 daddr` and so on, into register 1.
pub fn load_address(side: Side, example: IpAddr) -> Expr {
    let (offset, len) = address_field(side, example);
    load_network_header(offset, len, Register::Reg1)
}

/// Offset in the network header, and length, of an address of the family of `example`.
pub fn address_field(side: Side, example: IpAddr) -> (u32, u32) {
    // struct iphdr and struct ipv6hdr.
    match (side, example) {
        (Side::Source, IpAddr::V4(_)) => (12, 4),
        (Side::Destination, IpAddr::V4(_)) => (16, 4),
        (Side::Source, IpAddr::V6(_)) => (8, 16),
        (Side::Destination, IpAddr::V6(_)) => (24, 16),
    }
}

/// `ip saddr <network>`, `ip6 daddr != <network>` and so on; nothing where every address is meant (length 0), and a
/// comparison that never holds where none is.
///
/// As `nft` and `iptables` write it: of a prefix that ends with a byte only those bytes are loaded.
pub fn address_in(side: Side, operator: Operator, network: IpNetwork) -> Vec<Expr> {
    let bits = u32::from(network.prefix());
    let bytes = octets(network.network());
    let whole = bits.div_ceil(8) as usize;
    let (offset, len) = address_field(side, network.ip());
    if bits == 0 && operator == Operator::Equal {
        vec![]
    } else if bits > 0 && bits.is_multiple_of(8) {
        vec![
            load_network_header(offset, bits / 8, Register::Reg1),
            compare(operator, bytes.get(..whole).unwrap_or(&bytes)),
        ]
    } else {
        let netmask = octets(network.mask());
        vec![load_network_header(offset, len, Register::Reg1), mask(&netmask), compare(operator, &bytes)]
    }
}

/// The bytes of an address, as they stand in a packet.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The verdict of an `immediate`, if it has one.
pub(super) fn verdict_of(attributes: &[Immediate]) -> Option<Verdict> {
    attributes.iter().find_map(|attribute| match attribute {
        Immediate::Data(DataAttribute::Verdict(parts)) => Verdict::parse(parts),
        _ => None,
    })
}

/// The attributes of a verdict where it is data.
pub(super) fn verdict_data(verdict: &Verdict) -> DataAttribute {
    let attributes: Vec<VerdictAttribute> = verdict.attributes();
    DataAttribute::Verdict(attributes)
}
