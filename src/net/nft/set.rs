//! Sets and maps, and their elements.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, SetMessage, VerdictAttribute,
};

use super::expr;
use super::table::Table;
use super::userdata;
use super::verdict::Verdict;
use super::{attribute, attributes};

/// Attributes of sets and elements (linux/netfilter/nf_tables.h).
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// `NFT_DATA_VERDICT` (linux/netfilter/nf_tables.h).
const DATA_VERDICT: u32 = 0xffff_ff00;

/// Bits by which the parts of a concatenation are told apart in the type of its key (`TYPE_BITS` of nftables).
const TYPE_BITS: u32 = 6;

/// What a part of a key is. The kernel only keeps the number of the type, for `nft` to print it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// `ipv4_addr`
    Ipv4Address,
    /// `ipv6_addr`
    Ipv6Address,
    /// `ether_addr`
    EtherAddress,
    /// `inet_proto`
    InetProtocol,
    /// `inet_service`
    InetService,
    /// `ifname`
    Ifname,
    /// `@th,<offset>,<len>`: bits of the transport header, for which `nft` has no name. A set with such a part is
    /// declared by `typeof` and not by `type`.
    Transport {
        /// Where they begin, in bits.
        offset: u32,
        /// How many they are, a multiple of eight.
        len: u32,
    },
}

impl KeyType {
    /// `enum datatypes` of nftables.
    fn number(self) -> u32 {
        match self {
            // `integer`
            Self::Transport { .. } => 4,
            Self::Ipv4Address => 7,
            Self::Ipv6Address => 8,
            Self::EtherAddress => 9,
            Self::InetProtocol => 12,
            Self::InetService => 13,
            Self::Ifname => 41,
        }
    }

    /// `enum byteorder` of nftables: of the host, or of the network.
    fn byte_order(self) -> u32 {
        match self {
            Self::Ifname => 1,
            _ => 2,
        }
    }

    /// A value in the words of `nft`.
    fn word(self, bytes: &[u8]) -> String {
        match (self, bytes) {
            (Self::Ipv4Address, bytes) if bytes.len() == 4 => {
                let octets: [u8; 4] = std::array::from_fn(|i| bytes[i]);
                IpAddr::from(octets).to_string()
            }
            (Self::Ipv6Address, bytes) if bytes.len() == 16 => {
                let octets: [u8; 16] = std::array::from_fn(|i| bytes[i]);
                IpAddr::from(octets).to_string()
            }
            (Self::InetProtocol, [6]) => "tcp".to_owned(),
            (Self::InetProtocol, [17]) => "udp".to_owned(),
            (Self::InetProtocol, [132]) => "sctp".to_owned(),
            (Self::InetProtocol, [number]) => number.to_string(),
            (Self::InetService, [high, low]) => u16::from_be_bytes([*high, *low]).to_string(),
            (Self::Ifname, bytes) => {
                let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
                format!("{:?}", String::from_utf8_lossy(name))
            }
            (_, bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
        }
    }

    /// Length in bytes.
    fn len(self) -> u32 {
        match self {
            Self::Ipv4Address => 4,
            Self::Ipv6Address | Self::Ifname => 16,
            Self::EtherAddress => 6,
            Self::InetProtocol => 1,
            Self::InetService => 2,
            Self::Transport { len, .. } => len / 8,
        }
    }
}

/// What the elements of a set carry beside their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carries {
    /// Nothing: a set.
    Nothing,
    /// A verdict: a verdict map.
    Verdict,
    /// Data of these parts, side by side: a map.
    Data(&'static [KeyType]),
}

/// A set or a map: `set bridge bridgehead guarded { type ifname . ether_addr; }`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Set<'a> {
    /// The table that it is in.
    pub table: Table<'a>,
    /// Its name.
    pub name: &'a str,
    /// The parts of its key; more than one make a concatenation.
    pub key: &'a [KeyType],
    /// Whether it is a map.
    pub carries: Carries,
}

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.carries {
            Carries::Nothing => "set",
            Carries::Verdict | Carries::Data(_) => "map",
        };
        write!(f, "{kind} {} {} {}", self.table.family.name(), self.table.name, self.name)
    }
}

