//! nf_tables by netlink: no `nft` command, and no listing of what is not ours.
//!
//! A change is a [`Transaction`]; what there is, is learnt by point queries ([`Nft::has_chain`], [`Nft::element`])
//! and, where it cannot be otherwise, by reading one chain or one set.
//!
//! What a commit costs: the kernel copies every chain that is changed. Where a rule is added, or an element that has a
//! verdict, it also walks all chains of the table, and with them all elements of verdict maps. An element of a plain
//! set costs the same whatever else there is, so that is what a pod should be (net/netfilter/nf_tables_api.c:
//! `nf_tables_commit_chain_prepare`, `nft_table_validate`).

pub mod chain;
pub mod command;
pub mod destination;
pub mod expr;
pub mod rule;
pub mod set;
pub mod table;
pub mod transaction;
pub mod userdata;
pub mod verdict;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Parseable};
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage, NfTablesMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterSubsystem,
};
use nix::errno::Errno;

use super::netlink::{Answer, Message, Socket};
use super::{Error, Result, child};
pub use chain::{Base, Chain, ChainState, Forwarding, Hook, Kind};
pub use destination::Destination;
pub use expr::Expr;
pub use rule::Rule;
pub use set::{Carries, Element, KeyType, Set};
pub use table::{Family, Table};
pub use transaction::{Generation, Transaction, repeat_if_overtaken};
pub use verdict::Verdict;

/// `NETLINK_NETFILTER` (linux/netlink.h).
const NETLINK_NETFILTER: isize = 12;

/// After this time, the kernel has freed what a transaction deleted.
pub const FREED: Duration = Duration::from_millis(60);

/// Length of struct nfgenmsg, which stands before the attributes of every answer.
const NFGENMSG: usize = 4;

/// The type of what the kernel tells of a new rule: `NFNL_SUBSYS_NFTABLES`, `NFT_MSG_NEWRULE` (linux/netfilter/nf_tables.h).
const NEW_RULE: u16 = 10 << 8 | 6;

/// The type of an attribute without its flags (linux/netlink.h).
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `NFNL_SUBSYS_NFT_COMPAT` and what is asked of it (linux/netfilter/nfnetlink.h, nf_tables_compat.h).
const SUBSYSTEM_COMPAT: u8 = 11;
const NFNL_MSG_COMPAT_GET: u8 = 0;
const NFTA_COMPAT_NAME: u16 = 1;
const NFTA_COMPAT_REV: u16 = 2;
const NFTA_COMPAT_TYPE: u16 = 3;

/// Which half of an xtables extension is meant (`NFTA_COMPAT_TYPE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// A match, such as `comment`.
    Match,
    /// A target, such as `MASQUERADE`.
    Target,
}

/// A connection to nf_tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    has_deleted: bool,
    has_begun_anew: bool,
}

