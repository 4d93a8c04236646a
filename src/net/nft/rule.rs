//! Rules: writing them, and reading back those of one chain.

use netlink_packet_core::{DefaultNla, Nla, NlaBuffer, NlasIterator, Parseable, parse_u64_be};
use netlink_packet_netfilter::nftables::{
    ExpressionAttribute, Expressions, ListAttribute, Lookup, NfTablesMessage, RuleAttribute, RuleMessage,
};

use super::chain::Chain;
use super::expr::{self, Expr};
use super::userdata;
use super::verdict::Verdict;
use super::{attribute, attributes};

/// Attributes of a rule (linux/netfilter/nf_tables.h).
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_RULE_COMPAT_PROTO: u16 = 1;
const NFTA_RULE_COMPAT_FLAGS: u16 = 2;

/// The way to the chain that a verdict names, through nested attributes (linux/netfilter/nf_tables.h).
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// The attributes of expressions that are data, by the expression's name (linux/netfilter/nf_tables.h). The message
/// crate takes for granted that what stands in them is as long as it says.
const DATA: [(&[u8], &[u16]); 3] = [(b"bitwise", &[4, 5, 7]), (b"cmp", &[3]), (b"immediate", &[2])];

/// The attributes that are data in an expression of a name.
fn data_of(name: &[u8]) -> &'static [u16] {
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    DATA.iter().find(|(with_data, _)| *with_data == name).map_or(&[], |(_, kinds)| kinds)
}

/// Whether the message crate can read an expression.
fn is_readable(expression: &[u8]) -> bool {
    let of =
        |wanted: u16| attributes(expression).filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value);
    of(NFTA_EXPR_NAME).all(|name| {
        let data = data_of(name);
        of(NFTA_EXPR_DATA)
            .flat_map(attributes)
            .filter(|(kind, _)| data.contains(kind))
            .all(|(_, value)| attributes(value).next().is_some())
    })
}

impl Chain<'_> {
    fn attributes_of_rule(self) -> Vec<RuleAttribute> {
        vec![RuleAttribute::Table(self.table.name.to_owned()), RuleAttribute::Chain(self.name.to_owned())]
    }

    pub(super) fn rule_added(
        self,
        expressions: Vec<Expr>,
        protocol: Option<u8>,
        comment: Option<&str>,
    ) -> NfTablesMessage {
        let mut attributes = self.attributes_of_rule();
        attributes.extend(protocol.map(|number| {
            let value = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
            RuleAttribute::Compat(vec![
                value(NFTA_RULE_COMPAT_PROTO, number.into()),
                value(NFTA_RULE_COMPAT_FLAGS, 0),
            ])
        }));
        attributes.push(RuleAttribute::Expressions(expressions.into_iter().map(|e| e.0).collect()));
        attributes.extend(comment.map(|text| RuleAttribute::UserData(userdata::encode(text))));
        NfTablesMessage::NewRule(RuleMessage { attributes })
    }

    pub(super) fn rule_added_for(self, expressions: Vec<Expr>, owner: &str) -> NfTablesMessage {
        let mut attributes = self.attributes_of_rule();
        attributes.push(RuleAttribute::Expressions(expressions.into_iter().map(|e| e.0).collect()));
        attributes.push(RuleAttribute::UserData(userdata::encode_owner(owner)));
        NfTablesMessage::NewRule(RuleMessage { attributes })
    }

    pub(super) fn rule_deleted(self, handle: u64) -> NfTablesMessage {
        let mut attributes = self.attributes_of_rule();
        attributes.push(RuleAttribute::Handle(handle));
        NfTablesMessage::DeleteRule(RuleMessage { attributes })
    }

    /// Without a handle, every rule of the chain is meant.
    pub(super) fn flushed(self) -> NfTablesMessage {
        NfTablesMessage::DeleteRule(RuleMessage { attributes: self.attributes_of_rule() })
    }

    pub(super) fn rule_wanted(self, handle: u64) -> NfTablesMessage {
        let mut attributes = self.attributes_of_rule();
        attributes.push(RuleAttribute::Handle(handle));
        NfTablesMessage::GetRule(RuleMessage { attributes })
    }

    pub(super) fn rules_wanted(self) -> NfTablesMessage {
        NfTablesMessage::GetRule(RuleMessage { attributes: self.attributes_of_rule() })
    }
}

/// A rule that the kernel has.
///
/// Its expressions stay encoded until somebody asks: of a long chain, most rules are only skipped over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it is deleted by.
    pub handle: u64,
    /// The comment in its user data.
    pub comment: Option<String>,
    /// Whose it is, where that is not to be seen by others.
    pub owner: Option<String>,
    expressions: Vec<u8>,
}

