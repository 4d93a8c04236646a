//! What is asked of a store apart from giving and releasing: CHECK, GC and STATUS.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nix::dir::Type;

use super::index::Index;
use super::range::{RangeSet, to_number};
use super::reservation::{Found, Owner, address_of, look};
use super::store::{Glance, Judged, LockedStore, Store, boot_to_judge_by, join, judge};
use crate::spec::config::ValidAttachments;
use crate::spec::{Attachment, CniError};

/// How much of a range set is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The ranges as text, `first-last` separated by commas.
    pub ranges: String,
    /// How many of its addresses are taken.
    pub taken: u128,
    /// How many addresses it has to give.
    pub total: u128,
}

impl Usage {
    /// The use of a set of which nothing is taken.
    pub(super) fn none_of(set: &RangeSet) -> Self {
        Self { ranges: set.to_string(), taken: 0, total: set.size() }
    }

    /// The use of a set as an index knows it.
    fn of(set: &RangeSet, index: &mut Index) -> Self {
        let stretches = set.stretches_after(None);
        let taken = stretches.iter().map(|stretch| index.count_taken(stretch)).fold(0, u128::saturating_add);
        Self { taken, ..Self::none_of(set) }
    }

    /// Whether nothing is left.
    pub fn is_exhausted(&self) -> bool {
        self.taken >= self.total
    }
}

/// What a GC has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// What was released, and whose it had been.
    pub released: Vec<(Owner, IpAddr)>,
    /// What could not be released.
    pub failures: Vec<CniError>,
}

impl Store {
    /// How much of each set is in use, seen without the lock and without any change: while others work, it may be
    /// over by one call.
    ///
    /// A set is exhausted if an ADD would find nothing in it: a reservation that it would reclaim counts as free,
    /// which `is_dead` tells of those that do not tell it by themselves. Only as many are looked at as it takes.
    ///
    /// Errors: code 105 if the directory cannot be read.
    pub fn usage(
        &self,
        sets: &[RangeSet],
        mut is_dead: impl FnMut(&Owner) -> bool,
    ) -> Result<Vec<Usage>, CniError> {
        let Some(Glance { directory, mut index, boot }) = self.glance()? else {
            return Ok(sets.iter().map(Usage::none_of).collect());
        };
        if let Some(index) = &mut index {
            let usage: Vec<Usage> = sets.iter().map(|set| Usage::of(set, index)).collect();
            if !usage.iter().any(Usage::is_exhausted) {
                return Ok(usage);
            }
        }
        let entries = directory.entries().map_err(|errno| directory.error("list", "", errno))?;
        let taken: Vec<(IpAddr, Option<Type>)> =
            entries.iter().filter_map(|(name, kind)| Some((address_of(name)?, *kind))).collect();
        let current = boot_to_judge_by(boot, &directory);
        let mut is_free = |address: IpAddr, kind: Option<Type>| match judge(
            look(&directory, address, kind),
            current.as_ref(),
        ) {
            Judged::Absent | Judged::Dead(_) => true,
            Judged::Nobodys => false,
            Judged::Owned(owner) => is_dead(&owner),
        };
        Ok(sets
            .iter()
            .map(|set| {
                let is_given =
                    |address: IpAddr| set.range_of(address).is_some_and(|range| range.gateway() != address);
                let of_set: Vec<_> = taken.iter().filter(|(address, _)| is_given(*address)).collect();
                let mut usage = Usage { taken: of_set.len() as u128, ..Usage::none_of(set) };
                if usage.is_exhausted() && of_set.iter().any(|(address, kind)| is_free(*address, *kind)) {
                    usage.taken -= 1;
                }
                usage
            })
            .collect())
    }
}

