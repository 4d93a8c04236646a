//! `macvlan`: a link in the pod with a MAC address of its own on a network of the host, its master.

use serde::Deserialize;

use super::PluginType;
use super::conf::{DnsConf, requested_mac};
use super::sublink::{self, Master, SharedConf, Sublink};
use crate::net::rtnl::sublink::{MacvlanMode, Settings};
use crate::resource::Lease;
use crate::spec::{CniError, Request, json, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "macvlan",
    versions: &version::ALL,
    keys: json::keys_of::<Conf>,
    parse: |request| Ok(Box::new(parse(request)?)),
    leftovers: |request| sublink::leftovers(request, "macvlan"),
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
    mac: String,
    link_in_container: bool,
    bcqueuelen: u32,
    enabledad: bool,
    dns: DnsConf,
}

fn parse(request: &Request) -> Result<Sublink, CniError> {
    let conf: Conf = request.config.decode()?;
    let settings = Settings::Macvlan {
        mode: parse_mode(&conf.mode)?,
        broadcast_queue: Some(conf.bcqueuelen).filter(|len| *len != 0),
    };
    let master = Master::parse(&conf.master)?;
    let mac = requested_mac(request, &conf.mac)?;
    let shared = SharedConf {
        mtu: conf.mtu,
        link_in_container: conf.link_in_container,
        enabledad: conf.enabledad,
        dns: conf.dns,
    };
    Ok(Sublink::new(request, settings, master, shared)?.with_mac(mac))
}

/// `mode`: `bridge` if it is not given.
fn parse_mode(name: &str) -> Result<MacvlanMode, CniError> {
    if name.is_empty() {
        return Ok(MacvlanMode::Bridge);
    }
    MacvlanMode::ALL.into_iter().find(|mode| mode.as_str() == name).ok_or_else(|| {
        let known: Vec<&str> = MacvlanMode::ALL.into_iter().map(MacvlanMode::as_str).collect();
        CniError::config(format!("mode: unknown macvlan mode {name:?}; known are {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_known_by_name() {
        assert_eq!(parse_mode(""), Ok(MacvlanMode::Bridge));
        for mode in MacvlanMode::ALL {
            assert_eq!(parse_mode(mode.as_str()), Ok(mode));
        }
        let error = parse_mode("source").unwrap_err();
        assert!(
            error.code == 7 && error.msg.contains("\"source\"") && error.msg.contains("passthru"),
            "{error}"
        );
    }
}