impl Rule {
    /// Reads the attributes of a message; `None` without a handle.
    pub fn parse(attributes: &[u8]) -> Option<Self> {
        let mut rule = Self { handle: 0, comment: None, owner: None, expressions: Vec::new() };
        for (kind, value) in super::attributes(attributes) {
            match kind {
                NFTA_RULE_HANDLE => rule.handle = parse_u64_be(value).ok()?,
                NFTA_RULE_EXPRESSIONS => rule.expressions = value.to_vec(),
                NFTA_RULE_USERDATA => {
                    rule.comment = userdata::decode(value);
                    rule.owner = userdata::decode_owner(value);
                }
                _ => {}
            }
        }
        (rule.handle != 0).then_some(rule)
    }

    /// Its expressions in order. One that cannot be read ends the list.
    pub fn expressions(&self) -> impl Iterator<Item = Expressions> {
        NlasIterator::new(self.expressions.as_slice()).map_while(|element| {
            let element: NlaBuffer<&[u8]> = element.ok()?;
            if !is_readable(element.value()) {
                return None;
            }
            match ListAttribute::<ExpressionAttribute>::parse(&element).ok()? {
                ListAttribute::Element(parts) => content(parts),
                _ => None,
            }
        })
    }

    /// Whether these are its expressions. What the kernel adds to them (defaults, packets counted) does not matter.
    ///
    /// Compared as they are encoded: an ADD asks it of some twenty rules, and decoding them would be most of its work.
    pub fn consists_of(&self, expressions: &[Expr]) -> bool {
        let mut found = attributes(&self.expressions);
        let mut encoded = Vec::new();
        let are_all_there = expressions.iter().all(|Expr(wanted)| {
            encoded.clear();
            encoded.resize(wanted.value_len(), 0);
            wanted.emit_value(&mut encoded);
            found.next().is_some_and(|(kind, found)| kind == NFTA_LIST_ELEM && includes(found, &encoded))
        });
        are_all_there && found.next().is_none()
    }

    /// Whether it looks something up in a set or map of the same table.
    pub fn looks_up(&self, set: &str) -> bool {
        self.expressions().any(|expression| match expression {
            Expressions::Lookup(parts) => parts.contains(&Lookup::Set(set.to_owned())),
            _ => false,
        })
    }

    /// Whether it jumps or goes to a chain of the same table.
    ///
    /// Looks no closer than it must: it is asked of every rule of a chain that may have thousands.
    pub fn leads_to(&self, chain: &str) -> bool {
        let elements = attributes(&self.expressions);
        elements.filter(|(kind, _)| *kind == NFTA_LIST_ELEM).any(|(_, element)| {
            let path = [NFTA_EXPR_DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN];
            let is_immediate = attribute(element, NFTA_EXPR_NAME) == Some(b"immediate\0");
            let name = path.iter().try_fold(element, |within, kind| attribute(within, *kind));
            is_immediate && name.and_then(|name| name.strip_suffix(&[0])) == Some(chain.as_bytes())
        })
    }

    /// Its verdicts; a rule has at most one in practice.
    pub fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        self.expressions().filter_map(|expression| match expression {
            Expressions::Immediate(attributes) => expr::verdict_of(&attributes),
            _ => None,
        })
    }
}

/// The content of an expression from its parts: a name and data; some have a name only.
fn content(parts: Vec<ExpressionAttribute>) -> Option<Expressions> {
    let mut name = None;
    for part in parts {
        match part {
            ExpressionAttribute::Data(expressions) => return Some(expressions),
            ExpressionAttribute::Name(text) => name = Some(text),
            _ => {}
        }
    }
    name.map(|expression_type| Expressions::Other { expression_type, attributes: vec![] })
}

/// Whether an expression is another, as far as that says what it is.
fn includes(found: &[u8], wanted: &[u8]) -> bool {
    let name = attribute(wanted, NFTA_EXPR_NAME);
    if attribute(found, NFTA_EXPR_NAME) != name {
        return false;
    }
    // A counter has counted.
    if name == Some(b"counter\0") {
        return true;
    }
    let nested = data_of(name.unwrap_or_default());
    let found = attribute(found, NFTA_EXPR_DATA).unwrap_or_default();
    attributes(attribute(wanted, NFTA_EXPR_DATA).unwrap_or_default()).all(|(kind, wanted)| {
        attributes(found).any(|(other, found)| {
            other == kind && (found == wanted || (nested.contains(&kind) && is_same_data(found, wanted)))
        })
    })
}

/// Whether two nests of attributes have the same in them; padding and flags do not matter.
fn is_same_data(found: &[u8], wanted: &[u8]) -> bool {
    attributes(found).count() == attributes(wanted).count()
        && attributes(found).zip(attributes(wanted)).all(|((other, found), (kind, wanted))| {
            other == kind && (found == wanted || (kind == NFTA_DATA_VERDICT && is_same_data(found, wanted)))
        })
}
