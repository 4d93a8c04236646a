//! `dummy`: a link in the pod that swallows what is sent, to have addresses on.

use super::PluginType;
use super::sublink::{self, Master, SharedConf, Sublink};
use crate::net::rtnl::sublink::Settings;
use crate::resource::Lease;
use crate::spec::{CniError, Request, version};

/// The plugin type. It has no keys of its own.
pub const TYPE: PluginType = PluginType {
    name: "dummy",
    versions: &version::ALL,
    keys: || &[],
    parse: |request| Ok(Box::new(parse(request)?)),
    leftovers: |request| sublink::leftovers(request, "dummy"),
    lease: Lease::wanted_by,
    status: |request, world| parse(request)?.status(world),
};

fn parse(request: &Request) -> Result<Sublink, CniError> {
    let dummy = Sublink::new(request, Settings::Dummy, Master::Nobody, SharedConf::default())?;
    if request.config.ipam_type.is_none() {
        return Err(CniError::config(
            "ipam: dummy requires an IPAM configuration; its addresses are all it is for",
        ));
    }
    Ok(dummy)
}
