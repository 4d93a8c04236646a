//! The plugins, one file per kind: their configuration, what they want, their state.

pub mod bandwidth;
pub mod bridge;
mod conf;
pub mod dummy;
mod feature;
pub mod firewall;
pub mod host_device;
pub mod ipam;
pub mod ipvlan;
pub mod loopback;
pub mod macvlan;
mod mtu;
mod pod_interface;
pub mod portmap;
pub mod ptp;
pub mod sbr;
mod sublink;
pub mod tap;
pub mod tuning;
pub mod vlan;
pub mod vrf;
pub mod whole;

use crate::plan::Plugin;
use crate::resource::{Lease, Resource, World};
use crate::spec::{CniError, Request, Version};

/// A plugin type: what [`crate::registry`] has one of for each.
#[derive(Clone, Copy)]
pub struct PluginType {
    /// Its name: `type` in a configuration, and the name of its file.
    pub name: &'static str,
    /// The versions of the specification that it speaks.
    pub versions: &'static [Version],
    /// The keys of its configuration; for an IPAM, of the object under `ipam`. Its page in `docs/` has the same.
    pub keys: fn() -> &'static [&'static str],
    /// Reads a configuration; finds what is wrong with it before anything is touched.
    pub parse: fn(&Request) -> Result<Box<dyn Plugin>, CniError>,
    /// What an attachment without a record may have left, in the order in which it was made. Must not depend on a
    /// configuration that is right: DEL has to work with any.
    pub leftovers: fn(&Request) -> Vec<Resource>,
    /// Where addresses come from, for a GC; like `leftovers` for any configuration.
    pub lease: fn(&Request) -> Option<Lease>,
    /// The error if an ADD could not be served now.
    pub status: fn(&Request, &mut World<'_>) -> anyhow::Result<()>,
}

impl std::fmt::Debug for PluginType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginType").field("name", &self.name).finish_non_exhaustive()
    }
}
