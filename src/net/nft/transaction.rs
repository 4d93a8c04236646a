//! Changes that take effect together or not at all.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use nix::errno::Errno;

use super::chain::{Base, Chain};
use super::expr::Expr;
use super::set::{Element, Set};
use super::table::{Family, Table};
use crate::net::Result;
use crate::net::netlink::Message;

/// Flags of a request that makes something (linux/netlink.h).
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;

/// The opening bracket of a batch, and its attribute with a generation (linux/netfilter/nfnetlink.h).
const NFNL_MSG_BATCH_BEGIN: u8 = 16;
const NFNL_BATCH_GENID: u16 = 1;

/// How many elements stand in one message. A list may have 65,535 bytes, and an element 240: key, data, comment.
const ELEMENTS: usize = 256;

/// How often a change is tried that somebody else's came before.
const TRIES: usize = 3;

/// How often a change is tried that any other change would make fail. Unlike others, that failure costs nothing.
const TRIES_OF_GENERATION: usize = 100;

/// Asks and changes, and once more if what was asked about changed in between: an object vanished, or appeared.
pub fn repeat_if_overtaken<T>(mut ask_and_change: impl FnMut() -> Result<T>) -> Result<T> {
    let (mut overtaken, mut outdated) = (1, 1);
    loop {
        match ask_and_change() {
            Err(e)
                if overtaken < TRIES && matches!(e.errno, Errno::EEXIST | Errno::ENOENT | Errno::EBUSY) =>
            {
                overtaken += 1;
            }
            Err(e) if outdated < TRIES_OF_GENERATION && e.errno == Errno::ERESTART => outdated += 1,
            answer => return answer,
        }
    }
}

/// A state of all tables of a namespace, from one transaction to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(pub(super) u32);

#[derive(Clone, Debug)]
struct Step {
    deed: String,
    flags: u16,
    family: Family,
    message: NfTablesMessage,
}

/// A list of changes. Adding what is there already is no error, except for a rule, which then is there twice, and
/// for an element with other data.
///
/// A transaction that fails costs the kernel 8 to 20 ms, since it waits for every packet in flight before it takes
/// the changes back. So ask first, and commit only what will succeed.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    steps: Vec<Step>,
    sets: u32,
    generation: Option<Generation>,
    begins_anew: bool,
}

impl Transaction {
    /// A list without changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether it deletes anything.
    pub fn deletes(&self) -> bool {
        // What adds carries the flag to create, and nothing else does.
        self.steps.iter().any(|step| step.flags & NLM_F_CREATE == 0)
    }

    /// Lets it fail (`ERESTART`) if anything has changed since a generation. That is for changes that are only right
    /// as long as something is not there, of which the kernel takes a second one: a rule.
    pub fn only_in(&mut self, generation: Generation) {
        self.generation = Some(generation);
    }

    /// Remembers for [`Nft::has_begun_anew`](super::Nft::has_begun_anew) that it makes the first of what others of its
    /// kind must have made before.
    pub fn begin_anew(&mut self) {
        self.begins_anew = true;
    }

    /// Whether it begins anew.
    pub(super) fn is_beginning(&self) -> bool {
        self.begins_anew
    }

    fn step(&mut self, deed: String, flags: u16, family: Family, message: NfTablesMessage) {
        self.steps.push(Step { deed, flags, family, message });
    }

    /// `add table <table>`
    pub fn add_table(&mut self, table: Table) {
        self.step(format!("add {table}"), NLM_F_CREATE, table.family, table.added());
    }

    /// `add chain <chain>`
    pub fn add_chain(&mut self, chain: Chain) {
        self.step(format!("add {chain}"), NLM_F_CREATE, chain.table.family, chain.added());
    }

    /// `add chain <chain> { type ... hook ... priority ...; policy accept; }`
    ///
    /// If the chain is there, its policy is set to accept.
    pub fn add_base_chain(&mut self, chain: Chain, base: Base) {
        self.step(format!("add {chain}"), NLM_F_CREATE, chain.table.family, chain.added_as_base(base));
    }

    /// `flush chain <chain>`; the chain must be there.
    pub fn flush_chain(&mut self, chain: Chain) {
        self.step(format!("flush {chain}"), 0, chain.table.family, chain.flushed());
    }

    /// `delete chain <chain>`; it must be there, and nothing may lead to it.
    pub fn delete_chain(&mut self, chain: Chain) {
        self.step(format!("delete {chain}"), 0, chain.table.family, chain.deleted());
    }

    /// `add rule <chain> <expressions> comment <comment>`, behind the last one.
    pub fn add_rule(&mut self, chain: Chain, expressions: Vec<Expr>, comment: Option<&str>) {
        let deed = format!("add a rule to {chain}");
        let message = chain.rule_added(expressions, None, comment);
        self.step(deed, NLM_F_CREATE | NLM_F_APPEND, chain.table.family, message);
    }

    /// The same with the number of the transport protocol that extensions of xtables in it are told of
    /// (`NFTA_RULE_COMPAT_PROTO`): some are for certain protocols only.
    pub fn add_rule_of(&mut self, chain: Chain, expressions: Vec<Expr>, protocol: Option<u8>) {
        let deed = format!("add a rule to {chain}");
        let message = chain.rule_added(expressions, protocol, None);
        self.step(deed, NLM_F_CREATE | NLM_F_APPEND, chain.table.family, message);
    }

    /// `add rule <chain> <expressions>`, with an owner that neither `nft` nor `iptables` shows.
    pub fn add_rule_for(&mut self, chain: Chain, expressions: Vec<Expr>, owner: &str) {
        let deed = format!("add a rule to {chain} ({owner})");
        let message = chain.rule_added_for(expressions, owner);
        self.step(deed, NLM_F_CREATE | NLM_F_APPEND, chain.table.family, message);
    }

