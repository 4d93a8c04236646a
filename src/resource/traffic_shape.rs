//! Limits to what a pod receives and sends: token bucket filters on the host's side.

use anyhow::bail;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::module::{self, Presence};
use crate::net::netlink::Message;
use crate::net::rtnl::filter::{self, Classifier, Deed};
use crate::net::rtnl::qdisc::{self, Bucket, Present, Qdisc};
use crate::net::{Error, Link};
use crate::spec::{CniError, Code};

/// What limits a pod's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficShape {
    /// The pod's link on the host.
    pub link: String,
    /// Its index; a link of that name with another is somebody else's.
    pub index: u32,
    /// The limit to what the pod receives, which is what that link sends.
    pub ingress: Option<Limit>,
    /// The limit to what the pod sends, and the link of kind ifb that sends it on the way.
    pub egress: Option<(Limit, String)>,
}

/// How much may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bits per second.
    pub rate: u64,
    /// Bits that may pass at once after a silence.
    pub burst: u64,
}

/// How long a packet may wait before there is no room for those that follow, in microseconds: as the reference has it.
const LATENCY: u64 = 25_000;

/// Microseconds in a second.
const SECOND: u64 = 1_000_000;

/// Nanoseconds of a bucket's tick (`PSCHED_SHIFT`, include/net/pkt_sched.h), and ticks in eight microseconds. The
/// reference reads them from /proc/net/psched, where they are the same on every kernel since 2.6.31.
const TICK: u128 = 64;
const TICKS_IN_8_MICROSECONDS: u64 = 125;

impl Limit {
    /// The token bucket filter, in the reference's arithmetic, which loses what is less than a byte, a microsecond or a
    /// tick at each step. A burst that is more than a bucket holds (4 GiB, or what passes in 275 seconds) is as much as
    /// it holds; the reference's is what an overflow leaves of it.
    pub fn bucket(&self) -> Bucket {
        let rate = self.rate / 8;
        let burst = (self.burst / 8).min(u32::MAX.into());
        // Less than 2^52, as burst is less than 2^32.
        let microseconds = (burst * SECOND).checked_div(rate).unwrap_or_default();
        let ticks = microseconds.saturating_mul(TICKS_IN_8_MICROSECONDS) / 8;
        let (buffer, burst) = match u32::try_from(ticks) {
            Ok(buffer) => (buffer, burst.into()),
            Err(_) => (u32::MAX, passing(rate, u32::MAX)),
        };
        let waiting = u128::from(rate) * u128::from(LATENCY) / u128::from(SECOND);
        Bucket { rate, buffer, limit: u32::try_from(waiting + burst).unwrap_or(u32::MAX) }
    }

    /// What the reference makes of it: where something is more than 32 bits have room for, what is left of it.
    fn overflown(&self) -> Bucket {
        let rate = self.rate / 8;
        let burst = low_bits(u128::from(self.burst / 8));
        let microseconds = (u128::from(burst) * u128::from(SECOND)).checked_div(rate.into());
        let microseconds = low_bits(microseconds.unwrap_or_default());
        let buffer = low_bits(u128::from(microseconds) * u128::from(TICKS_IN_8_MICROSECONDS) / 8);
        let waiting = low_bits(u128::from(rate) * u128::from(LATENCY) / u128::from(SECOND));
        Bucket { rate, buffer, limit: waiting.wrapping_add(burst) }
    }

    /// The largest packet that passes, in bytes, as the kernel finds it (`psched_ns_t2l`, include/net/sch_generic.h).
    /// With 0 it refuses the bucket.
    pub fn largest_packet(&self) -> u64 {
        let Bucket { rate, buffer, .. } = self.bucket();
        u64::try_from(passing(rate, buffer)).unwrap_or(u64::MAX)
    }
}

/// What 32 bits hold of a number.
fn low_bits(value: u128) -> u32 {
    u32::try_from(value & u128::from(u32::MAX)).unwrap_or_default()
}

/// The bytes that pass at a rate in so many ticks.
fn passing(rate: u64, ticks: u32) -> u128 {
    u128::from(ticks) * TICK * u128::from(rate) / 1_000_000_000
}

