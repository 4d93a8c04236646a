//! `ptp`: a veth pair between the pod and the host, without a bridge; addresses, routes, NAT.
//!
//! What an attachment is made of is said in `Ptp::resources`.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::PluginType;
use super::conf::{DnsConf, requested_mac};
use super::feature::{self, LinkKind};
use super::mtu::{MTU_DEFAULT, Mtu, check_ipv6};
use super::pod_interface::PodInterface;
use crate::net::Mac;
use crate::plan::{Plan, Plugin};
use crate::resource::masquerade::Backend;
use crate::resource::point_to_point::Uplink;
use crate::resource::{self, Lease, Resource, World, veth};
use crate::spec::result::Interface;
use crate::spec::{CniError, CniResult, Code, Prefix, Request, json, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "ptp",
    versions: &version::ALL,
    keys: json::keys_of::<Conf>,
    parse: |request| Ok(Box::new(Ptp::parse(request)?)),
    leftovers,
    lease: Lease::wanted_by,
    status,
};

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: Value,
    dns: DnsConf,
}

/// What is wanted, decided.
struct Ptp {
    pod: PodInterface,
    masquerades: bool,
    masquerade_backend: Option<Backend>,
    mtu: Mtu,
    mac: Option<Mac>,
}

/// What the host decides, or what the result says was decided.
struct Facts {
    host_name: String,
    host_mac: Mac,
    mac: Option<Mac>,
    mtu: Option<u32>,
    masquerade: Option<Backend>,
}

fn leftovers(request: &Request) -> Vec<Resource> {
    let attachment = &request.attachment;
    let lease = Lease::wanted_by(request).map(Resource::Lease);
    let others = [
        Resource::ForeignVeth(resource::ForeignVeth { attachment: attachment.clone() }),
        Resource::Veth(resource::Veth::of(attachment)),
        Resource::ForeignMasquerade(resource::ForeignMasquerade { attachment: attachment.clone() }),
    ];
    lease.into_iter().chain(others).collect()
}

/// The error of code 50 if an ADD could not be served now.
fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    let ptp = Ptp::parse(request)?;
    LinkKind { kind: "veth", module: "veth", what: "veth pairs (CONFIG_VETH)" }.is_at_work(world)?;
    if ptp.masquerades
        && feature::masquerades_by_nf_tables(ptp.masquerade_backend)
        && !feature::has_nf_tables()?
    {
        let msg = "ipMasq: this kernel has no nf_tables (CONFIG_NF_TABLES)";
        return Err(CniError::new(Code::Unavailable, msg).into());
    }
    ptp.pod.status(world)
}

impl Ptp {
    fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        let pod = PodInterface::parse(request, conf.dns)?;
        if pod.lease.is_none() {
            return Err(CniError::config(
                "ipam: ptp requires an IPAM configuration; without addresses no packet finds its way",
            ));
        }
        Ok(Self {
            pod,
            masquerades: conf.ip_masq,
            masquerade_backend: Backend::configured(&conf.ip_masq_backend)?,
            mtu: Mtu::parse(&conf.mtu)?,
            mac: requested_mac(request, "")?,
        })
    }

    /// What the attachment is made of. `ipam` has the addresses with their gateways, and the routes.
    fn resources(&self, ipam: &CniResult, facts: &Facts) -> Vec<Resource> {
        let addresses: Vec<IpAddr> = ipam.ips.iter().map(|ip| ip.address.address()).collect();
        let uplinks: Vec<Uplink> = ipam
            .ips
            .iter()
            .filter_map(|ip| Some(Uplink { address: ip.address, gateway: ip.gateway? }))
            .collect();
        let mut gateways: Vec<IpAddr> = Vec::new();
        for uplink in &uplinks {
            if !gateways.contains(&uplink.gateway) {
                gateways.push(uplink.gateway);
            }
        }
        let mut resources = Vec::new();
        for (family, is_ipv4) in [(resource::Forwarding::Ipv4, true), (resource::Forwarding::Ipv6, false)] {
            if addresses.iter().any(|address| address.is_ipv4() == is_ipv4) {
                resources.push(Resource::Forwarding(family));
            }
        }
        resources.push(self.veth(facts));
        resources.push(Resource::Connections(resource::Connections { addresses: addresses.clone() }));
        resources.extend(self.pod.sysctls(ipam));
        resources.extend([
            Resource::PodRoutes(resource::PodRoutes {
                link: facts.host_name.clone(),
                gateways,
                addresses: addresses.clone(),
            }),
            Resource::PointToPoint(resource::PointToPoint {
                addressing: self.pod.addressing(ipam),
                gateways: uplinks,
            }),
            Resource::PortState(resource::PortState { link: facts.host_name.clone(), addresses }),
        ]);
        if let Some(backend) = facts.masquerade {
            resources.push(Resource::Masquerade(resource::Masquerade {
                attachment: self.pod.attachment.clone(),
                backend,
                sources: ipam.ips.iter().map(|ip| ip.address).collect(),
            }));
        }
        resources
    }

    fn veth(&self, facts: &Facts) -> Resource {
        Resource::Veth(resource::Veth {
            attachment: self.pod.attachment.clone(),
            host_name: facts.host_name.clone(),
            host_mac: facts.host_mac,
            bridge: None,
            mac: facts.mac,
            mtu: facts.mtu,
            hairpin: false,
            isolated: false,
        })
    }

    fn decide(&self, ipam: &CniResult, world: &mut World<'_>) -> anyhow::Result<Facts> {
        // An interface that is there before its address cannot be named after it.
        let named_after = if self.pod.is_before_addresses() { &[] } else { ipam.ips.as_slice() };
        Ok(Facts {
            host_name: veth::host_name(&self.pod.attachment),
            host_mac: veth::host_mac(&self.pod.attachment),
            mac: Some(self.mac.unwrap_or_else(|| veth::pod_mac(&self.pod.attachment, named_after))),
            mtu: self.mtu.decide(world)?,
            masquerade: self.decide_backend(world)?,
        })
    }

    fn decide_backend(&self, world: &mut World<'_>) -> anyhow::Result<Option<Backend>> {
        self.masquerades.then(|| Backend::choose(self.masquerade_backend, world)).transpose()
    }

    fn interfaces(&self, facts: &Facts) -> Vec<Interface> {
        let mtu = Some(facts.mtu.unwrap_or(MTU_DEFAULT));
        let outer = self.pod.link_in_result(&facts.host_name, Some(facts.host_mac), mtu);
        vec![outer, self.pod.in_result(facts.mac, mtu)]
    }
}

