//! `bridge`: a bridge on the host, a veth pair between it and the pod, addresses, NAT.
//!
//! What a bridge attachment is made of is said in `Bridge::resources`.

mod conf;
mod status;

use std::net::IpAddr;

use super::PluginType;
use super::mtu::{MTU_DEFAULT, check_ipv6};
use crate::ipam::flock::Mode;
use crate::net::{Link, Mac};
use crate::plan::{Plan, Plugin};
use crate::resource::bridge::new_mac;
use crate::resource::masquerade::Backend;
use crate::resource::{self, Lease, Resource, World, veth, vlan_gateway};
use crate::spec::result::{Interface, Route};
use crate::spec::{CniResult, Prefix, Request, json, version};
use conf::Bridge;

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "bridge",
    versions: &version::ALL,
    keys: json::keys_of::<conf::Conf>,
    parse: |request| Ok(Box::new(Bridge::parse(request)?)),
    leftovers,
    lease: Lease::wanted_by,
    status: status::status,
};

/// What the host has of it already, or what the result says it has.
#[derive(Clone, Debug)]
struct Facts {
    bridge_mac: Mac,
    bridge_mtu: Option<u32>,
    vlan_gateway_mac: Option<Mac>,
    mtu: Option<u32>,
    masquerade: Option<Backend>,
    host_name: String,
    host_mac: Mac,
    mac: Option<Mac>,
}

fn leftovers(request: &Request) -> Vec<Resource> {
    let attachment = &request.attachment;
    let prev = request.config.prev_result().ok().flatten().unwrap_or_default();
    let inside = prev.interfaces.iter().find(|i| !i.sandbox.is_empty() && i.name == attachment.ifname);
    let mac = inside.and_then(|i| i.mac.parse().ok()).unwrap_or(Mac([0; 6]));
    let host_ifname = veth::host_name(attachment);
    let lease = Lease::wanted_by(request).map(Resource::Lease);
    let others = [
        // First, since it is removed last: as long as the pod's link is there.
        Resource::SpoofGuard(resource::SpoofGuard::of(attachment, host_ifname.clone())),
        Resource::ForeignVeth(resource::ForeignVeth { attachment: attachment.clone() }),
        Resource::Veth(resource::Veth::of(attachment)),
        Resource::MacGuard(resource::MacGuard { attachment: attachment.clone(), host_ifname, mac }),
        Resource::ForeignMasquerade(resource::ForeignMasquerade { attachment: attachment.clone() }),
    ];
    lease.into_iter().chain(others).collect()
}