    /// `insert rule <chain> <expressions> comment <comment>`, before the first one.
    pub fn insert_rule(&mut self, chain: Chain, expressions: Vec<Expr>, comment: Option<&str>) {
        let deed = format!("insert a rule into {chain}");
        self.step(deed, NLM_F_CREATE, chain.table.family, chain.rule_added(expressions, None, comment));
    }

    /// The same as [`add_rule_of`](Self::add_rule_of), before the first one.
    pub fn insert_rule_of(&mut self, chain: Chain, expressions: Vec<Expr>, protocol: Option<u8>) {
        let deed = format!("insert a rule into {chain}");
        self.step(deed, NLM_F_CREATE, chain.table.family, chain.rule_added(expressions, protocol, None));
    }

    /// `delete rule <chain> handle <handle>`
    pub fn delete_rule(&mut self, chain: Chain, handle: u64) {
        let deed = format!("delete rule {handle} of {chain}");
        self.step(deed, 0, chain.table.family, chain.rule_deleted(handle));
    }

    /// `add set <set>` or `add map <set>`
    pub fn add_set(&mut self, set: Set) {
        self.new_set(format!("add {set}"), NLM_F_CREATE, set);
    }

    /// `create set <set>` or `create map <set>`; it must not be there (`EEXIST`). So what else the transaction makes
    /// for the set is made only once, whoever else is about to do the same.
    pub fn create_set(&mut self, set: Set) {
        self.new_set(format!("create {set}"), NLM_F_CREATE | NLM_F_EXCL, set);
    }

    /// `delete set <set>` or `delete map <set>`, with its elements; it must be there, and no rule may look into it but
    /// those that the transaction has deleted before.
    pub fn delete_set(&mut self, set: Set) {
        self.step(format!("delete {set}"), 0, set.table.family, set.deleted());
    }

    fn new_set(&mut self, deed: String, flags: u16, set: Set) {
        // The kernel wants a number by which later steps could name the set.
        self.sets += 1;
        self.step(deed, flags, set.table.family, set.added(self.sets));
    }

    /// `add element <set> { <key> comment <comment> : <verdict> }`
    ///
    /// An element of that key with the same verdict stays as it is, with its own comment.
    pub fn add_element(&mut self, set: Set, element: &Element) {
        self.new_elements("add", NLM_F_CREATE, set, std::slice::from_ref(element));
    }

    /// `create element <set> { ... }` for many; none may be there (`EEXIST`).
    pub fn create_elements(&mut self, set: Set, elements: &[Element]) {
        self.new_elements("create", NLM_F_CREATE | NLM_F_EXCL, set, elements);
    }

    fn new_elements(&mut self, verb: &str, flags: u16, set: Set, elements: &[Element]) {
        for part in elements.chunks(ELEMENTS) {
            let more = if part.len() > 1 { " and others" } else { "" };
            let first = part.first().map(written).unwrap_or_default();
            let deed = format!("{verb} element {first}{more} to {set}");
            self.step(deed, flags, set.table.family, set.elements_added(part));
        }
    }

    /// `delete element <set> { <key> }`; it must be there.
    pub fn delete_element(&mut self, set: Set, key: &[u8]) {
        let deed = format!("delete element {} of {set}", hex(key));
        self.step(deed, 0, set.table.family, set.elements_deleted([key].into_iter()));
    }

    /// `delete element <set> { ... }` for many, which must be there.
    pub fn delete_elements(&mut self, set: Set, keys: &[Vec<u8>]) {
        for part in keys.chunks(ELEMENTS) {
            let more = if part.len() > 1 { " and others" } else { "" };
            let first = part.first().map(|key| hex(key)).unwrap_or_default();
            let deed = format!("delete element {first}{more} of {set}");
            let message = set.elements_deleted(part.iter().map(Vec::as_slice));
            self.step(deed, 0, set.table.family, message);
        }
    }

    /// The requests between the brackets of a batch. Only the last is acknowledged: the kernel reports a failure of
    /// any, and every acknowledgement is a datagram to be read.
    pub(super) fn into_messages(self) -> Vec<Message> {
        let bracket = |message| {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
            NetfilterMessage::new(header, message)
        };
        let deed = match self.steps.as_slice() {
            [only] => only.deed.clone(),
            steps => steps.iter().map(|s| s.deed.as_str()).collect::<Vec<_>>().join(", "),
        };
        let mut messages = Vec::with_capacity(self.steps.len() + 2);
        let begin = match self.generation {
            None => ControlMessage::BatchBegin,
            Some(Generation(number)) => ControlMessage::Other {
                message_type: NFNL_MSG_BATCH_BEGIN,
                attributes: vec![DefaultNla::new(NFNL_BATCH_GENID, number.to_be_bytes().to_vec())],
            },
        };
        messages.push(Message::unacknowledged(deed, 0, bracket(begin)));
        let last = self.steps.len().saturating_sub(1);
        for (index, step) in self.steps.into_iter().enumerate() {
            let header = NetfilterHeader::new(step.family.number(), 0, 0);
            let payload = NetfilterMessage::new(header, step.message);
            messages.push(if index == last {
                Message::new(step.deed, step.flags, payload)
            } else {
                Message::unacknowledged(step.deed, step.flags, payload)
            });
        }
        messages.push(Message::unacknowledged("end a transaction", 0, bracket(ControlMessage::BatchEnd)));
        messages
    }
}

/// An element in words: its comment says more than the bytes of its key.
fn written(element: &Element) -> String {
    match &element.comment {
        Some(comment) => format!("{} ({comment})", hex(&element.key)),
        None => hex(&element.key),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
