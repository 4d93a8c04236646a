//! `portmap`: ports of the host that lead to the pod. It is chained behind a plugin that gives the pod its addresses.

mod conf;

use super::PluginType;
use super::conf::not_chained;
use crate::net::iptables::{Protocol, Variant, installed, legacy};
use crate::net::module::{self, Presence};
use crate::net::nft::{self, Nft};
use crate::plan::{Plan, Plugin};
use crate::resource::masquerade::Backend;
use crate::resource::port_mappings::{PortMapping, SourceNat};
use crate::resource::{ForeignPortMappings, Lease, PortMappings, Resource, World};
use crate::spec::{CniError, CniResult, Code, Prefix, Request, json, version};
use conf::Portmap;

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "portmap",
    versions: &version::ALL,
    keys: json::keys_of::<conf::Conf>,
    parse: |request| Ok(Box::new(Portmap::parse(request)?)),
    leftovers,
    lease: |_| None,
    status,
};

fn leftovers(request: &Request) -> Vec<Resource> {
    vec![Resource::ForeignPortMappings(ForeignPortMappings { attachment: request.attachment.clone() })]
}

impl Portmap {
    /// What is made for the addresses of a result.
    fn resources(&self, result: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let addresses = self.pod_addresses(result);
        let is_for_one = |mapping: &PortMapping| {
            addresses
                .iter()
                .any(|pod| mapping.host_address.is_none_or(|host| host.is_ipv4() == pod.is_ipv4()))
        };
        if !self.mappings.iter().any(is_for_one) {
            return Ok(Vec::new());
        }
        let backend = Backend::choose(self.backend, world)?;
        let link = self.link_to(&addresses, world)?;
        Ok(vec![Resource::PortMappings(PortMappings {
            attachment: self.attachment.clone(),
            backend,
            mappings: self.mappings.clone(),
            addresses,
            link,
            source_nat: self.source_nat,
            marking: self.marking.clone(),
            conditions_v4: self.conditions_v4.clone(),
            conditions_v6: self.conditions_v6.clone(),
        })])
    }

    /// The pod's first address of each family.
    fn pod_addresses(&self, result: &CniResult) -> Vec<Prefix> {
        let is_pods = |index: Option<usize>| {
            index.and_then(|index| result.interfaces.get(index)).is_none_or(|interface| {
                interface.name == self.attachment.ifname && !interface.sandbox.is_empty()
            })
        };
        let of_pod = || result.ips.iter().filter(|ip| is_pods(ip.interface)).map(|ip| ip.address);
        let first = |is_ipv4| of_pod().find(|address| address.is_ipv4() == is_ipv4);
        first(true).into_iter().chain(first(false)).collect()
    }

    /// The link by which the host reaches the pod's IPv4 address, if that matters.
    ///
    /// Errors: there is no way to it.
    fn link_to(&self, addresses: &[Prefix], world: &mut World<'_>) -> anyhow::Result<Option<String>> {
        let Some(pod) = addresses.iter().find(|pod| pod.is_ipv4()) else { return Ok(None) };
        if self.source_nat == SourceNat::None {
            return Ok(None);
        }
        let host = world.host()?;
        let link = match host.link_towards(pod.address())? {
            Some(index) => host.link_by_index(index)?,
            None => None,
        };
        let Some(link) = link else {
            let msg = format!("no route of the host leads to {}, an address of prevResult", pod.address());
            return Err(CniError::new(Code::Kernel, msg).into());
        };
        Ok(Some(link.name))
    }
}

impl Plugin for Portmap {
    fn lease(&self) -> Option<Lease> {
        None
    }

    fn enters_pod(&self) -> bool {
        false
    }

    fn plan(&self, _: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let Some(result) = self.prev_result.clone() else {
            return Err(not_chained("portmap", "gives the pod its addresses").into());
        };
        Ok(Plan { resources: self.resources(&result, world)?, result })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        self.resources(prev, world)
    }
}

/// The error of code 50 if the back end could not do what is asked of it. Looks only.
fn status(request: &Request, _: &mut World<'_>) -> anyhow::Result<()> {
    let portmap = Portmap::parse(request)?;
    let unavailable = |msg: &str| Err(CniError::new(Code::Unavailable, msg).into());
    let is_legacy = installed(Protocol::Ipv4) == Some(Variant::Legacy);
    let has_legacy = is_legacy && legacy::is_supported(Protocol::Ipv4);
    let is_done_by_legacy = match portmap.backend {
        Some(Backend::Iptables) => is_legacy,
        Some(Backend::Nftables) => false,
        None => has_legacy,
    };
    if is_done_by_legacy && !has_legacy {
        return unavailable(
            "backend: iptables is of the legacy variant here, and this kernel has no ip_tables (CONFIG_IP_NF_IPTABLES)",
        );
    }
    let has_nf_tables = is_done_by_legacy
        || module::presence("nf_tables") != Presence::Unknown
        || Nft::open()?.is_at_work()?;
    if !has_nf_tables {
        return unavailable("backend: this kernel has no nf_tables (CONFIG_NF_TABLES)");
    }
    let has_conditions = !portmap.conditions_v4.is_empty() || !portmap.conditions_v6.is_empty();
    if has_conditions && portmap.backend == Some(Backend::Nftables) && !nft::command::is_installed() {
        return unavailable(
            "conditionsV4, conditionsV6: the command nft, which understands them, is not installed",
        );
    }
    if has_conditions && portmap.backend == Some(Backend::Iptables) && installed(Protocol::Ipv4).is_none() {
        return unavailable(
            "conditionsV4, conditionsV6: the command iptables, which understands them, is not installed",
        );
    }
    Ok(())
}
