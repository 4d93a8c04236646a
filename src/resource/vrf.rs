//! A VRF of the pod: a link that other links are bound to, and whose routing table they then use.

use anyhow::{Context, bail};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::rtnl::address::{self, DuplicateDetection};
use crate::net::rtnl::link::{self, Link};
use crate::net::rtnl::raw_route::RawRoute;
use crate::net::{Rtnl, netlink};
use crate::spec::{CniError, Code, Prefix};

/// The VRF itself. It is there as long as a link is bound to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vrf {
    /// Its name.
    pub name: String,
    /// Its routing table; `None` where nobody knows.
    pub table: Option<u32>,
}

impl Vrf {
    /// What there is of it.
    ///
    /// Errors: code 102 if there is another link of that name, or a VRF with another table.
    pub fn find(&self, rtnl: &mut Rtnl) -> anyhow::Result<Option<Link>> {
        let Some(found) = rtnl.link(&self.name)? else { return Ok(None) };
        let name = &self.name;
        if found.kind != "vrf" {
            let kind = if found.kind.is_empty() { "device" } else { &found.kind };
            let msg =
                format!("vrfname: {name:?} already exists in the pod but is not a VRF (it is a {kind})");
            bail!(CniError::new(Code::Conflict, msg));
        }
        if let (Some(want), Some(have)) = (self.table, found.vrf_table)
            && want != have
        {
            let msg = format!("table: VRF {name} of the pod has already table {have}, and not {want}");
            bail!(CniError::new(Code::Conflict, msg));
        }
        Ok(Some(found))
    }

    /// Makes it, and sets it up.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let rtnl = world.pod()?.rtnl()?;
        match self.find(rtnl)? {
            Some(found) => {
                if !found.up {
                    rtnl.execute_one(link::set_up(&found))?;
                }
                Ok(Ensured::Present)
            }
            None => {
                let table = self.table.context("a VRF without a table")?;
                match rtnl.execute_one(link::create_vrf(&self.name, table)) {
                    Err(e) if e.errno == Errno::EOPNOTSUPP => {
                        let msg = format!("this kernel has no VRFs (CONFIG_NET_VRF): {e}");
                        bail!(CniError::new(Code::MissingFeature, msg))
                    }
                    outcome => outcome?,
                }
                Ok(Ensured::Created)
            }
        }
    }

    /// Tells whether it is missing, another, or down.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let object = format!("VRF {} of the pod", self.name);
        let Some(found) = world.pod()?.rtnl()?.link(&self.name)? else {
            return Ok(vec![Finding::missing(object)]);
        };
        let mut findings = Vec::new();
        if found.kind != "vrf" {
            findings.push(Finding::differs(format!("link {} of the pod", self.name), "a VRF", &found.kind));
        } else if let (Some(want), Some(have)) = (self.table, found.vrf_table)
            && want != have
        {
            findings.push(Finding::differs(format!("table of {object}"), want, have));
        }
        if !found.up {
            findings.push(Finding::differs(object, "up", "down"));
        }
        Ok(findings)
    }

    /// Deletes it, if no link is bound to it any more.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if !world.has_pod()? {
            return Ok(());
        }
        let rtnl = world.pod()?.rtnl()?;
        let found = rtnl.link(&self.name)?.filter(|found| found.kind == "vrf");
        let Some(found) = found.filter(|it| self.table.is_none() || self.table == it.vrf_table) else {
            return Ok(());
        };
        if rtnl.has_ports(&found)? {
            return Ok(());
        }
        match rtnl.execute_one(link::delete(&found)) {
            Err(e) if e.errno == Errno::ENODEV => Ok(()),
            outcome => Ok(outcome?),
        }
    }
}

/// A pod's interface being bound to a VRF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrfMember {
    /// The interface.
    pub ifname: String,
    /// The VRF.
    pub vrf: String,
    /// IPv6 addresses, which the kernel may take away with the change.
    pub addresses: Vec<Prefix>,
    /// Routes of the main table, which it takes away.
    pub routes: Vec<RawRoute>,
}