impl Bridge {
    /// What the attachment is made of. `ipam` has the addresses with their gateways, and the routes, decided.
    fn resources(&self, ipam: &CniResult, facts: &Facts) -> Vec<Resource> {
        let mut resources = vec![self.bridge(facts)];
        if self.is_gateway {
            let link = match (self.gateway_vlan(), facts.vlan_gateway_mac) {
                (Some(vlan), Some(mac)) => {
                    let gateway = resource::VlanGateway {
                        bridge: self.name.clone(),
                        vlan,
                        mac,
                        mtu: facts.mtu,
                        keep_default: self.vlans.as_ref().is_some_and(|vlans| vlans.keep_default),
                    };
                    let link = gateway.name();
                    resources.push(Resource::VlanGateway(gateway));
                    link
                }
                _ => self.name.clone(),
            };
            let gateways = gateways(ipam);
            resources.extend(gateways.iter().map(|address| {
                Resource::Gateway(resource::Gateway {
                    link: link.clone(),
                    address: *address,
                    companions: gateways.clone(),
                    force: self.force_address,
                })
            }));
            for (family, is_ipv4) in [(resource::Forwarding::Ipv4, true), (resource::Forwarding::Ipv6, false)]
            {
                if gateways.iter().any(|g| g.is_ipv4() == is_ipv4) {
                    resources.push(Resource::Forwarding(family));
                }
            }
        }
        if let Some(mac) = facts.mac.filter(|_| self.guards_senders) {
            // Before the link, so that it is removed after it.
            resources.push(Resource::SpoofGuard(resource::SpoofGuard {
                attachment: self.pod.attachment.clone(),
                host_ifname: facts.host_name.clone(),
                mac: Some(mac),
                addresses: ipam.ips.iter().map(|ip| ip.address.address()).collect(),
            }));
        }
        resources.push(self.veth(facts));
        if !ipam.ips.is_empty() {
            let addresses = ipam.ips.iter().map(|ip| ip.address.address()).collect();
            resources.push(Resource::Connections(resource::Connections { addresses }));
        }
        if self.guards_senders {
            let link = facts.host_name.clone();
            resources.push(Resource::ReservedFrames(resource::ReservedFrames { link }));
        }
        resources.extend(self.port_vlans(facts));
        if let Some(mac) = facts.mac.filter(|_| self.guards_mac) {
            resources.push(Resource::MacGuard(resource::MacGuard {
                attachment: self.pod.attachment.clone(),
                host_ifname: facts.host_name.clone(),
                mac,
            }));
        }
        if self.leaves_interface_down {
            return resources;
        }
        resources.extend(self.pod.sysctls(ipam));
        resources.push(Resource::Addressing(self.pod.addressing(ipam)));
        resources.push(Resource::PortState(resource::PortState {
            link: facts.host_name.clone(),
            addresses: ipam.ips.iter().map(|ip| ip.address.address()).collect(),
        }));
        if let Some(announcement) = self.pod.announcement(facts.mac, ipam) {
            resources.push(announcement);
            let gateway_link = self.gateway_vlan().map(|vlan| vlan_gateway::link_name(&self.name, vlan));
            resources.push(Resource::Neighbours(resource::Neighbours {
                link: gateway_link.unwrap_or_else(|| self.name.clone()),
                addresses: ipam.ips.iter().map(|ip| ip.address.address()).collect(),
            }));
        }
        if let Some(backend) = facts.masquerade {
            resources.push(Resource::Masquerade(resource::Masquerade {
                attachment: self.pod.attachment.clone(),
                backend,
                sources: ipam.ips.iter().map(|ip| ip.address).collect(),
            }));
        }
        resources
    }

    fn bridge(&self, facts: &Facts) -> Resource {
        Resource::Bridge(resource::Bridge {
            name: self.name.clone(),
            mac: facts.bridge_mac,
            mtu: facts.mtu,
            promiscuous: self.promiscuous,
            vlan_filtering: self.vlans.is_some(),
        })
    }

    fn veth(&self, facts: &Facts) -> Resource {
        Resource::Veth(resource::Veth {
            attachment: self.pod.attachment.clone(),
            host_name: facts.host_name.clone(),
            host_mac: facts.host_mac,
            bridge: Some(self.name.clone()),
            mac: facts.mac,
            mtu: facts.mtu,
            hairpin: self.hairpin,
            isolated: self.isolated,
        })
    }

    fn port_vlans(&self, facts: &Facts) -> Option<Resource> {
        let vlans = self.vlans.as_ref()?;
        Some(Resource::PortVlans(resource::PortVlans {
            link: facts.host_name.clone(),
            native: vlans.access.or_else(|| vlans.trunk.is_some().then_some(1)),
            tagged: vlans.trunk.clone().unwrap_or_default(),
            keep_default: vlans.keep_default,
        }))
    }

    /// The VLAN that gateway addresses are in, if they are not on the bridge itself.
    fn gateway_vlan(&self) -> Option<u16> {
        self.vlans.as_ref().and_then(|vlans| vlans.access)
    }

