//! The three loops: apply, check, remove. Nothing else makes, looks at or removes resources.

pub mod collect;
pub mod journal;
pub mod reap;
pub mod reclaim;
pub mod record;
pub mod records;
pub mod restore;

use anyhow::Context;
use log::debug;

use crate::resource::port_mappings::Taken;
use crate::resource::{Finding, Lease, LinkTuning, Resource, Scope, World};
use crate::spec::{CniError, CniResult, Code};

pub use collect::collect;
pub use journal::Journal;
pub use reap::reap;
pub use record::{Cause, Record};
pub use records::{Claim, Records, Resting};
pub use restore::restore;

/// What a plugin wants for an attachment.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The resources, in the order in which they are made.
    pub resources: Vec<Resource>,
    /// What ADD answers.
    pub result: CniResult,
}

/// What a plugin type wants. Made from a request whose configuration was found right.
pub trait Plugin {
    /// Where addresses come from, if any are wanted.
    fn lease(&self) -> Option<Lease>;

    /// Whether it has anything to do with the pod's namespace; an IPAM has not, and must not fail without one.
    fn enters_pod(&self) -> bool;

    /// The links over which an IPAM speaks that needs some ([`Lease::needs_link`]), so that they are made before it is
    /// asked; asked for only then. [`Plugin::plan`] has them too, as they are here.
    fn links(&self, _: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        Ok(Vec::new())
    }

    /// What should exist, given the answer of the IPAM. May look at the host, but changes nothing.
    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan>;

    /// The plugin that goes on with the result of this one in the same call; none for most. The first of a call has made
    /// all when the others plan, which they do one after another before anything of theirs is made.
    fn following(&self, _: &CniResult) -> Result<Option<Box<dyn Plugin>>, CniError> {
        Ok(None)
    }

    /// What should exist, given the result of the ADD; by this suite or by another.
    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>>;
}

/// What is done about an ADD that was not there as a whole.
const REMAINS: &str = "remove what is left of an earlier ADD";

/// ADD: makes what the plugin wants, all of it or nothing, and tells the caller.
///
/// If `tell` fails, nobody knows of the attachment and nobody would remove it, so it is undone like any failure.
///
/// An attachment that is there already, in the same namespace and with all in place, is answered as before. If
/// something of it is missing, the remains are removed and it starts anew. What other entries of the chain have made
/// that are of the same type is left alone.
///
/// If it turns out that somebody flushed what all attachments share, what the others have lost is put back too, once
/// the caller knows of this one.
pub fn add(
    plugin: &dyn Plugin,
    records: &Records,
    world: &mut World<'_>,
    tell: impl FnOnce(&CniResult) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let netns = if plugin.enters_pod() {
        Some(world.pod()?.netns().identity())
    } else {
        // Only to tell some day that the pod is gone.
        world.pod().ok().map(|pod| pod.netns().identity())
    };
    let lease = plugin.lease();
    let cause = Cause::of(world.request);
    let mut claim = records.claim(&world.request.attachment)?;
    let mut others = None;
    if let Some(record) = claim.record.take() {
        // What makes interfaces does so once; the rest of a chain works on what is there, and may do so repeatedly.
        let is_chained = lease.is_none() && world.request.config.has_prev_result();
        let entry = record.entry_of(&cause).filter(|_| record.netns == netns);
        match entry {
            Some((entry, resources)) => {
                if entry.answers(&cause)
                    && let Some(result) = &entry.result
                    && is_in_place(resources, world)
                {
                    debug!("{}: is there already", world.request.attachment);
                    return tell(result);
                }
                remove(resources, world).context(REMAINS)?;
                others = record.without(&cause);
            }
            None if is_chained && record.netns == netns => others = Some(record),
            None => remove_all(&record, world).context(REMAINS)?,
        }
    }
    let mut record = Record::begin(world.request, netns, cause, lease.clone(), others.clone());
    records.write(&record, &mut claim)?;
    let mut journal = Journal::new(world);
    let keep = |record: &Record| records.write(record, &mut claim);
    let outcome = apply(plugin, lease, &mut record, keep, &mut journal);
    match outcome.and_then(|result| tell(&result)) {
        Ok(()) => {
            journal.commit();
            if world.has_begun_anew() {
                // Its own record may not be held any more by who looks at all.
                drop(claim);
                restore::restore_others(&world.request.attachment, &world.state);
            }
            Ok(())
        }
        Err(error) => {
            let (error, is_clean) = journal.roll_back(error);
            let kept = match others {
                Some(others) if is_clean => records.write(&others, &mut claim),
                None if is_clean => claim.delete(),
                _ => {
                    // What could not be undone stays recorded for the DEL that follows, but nobody is to put the rest
                    // back.
                    record.result = None;
                    records.write(&record, &mut claim)
                }
            };
            match kept {
                Ok(()) => Err(error),
                Err(e) => Err(journal::also(error, &[format!("while undoing: {e:#}")])),
            }
        }
    }
}

