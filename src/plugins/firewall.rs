//! `firewall`: lets a pod's packets pass through the host, and keeps networks from each other. Called after the plugin
//! that made the interface, whose result it passes on.

mod conf;
mod status;

use std::net::IpAddr;

use super::PluginType;
use super::conf::not_chained;
use crate::plan::{Plan, Plugin};
use crate::resource::firewall::{Backend, Obstacle, Policy, obstacles};
use crate::resource::{self, Lease, Resource, World, ifb};
use crate::spec::{CniError, CniResult, Request, Version, json};
use conf::Firewall;

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "firewall",
    versions: &[Version::V0_4_0, Version::V1_0_0, Version::V1_1_0],
    keys: json::keys_of::<conf::Conf>,
    parse: |request| Ok(Box::new(Firewall::parse(request)?)),
    leftovers,
    lease: |_| None,
    status: status::status,
};

/// Looked for under every back end: the configuration may be another than that of the ADD.
fn leftovers(request: &Request) -> Vec<Resource> {
    let prev = request.config.prev_result().ok().flatten().unwrap_or_default();
    let attachment = &request.attachment;
    let mut resources = vec![Resource::Admission(resource::Admission {
        attachment: attachment.clone(),
        admin_chain: conf::ADMIN_CHAIN.to_owned(),
        addresses: addresses(&prev),
    })];
    for policy in [Policy::SameBridge, Policy::Isolated] {
        // Without one, a GC still looks for those that nobody shares any more.
        let bridge = bridge_of(&prev).unwrap_or_default();
        resources.push(Resource::Isolation(resource::Isolation {
            attachment: attachment.clone(),
            bridge: bridge.to_owned(),
            policy,
            addresses: addresses(&prev),
            ports: ports(&prev),
        }));
    }
    resources.push(Resource::Fence(resource::Fence::of(attachment)));
    resources.push(Resource::ZoneSource(resource::ZoneSource {
        attachment: attachment.clone(),
        zone: conf::zone_of(request),
        addresses: addresses(&prev),
    }));
    resources.push(Resource::Passage(resource::Passage {
        attachment: attachment.clone(),
        bridge: String::new(),
        through: Vec::new(),
    }));
    resources
}

/// All addresses of a result, also those that are of no interface in it: the reference counts them all.
fn addresses(prev: &CniResult) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for address in prev.ips.iter().map(|ip| ip.address.address()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// The network's bridge: the first interface of the result that is on the host.
fn bridge_of(prev: &CniResult) -> Option<&str> {
    let first = prev.interfaces.iter().find(|it| it.sandbox.is_empty())?;
    (!first.name.is_empty()).then_some(&first.name)
}

/// What else the result has on the host: the pod's ports of the bridge. What `bandwidth` adds to it is none, and is in
/// the result of a CHECK but not in that of the ADD, where it comes later in the chain.
fn ports(prev: &CniResult) -> Vec<String> {
    let on_host = prev.interfaces.iter().filter(|it| it.sandbox.is_empty());
    on_host.skip(1).filter(|it| !ifb::is_name(&it.name)).map(|it| it.name.clone()).collect()
}

impl Firewall {
    /// What lets the pod's packets pass, and what keeps others' from it.
    fn resources(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let (attachment, addresses) = (self.attachment.clone(), addresses(prev));
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        let mut resources = Vec::new();
        let backend = self.choose_backend()?;
        let bridge = match bridge_of(prev) {
            Some(bridge) => bridge.to_owned(),
            None if self.policy == Policy::Open && !self.internal && !self.opens_forward => String::new(),
            None => {
                let msg = "ingressPolicy, internal, openForward: they are about a bridge, and prevResult has no \
                           interface on the host";
                return Err(CniError::config(msg).into());
            }
        };
        let mut is_admitted = backend == Backend::Iptables;
        if self.opens_forward {
            let (of_iptables, through): (Vec<Obstacle>, Vec<Obstacle>) =
                obstacles(backend, world.nft()?)?.into_iter().partition(Obstacle::is_of_iptables);
            is_admitted |= !of_iptables.is_empty();
            if !through.is_empty() {
                resources.push(Resource::Passage(resource::Passage {
                    attachment: attachment.clone(),
                    bridge: bridge.clone(),
                    through,
                }));
            }
        }
        if backend == Backend::Firewalld {
            resources.push(Resource::ZoneSource(resource::ZoneSource {
                attachment: attachment.clone(),
                zone: self.zone.clone(),
                addresses: addresses.clone(),
            }));
        }
        if is_admitted {
            resources.push(Resource::Admission(resource::Admission {
                attachment: attachment.clone(),
                admin_chain: self.admin_chain.clone(),
                addresses: addresses.clone(),
            }));
        }
        if backend == Backend::Nftables {
            if self.policy != Policy::Open || self.internal {
                resources.push(Resource::Fence(resource::Fence {
                    attachment,
                    bridge,
                    policy: self.policy,
                    internal: self.internal,
                    addresses,
                    ports: ports(prev),
                }));
            }
        } else if self.policy != Policy::Open {
            resources.push(Resource::Isolation(resource::Isolation {
                attachment,
                bridge,
                policy: self.policy,
                addresses,
                ports: ports(prev),
            }));
        }
        Ok(resources)
    }
}

impl Plugin for Firewall {
    fn lease(&self) -> Option<Lease> {
        None
    }

    fn enters_pod(&self) -> bool {
        false
    }

    fn plan(&self, _: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let Some(prev) = &self.prev_result else {
            return Err(not_chained("firewall", "makes the interface").into());
        };
        Ok(Plan { resources: self.resources(prev, world)?, result: prev.clone() })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        self.resources(prev, world)
    }
}
