//! `ipvlan`: a link in the pod with its master's MAC address, told from others by its IP addresses. Alone, with an IPAM;
//! or in a chain, where it may take addresses and master from the result of the plugin before.

use serde::Deserialize;

use super::PluginType;
use super::conf::DnsConf;
use super::sublink::{self, Master, SharedConf, Sublink};
use crate::net::rtnl::sublink::{IpvlanMode, Settings};
use crate::resource::Lease;
use crate::spec::{CniError, CniResult, Command, Request, json, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "ipvlan",
    versions: &version::ALL,
    keys: json::keys_of::<Conf>,
    parse: |request| Ok(Box::new(parse(request)?)),
    leftovers: |request| sublink::leftovers(request, "ipvlan"),
    lease: Lease::wanted_by,
    status: |request, world| parse(request)?.status(world),
};

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    master: String,
    mode: String,
    mtu: i64,
    link_in_container: bool,
    enabledad: bool,
    dns: DnsConf,
}

fn parse(request: &Request) -> Result<Sublink, CniError> {
    let conf: Conf = request.config.decode()?;
    let settings = Settings::Ipvlan { mode: parse_mode(&conf.mode)? };
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
    let shared = SharedConf {
        mtu: conf.mtu,
        link_in_container: conf.link_in_container,
        enabledad: conf.enabledad,
        dns: conf.dns,
    };
    let ipvlan = Sublink::new(request, settings, master, shared)?;
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

/// `mode`: `l2` if it is not given.
fn parse_mode(name: &str) -> Result<IpvlanMode, CniError> {
    if name.is_empty() {
        return Ok(IpvlanMode::L2);
    }
    IpvlanMode::ALL.into_iter().find(|mode| mode.as_str() == name).ok_or_else(|| {
        let known: Vec<&str> = IpvlanMode::ALL.into_iter().map(IpvlanMode::as_str).collect();
        CniError::config(format!("mode: unknown ipvlan mode {name:?}; known are {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::Version;

    #[test]
    fn modes_are_known_by_name() {
        assert_eq!(parse_mode(""), Ok(IpvlanMode::L2));
        for mode in IpvlanMode::ALL {
            assert_eq!(parse_mode(mode.as_str()), Ok(mode));
        }
        let error = parse_mode("l4").unwrap_err();
        assert!(error.code == 7 && error.msg.contains("\"l4\"") && error.msg.contains("l3s"), "{error}");
    }

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