    /// Looks at the host once: what is there already decides what is taken over.
    fn look_at_host(&self, ipam: &CniResult, world: &mut World<'_>) -> anyhow::Result<Facts> {
        // Before it is looked up: what is found must not vanish.
        world.use_bridge(&self.name, Mode::Shared)?;
        let bridge = world.host_link(&self.name)?;
        let bridge_mac = match bridge.as_ref().and_then(|link| link.mac) {
            Some(mac) => mac,
            None => new_mac(&self.name, world.home()?.identity())?,
        };
        let vlan_gateway_mac = match self.gateway_vlan() {
            Some(vlan) => {
                let name = vlan_gateway::link_name(&self.name, vlan);
                let there = world.host_link(&name)?.and_then(|link| link.mac);
                Some(
                    there
                        .unwrap_or_else(|| veth::mac_from(&["vlan gateway", &name, &bridge_mac.to_string()])),
                )
            }
            None => None,
        };
        Ok(Facts {
            bridge_mac,
            bridge_mtu: bridge.as_ref().map(|link| link.mtu),
            vlan_gateway_mac,
            mtu: self.mtu.decide(world)?,
            masquerade: self.decide_backend(ipam, world)?,
            host_name: veth::host_name(&self.pod.attachment),
            host_mac: veth::host_mac(&self.pod.attachment),
            mac: Some(self.mac.unwrap_or_else(|| {
                // An interface that is there before its address cannot be named after it.
                let named_after = if self.pod.is_before_addresses() { &[] } else { ipam.ips.as_slice() };
                veth::pod_mac(&self.pod.attachment, named_after)
            })),
        })
    }

    fn decide_backend(&self, ipam: &CniResult, world: &mut World<'_>) -> anyhow::Result<Option<Backend>> {
        let has_sources = self.masquerades && !ipam.ips.is_empty();
        has_sources.then(|| Backend::choose(self.masquerade_backend, world)).transpose()
    }

    fn interfaces(&self, facts: &Facts) -> Vec<Interface> {
        let mtu = facts.mtu.unwrap_or(MTU_DEFAULT);
        let bridge_mtu = facts.bridge_mtu.map_or(mtu, |have| have.min(mtu));
        let on_host = |name: &str, mac: Mac, mtu: u32| self.pod.link_in_result(name, Some(mac), Some(mtu));
        let mut interfaces = vec![
            on_host(&self.name, facts.bridge_mac, bridge_mtu),
            on_host(&facts.host_name, facts.host_mac, mtu),
            self.pod.in_result(facts.mac, Some(mtu)),
        ];
        if let (Some(vlan), Some(mac), true) = (self.gateway_vlan(), facts.vlan_gateway_mac, self.is_gateway)
        {
            interfaces.push(on_host(&vlan_gateway::link_name(&self.name, vlan), mac, mtu));
        }
        interfaces
    }
}

