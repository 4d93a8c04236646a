//! What lets a pod's packets pass in the `filter` tables of iptables, exactly as the reference plugins have it:
//!
//! ```text
//! -A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
//! -A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
//! -A CNI-FORWARD -d 10.1.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
//! -A CNI-FORWARD -s 10.1.0.5/32 -j ACCEPT
//! ```
//!
//! One thing is more than there: a rule of nf_tables carries its owner where neither command shows it, so that a DEL
//! that comes late does not take the rules of who has the address by then.
//!
//! The chain CNI-FORWARD has two rules for each address of each pod, and is not read for one of them: see [`Places`].

use std::net::IpAddr;

use anyhow::Result;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::super::owner::{Owner, strays};
use super::super::share::Turn;
use super::super::{Ensured, Finding, Kept, World};
use super::isolation::{STAGE_1, to_stage_1};
use super::places::{Known, Places};
use super::{VARIANTS, of_protocol, variant};
use crate::net;
use crate::net::iptables::filter::{FORWARD, Found};
use crate::net::iptables::{AddressMatch, Filter, Match, Protocol, Rule, Target, Variant};
use crate::net::nft::{Nft, repeat_if_overtaken};
use crate::spec::Attachment;

/// The chain with the rules of all pods.
pub(super) const CNI_FORWARD: &str = "CNI-FORWARD";

/// The pod's addresses, from which all is let through, and to which the answers are.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// Whose they are.
    pub attachment: Attachment,
    /// The chain that goes before these rules, for rules of the host's administrator.
    pub admin_chain: String,
    /// The addresses. For [`remove`](Self::remove), none means that nobody knows them: rules are found by their owner.
    pub addresses: Vec<IpAddr>,
}

/// What there is after an ADD.
struct Made {
    ensured: Ensured,
    /// Where the pod's own rules are, as far as the kernel tells.
    own: Vec<u64>,
    /// Where the rule is that leads to the chain of the administrator.
    admin: Option<u64>,
    /// Whose the other pods' rules are that were looked at; nobody knows it of those that another suite made.
    others: Vec<Option<Owner>>,
}

impl Admission {
    /// Makes chains and rules, those that are not there.
    ///
    /// # Errors
    ///
    /// The kernel's, or those of the legacy command.
    pub fn ensure(&self, world: &mut World<'_>) -> Result<Ensured> {
        let mut ensured = Ensured::Present;
        for protocol in Protocol::ALL {
            if of_protocol(&self.addresses, protocol).next().is_none() {
                continue;
            }
            let variant = variant(protocol);
            let _turn = turn(variant, world)?;
            let places = self.places(protocol, world);
            let known = places.read();
            let is_new = variant == Variant::Nft && known.own.is_none();
            let begun = is_new.then(|| places.begin()).transpose()?;
            let nft = world.nft()?;
            let made = repeat_if_overtaken(|| self.ensure_in(protocol, variant, &known, nft))?;
            if made.own != known.own.unwrap_or_default() {
                places.keep_own(begun, &made.own)?;
            }
            let admin = made.admin.filter(|admin| known.admin != Some(*admin));
            if let Some(admin) = admin
                && made.others.iter().all(|owner| owner.as_ref().is_some_and(|it| places.has(it)))
            {
                places.keep_admin(admin)?;
            }
            if made.ensured == Ensured::Created {
                ensured = Ensured::Created;
            }
        }
        Ok(ensured)
    }