/// Whether all is as it should be, but for what a later plugin of the chain has changed and looks after.
fn is_in_place(resources: &[Resource], world: &mut World<'_>) -> bool {
    check(resources, world).is_ok_and(|findings| findings.is_empty())
}

/// The same as others of the chain have tuned it, by their records; `None` where they have not.
fn as_tuned(resources: &[Resource], world: &World<'_>) -> Option<Vec<Resource>> {
    let others = Records::of_all(&world.state).unwrap_or_default();
    let found = others.iter().filter_map(|records| records.read(&world.request.attachment).ok().flatten());
    let tunings: Vec<LinkTuning> = found
        .flat_map(|record| record.resources)
        .filter_map(|resource| match resource {
            Resource::LinkTuning(tuning) => Some(tuning),
            _ => None,
        })
        .collect();
    let tuned: Vec<Resource> = resources.iter().map(|resource| resource.as_tuned(&tunings)).collect();
    (tuned != resources).then_some(tuned)
}

fn apply(
    plugin: &dyn Plugin,
    lease: Option<Lease>,
    record: &mut Record,
    mut keep: impl FnMut(&Record) -> anyhow::Result<()>,
    journal: &mut Journal<'_, '_>,
) -> anyhow::Result<CniResult> {
    let mut links = Vec::new();
    if lease.as_ref().is_some_and(Lease::needs_link) {
        links = plugin.links(journal.world())?;
        record.resources.extend(links.iter().cloned());
        keep(record)?;
        for link in &links {
            journal.ensure(link.clone())?;
        }
    }
    let mut made = Vec::new();
    let leased = match lease {
        Some(lease) => {
            let leased = take(lease.clone(), journal)?;
            made.push(Resource::Lease(lease.with_addresses_of(&leased)));
            leased
        }
        None => CniResult::default(),
    };
    let mut plan = plugin.plan(leased, journal.world())?;
    let mut following = plugin.following(&plan.result)?;
    loop {
        // A result that its version cannot express must fail before anything is made.
        plan.result.to_value(journal.world().request.config.version)?;
        made.extend(plan.resources.iter().cloned());
        // Only who has made all is to answer with it.
        record.set(made.clone(), following.is_none().then(|| plan.result.clone()));
        keep(record)?;
        for resource in plan.resources.into_iter().filter(|resource| !links.contains(resource)) {
            ensure(resource, journal)?;
        }
        let Some(next) = following.take() else { return Ok(plan.result) };
        plan = plan_all(next, journal.world())?;
    }
}

/// What a plugin and all that follow it want, as one plan.
fn plan_all(plugin: Box<dyn Plugin>, world: &mut World<'_>) -> anyhow::Result<Plan> {
    let mut whole = plugin.plan(CniResult::default(), world)?;
    let mut following = plugin.following(&whole.result)?;
    while let Some(next) = following {
        let plan = next.plan(CniResult::default(), world)?;
        following = next.following(&plan.result)?;
        whole.resources.extend(plan.resources);
        whole.result = plan.result;
    }
    Ok(whole)
}

/// Makes a resource; if others have the ports that it needs, once more after those of the dead were reclaimed.
fn ensure(resource: Resource, journal: &mut Journal<'_, '_>) -> anyhow::Result<()> {
    let Err(error) = journal.ensure(resource.clone()) else { return Ok(()) };
    let Some(Taken { owners }) = error.downcast_ref::<Taken>() else { return Err(error) };
    match reclaim::reclaim_ports(owners, journal.world()) {
        Ok(true) => journal.ensure(resource),
        Ok(false) => Err(error),
        Err(other) => Err(journal::also(error, &[format!("{other:#}")])),
    }
}

/// Takes a lease; if no address is left, once more after those of dead attachments were reclaimed.
fn take(lease: Lease, journal: &mut Journal<'_, '_>) -> anyhow::Result<CniResult> {
    let error = match journal.lease(lease.clone()) {
        Err(error) => error,
        leased => return leased,
    };
    let is_exhausted =
        error.downcast_ref::<CniError>().is_some_and(|error| error.code == Code::Exhausted as u32);
    if !is_exhausted {
        return Err(error);
    }
    match reclaim::reclaim(&lease, journal.world()) {
        Ok(true) => journal.lease(lease),
        Ok(false) => Err(error),
        Err(other) => Err(journal::also(error, &[format!("{other:#}")])),
    }
}