impl Plugin for Bridge {
    fn lease(&self) -> Option<Lease> {
        self.pod.lease.clone()
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn links(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let facts = self.look_at_host(&CniResult::default(), world)?;
        let carrying = resource::PortState { link: facts.host_name.clone(), addresses: Vec::new() };
        let mut links = vec![self.bridge(&facts), self.veth(&facts)];
        links.extend(self.port_vlans(&facts));
        links.extend([self.pod.up(), Resource::PortState(carrying)]);
        Ok(links)
    }

    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        // The container's interface is the third of the result.
        let mut ipam = self.pod.adopt(leased, 2)?;
        for ip in &mut ipam.ips {
            if ip.gateway.is_none() && self.is_gateway {
                ip.gateway = Some(ip.address.first_host());
            }
        }
        if self.is_default_gateway {
            add_default_routes(&mut ipam);
        }
        let facts = self.look_at_host(&ipam, world)?;
        check_ipv6(facts.mtu, &ipam.ips)?;
        let resources = self.resources(&ipam, &facts);
        let result = CniResult { interfaces: self.interfaces(&facts), ..ipam };
        Ok(Plan { resources, result })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let (container, ipam) = prev.interface_of(&self.pod.attachment.ifname, &self.pod.sandbox)?;
        let on_host = |name: &str| prev.interfaces.iter().find(|i| i.sandbox.is_empty() && i.name == name);
        let mac_of = |interface: Option<&Interface>| interface.and_then(|i| i.mac.parse::<Mac>().ok());
        let bridge = world.host_link(&self.name)?;
        let vlan_gateway = self.gateway_vlan().map(|vlan| vlan_gateway::link_name(&self.name, vlan));
        // Another suite's host link has a name of its own, and later plugins may have added links to the result.
        let own_name = veth::host_name(&self.pod.attachment);
        let host = match on_host(&own_name) {
            Some(found) => Some(found),
            None => {
                let mut candidates = prev.interfaces.iter().filter(|i| {
                    i.sandbox.is_empty() && i.name != self.name && Some(&i.name) != vlan_gateway.as_ref()
                });
                candidates.find(|i| i.name.starts_with("veth"))
            }
        };
        let host_name = host.map_or(own_name, |i| i.name.clone());
        let masquerade = self.decide_backend(&ipam, world)?;
        let bridge_mac = mac_of(on_host(&self.name)).or_else(|| bridge.as_ref().and_then(|l: &Link| l.mac));
        // A later plugin that has given the pod's end another MTU has said so in the result, and looks after it.
        let is_retuned = match (container.mtu, host.and_then(|i| i.mtu)) {
            (Some(inside), Some(outside)) => inside != outside,
            _ => false,
        };
        let facts = Facts {
            // Where neither says, the bridge is missing, and that is the finding.
            bridge_mac: bridge_mac.unwrap_or(Mac([0; 6])),
            bridge_mtu: None,
            vlan_gateway_mac: vlan_gateway.and_then(|name| mac_of(on_host(&name))),
            mtu: if is_retuned { None } else { self.mtu.expected(container.mtu) },
            masquerade,
            host_mac: mac_of(host).unwrap_or_else(|| veth::host_mac(&self.pod.attachment)),
            host_name,
            mac: mac_of(Some(container)),
        };
        Ok(self.pod.leased(&ipam).into_iter().chain(self.resources(&ipam, &facts)).collect())
    }
}

/// The gateway addresses with their subnets' prefix lengths, each once.
fn gateways(ipam: &CniResult) -> Vec<Prefix> {
    let mut found = Vec::new();
    for ip in &ipam.ips {
        if let Some(prefix) = ip.gateway.and_then(|gateway| Prefix::new(gateway, ip.address.prefix_len()))
            && !found.contains(&prefix)
        {
            found.push(prefix);
        }
    }
    found
}

/// A default route by the first gateway of each family, unless the IPAM gave one.
fn add_default_routes(ipam: &mut CniResult) {
    for is_ipv4 in [true, false] {
        if ipam.routes.iter().any(|r| r.dst.is_default() && r.dst.is_ipv4() == is_ipv4) {
            continue;
        }
        let first = ipam.ips.iter().filter(|ip| ip.address.is_ipv4() == is_ipv4).find_map(|ip| ip.gateway);
        let anywhere = match is_ipv4 {
            true => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            false => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        if let (Some(gateway), Some(dst)) = (first, Prefix::new(anywhere, 0)) {
            ipam.routes.push(Route::via(dst, Some(gateway)));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::Version;

    #[test]
    fn a_default_route_is_added_once_per_family() {
        let mut ipam = CniResult::from_value(
            &json!({"ips": [
                {"address": "10.1.0.2/16", "gateway": "10.1.0.1"}, {"address": "10.2.0.2/16", "gateway": "10.2.0.1"},
                {"address": "fd00::2/64", "gateway": "fd00::1"},
            ], "routes": [{"dst": "::/0"}]}),
            Version::V1_0_0,
            "x",
        )
        .unwrap();
        add_default_routes(&mut ipam);
        let routes: Vec<String> = ipam.routes.iter().map(|r| format!("{} {:?}", r.dst, r.gw)).collect();
        assert_eq!(routes, ["::/0 None", "0.0.0.0/0 Some(10.1.0.1)"]);
    }
}