impl VrfMember {
    /// Binds the interface, and gives it its addresses and routes again; the routes in the VRF's table.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let Self { ifname, vrf, .. } = self;
        let pod = world.pod()?;
        pod.forget_link();
        let rtnl = pod.rtnl()?;
        let found = rtnl.link(ifname)?.with_context(|| format!("pod interface {ifname} has vanished"))?;
        let master = rtnl.link(vrf)?.with_context(|| format!("VRF {vrf} has vanished from the pod"))?;
        let table = master.vrf_table.with_context(|| format!("link {vrf} of the pod is no VRF"))?;
        if found.master != Some(master.index) {
            rtnl.execute_one(link::set_master(&found, &master))?;
        }
        self.put_back(&found, rtnl, self.routes.iter().map(|route| route.in_table(table).replace()))?;
        Ok(Ensured::Created)
    }

    /// Adds the addresses that are not there, and then routes.
    fn put_back(
        &self,
        found: &Link,
        rtnl: &mut Rtnl,
        routes: impl Iterator<Item = netlink::Message>,
    ) -> anyhow::Result<()> {
        let have = if self.addresses.is_empty() { Vec::new() } else { rtnl.addresses(found)? };
        // They were no duplicates before.
        let lost = self.addresses.iter().filter(|want| !have.iter().any(|it| it.address == want.address()));
        let batch: Vec<_> = lost
            .map(|it| address::add(found, it.address(), it.prefix_len(), DuplicateDetection::Off))
            .chain(routes)
            .collect();
        if batch.is_empty() {
            return Ok(());
        }
        for answer in rtnl.execute(batch)? {
            match answer {
                Err(e) if e.errno == Errno::EEXIST => {}
                answer => answer?,
            }
        }
        Ok(())
    }

    /// Tells whether it is bound to another or none, and what it lacks.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let Self { ifname, vrf, .. } = self;
        let object = format!("pod interface {ifname}");
        let rtnl = world.pod()?.rtnl()?;
        let Some(found) = rtnl.link(ifname)? else { return Ok(vec![Finding::missing(object)]) };
        // That it is missing is the VRF's finding.
        let Some(master) = rtnl.link(vrf)? else { return Ok(Vec::new()) };
        let mut findings = Vec::new();
        if found.master != Some(master.index) {
            let other = match found.master {
                Some(index) => {
                    rtnl.link_by_index(index)?.map_or_else(|| "another link's".into(), |it| it.name)
                }
                None => "none".to_owned(),
            };
            findings.push(Finding::differs(format!("VRF of {object}"), vrf, other));
        }
        let addresses = if self.addresses.is_empty() { Vec::new() } else { rtnl.addresses(&found)? };
        for want in &self.addresses {
            if !addresses.iter().any(|it| it.address == want.address()) {
                findings.push(Finding::missing(format!("address {want} on {object}")));
            }
        }
        if let Some(table) = master.vrf_table.filter(|_| !self.routes.is_empty()) {
            let have = rtnl.raw_routes()?;
            for want in self.routes.iter().map(|route| route.in_table(table)) {
                if !have.iter().any(|it| it.is_by(&found) && it.is_like(&want)) {
                    findings.push(Finding::missing(format!("route {want} by {object}")));
                }
            }
        }
        Ok(findings)
    }

    /// Takes it out of the VRF, and gives it back what it had in the main table. A route that another interface has taken
    /// the place of meanwhile stays away.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if !world.has_pod()? {
            return Ok(());
        }
        let pod = world.pod()?;
        pod.forget_link();
        let rtnl = pod.rtnl()?;
        let (Some(found), Some(master)) = (rtnl.link(&self.ifname)?, rtnl.link(&self.vrf)?) else {
            return Ok(());
        };
        if found.master != Some(master.index) || master.kind != "vrf" {
            return Ok(());
        }
        rtnl.execute_one(link::unset_master(&found))?;
        self.put_back(&found, rtnl, self.routes.iter().map(RawRoute::add))
    }
}
