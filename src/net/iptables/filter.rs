//! The `filter` table of a protocol, whichever kernel has it: it is looked at first, and then changed at once.

use super::commands::{Change, Commands};
use super::{Protocol, Rule, TableName, Variant, legacy};
use crate::net::Result;
use crate::net::nft::{self, Base, Chain, Generation, Hook, Kind, Nft, Transaction, Verdict};

/// The chain of the kernel's hook for what the host forwards.
pub const FORWARD: &str = "FORWARD";

/// What `iptables-nft` makes of that chain when it finds none.
const BASE: Base = Base { kind: Kind::Filter, hook: Hook::Forward, priority: 0 };

/// The table, and what is to be changed in it.
#[derive(Debug)]
pub struct Filter<'a> {
    protocol: Protocol,
    place: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    Native { nft: &'a mut Nft, generation: Generation, transaction: Transaction },
    Legacy { commands: Commands, lines: Vec<String>, changes: Vec<Change> },
}

/// A rule that is there.
#[derive(Clone, Debug)]
pub enum Found {
    /// In nf_tables.
    Native(nft::Rule),
    /// As `iptables -S` prints it, without `-A` and the chain.
    Line(String),
}

impl Found {
    /// Whose it is; nobody knows in a legacy table, and for a rule that somebody else has written.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Self::Native(rule) => rule.owner.as_deref(),
            Self::Line(_) => None,
        }
    }

    /// By what it is found again without reading its chain; a legacy table has no such thing.
    pub fn handle(&self) -> Option<u64> {
        match self {
            Self::Native(rule) => Some(rule.handle),
            Self::Line(_) => None,
        }
    }

    /// Whether it lets packets pass.
    pub fn accepts(&self) -> bool {
        match self {
            Self::Native(rule) => rule.verdicts().any(|verdict| verdict == Verdict::Accept),
            Self::Line(line) => line.ends_with("-j ACCEPT"),
        }
    }

    /// Whether it leads to a chain.
    pub fn leads_to(&self, chain: &str) -> bool {
        match self {
            Self::Native(rule) => rule.leads_to(chain),
            Self::Line(line) => line.strip_suffix(chain).is_some_and(|rest| rest.ends_with("-j ")),
        }
    }
}

impl<'a> Filter<'a> {
    /// The table of a variant; `None` where that variant has none in use, and so nothing is in it. What is asked of a
    /// legacy table is read here.
    ///
    /// # Errors
    ///
    /// The kernel's, or those of the legacy command.
    pub fn in_use(protocol: Protocol, variant: Variant, nft: &'a mut Nft) -> Result<Option<Self>> {
        if variant == Variant::Legacy && !legacy::has_table(protocol, TableName::Filter) {
            return Ok(None);
        }
        Self::open(protocol, variant, nft).map(Some)
    }

    /// The table of a variant, which is made where it is not there.
    ///
    /// # Errors
    ///
    /// The kernel's, or those of the legacy command.
    pub fn open(protocol: Protocol, variant: Variant, nft: &'a mut Nft) -> Result<Self> {
        let place = match variant {
            Variant::Nft => {
                let generation = nft.generation()?;
                Place::Native { nft, generation, transaction: Transaction::new() }
            }
            Variant::Legacy => {
                let commands = Commands::find(protocol, Variant::Legacy)?;
                let lines = commands.filter_rules()?;
                Place::Legacy { commands, lines, changes: Vec::new() }
            }
        };
        Ok(Self { protocol, place })
    }

