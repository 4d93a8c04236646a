//! The IPAM plugins, as executables of their own: `host-local` hands out addresses of ranges, `static` those that
//! the configuration names, `dhcp` those of a server on the network. Under this suite's own plugins all run in the
//! calling process instead; in either case the work is that of [`Lease`]. Their keys: [`crate::ipam::host_local`],
//! [`crate::ipam::fixed`], [`crate::dhcp::conf`].

use super::PluginType;
use crate::dhcp::DhcpConf;
use crate::ipam::{HostLocal, Static};
use crate::plan::{Plan, Plugin, reclaim};
use crate::resource::{Lease, Resource, World};
use crate::spec::{CniError, CniResult, version};

/// The plugin type `host-local`.
pub const HOST_LOCAL: PluginType = PluginType {
    name: "host-local",
    versions: &version::ALL,
    keys: HostLocal::keys,
    parse: |request| parse(Lease::host_local(request)),
    leftovers: |request| vec![Resource::Lease(Lease::host_local(request))],
    status: |request, world| status(&Lease::host_local(request), world),
    lease: |request| Some(Lease::host_local(request)),
};

/// The plugin type `static`.
pub const STATIC: PluginType = PluginType {
    name: "static",
    versions: &version::ALL,
    keys: Static::keys,
    parse: |request| parse(Lease::fixed(request)),
    leftovers: |_| Vec::new(),
    status: |request, world| status(&Lease::fixed(request), world),
    lease: |_| None,
};

/// The plugin type `dhcp`. Called with the argument `daemon`, it is the daemon instead: [`crate::dhcp::daemon`].
pub const DHCP: PluginType = PluginType {
    name: crate::dhcp::NAME,
    versions: &version::ALL,
    keys: DhcpConf::keys,
    parse: |request| parse(Lease::dhcp(request)),
    leftovers: |request| vec![Resource::Lease(Lease::dhcp(request))],
    status: |request, world| status(&Lease::dhcp(request), world),
    lease: |request| Some(Lease::dhcp(request)),
};

/// The error of code 50 if a lease could not be had now, even though an ADD would reclaim those of the dead.
pub(super) fn status(lease: &Lease, world: &mut World<'_>) -> anyhow::Result<()> {
    let state = world.state.clone();
    lease.status(world, |attachment| reclaim::is_dead(attachment, &state))
}

/// What is wrong with the configuration is found when the lease is taken, which is the first thing done.
fn parse(lease: Lease) -> Result<Box<dyn Plugin>, CniError> {
    Ok(Box::new(Ipam { lease }))
}

struct Ipam {
    lease: Lease,
}

impl Plugin for Ipam {
    fn lease(&self) -> Option<Lease> {
        Some(self.lease.clone())
    }

    fn enters_pod(&self) -> bool {
        false
    }

    fn plan(&self, leased: CniResult, _: &mut World<'_>) -> anyhow::Result<Plan> {
        Ok(Plan { resources: Vec::new(), result: leased })
    }

    fn expect(&self, prev: &CniResult, _: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        Ok(vec![Resource::Lease(self.lease.clone().with_addresses_of(prev))])
    }
}
