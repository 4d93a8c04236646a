//! What is asked of a store apart from giving and releasing: CHECK, GC and STATUS.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::range::{RangeSet, to_number};
use super::reservation::{Found, Owner, look};
use super::store::{LockedStore, join};
use crate::spec::CniError;
use crate::spec::config::ValidAttachments;

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
    /// Goes on past errors.
    pub fn collect(&mut self, valid: &ValidAttachments) -> Result<Collected, CniError> {
        // Reads everything, whatever the index says: a GC is rare, and this is where what was lost is found again.
        self.rebuild()?;
        let mut collected = Collected { released: std::mem::take(&mut self.reclaimed), failures: Vec::new() };
        let ValidAttachments::Only(valid) = valid else { return Ok(collected) };
        let attachments: BTreeSet<(&str, &str)> =
            valid.iter().map(|it| (it.container_id.as_str(), it.ifname.as_str())).collect();
        let containers: BTreeSet<&str> = valid.iter().map(|it| it.container_id.as_str()).collect();
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
            let (released, failures) = self.unlink_all(&addresses);
            if failures.is_empty() {
                self.index.remove(&owner, &released);
            }
            collected.released.extend(released.into_iter().map(|address| (owner.clone(), address)));
            collected.failures.extend(failures);
        }
        if collected.failures.is_empty() {
            self.seal();
        }
        Ok(collected)
    }

    /// How much of each set is in use.
    pub fn usage(&mut self, sets: &[RangeSet]) -> Vec<Usage> {
        sets.iter()
            .map(|set| {
                let (taken, total) = self.usage_of(set);
                Usage { ranges: set.to_string(), taken, total }
            })
            .collect()
    }

    /// Taken addresses of a set, and all.
    pub(super) fn usage_of(&mut self, set: &RangeSet) -> (u128, u128) {
        let stretches = set.stretches_after(None);
        let taken = stretches
            .iter()
            .map(|it| self.index.count_taken(set.is_ipv4(), it.first, it.last, it.gateway()))
            .fold(0, u128::saturating_add);
        (taken, set.size())
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