    fn ensure_in(
        &self,
        protocol: Protocol,
        variant: Variant,
        known: &Known,
        nft: &mut Nft,
    ) -> net::Result<Made> {
        let mut filter = Filter::open(protocol, variant, nft)?;
        let owner = Owner::new(&self.attachment);
        let (jump, admin) = (to_cni_forward(), self.to_admin());
        let mut is_shared_changed = false;
        for chain in [CNI_FORWARD, &self.admin_chain] {
            if !filter.has_chain(chain)? {
                filter.make_chain(chain);
                is_shared_changed = true;
            }
        }
        let entries = filter.rules(FORWARD)?;
        if !entries.iter().any(|found| filter.is(found, &jump)) {
            filter.prepare_forward()?;
            filter.insert(FORWARD, &jump);
            filter.begin_anew();
            // What is isolated must not be let through before.
            for found in entries.iter().filter(|found| found.leads_to(STAGE_1)) {
                filter.delete(FORWARD, found);
            }
            if entries.iter().any(|found| found.leads_to(STAGE_1)) {
                filter.insert(FORWARD, &to_stage_1());
            }
            is_shared_changed = true;
        }
        let present = self.look(&mut filter, known)?;
        let mut admin_place = present.iter().find(|found| filter.is(found, &admin)).and_then(Found::handle);
        if !present.iter().any(|found| filter.is(found, &admin)) {
            filter.insert(CNI_FORWARD, &admin);
            is_shared_changed = true;
        }
        if is_shared_changed {
            filter.only_as_found();
        }
        let mut own: Vec<u64> = Vec::new();
        for rule in self.rules(protocol) {
            let same: Vec<&Found> = present.iter().filter(|found| filter.is(found, &rule)).collect();
            if let Some(found) = same.iter().find(|found| is_of(found, &owner)) {
                own.extend(found.handle());
                continue;
            }
            // An address has one owner at a time, and the result that it stands in says that it is this one.
            for found in same.into_iter().filter(|found| found.owner().is_some()) {
                filter.delete(CNI_FORWARD, found);
            }
            filter.append_for(CNI_FORWARD, &rule, owner.as_str());
        }
        let others = present.iter().filter(|found| match found.owner() {
            Some(text) => text != owner.as_str(),
            None => found.accepts(),
        });
        let others = others.map(|found| found.owner().map(|text| Owner::from_comment(text.to_owned())));
        let others = others.collect();
        let ensured = if filter.is_unchanged() { Ensured::Present } else { Ensured::Created };
        for made in filter.commit_and_learn()? {
            match made.owner() {
                Some(_) => own.extend(made.handle()),
                None if made.leads_to(&self.admin_chain) => admin_place = made.handle(),
                None => {}
            }
        }
        Ok(Made { ensured, own, admin: admin_place, others })
    }

    /// What of the chain of all pods may matter: what is known to be all of it, else the whole chain.
    fn look(&self, filter: &mut Filter<'_>, known: &Known) -> net::Result<Vec<Found>> {
        if let Some(admin) = known.admin {
            let handles: Vec<u64> = [admin].into_iter().chain(known.own.iter().flatten().copied()).collect();
            // Who has a file that says nothing may have rules all the same.
            let is_all = known.own.as_ref().is_none_or(|own| !own.is_empty());
            let owner = Owner::new(&self.attachment);
            if is_all
                && let Some(found) = filter.rules_at(CNI_FORWARD, &handles)?
                && let [first, own @ ..] = found.as_slice()
                && filter.is(first, &self.to_admin())
                && own.iter().all(|it| it.owner() == Some(owner.as_str()))
            {
                return Ok(found);
            }
        }
        filter.rules(CNI_FORWARD)
    }

    /// Tells what is missing.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn observe(&self, world: &mut World<'_>) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for protocol in Protocol::ALL {
            if of_protocol(&self.addresses, protocol).next().is_none() {
                continue;
            }
            let known = self.places(protocol, world).read();
            let mut filter = Filter::open(protocol, variant(protocol), world.nft()?)?;
            let entries = filter.rules(FORWARD)?;
            // Without a file, another suite may have made them.
            let present = if known.own.is_some() {
                self.look(&mut filter, &known)?
            } else {
                filter.rules(CNI_FORWARD)?
            };
            let mut expect = |chain: &str, present: &[Found], rule: &Rule| {
                if !present.iter().any(|found| filter.is(found, rule)) {
                    findings.push(missing(chain, rule));
                }
            };
            expect(FORWARD, &entries, &to_cni_forward());
            expect(CNI_FORWARD, &present, &self.to_admin());
            for rule in self.rules(protocol) {
                expect(CNI_FORWARD, &present, &rule);
            }
        }
        Ok(findings)
    }

    /// Removes the pod's rules, from the tables of either variant; not those of another owner who has an address now.
    ///
    /// # Errors
    ///
    /// As for [`ensure`](Self::ensure); what is not there is no error.
    pub fn remove(&self, world: &mut World<'_>) -> Result<()> {
        let owner = Owner::new(&self.attachment);
        for protocol in Protocol::ALL {
            let rules = self.rules(protocol);
            // Where the addresses are known and there is none of this protocol, there is nothing to look for.
            if rules.is_empty() && !self.addresses.is_empty() {
                continue;
            }
            let places = self.places(protocol, world);
            let own = places.read().own.unwrap_or_default();
            for variant in VARIANTS {
                remove_where(protocol, variant, &own, world, |filter, found| {
                    let is_named = rules.iter().any(|rule| filter.is(found, rule));
                    match found.owner() {
                        Some(text) => text == owner.as_str(),
                        None => is_named,
                    }
                })?;
            }
            places.forget()?;
        }
        Ok(())
    }

    fn places(&self, protocol: Protocol, world: &World<'_>) -> Places {
        Places::new(&world.state, protocol, &Owner::new(&self.attachment), &self.admin_chain)
    }

    /// The pod's own rules, in order.
    fn rules(&self, protocol: Protocol) -> Vec<Rule> {
        of_protocol(&self.addresses, protocol)
            .flat_map(|address| {
                let address = Some(AddressMatch::within(IpNetwork::from(address)));
                let answers = vec![Match::Established];
                [
                    Rule { destination: address, matches: answers, ..Rule::to(Target::Accept) },
                    Rule { source: address, ..Rule::to(Target::Accept) },
                ]
            })
            .collect()
    }

    fn to_admin(&self) -> Rule {
        let comment = Some("CNI firewall plugin admin overrides".to_owned());
        Rule { comment, ..Rule::to(Target::Chain(self.admin_chain.clone())) }
    }
}