impl LockedStore {
    /// What is wrong with an owner's reservations, as sentences: each expected address must be its own. Without any
    /// expected address it must have one at least.
    pub fn observe(&mut self, owner: &Owner, expected: &[IpAddr]) -> Result<Vec<String>, CniError> {
        let mut held = self.owned(owner)?;
        if held.is_empty() {
            held = self.owned(&owner.without_ifname())?;
        }
        if held.is_empty() && expected.is_empty() {
            return Ok(vec![format!("no address is reserved for {owner}")]);
        }
        let missing = expected.iter().filter(|address| !held.contains(address));
        Ok(missing
            .map(|address| match look(&self.directory, *address, None) {
                Found::Absent => format!("address {address} of {owner} is not reserved"),
                Found::Owned(other, _) => format!("address {address} of {owner} is reserved for {other}"),
                Found::Torn(_) | Found::Opaque => {
                    format!(
                        "address {address} of {owner}: something that is no reservation occupies its file"
                    )
                }
            })
            .collect())
    }

    /// Releases what belongs to no valid attachment; where nobody says what is valid, only what is provably dead.
    ///
    /// What an old version reserved for a container alone is kept as long as the container has a valid attachment.
    /// `attached` are attachments of which more is known than the caller knows: those of calls that run at the moment.
    /// Goes on past errors.
    pub fn collect(
        &mut self,
        valid: &ValidAttachments,
        attached: &[Attachment],
    ) -> Result<Collected, CniError> {
        // Reads everything, whatever the index says: a GC is rare, and this is where what was lost is found again.
        self.rebuild()?;
        let mut collected = Collected { released: std::mem::take(&mut self.reclaimed), failures: Vec::new() };
        let ValidAttachments::Only(valid) = valid else { return Ok(collected) };
        let attachments: BTreeSet<(&str, &str)> = valid
            .iter()
            .map(|it| (it.container_id.as_str(), it.ifname.as_str()))
            .chain(attached.iter().map(|it| (it.container_id.as_str(), it.ifname.as_str())))
            .collect();
        let containers: BTreeSet<&str> = attachments.iter().map(|(container_id, _)| *container_id).collect();
        let is_valid = |owner: &Owner| {
            let id = owner.container_id.as_str();
            if owner.ifname.is_empty() {
                containers.contains(id)
            } else {
                attachments.contains(&(id, owner.ifname.as_str()))
            }
        };
        let owners = self.index.owners().cloned().unwrap_or_default();
        for (owner, addresses) in owners.into_iter().filter(|(owner, _)| !is_valid(owner)) {
            match self.release_these(&owner, &addresses) {
                Ok(()) => {
                    collected.released.extend(addresses.into_iter().map(|address| (owner.clone(), address)))
                }
                Err(failure) => collected.failures.push(failure),
            }
        }
        Ok(collected)
    }

    /// Goes through all owners, whatever the index says, and has `each` decide: it calls its argument to release what
    /// the owner has. All of that is under this lock, so nobody gets an address before `each` is done with its owner.
    ///
    /// Returns how many addresses were released, those included whose reservations say by themselves that their
    /// owners are dead. Goes on past errors.
    pub fn reclaim(
        &mut self,
        mut each: impl FnMut(&Owner, &mut dyn FnMut() -> Result<(), CniError>),
    ) -> Result<usize, CniError> {
        self.rebuild()?;
        let mut released = std::mem::take(&mut self.reclaimed).len();
        for (owner, addresses) in self.index.owners().cloned().unwrap_or_default() {
            each(&owner, &mut || {
                self.release_these(&owner, &addresses)?;
                released += addresses.len();
                Ok(())
            });
        }
        Ok(released)
    }

    /// How much of a set is in use.
    pub(super) fn usage_of(&mut self, set: &RangeSet) -> Usage {
        Usage::of(set, &mut self.index)
    }
}

impl Collected {
    /// The failures as one error.
    pub fn into_result(self) -> Result<Vec<(Owner, IpAddr)>, CniError> {
        if self.failures.is_empty() { Ok(self.released) } else { Err(join(self.failures)) }
    }
}

/// The addresses among these that a host-local of these sets may have given.
pub(super) fn given_by(sets: &[RangeSet], addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut given: Vec<IpAddr> =
        addresses.iter().copied().filter(|it| sets.iter().any(|set| set.range_of(*it).is_some())).collect();
    given.sort_by_key(|address| (address.is_ipv6(), to_number(*address)));
    given
}
