//! Routing by source: what a pod sends from an address of an interface leaves by that interface.
//!
//! Each address has a rule (`from 10.1.0.5 lookup 100`), and the table that the rule names has the routes of the
//! interface, which the main table has no more.

use std::net::IpAddr;

use anyhow::Context;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::netlink::{Answer, Message};
use crate::net::rtnl::raw_route::RawRoute;
use crate::net::rtnl::route::TABLE_MAIN;
use crate::net::rtnl::rule::{self, Rule};
use crate::net::{Link, Rtnl};

/// Tables that are the kernel's own: `default`, `main`, `local` (linux/rtnetlink.h).
const TABLES_OF_KERNEL: std::ops::RangeInclusive<u32> = 253..=255;

/// The rules of a pod's interface, and where its routes are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRouting {
    /// The interface.
    pub ifname: String,
    /// A rule for each address.
    pub rules: Vec<SourceRule>,
    /// Routes in the tables of the rules.
    pub added: Vec<RawRoute>,
    /// Routes that are no more in the main table.
    pub removed: Vec<RawRoute>,
    /// Routes of the main table that were otherwise: what they were, and what they are.
    pub replaced: Vec<(RawRoute, RawRoute)>,
}

/// The rule for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRule {
    /// Packets from here ...
    pub source: IpAddr,
    /// ... are looked up here; on a CHECK `None` where there is no rule that tells.
    pub table: Option<u32>,
}

impl SourceRouting {
    /// Fills the tables, makes the rules, and takes the routes out of the main table, in this order: a packet on its way
    /// finds a route at any time.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let rtnl = world.pod()?.rtnl()?;
        let mut batch: Vec<Message> = self.added.iter().map(RawRoute::replace).collect();
        batch.extend(self.rules().map(|(source, table)| rule::add(source, table)));
        for answer in run(rtnl, batch)? {
            match answer {
                Err(e) if e.errno == Errno::EEXIST => {}
                answer => answer.with_context(|| format!("route by the source of {}", self.ifname))?,
            }
        }
        // A hint that cannot be given is no reason to be without the interface; so says the reference.
        for answer in run(rtnl, self.replaced.iter().map(|(_, new)| new.replace()).collect())? {
            answer.unwrap_or_else(|e| log::warn!("{e}"));
        }
        for answer in run(rtnl, self.removed.iter().map(RawRoute::delete).collect())? {
            match answer {
                // Another one may have taken it along.
                Err(e) if e.errno == Errno::ESRCH => {}
                answer => answer?,
            }
        }
        Ok(Ensured::Created)
    }

    fn rules(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.rules.iter().filter_map(|rule| Some((rule.source, rule.table?)))
    }

    /// Tells which rules and routes are missing, and which default routes are in the main table again.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let ifname = &self.ifname;
        let rtnl = world.pod()?.rtnl()?;
        let Some(link) = rtnl.link(ifname)? else {
            return Ok(vec![Finding::missing(format!("pod interface {ifname}"))]);
        };
        let mut findings = Vec::new();
        let rules = rtnl.rules()?;
        for SourceRule { source, table } in &self.rules {
            let is_there = |rule: &Rule| {
                rule.source == Some(*source)
                    && table.map_or_else(|| serves(rule), |table| rule.table == table)
            };
            if !rules.iter().any(is_there) {
                let table = table.map_or_else(String::new, |table| format!(" lookup {table}"));
                findings.push(Finding::missing(format!("rule from {source}{table} in the pod")));
            }
        }
        let routes: Vec<RawRoute> =
            rtnl.raw_routes()?.into_iter().filter(|route| route.is_by(&link)).collect();
        for want in &self.added {
            if !routes.iter().any(|have| want.is_like(have)) {
                findings.push(Finding::missing(format!("route {want} by pod interface {ifname}")));
            }
        }
        // The kernel makes others by itself.
        for gone in self.removed.iter().filter(|route| route.dst_len() == 0) {
            if routes.iter().any(|have| gone.is_like(have)) {
                let object = format!("route {gone} by pod interface {ifname}");
                findings.push(Finding::differs(object, "in a table of its own only", "there"));
            }
        }
        Ok(findings)
    }

    /// Puts the routes back into the main table, and deletes the rules and what is in their tables. A route that another
    /// interface has taken the place of meanwhile stays away.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if !world.has_pod()? {
            return Ok(());
        }
        let rtnl = world.pod()?.rtnl()?;
        let is_there = rtnl.link(&self.ifname)?.is_some();
        let mut answers = Vec::new();
        if is_there {
            let replaced = self.replaced.iter().map(|(old, _)| old.replace());
            // Where the addresses are gone by which a next hop was reached, or a source was one, so is the route.
            let is_moot = |errno| matches!(errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL);
            answers = run(rtnl, replaced.chain(self.removed.iter().map(RawRoute::add)).collect())?;
            answers.retain(|answer| !answer.as_ref().is_err_and(|e| is_moot(e.errno)));
        }
        let mut batch: Vec<_> =
            self.rules().map(|(source, table)| rule::delete(source, table, None)).collect();
        if is_there {
            batch.extend(self.added.iter().rev().map(RawRoute::delete));
        }
        answers.extend(run(rtnl, batch)?);
        tolerate(answers)
    }
}

