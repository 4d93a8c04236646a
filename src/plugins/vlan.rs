//! `vlan`: a VLAN of a link of the host, in the pod.

use std::sync::LazyLock;

use serde::Deserialize;

use super::PluginType;
use super::sublink::{self, Master, Sublink};
use crate::net::rtnl::sublink::Settings;
use crate::resource::Lease;
use crate::spec::{CniError, Request, version};

/// Largest ID of a VLAN (IEEE 802.1Q; 4095 is reserved).
const VLAN_MAX: u16 = 4094;

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "vlan",
    versions: &version::ALL,
    keys: || &KEYS,
    parse: |request| Ok(Box::new(parse(request)?)),
    leftovers: |request| sublink::leftovers(request, "vlan"),
    lease: Lease::wanted_by,
    status: |request, world| parse(request)?.status(world),
};

static KEYS: LazyLock<Vec<&'static str>> = LazyLock::new(sublink::keys_with::<Conf>);

/// The keys that others do not have, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    master: String,
    vlan_id: i64,
}

fn parse(request: &Request) -> Result<Sublink, CniError> {
    let conf: Conf = request.config.decode()?;
    if conf.master.is_empty() {
        return Err(CniError::config(
            "master: required, and missing; it is the link whose VLAN the pod is to have",
        ));
    }
    let master = Master::parse(&conf.master)?;
    let settings = Settings::Vlan { id: parse_id(conf.vlan_id)? };
    Sublink::new(request, settings, master, request.config.decode()?)
}

fn parse_id(id: i64) -> Result<u16, CniError> {
    u16::try_from(id).ok().filter(|id| *id <= VLAN_MAX).ok_or_else(|| {
        CniError::config(format!("vlanId: invalid VLAN ID {id} (must be between 0 and {VLAN_MAX})"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_twelve_bits_less_the_last() {
        assert_eq!((parse_id(0), parse_id(4094)), (Ok(0), Ok(4094)));
        for bad in [-1, 4095, 65536 + 7, i64::MAX] {
            let error = parse_id(bad).unwrap_err();
            assert!(error.code == 7 && error.msg.contains(&bad.to_string()), "{error}");
        }
    }
}