fn to_cni_forward() -> Rule {
    let comment = Some("CNI firewall plugin rules".to_owned());
    Rule { comment, ..Rule::to(Target::Chain(CNI_FORWARD.to_owned())) }
}

pub(super) fn missing(chain: &str, rule: &Rule) -> Finding {
    Finding::missing(format!("iptables rule -A {chain} {rule} in table filter"))
}

/// Whether a rule may be an owner's: it is, or nobody knows whose it is.
fn is_of(found: &Found, owner: &Owner) -> bool {
    found.owner().is_none_or(|text| text == owner.as_str())
}

/// The lock that legacy tables need: the command has one of its own for each execution, and here are two.
pub(super) fn turn(variant: Variant, world: &World<'_>) -> Result<Option<Turn>> {
    match variant {
        Variant::Nft => Ok(None),
        Variant::Legacy => Ok(Some(Turn::take(world)?)),
    }
}

/// Removes rules of the chain of all pods. Those that are known to be all are looked at alone, if all are there.
fn remove_where(
    protocol: Protocol,
    variant: Variant,
    known: &[u64],
    world: &mut World<'_>,
    is_condemned: impl Fn(&Filter<'_>, &Found) -> bool,
) -> Result<()> {
    let nft = world.nft()?;
    repeat_if_overtaken(|| {
        let Some(mut filter) = Filter::in_use(protocol, variant, nft)? else { return Ok(()) };
        let known = if known.is_empty() { None } else { filter.rules_at(CNI_FORWARD, known)? };
        let found = match known.filter(|found| found.iter().all(|it| is_condemned(&filter, it))) {
            Some(found) => found,
            None => filter.rules(CNI_FORWARD)?,
        };
        for found in found {
            if is_condemned(&filter, &found) {
                filter.delete(CNI_FORWARD, &found);
            }
        }
        filter.commit()
    })?;
    Ok(())
}

/// Removes the rules of a network's attachments that are not kept; of those that say whose they are.
pub(in super::super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Result<()> {
    for protocol in Protocol::ALL {
        let nft = world.nft()?;
        let mut owners: Vec<Owner> = Vec::new();
        if let Some(mut filter) = Filter::in_use(protocol, Variant::Nft, nft)? {
            let found = filter.rules(CNI_FORWARD)?;
            let found = found.iter().filter_map(Found::owner);
            owners.extend(found.map(|it| Owner::from_comment(it.to_owned())));
        }
        owners.retain(|owner| owner.is_on(network));
        let strays = strays(owners, kept)?;
        if !strays.is_empty() {
            remove_where(protocol, Variant::Nft, &[], world, |_, found| {
                found.owner().is_some_and(|text| strays.iter().any(|owner| owner.as_str() == text))
            })?;
            for owner in &strays {
                Places::new(&world.state, protocol, owner, "").forget()?;
            }
        }
    }
    Ok(())
}