/// The rules of a pod's interface of which nobody knows more than the addresses: these, or else those that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignSourceRouting {
    /// The interface.
    pub ifname: String,
    /// Only rules that name this table, if one is given.
    pub table: Option<u32>,
    /// Addresses that the interface has had, where somebody says them. By now it may be another pod's.
    pub addresses: Vec<IpAddr>,
}

impl ForeignSourceRouting {
    /// Deletes them. The routes of their tables go with the interface.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if !world.has_pod()? {
            return Ok(());
        }
        let rtnl = world.pod()?.rtnl()?;
        let mut addresses = self.addresses.clone();
        if let Some(link) = rtnl.link(&self.ifname)?.filter(|_| self.addresses.is_empty()) {
            addresses.extend(rtnl.addresses(&link)?.iter().map(|it| it.address));
        }
        let batch = rtnl.rules()?.into_iter().filter_map(|it| {
            let source = it.source.filter(|source| addresses.contains(source))?;
            let is_meant = self.table.map_or_else(|| serves(&it), |table| it.table == table);
            is_meant.then(|| rule::delete(source, it.table, it.priority))
        });
        let batch = batch.collect();
        tolerate(run(rtnl, batch)?)
    }
}

/// Whether a rule may be one for an address of a pod, and not one of the kernel's.
pub fn serves(rule: &Rule) -> bool {
    rule.source.is_some() && !TABLES_OF_KERNEL.contains(&rule.table)
}

/// The first table from `first` on that neither a rule nor a route nor any of `taken` has.
pub fn free_table(first: u32, rules: &[Rule], routes: &[RawRoute], taken: &[u32]) -> u32 {
    let is_free = |table: &u32| {
        !TABLES_OF_KERNEL.contains(table)
            && !taken.contains(table)
            && !rules.iter().any(|rule| rule.table == *table)
            && !routes.iter().any(|route| route.table() == *table)
    };
    (first..u32::MAX).find(is_free).unwrap_or(u32::MAX)
}

/// The unicast routes by a link in the main table that have a place in another: those to neighbours of the link and to
/// groups stay with it.
pub fn main_routes(link: &Link, routes: &[RawRoute]) -> Vec<RawRoute> {
    let is_meant =
        |route: &&RawRoute| route.table() == TABLE_MAIN && route.is_by(link) && !route.is_local_to_link();
    let mut found: Vec<RawRoute> = routes.iter().filter(is_meant).cloned().collect();
    // A next hop must be reachable when its route is made.
    found.sort_by_key(RawRoute::has_gateway);
    found
}

fn run(rtnl: &mut Rtnl, batch: Vec<Message>) -> anyhow::Result<Vec<Answer>> {
    Ok(if batch.is_empty() { Vec::new() } else { rtnl.execute(batch)? })
}

/// What is gone need not be deleted, and what is there need not be added; all other errors are one.
fn tolerate(answers: Vec<Answer>) -> anyhow::Result<()> {
    let is_fine = |errno: Errno| {
        use Errno::{EAFNOSUPPORT, EEXIST, ENODEV, ENOENT, ESRCH};
        matches!(errno, EAFNOSUPPORT | EEXIST | ENODEV | ENOENT | ESRCH)
    };
    let mut errors = answers.into_iter().filter_map(Result::err).filter(|e| !is_fine(e.errno));
    errors.next().map_or(Ok(()), |e| Err(e.into()))
}