    fn chain<'c>(&self, name: &'c str) -> Chain<'c>
    where
        'a: 'c,
    {
        self.protocol.filter().chain(name)
    }

    /// Whether a chain is there.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn has_chain(&mut self, name: &str) -> Result<bool> {
        let chain = self.protocol.filter().chain(name);
        match &mut self.place {
            Place::Native { nft, .. } => nft.has_chain(chain),
            Place::Legacy { lines, .. } => {
                let declared = [format!("-N {name}"), format!("-P {name} ")];
                Ok(lines.iter().any(|line| *line == declared[0] || line.starts_with(&declared[1])))
            }
        }
    }

    /// The rules of a chain in order; none where it is not there.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn rules(&mut self, name: &str) -> Result<Vec<Found>> {
        let chain = self.protocol.filter().chain(name);
        match &mut self.place {
            Place::Native { nft, .. } => Ok(nft.rules(chain)?.into_iter().map(Found::Native).collect()),
            Place::Legacy { lines, .. } => {
                let start = format!("-A {name} ");
                let rules = lines.iter().filter_map(|line| line.strip_prefix(&start));
                Ok(rules.map(|rule| Found::Line(rule.to_owned())).collect())
            }
        }
    }

    /// The rules of a chain that have these handles; `None` where one of them is not there any more.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn rules_at(&mut self, name: &str, handles: &[u64]) -> Result<Option<Vec<Found>>> {
        let chain = self.protocol.filter().chain(name);
        match &mut self.place {
            Place::Native { nft, .. } => {
                Ok(nft.rules_at(chain, handles)?.into_iter().map(|it| it.map(Found::Native)).collect())
            }
            Place::Legacy { .. } => Ok(None),
        }
    }

    /// Whether a rule that is there is this one.
    pub fn is(&self, found: &Found, rule: &Rule) -> bool {
        match found {
            Found::Native(found) => rule.is(found, self.protocol),
            Found::Line(line) => *line == rule.to_string(),
        }
    }

    /// Lets the change fail (`ERESTART`, and be tried again) if anybody else changes anything meanwhile: what is shared
    /// must be there once. Legacy tables have no such thing, and want a lock around all this.
    pub fn only_as_found(&mut self) {
        if let Place::Native { generation, transaction, .. } = &mut self.place {
            transaction.only_in(*generation);
        }
    }

    /// Remembers that this makes the first of what others of its kind must have made before; see
    /// [`Transaction::begin_anew`].
    pub fn begin_anew(&mut self) {
        if let Place::Native { transaction, .. } = &mut self.place {
            transaction.begin_anew();
        }
    }

    /// Makes a chain that is not there.
    pub fn make_chain(&mut self, name: &str) {
        let chain = self.chain(name);
        match &mut self.place {
            Place::Native { transaction, .. } => {
                transaction.add_table(chain.table);
                transaction.add_chain(chain);
            }
            Place::Legacy { changes, .. } => changes.push(Change::EmptyChain(name.to_owned())),
        }
    }

    /// Makes the chain FORWARD where it is not there; its policy stays as it is where it is.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn prepare_forward(&mut self) -> Result<()> {
        let chain = self.protocol.filter().chain(FORWARD);
        if let Place::Native { nft, transaction, .. } = &mut self.place
            && !nft.has_chain(chain)?
        {
            transaction.add_table(chain.table);
            transaction.add_base_chain(chain, BASE);
        }
        Ok(())
    }

    /// Puts a rule before all others of a chain.
    pub fn insert(&mut self, name: &str, rule: &Rule) {
        let chain = self.chain(name);
        match &mut self.place {
            Place::Native { transaction, .. } => {
                transaction.insert_rule(chain, rule.expressions(self.protocol), None);
            }
            Place::Legacy { changes, .. } => changes.push(Change::Insert(name.to_owned(), rule.clone())),
        }
    }

    /// Puts a rule behind all others of a chain.
    pub fn append(&mut self, name: &str, rule: &Rule) {
        let chain = self.chain(name);
        match &mut self.place {
            Place::Native { transaction, .. } => {
                transaction.add_rule(chain, rule.expressions(self.protocol), None);
            }
            Place::Legacy { changes, .. } => changes.push(Change::Append(name.to_owned(), rule.clone())),
        }
    }

    /// The same with an owner, as far as the table can have one.
    pub fn append_for(&mut self, name: &str, rule: &Rule, owner: &str) {
        let chain = self.chain(name);
        match &mut self.place {
            Place::Native { transaction, .. } => {
                transaction.add_rule_for(chain, rule.expressions(self.protocol), owner);
            }
            Place::Legacy { .. } => self.append(name, rule),
        }
    }

    /// Deletes a rule of a chain.
    pub fn delete(&mut self, name: &str, found: &Found) {
        let chain = self.chain(name);
        match (&mut self.place, found) {
            (Place::Native { transaction, .. }, Found::Native(rule)) => {
                transaction.delete_rule(chain, rule.handle);
            }
            (Place::Legacy { changes, .. }, Found::Line(line)) => {
                changes.push(Change::Delete(format!("{name} {line}")));
            }
            // What was found in one kind of table is not in the other.
            _ => {}
        }
    }

    /// Deletes a chain with its rules. Nothing may lead to it any more.
    pub fn delete_chain(&mut self, name: &str) {
        let chain = self.chain(name);
        match &mut self.place {
            Place::Native { transaction, .. } => {
                transaction.flush_chain(chain);
                transaction.delete_chain(chain);
            }
            Place::Legacy { changes, .. } => {
                changes.push(Change::EmptyChain(name.to_owned()));
                changes.push(Change::DeleteChain(name.to_owned()));
            }
        }
    }

    /// Whether nothing is to be changed.
    pub fn is_unchanged(&self) -> bool {
        match &self.place {
            Place::Native { transaction, .. } => transaction.is_empty(),
            Place::Legacy { changes, .. } => changes.is_empty(),
        }
    }

    /// Makes the changes, all or none.
    ///
    /// # Errors
    ///
    /// The kernel's, or those of the legacy command.
    pub fn commit(self) -> Result<()> {
        match self.place {
            Place::Native { nft, transaction, .. } => nft.commit(transaction),
            Place::Legacy { changes, .. } if changes.is_empty() => Ok(()),
            Place::Legacy { commands, changes, .. } => commands.change_filter(&changes),
        }
    }

    /// The same; gives the rules that were made, as far as the table tells of them.
    ///
    /// # Errors
    ///
    /// The kernel's, or those of the legacy command.
    pub fn commit_and_learn(self) -> Result<Vec<Found>> {
        match self.place {
            Place::Native { nft, transaction, .. } => {
                Ok(nft.commit_and_learn(transaction)?.into_iter().map(Found::Native).collect())
            }
            Place::Legacy { .. } => self.commit().map(|()| Vec::new()),
        }
    }
}