impl TrafficShape {
    /// Makes the limits. What an earlier attempt of the same attachment left is replaced; what others do with the link's
    /// packets is in the way.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let link = self.host_link();
        let ifb = match &self.egress {
            Some((_, name)) => Some(world.existing_host_link(name)?),
            None => None,
        };
        let mut steps = Vec::new();
        if let Some(limit) = &self.ingress {
            steps.push(Step::Limit(&link, limit));
        }
        if let (Some(ifb), Some((limit, _))) = (&ifb, &self.egress) {
            steps.extend([Step::Limit(ifb, limit), Step::Ingress(&link)]);
        }
        let batch = steps.iter().map(Step::request).collect();
        let answers = world.host()?.execute(batch)?;
        for (step, answer) in steps.iter().zip(answers) {
            let Err(e) = answer else { continue };
            match (step, e.errno) {
                (Step::Limit(link, limit), Errno::EEXIST) => replace_bucket(link, limit, world)?,
                (Step::Limit(..), Errno::ENOENT) => bail!(lacks("tbf", "sch_tbf", &e)),
                (Step::Ingress(link), Errno::EEXIST) => {
                    if self.own_deeds(link, ifb.as_ref(), world)?.is_none() {
                        let msg =
                            format!("link {} has filters of others for what it receives: {e}", link.name);
                        bail!(CniError::new(Code::Conflict, msg));
                    }
                    // Its filters go with it.
                    let anew = vec![qdisc::delete_ingress(link), qdisc::create_ingress(link)];
                    world.host()?.execute(anew)?.into_iter().collect::<Result<(), _>>()?;
                }
                (Step::Ingress(_), Errno::ENOENT) => bail!(lacks("ingress", "sch_ingress", &e)),
                _ => return Err(e.into()),
            }
        }
        // Last, so that no packet passes without a limit; and on nothing that belongs to others.
        if let Some(ifb) = &ifb {
            redirect(&link, ifb, world)?;
        }
        Ok(Ensured::Created)
    }

    /// Tells how the limits are otherwise.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let object = format!("host link {}", self.link);
        world.forget_host_link(&self.link);
        let Some(link) = world.host_link(&self.link)? else { return Ok(vec![Finding::missing(object)]) };
        let mut findings = Vec::new();
        if let Some(limit) = &self.ingress {
            compare_bucket("ingress", &link, limit, &mut findings, world)?;
        }
        let Some((limit, name)) = &self.egress else { return Ok(findings) };
        // That it is missing is found by whoever makes it.
        let Some(ifb) = world.host_link(name)? else { return Ok(findings) };
        compare_bucket("egress", &ifb, limit, &mut findings, world)?;
        let redirect = format!("redirection of what {object} receives to {name}");
        let deeds = match world.host()?.ingress_qdisc(&link)? {
            Some(_) => world.host()?.deeds(&link)?,
            None => Vec::new(),
        };
        match deeds.first() {
            Some(Deed::Redirect(index)) if *index == ifb.index => {}
            Some(Deed::Redirect(0)) => findings.push(Finding::differs(redirect, name, "to no link")),
            Some(Deed::Redirect(index)) => {
                let found =
                    world.host()?.link_by_index(*index)?.map_or_else(|| index.to_string(), |l| l.name);
                findings.push(Finding::differs(redirect, name, found));
            }
            Some(Deed::Other) | None => findings.push(Finding::missing(redirect)),
        }
        Ok(findings)
    }

    /// Takes the limits away, as far as they are there.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let link = self.host_link();
        let mut batch = Vec::new();
        if self.ingress.is_some() && world.host()?.root_qdisc(&link)?.is_some_and(|it| it.is_bucket()) {
            batch.push(qdisc::delete_bucket(&link));
        }
        if let Some((_, name)) = &self.egress {
            world.forget_host_link(name);
            let ifb = world.host_link(name)?;
            if self.own_deeds(&link, ifb.as_ref(), world)?.is_some() {
                batch.push(qdisc::delete_ingress(&link));
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        for answer in world.host()?.execute(batch)? {
            match answer {
                // Somebody else was faster, or the link is gone.
                Err(e) if !matches!(e.errno, Errno::ENOENT | Errno::ENODEV | Errno::EINVAL) => {
                    return Err(e.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn host_link(&self) -> Link {
        Link { index: self.index, name: self.link.clone(), ..Link::default() }
    }

    /// What the filters of what the link receives do, if there may be such, and they are all this attachment's: they
    /// send packets by its link, or by one that is gone.
    fn own_deeds(
        &self,
        link: &Link,
        ifb: Option<&Link>,
        world: &mut World<'_>,
    ) -> anyhow::Result<Option<Vec<Deed>>> {
        if world.host()?.ingress_qdisc(link)?.is_none_or(|found| found.kind != "ingress") {
            return Ok(None);
        }
        let deeds = world.host()?.deeds(link)?;
        let is_own = |deed: &Deed| match deed {
            Deed::Redirect(0) => true,
            Deed::Redirect(index) => ifb.is_some_and(|ifb| ifb.index == *index),
            Deed::Other => false,
        };
        Ok(deeds.iter().all(is_own).then_some(deeds))
    }
}

/// A request of the batch that makes the limits.
enum Step<'a> {
    Limit(&'a Link, &'a Limit),
    Ingress(&'a Link),
}

impl Step<'_> {
    fn request(&self) -> Message {
        match self {
            Self::Limit(link, limit) => qdisc::create_bucket(link, &limit.bucket(), Present::Kept),
            Self::Ingress(link) => qdisc::create_ingress(link),
        }
    }
}

/// Limits the rate of a link that sends its packets by something else than the kernel's own choice, if that is a limit
/// too.
fn replace_bucket(link: &Link, limit: &Limit, world: &mut World<'_>) -> anyhow::Result<()> {
    let host = world.host()?;
    if let Some(Qdisc { kind, handle, .. }) = host.root_qdisc(link)?.filter(|found| !found.is_bucket()) {
        let msg = format!(
            "link {} has the queueing discipline {kind} {:x}: already, which is in the way of tbf 1:",
            link.name,
            handle >> 16
        );
        bail!(CniError::new(Code::Conflict, msg));
    }
    Ok(host.execute_one(qdisc::create_bucket(link, &limit.bucket(), Present::Replaced))?)
}

/// Redirects what a link receives: by the classifier that is made for it, or, where the kernel does not have that, by the
/// one that the reference uses.
fn redirect(link: &Link, ifb: &Link, world: &mut World<'_>) -> anyhow::Result<()> {
    // Asked of files, since a kernel without it would look for the module in vain each time.
    let first = match module::presence("cls_matchall") {
        Presence::Unknown => Classifier::U32,
        Presence::Loaded | Presence::Available => Classifier::Matchall,
    };
    let host = world.host()?;
    match host.execute_one(filter::redirect_all(link, ifb, first)) {
        Err(e) if e.errno == Errno::ENOENT => {}
        outcome => return Ok(outcome?),
    }
    match host.execute_one(filter::redirect_all(link, ifb, first.other())) {
        Err(e) if e.errno == Errno::ENOENT => {
            bail!(lacks("filter that redirects packets", "act_mirred, and cls_matchall or cls_u32", &e))
        }
        outcome => Ok(outcome?),
    }
}

fn lacks(what: &str, module: &str, error: &Error) -> CniError {
    CniError::new(Code::MissingFeature, format!("this kernel has no {what} (module {module}): {error}"))
}

/// Compares what a link sends by with what it should.
fn compare_bucket(
    direction: &str,
    link: &Link,
    limit: &Limit,
    findings: &mut Vec<Finding>,
    world: &mut World<'_>,
) -> anyhow::Result<()> {
    let object = format!("{direction} limit (tbf) of host link {}", link.name);
    let found = match world.host()?.root_qdisc(link)? {
        Some(found) if found.kind == "tbf" => found.bucket,
        Some(found) if found.handle != 0 => {
            findings.push(Finding::differs(object, "a tbf", found.kind));
            return Ok(());
        }
        _ => None,
    };
    let (want, Some(have)) = (limit.bucket(), found) else {
        findings.push(Finding::missing(object));
        return Ok(());
    };
    if world.is_of_another_suite() && have == limit.overflown() {
        return Ok(());
    }
    if want.rate != have.rate {
        let bits = |bucket: &Bucket| format!("{} bit/s", u128::from(bucket.rate) * 8);
        findings.push(Finding::differs(format!("rate of the {object}"), bits(&want), bits(&have)));
    }
    if want.buffer != have.buffer {
        let time = |bucket: &Bucket| format!("{} ns", u64::from(bucket.buffer) * 64);
        findings.push(Finding::differs(format!("burst of the {object}"), time(&want), time(&have)));
    }
    if want.limit != have.limit {
        let bytes = |bucket: &Bucket| format!("{} bytes", bucket.limit);
        findings.push(Finding::differs(format!("queue of the {object}"), bytes(&want), bytes(&have)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
