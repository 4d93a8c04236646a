//! `macvlan`: a link in the pod with a MAC address of its own on a network of the host, its master.

use std::sync::LazyLock;

use serde::Deserialize;

use super::PluginType;
use super::conf::requested_mac;
use super::sublink::{self, Master, Sublink};
use crate::net::rtnl::sublink::{MacvlanMode, Settings};
use crate::resource::Lease;
use crate::spec::{CniError, Request, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "macvlan",
    versions: &version::ALL,
    keys: || &KEYS,
    parse: |request| Ok(Box::new(parse(request)?)),
    leftovers: |request| sublink::leftovers(request, "macvlan"),
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
    mac: String,
    bcqueuelen: u32,
}

fn parse(request: &Request) -> Result<Sublink, CniError> {
    let conf: Conf = request.config.decode()?;
    let settings = Settings::Macvlan {
        mode: sublink::parse_mode("macvlan", &conf.mode, &MacvlanMode::ALL, MacvlanMode::as_str)?,
        broadcast_queue: Some(conf.bcqueuelen).filter(|len| *len != 0),
    };
    let master = Master::parse(&conf.master)?;
    let mac = requested_mac(request, &conf.mac)?;
    Ok(Sublink::new(request, settings, master, request.config.decode()?)?.with_mac(mac))
}
