//! `vrf`: binds an interface that a plugin before it has made to a VRF of the pod.

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::PluginType;
use super::conf::not_chained;
use super::feature::LinkKind;
use crate::plan::{Plan, Plugin};
use crate::resource::source_routing::{free_table, main_routes};
use crate::resource::{Lease, Resource, Vrf as Device, VrfMember, World};
use crate::spec::names::check_ifname;
use crate::spec::{CniError, CniResult, Code, Prefix, Request, json, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "vrf",
    versions: &version::ALL,
    keys: json::keys_of::<Conf>,
    parse,
    leftovers,
    lease: |_| None,
    status,
};

/// The first table that is chosen.
const FIRST_TABLE: u32 = 1;

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conf {
    vrfname: String,
    table: i64,
}

/// What is wanted, decided.
#[derive(Clone, Debug)]
struct Vrf {
    ifname: String,
    device: Device,
    patience: Duration,
}

struct Chained {
    vrf: Vrf,
    prev_result: CniResult,
}

impl Vrf {
    fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        let (name, ifname) = (conf.vrfname, request.attachment.ifname.clone());
        if name.is_empty() {
            return Err(CniError::config("vrfname: missing; wanted is the name of a VRF"));
        }
        check_ifname(&name).map_err(|why| CniError::config(format!("vrfname: the name {name:?} {why}")))?;
        if name == ifname {
            return Err(CniError::config(format!("vrfname: {name:?} is the interface's own name")));
        }
        let table = u32::try_from(conf.table).map_err(|_| {
            let max = u32::MAX;
            CniError::config(format!(
                "table: {} is wrong; wanted is a number from 1 to {max}, or 0 for one that is free",
                conf.table
            ))
        })?;
        let table = Some(table).filter(|table| *table != 0);
        Ok(Self { ifname, device: Device { name, table }, patience: request.config.lock_timeout()? })
    }
}

fn parse(request: &Request) -> Result<Box<dyn Plugin>, CniError> {
    let vrf = Vrf::parse(request)?;
    let prev_result = request.config.prev_result()?;
    let prev_result = prev_result.ok_or_else(|| not_chained("vrf", "makes the interface"))?;
    Ok(Box::new(Chained { vrf, prev_result }))
}

fn leftovers(request: &Request) -> Vec<Resource> {
    let name = request.config.get("vrfname").and_then(Value::as_str).unwrap_or_default();
    if check_ifname(name).is_err() {
        return Vec::new();
    }
    let (ifname, vrf) = (request.attachment.ifname.clone(), name.to_owned());
    vec![
        Resource::Vrf(Device { name: vrf.clone(), table: None }),
        Resource::VrfMember(VrfMember { ifname, vrf, ..VrfMember::default() }),
    ]
}

fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    Vrf::parse(request)?;
    LinkKind { kind: "vrf", module: "vrf", what: "VRFs (CONFIG_NET_VRF)" }.is_at_work(world).map(drop)
}

impl Plugin for Chained {
    fn lease(&self) -> Option<Lease> {
        None
    }

    fn enters_pod(&self) -> bool {
        true
    }

    /// Nobody else chooses tables in the pod until this call ends.
    fn plan(&self, _: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let Vrf { ifname, device, patience } = &self.vrf;
        let pod = world.pod()?;
        pod.lock(*patience)?;
        let rtnl = pod.rtnl()?;
        let link = rtnl.link(ifname)?.ok_or_else(|| {
            CniError::new(
                Code::Kernel,
                format!("the pod has no interface {ifname} that could be bound to a VRF"),
            )
        })?;
        let found = device.find(rtnl)?;
        if let Some(master) = link.master.filter(|master| found.as_ref().map(|it| it.index) != Some(*master))
        {
            let name = rtnl.link_by_index(master)?.map_or_else(|| master.to_string(), |it| it.name);
            let msg = format!("pod interface {ifname} is bound to {name} already");
            return Err(CniError::new(Code::Conflict, msg).into());
        }
        let routes = rtnl.raw_routes()?;
        let table = match device.table.or(found.and_then(|it| it.vrf_table)) {
            Some(table) => table,
            None => {
                let taken: Vec<u32> = rtnl.vrfs()?.iter().filter_map(|it| it.vrf_table).collect();
                free_table(FIRST_TABLE, &rtnl.rules()?, &routes, &taken)
            }
        };
        // The kernel makes its own again, and IPv4 addresses stay.
        let is_lost = |address: &IpAddr| matches!(address, IpAddr::V6(a) if !a.is_unicast_link_local());
        let addresses = rtnl.addresses(&link)?;
        let member = VrfMember {
            ifname: ifname.clone(),
            vrf: device.name.clone(),
            addresses: addresses
                .iter()
                .filter(|it| is_lost(&it.address))
                .filter_map(|it| Prefix::new(it.address, it.prefix_len))
                .collect(),
            routes: main_routes(&link, &routes).into_iter().filter(|route| !route.is_kernels()).collect(),
        };
        let device = Device { table: Some(table), ..device.clone() };
        let resources = vec![Resource::Vrf(device), Resource::VrfMember(member)];
        Ok(Plan { resources, result: self.prev_result.clone() })
    }

    fn expect(&self, prev: &CniResult, _: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let Vrf { ifname, device, .. } = &self.vrf;
        let own = prev.ips.iter().filter(|ip| {
            ip.interface.and_then(|index| prev.interfaces.get(index)).is_some_and(|it| it.name == *ifname)
        });
        let member = VrfMember {
            ifname: ifname.clone(),
            vrf: device.name.clone(),
            addresses: own.map(|ip| ip.address).filter(|address| address.is_ipv6()).collect(),
            routes: Vec::new(),
        };
        Ok(vec![Resource::Vrf(device.clone()), Resource::VrfMember(member)])
    }
}