impl Nft {
    /// Opens a connection in the thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER)?, has_deleted: false, has_begun_anew: false })
    }

    /// The descriptor of the connection, for a child that keeps it open.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Makes all changes of a transaction, or none. The error names the one that the kernel refused.
    pub fn commit(&mut self, transaction: Transaction) -> Result<()> {
        if transaction.is_empty() {
            return Ok(());
        }
        self.has_deleted |= transaction.deletes();
        let is_beginning = transaction.is_beginning();
        self.socket.execute(transaction.into_messages())?.into_iter().collect::<Result<()>>()?;
        self.has_begun_anew |= is_beginning;
        Ok(())
    }

    /// The same; gives the rules that it has made, in order, as far as the kernel tells of them.
    pub fn commit_and_learn(&mut self, transaction: Transaction) -> Result<Vec<Rule>> {
        if transaction.is_empty() {
            return Ok(Vec::new());
        }
        self.has_deleted |= transaction.deletes();
        let is_beginning = transaction.is_beginning();
        let messages = transaction.into_messages().into_iter().map(Message::echoed).collect();
        let mut made = Vec::new();
        let answers = self.socket.execute_and_hear(messages, |kind, body| {
            if kind == NEW_RULE {
                made.extend(body.get(NFGENMSG..).and_then(Rule::parse));
            }
        })?;
        answers.into_iter().collect::<Result<()>>()?;
        self.has_begun_anew |= is_beginning;
        Ok(made)
    }

    /// Whether a transaction of this connection [began anew](Transaction::begin_anew): either it was the first of all,
    /// or somebody flushed what others had made.
    pub fn has_begun_anew(&self) -> bool {
        self.has_begun_anew
    }

    /// Sends requests of other parts of netfilter together: a second socket would cost a wait when it is closed, see
    /// [`close_later`](Self::close_later).
    pub(super) fn execute(&mut self, batch: Vec<Message>) -> Result<Vec<Answer>> {
        self.socket.execute(batch)
    }

    /// All objects that a request lists, each as the body of its message.
    pub(super) fn dump(&mut self, deed: &str, request: NetfilterMessage) -> Result<Vec<Vec<u8>>> {
        self.socket.dump(deed, request)
    }

    /// Whether something was deleted by this connection.
    pub fn has_deleted(&self) -> bool {
        self.has_deleted
    }

    /// Closes the connection without waiting.
    ///
    /// What a transaction deletes is freed by the kernel later, once no packet can see it any more, which takes 8 to
    /// 20 ms. Whoever closes a netfilter socket of the namespace before that waits for it, and meanwhile holds the lock
    /// that every other transaction needs (`nft_rcv_nl_event` calls `nf_tables_trans_destroy_flush_work`,
    /// net/netfilter/nf_tables_api.c). It shows as an exit that takes that long: of a DEL, but also of an ADD right
    /// after it. So a child keeps the socket until `wait` says that there is nothing left to be freed. The kernel tells
    /// nobody when that is; if it takes longer, the child waits for it after all.
    pub fn close_later(self, wait: impl FnOnce()) {
        let closed = child::start(&[self.as_fd().as_raw_fd()], || {
            wait();
            0
        });
        if let Err(e) = closed {
            log::debug!("an nf_tables connection is closed at once: {e}");
        }
    }

    /// Which state of all tables of the namespace this is: the kernel counts the transactions.
    pub fn generation(&mut self) -> Result<Generation> {
        let deed = "ask for the generation of nf_tables";
        let wanted = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        let answer = self.socket.get(request(deed.to_owned(), Family::Inet, wanted))?;
        parsed(deed, &answer.unwrap_or_default(), |attributes| {
            GenMessage::parse(attributes).ok()?.attributes.into_iter().find_map(|attribute| match attribute {
                GenAttribute::Id(number) => Some(Generation(number)),
                _ => None,
            })
        })
    }

    /// Whether a chain is there.
    pub fn has_chain(&mut self, chain: Chain) -> Result<bool> {
        let message = request(format!("look for {chain}"), chain.table.family, chain.wanted());
        Ok(self.socket.get(message)?.is_some())
    }

    /// The handle of a chain and how much it is used; `None` where it is not there.
    pub fn chain_state(&mut self, chain: Chain) -> Result<Option<ChainState>> {
        let deed = format!("look for {chain}");
        let answer = self.socket.get(request(deed.clone(), chain.table.family, chain.wanted()))?;
        answer.map(|body| parsed(&deed, &body, ChainState::parse)).transpose()
    }

    /// Whether the kernel has nf_tables at all. It may load the module.
    pub fn is_at_work(&mut self) -> Result<bool> {
        // Any question will do; it is who answers that matters.
        match self.has_chain(Table::new(Family::Inet, "bridgehead").chain("any")) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.errno, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a set or map is there.
    pub fn has_set(&mut self, set: Set) -> Result<bool> {
        let message = request(format!("look for {set}"), set.table.family, set.wanted());
        Ok(self.socket.get(message)?.is_some())
    }

    /// The names of a table's sets and maps; none where it is not there.
    pub fn set_names(&mut self, table: Table) -> Result<Vec<String>> {
        let deed = format!("list the sets of {table}");
        let bodies = self.list(&deed, table.family, table.sets_wanted())?;
        bodies.iter().map(|body| parsed(&deed, body, set::parse_name)).collect()
    }

    /// The element of a key; `None` where it, its set or its table is not there.
    pub fn element(&mut self, set: Set, key: &[u8]) -> Result<Option<Element>> {
        let deed = format!("look up an element of {set}");
        let answer = self.socket.get(request(deed, set.table.family, set.element_wanted(key)))?;
        Ok(answer.and_then(|body| set::parse_elements(body.get(NFGENMSG..)?).pop()))
    }

    /// The elements of many keys, each `None` where it, its set or its table is not there.
    pub fn elements_of(&mut self, set: Set, keys: &[Vec<u8>]) -> Result<Vec<Option<Element>>> {
        let question = |key: &Vec<u8>| {
            let deed = format!("look up an element of {set}");
            request(deed, set.table.family, set.element_wanted(key))
        };
        let answers = self.socket.get_many(keys.iter().map(question).collect())?;
        let read = |body: Vec<u8>| set::parse_elements(body.get(NFGENMSG..)?).pop();
        Ok(answers.into_iter().map(|body| body.and_then(read)).collect())
    }

    /// All elements of a set or map; none where it is not there.
    pub fn elements(&mut self, set: Set) -> Result<Vec<Element>> {
        let deed = format!("list {set}");
        let mut found = Vec::new();
        for body in self.list(&deed, set.table.family, set.elements_wanted())? {
            found.append(&mut set::parse_elements(body.get(NFGENMSG..).unwrap_or_default()));
        }
        Ok(found)
    }

    /// The rules of one chain in order; none where it is not there.
    pub fn rules(&mut self, chain: Chain) -> Result<Vec<Rule>> {
        let deed = format!("list {chain}");
        let bodies = self.list(&deed, chain.table.family, chain.rules_wanted())?;
        bodies.iter().map(|body| parsed(&deed, body, Rule::parse)).collect()
    }

    /// Removes those of some sets that have no element, each with its rules in a chain. Nobody gets into a set between the
    /// look into it and its end.
    pub fn remove_empty(&mut self, chain: Chain, sets: &[(Set<'_>, Vec<Expr>)]) -> Result<()> {
        repeat_if_overtaken(|| {
            let mut transaction = Transaction::new();
            transaction.only_in(self.generation()?);
            let rules = self.rules(chain)?;
            for (set, rule) in sets {
                if !self.has_set(*set)? || !self.elements(*set)?.is_empty() {
                    continue;
                }
                for found in rules.iter().filter(|found| found.consists_of(rule)) {
                    transaction.delete_rule(chain, found.handle);
                }
                transaction.delete_set(*set);
            }
            self.commit(transaction)
        })
    }

    /// The rules of one chain (`entry`) that lead to another, which has a state and that many rules of its own.
    ///
    /// An entry may have a rule per pod, and reading takes 8 µs for each. But how many lead to a chain, the kernel
    /// counts; and those that were made together with the chain, behind its own rules, have the handles after these,
    /// since the kernel numbers what is made in the order of the transaction. What stands at these handles is looked
    /// at. If it is not all that leads there, then somebody else made it, or later, and the entry is read after all.
    pub fn rules_leading_to(
        &mut self,
        chain: Chain,
        entry: Chain,
        state: ChainState,
        own_rules: usize,
    ) -> Result<Vec<Rule>> {
        let own_rules = own_rules as u64;
        if let Some(expected) = u64::from(state.uses).checked_sub(own_rules) {
            let first = state.handle + own_rules + 1;
            let mut found = Vec::new();
            for handle in first..first + expected {
                match self.rule(entry, handle)? {
                    Some(rule) if rule.leads_to(chain.name) => found.push(rule),
                    _ => break,
                }
            }
            if found.len() as u64 == expected {
                return Ok(found);
            }
        }
        let mut rules = self.rules(entry)?;
        rules.retain(|rule| rule.leads_to(chain.name));
        Ok(rules)
    }

    /// The rule of a chain that has a handle; `None` where it, its chain or its table is not there.
    pub fn rule(&mut self, chain: Chain, handle: u64) -> Result<Option<Rule>> {
        let deed = format!("look for rule {handle} of {chain}");
        let answer = self.socket.get(request(deed.clone(), chain.table.family, chain.rule_wanted(handle)))?;
        answer.map(|body| parsed(&deed, &body, Rule::parse)).transpose()
    }

    /// The rules of a chain that have these handles, each `None` where it, its chain or its table is not there.
    pub fn rules_at(&mut self, chain: Chain, handles: &[u64]) -> Result<Vec<Option<Rule>>> {
        let deed = format!("look for rules of {chain}");
        let question = |handle: &u64| request(deed.clone(), chain.table.family, chain.rule_wanted(*handle));
        let answers = self.socket.get_many(handles.iter().map(question).collect())?;
        let read = |body: Option<Vec<u8>>| body.map(|body| parsed(&deed, &body, Rule::parse)).transpose();
        answers.into_iter().map(read).collect()
    }

    /// Whether the kernel has an extension of xtables for use in nf_tables; it loads the module if need be.
    pub fn has_extension(
        &mut self,
        family: Family,
        extension: Extension,
        name: &str,
        revision: u32,
    ) -> Result<bool> {
        let mut name_bytes = name.as_bytes().to_vec();
        name_bytes.push(0);
        let kind: u32 = match extension {
            Extension::Match => 0,
            Extension::Target => 1,
        };
        let inner = NetfilterMessageInner::Other {
            subsys: NetfilterSubsystem::Other(SUBSYSTEM_COMPAT),
            message_type: NFNL_MSG_COMPAT_GET,
            attributes: vec![
                DefaultNla::new(NFTA_COMPAT_NAME, name_bytes),
                DefaultNla::new(NFTA_COMPAT_REV, revision.to_be_bytes().to_vec()),
                DefaultNla::new(NFTA_COMPAT_TYPE, kind.to_be_bytes().to_vec()),
            ],
        };
        let header = NetfilterHeader::new(family.number(), 0, 0);
        let message =
            Message::new(format!("look for extension {name}"), 0, NetfilterMessage::new(header, inner));
        match self.socket.get(message) {
            Ok(found) => Ok(found.is_some()),
            // The kernel has nf_tables but no bridge to xtables, or no nf_tables at all.
            Err(e) if matches!(e.errno, Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The names of a table's chains; none where it is not there.
    pub fn chain_names(&mut self, table: Table) -> Result<Vec<String>> {
        let deed = format!("list the chains of {table}");
        let bodies = self.list(&deed, table.family, table.chains_wanted())?;
        // The kernel lists those of all tables of a family.
        let names = bodies.iter().map(|body| parsed(&deed, body, chain::parse_names));
        let names: Vec<(String, String)> = names.collect::<Result<_>>()?;
        Ok(names.into_iter().filter(|(of, _)| of == table.name).map(|(_, name)| name).collect())
    }

    /// The base chains of all tables for what the host forwards by IPv4 and IPv6. All chains are listed for it.
    pub fn forward_chains(&mut self) -> Result<Vec<Forwarding>> {
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            let deed = format!("list the chains of family {}", family.name());
            // The table does not matter: the kernel lists those of all tables of a family.
            let wanted = Table::new(family, "").chains_wanted();
            let bodies = self.list(&deed, family, wanted)?;
            let attributes = bodies.iter().filter_map(|body| body.get(NFGENMSG..));
            found.extend(attributes.filter_map(|it| Forwarding::parse(family, it)));
        }
        Ok(found)
    }

    fn list(&mut self, deed: &str, family: Family, message: NfTablesMessage) -> Result<Vec<Vec<u8>>> {
        match self.socket.dump(deed, NetfilterMessage::new(header(family), message)) {
            Err(e) if e.errno == Errno::ENOENT => Ok(Vec::new()),
            answer => answer,
        }
    }
}

fn header(family: Family) -> NetfilterHeader {
    NetfilterHeader::new(family.number(), 0, 0)
}

fn request(deed: String, family: Family, message: NfTablesMessage) -> Message {
    Message::new(deed, 0, NetfilterMessage::new(header(family), message))
}

/// Attributes as pairs of type, without its flags, and value; ends at the first that is cut off.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *bytes else { return None };
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value))
    })
}

/// The value of the first attribute of a type.
fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn parsed<T>(deed: &str, body: &[u8], parse: impl FnOnce(&[u8]) -> Option<T>) -> Result<T> {
    body.get(NFGENMSG..).and_then(parse).ok_or_else(|| Error::new(deed, Errno::EBADMSG))
}

#[cfg(test)]
pub(crate) mod tests;