/// An element of a set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Its key, see [`key`].
    pub key: Vec<u8>,
    /// What a verdict map does with it.
    pub verdict: Option<Verdict>,
    /// What a map of data has for it, see [`key`]; empty in all others.
    pub data: Vec<u8>,
    /// Whose it is.
    pub comment: Option<String>,
}

/// The key that an address is.
pub fn address_key(address: IpAddr) -> Vec<u8> {
    expr::octets(address)
}

/// A key of parts: each is rounded up with zeros to the four bytes of a register.
pub fn key(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A key or data of parts in the words of `nft`: `10.1.0.5 . 6 . 8080`.
pub fn words(parts: &[KeyType], bytes: &[u8]) -> String {
    let mut rest = bytes;
    let words = parts.iter().map(|part| {
        let len = part.len() as usize;
        let (own, behind) = (rest.get(..len).unwrap_or_default(), rest.get(len.next_multiple_of(4)..));
        rest = behind.unwrap_or_default();
        part.word(own)
    });
    words.collect::<Vec<_>>().join(" . ")
}

/// The part of a key that a link's name is: 16 bytes (`IFNAMSIZ`) filled with zeros. What is too long is cut.
pub fn ifname_key(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, &letter) in bytes.iter_mut().zip(name.as_bytes().iter().take(15)) {
        *byte = letter;
    }
    bytes
}

impl Set<'_> {
    pub(super) fn added(self, id: u32) -> NfTablesMessage {
        // NFT_SET_CONCAT is for concatenations of intervals only.
        let flags = match self.carries {
            Carries::Nothing => SetFlags::empty(),
            Carries::Verdict | Carries::Data(_) => SetFlags::Map,
        };
        let mut attributes = vec![
            SetAttribute::Table(self.table.name.to_owned()),
            SetAttribute::Name(self.name.to_owned()),
            SetAttribute::Id(id),
            SetAttribute::Flags(flags),
            SetAttribute::KeyType(type_of(self.key)),
            SetAttribute::KeyLen(len_of(self.key)),
        ];
        // Without it, nft prints a set of links' names as if they were empty. It knows better in a concatenation.
        if let [one] = self.key {
            attributes.push(SetAttribute::UserData(userdata::encode_key_byte_order(one.byte_order())));
        } else if self.key.iter().any(|part| matches!(part, KeyType::Transport { .. })) {
            attributes.push(SetAttribute::UserData(userdata::encode_typeof(self.key)));
        }
        let (data_type, data_len) = match self.carries {
            Carries::Nothing => return NfTablesMessage::NewSet(SetMessage { attributes }),
            Carries::Verdict => (DATA_VERDICT, 0),
            Carries::Data(parts) => (type_of(parts), len_of(parts)),
        };
        attributes.push(SetAttribute::DataType(data_type));
        attributes.push(SetAttribute::DataLen(data_len));
        NfTablesMessage::NewSet(SetMessage { attributes })
    }

    pub(super) fn wanted(self) -> NfTablesMessage {
        NfTablesMessage::GetSet(self.naming())
    }

    pub(super) fn deleted(self) -> NfTablesMessage {
        NfTablesMessage::DeleteSet(self.naming())
    }

    fn naming(self) -> SetMessage {
        let attributes =
            vec![SetAttribute::Table(self.table.name.to_owned()), SetAttribute::Name(self.name.to_owned())];
        SetMessage { attributes }
    }

    fn list(self, elements: Vec<Vec<SetElementAttribute>>) -> SetElementMessage {
        let mut attributes = vec![
            SetElementList::Table(self.table.name.to_owned()),
            SetElementList::Set(self.name.to_owned()),
        ];
        if !elements.is_empty() {
            let elements = elements.into_iter().map(ListAttribute::Element).collect();
            attributes.push(SetElementList::Elements(elements));
        }
        SetElementMessage { attributes }
    }

    pub(super) fn elements_added(self, elements: &[Element]) -> NfTablesMessage {
        let attributes = |element: &Element| {
            let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
            if let Some(verdict) = &element.verdict {
                attributes.push(SetElementAttribute::Data(expr::verdict_data(verdict)));
            } else if !element.data.is_empty() {
                attributes.push(SetElementAttribute::Data(DataAttribute::Value(element.data.clone())));
            }
            attributes.extend(
                element.comment.as_ref().map(|text| SetElementAttribute::UserData(userdata::encode(text))),
            );
            attributes
        };
        NfTablesMessage::NewSetElement(self.list(elements.iter().map(attributes).collect()))
    }

    pub(super) fn elements_deleted<'k>(self, keys: impl Iterator<Item = &'k [u8]>) -> NfTablesMessage {
        NfTablesMessage::DeleteSetElement(self.list(keys.map(Self::only_key).collect()))
    }

    pub(super) fn element_wanted(self, key: &[u8]) -> NfTablesMessage {
        NfTablesMessage::GetSetElement(self.list(vec![Self::only_key(key)]))
    }

    pub(super) fn elements_wanted(self) -> NfTablesMessage {
        NfTablesMessage::GetSetElement(self.list(vec![]))
    }

    fn only_key(key: &[u8]) -> Vec<SetElementAttribute> {
        vec![SetElementAttribute::Key(DataAttribute::Value(key.to_vec()))]
    }
}

