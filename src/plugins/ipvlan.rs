//! `ipvlan`: a link in the pod with its master's MAC address, told from others by its IP addresses. Alone, with an IPAM;
//! or in a chain, where it may take addresses and master from the result of the plugin before.

use std::sync::LazyLock;

use serde::Deserialize;

use super::PluginType;
use super::sublink::{self, Master, Sublink};
use crate::net::rtnl::sublink::{IpvlanMode, Settings};
use crate::resource::Lease;
use crate::spec::{CniError, CniResult, Command, Request, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "ipvlan",
    versions: &version::ALL,
    keys: || &KEYS,
    parse: |request| Ok(Box::new(parse(request)?)),
    leftovers: |request| sublink::leftovers(request, "ipvlan"),
    lease: Lease::wanted_by,
    status: |request, world| parse(request)?.status(world),
};

static KEYS: LazyLock<Vec<&'static str>> = LazyLock::new(sublink::keys_with::<Conf>);

/// The keys that others do not have, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    master: String,
    mode: String,
}

fn parse(request: &Request) -> Result<Sublink, CniError> {
    let conf: Conf = request.config.decode()?;
    let settings = Settings::Ipvlan {
        mode: sublink::parse_mode("ipvlan", &conf.mode, &IpvlanMode::ALL, IpvlanMode::as_str)?,
    };
    let has_ipam = request.config.ipam_type.is_some();
    // On any other verb it is this plugin's own, or that of the whole chain, or there is none.
    let before = match request.command {
        Command::Add => request.config.prev_result()?,
        _ => None,
    };
    let master = match &before {
        _ if !conf.master.is_empty() => Master::parse(&conf.master)?,
        Some(before) => only_interface(before)?,
        None if !has_ipam => Master::OfChain,
        None => Master::OfDefaultRoute,
    };
    let ipvlan = Sublink::new(request, settings, master, request.config.decode()?)?;
    match before {
        _ if has_ipam => Ok(ipvlan),
        Some(before) if !before.ips.is_empty() => Ok(ipvlan.with_addresses_of(before)),
        _ if request.command == Command::Add => Err(CniError::config(
            "ipam: missing, and there is no prevResult with addresses of a plugin before; an ipvlan is nothing \
             without an address",
        )),
        _ => Ok(ipvlan),
    }
}

/// The master that the plugin before has made or found.
fn only_interface(before: &CniResult) -> Result<Master, CniError> {
    match before.interfaces.as_slice() {
        [only] if !only.name.is_empty() => Master::parse(&only.name),
        others => Err(CniError::config(format!(
            "master: not given, and prevResult, which could tell it, has {} interfaces instead of one with a name",
            others.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::Version;

    #[test]
    fn a_chain_has_one_master() {
        let before = |interfaces| {
            CniResult::from_value(&json!({"interfaces": interfaces}), Version::V1_0_0, "x").unwrap()
        };
        let only = only_interface(&before(json!([{"name": "uplink1"}])));
        assert_eq!(only, Ok(Master::Named("uplink1".to_owned())));
        for bad in [json!([]), json!([{"name": ""}]), json!([{"name": "a"}, {"name": "b"}])] {
            assert_eq!(only_interface(&before(bad)).unwrap_err().code, 7);
        }
    }
}
