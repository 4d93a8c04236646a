//! The IPAM plugins, as executables of their own: `host-local` hands out addresses of ranges, `static` those that
//! the configuration names. Under this suite's own plugins both run in the calling process instead; in either case
//! the work is that of [`Lease`]. Their keys: [`crate::ipam::host_local`], [`crate::ipam::fixed`].

use super::PluginType;
use crate::plan::{Plan, Plugin};
use crate::resource::{Lease, Resource, World};
use crate::spec::{CniError, CniResult, version};

/// The plugin type `host-local`.
pub const HOST_LOCAL: PluginType = PluginType {
    name: "host-local",
    versions: &version::ALL,
    parse: |request| parse(Lease::host_local(request)),
    leftovers: |request| vec![Resource::Lease(Lease::host_local(request))],
    status: |request, world| Lease::host_local(request).status(world),
    lease: |request| Some(Lease::host_local(request)),
};

/// The plugin type `static`.
pub const STATIC: PluginType = PluginType {
    name: "static",
    versions: &version::ALL,
    parse: |request| parse(Lease::fixed(request)),
    leftovers: |_| Vec::new(),
    status: |request, world| Lease::fixed(request).status(world),
    lease: |_| None,
};

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