impl Plugin for Ptp {
    fn lease(&self) -> Option<Lease> {
        self.pod.lease.clone()
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn links(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let facts = self.decide(&CniResult::default(), world)?;
        let carrying = resource::PortState { link: facts.host_name.clone(), addresses: Vec::new() };
        Ok(vec![self.veth(&facts), self.pod.up(), Resource::PortState(carrying)])
    }

    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        // The container's interface is the second of the result.
        let mut ipam = self.pod.adopt(leased, 1)?;
        for ip in &mut ipam.ips {
            ip.gateway = Some(gateway_of(ip.address, ip.gateway)?);
        }
        let facts = self.decide(&ipam, world)?;
        check_ipv6(facts.mtu, &ipam.ips)?;
        let resources = self.resources(&ipam, &facts);
        let result = CniResult { interfaces: self.interfaces(&facts), ..ipam };
        Ok(Plan { resources, result })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let (container, ipam) = prev.interface_of(&self.pod.attachment.ifname, &self.pod.sandbox)?;
        // Another suite's host link has a name of its own, and later plugins may have added links to the result.
        let own_name = veth::host_name(&self.pod.attachment);
        let on_host = || prev.interfaces.iter().filter(|i| i.sandbox.is_empty());
        let host =
            on_host().find(|i| i.name == own_name).or_else(|| on_host().find(|i| i.name.starts_with("veth")));
        let mac_of = |interface: &Interface| interface.mac.parse::<Mac>().ok();
        let facts = Facts {
            host_mac: host.and_then(mac_of).unwrap_or_else(|| veth::host_mac(&self.pod.attachment)),
            host_name: host.map_or(own_name, |i| i.name.clone()),
            mac: mac_of(container),
            mtu: self.mtu.expected(container.mtu),
            masquerade: self.decide_backend(world)?,
        };
        Ok(self.pod.leased(&ipam).into_iter().chain(self.resources(&ipam, &facts)).collect())
    }
}

/// The gateway of an address: the IPAM's, else the first address of the subnet, as with `bridge`.
fn gateway_of(address: Prefix, given: Option<IpAddr>) -> Result<IpAddr, CniError> {
    let is_subnet = address.prefix_len() < Prefix::host(address.address()).prefix_len();
    let gateway = match given {
        Some(gateway) => gateway,
        None if is_subnet => address.first_host(),
        None => {
            return Err(CniError::config(format!(
                "ipam: the address {address} has no gateway, and no subnet that one could be taken from"
            )));
        }
    };
    if gateway == address.address() {
        return Err(CniError::config(format!(
            "ipam: the address {address} is its own gateway; the host must have that one"
        )));
    }
    if gateway.is_ipv4() != address.is_ipv4() {
        return Err(CniError::config(format!(
            "ipam: the gateway {gateway} is of another family than the address {address}"
        )));
    }
    Ok(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(address: &str, given: Option<&str>) -> Result<String, CniError> {
        let given = given.map(|text| text.parse().unwrap());
        gateway_of(address.parse().unwrap(), given).map(|gateway| gateway.to_string())
    }

    #[test]
    fn a_gateway_is_given_or_the_first_of_the_subnet() {
        assert_eq!(gateway("10.1.2.3/16", None).unwrap(), "10.1.0.1");
        assert_eq!(gateway("10.1.2.3/16", Some("10.1.0.9")).unwrap(), "10.1.0.9");
        assert_eq!(gateway("10.1.2.3/32", Some("169.254.1.1")).unwrap(), "169.254.1.1");
        assert_eq!(gateway("fd00::7/64", None).unwrap(), "fd00::1");
    }

    #[test]
    fn what_cannot_be_a_gateway_is_refused() {
        assert!(gateway("10.1.2.3/32", None).is_err());
        assert!(gateway("fd00::7/128", None).is_err());
        assert!(gateway("10.1.0.1/16", None).is_err());
        assert!(gateway("10.1.0.2/16", Some("fd00::1")).is_err());
    }
}