impl Table<'_> {
    pub(super) fn sets_wanted(self) -> NfTablesMessage {
        NfTablesMessage::GetSet(SetMessage { attributes: vec![SetAttribute::Table(self.name.to_owned())] })
    }
}

/// The number by which `nft` knows a key or data of parts.
fn type_of(parts: &[KeyType]) -> u32 {
    parts.iter().fold(0, |number, part| number << TYPE_BITS | part.number())
}

/// Its length in bytes.
fn len_of(parts: &[KeyType]) -> u32 {
    match parts {
        [one] => one.len(),
        parts => parts.iter().map(|part| part.len().next_multiple_of(4)).sum(),
    }
}

/// The name in the attributes of a set; `None` where it cannot be read.
pub fn parse_name(attributes: &[u8]) -> Option<String> {
    let name = attribute(attributes, NFTA_SET_NAME)?;
    String::from_utf8(name.strip_suffix(&[0]).unwrap_or(name).to_vec()).ok()
}

/// The elements in the attributes of a message. What is odd in one stays as by default.
pub fn parse_elements(message: &[u8]) -> Vec<Element> {
    let lists = attributes(message).filter(|(kind, _)| *kind == NFTA_SET_ELEM_LIST_ELEMENTS);
    let elements = lists.flat_map(|(_, list)| attributes(list)).filter(|(kind, _)| *kind == NFTA_LIST_ELEM);
    elements.map(|(_, element)| parse_element(element)).collect()
}

fn parse_element(bytes: &[u8]) -> Element {
    let mut element = Element::default();
    for (kind, value) in attributes(bytes) {
        match kind {
            NFTA_SET_ELEM_KEY => {
                element.key = attribute(value, NFTA_DATA_VALUE).unwrap_or_default().to_vec();
            }
            NFTA_SET_ELEM_DATA => {
                element.data = attribute(value, NFTA_DATA_VALUE).unwrap_or_default().to_vec();
                element.verdict = attribute(value, NFTA_DATA_VERDICT).and_then(|verdict| {
                    let parts = NlasIterator::new(verdict).map_while(Result::ok);
                    let parts: Vec<_> =
                        parts.filter_map(|part| VerdictAttribute::parse(&part).ok()).collect();
                    Verdict::parse(&parts)
                });
            }
            NFTA_SET_ELEM_USERDATA => element.comment = userdata::decode(value),
            _ => {}
        }
    }
    element
}