/// CHECK: looks at every resource, and reports all differences, but for those that a later plugin of the chain has made
/// and looks after.
pub fn check(resources: &[Resource], world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
    let findings = observe(resources, world)?;
    if findings.is_empty() {
        return Ok(findings);
    }
    match as_tuned(resources, world) {
        Some(tuned) => observe(&tuned, world),
        None => Ok(findings),
    }
}

fn observe(resources: &[Resource], world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for resource in resources {
        findings.extend(resource.observe(world)?);
    }
    Ok(findings)
}

/// The error that reports the findings of a CHECK; none where there are none.
pub fn drift(findings: &[Finding]) -> Result<(), CniError> {
    let sentences: Vec<String> = findings.iter().map(Finding::to_string).collect();
    match sentences.as_slice() {
        [] => Ok(()),
        [one] => Err(CniError::new(Code::Drift, one.clone())),
        [first, ..] => {
            let more = match sentences.len() - 1 {
                1 => "one more difference".to_owned(),
                more => format!("{more} more differences"),
            };
            let msg = format!("{first}, and {more}");
            Err(CniError::new(Code::Drift, msg).with_details(sentences.join("; ")))
        }
    }
}

/// DEL: removes what belongs to the attachment, newest first, but before all a lease that is given back over a link.
/// Goes on past errors, and reports all of them.
pub fn remove(resources: &[Resource], world: &mut World<'_>) -> anyhow::Result<()> {
    let needs_link = |resource: &&Resource| matches!(resource, Resource::Lease(lease) if lease.needs_link());
    let rest = resources.iter().rev().filter(|r| r.scope() == Scope::Attachment && !needs_link(r));
    let mut errors = Vec::new();
    for resource in resources.iter().filter(needs_link).chain(rest) {
        if let Err(error) = resource.remove(world) {
            errors.push(error);
        }
    }
    join(errors)
}

/// Removes all that a record has. A pod that is not the one of then, though it has the same name, is left alone.
fn remove_all(record: &Record, world: &mut World<'_>) -> anyhow::Result<()> {
    let is_another = match record.netns {
        Some(netns) => world.has_pod()? && world.pod()?.netns().identity() != netns,
        None => false,
    };
    if !is_another {
        return remove(&record.resources, world);
    }
    let mut request = world.request.clone();
    request.netns = None;
    remove(&record.resources, &mut World::new(&request, world.state.clone()))
}

/// DEL of an attachment: by its record, else by what can be said of it without one. Without one, what is in the pod
/// may be what its ADD has failed for: an interface that the container has of another network. That is left alone, and
/// so is what another interface of the container may have on the same network.
pub fn del(
    leftovers: impl FnOnce() -> Vec<Resource>,
    records: &Records,
    world: &mut World<'_>,
) -> anyhow::Result<()> {
    let claim = records.claim(&world.request.attachment)?;
    let heirs = claim.record.as_ref().map_or_else(Vec::new, |record| restore::heirs(record, world));
    match &claim.record {
        Some(record) => remove_all(record, world)?,
        None => {
            let mut resources = leftovers();
            if resources.iter().any(Resource::is_known_by_interface) && is_of_another_network(world)? {
                resources.retain(|resource| !resource.is_known_by_interface());
            }
            if resources.iter().any(Resource::is_known_by_container)
                && records.has_sibling(&world.request.attachment)?
            {
                resources.retain(|resource| !resource.is_known_by_container());
            }
            remove(&resources, world)?;
        }
    }
    // Also one that nobody understands.
    claim.delete()?;
    restore::hand_over_ports(&heirs, &world.state);
    Ok(())
}

/// Whether the interface is on record as that of the container's attachment to another network, in the same namespace.
fn is_of_another_network(world: &mut World<'_>) -> anyhow::Result<bool> {
    let netns = match world.has_pod()? {
        true => Some(world.pod()?.netns().identity()),
        false => None,
    };
    let others = Records::of_other_networks(&world.request.attachment, &world.state);
    Ok(others.iter().any(|record| netns.is_none() || record.netns == netns))
}

/// One error out of several: the first, with the others in its words.
pub fn join(mut errors: Vec<anyhow::Error>) -> anyhow::Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let first = errors.remove(0);
    if errors.is_empty() {
        return Err(first);
    }
    let others: Vec<String> = errors.iter().map(|e| format!("{e:#}")).collect();
    Err(journal::also(first, &others))
}
