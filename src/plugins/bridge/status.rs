//! STATUS of `bridge`: whether an ADD could be served, and whether pods that are there can work. Looks only: nothing
//! is made for a try, and no module is loaded.

use super::conf::Bridge;
use crate::net::{Link, sysctl};
use crate::plugins::feature::{self, LinkKind};
use crate::resource::World;
use crate::spec::{CniError, Code, Request};

/// The error of code 51 if pods that are there suffer, else that of code 50 if an ADD could not be served now.
pub(super) fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    let bridge = Bridge::parse(request)?;
    let found = world.host_link(&bridge.name)?;
    if let Some(found) = &found
        && found.kind == "bridge"
    {
        bridge.look_after_pods(found, world)?;
    }
    bridge.look_for_features(found.as_ref(), world)?;
    bridge.pod.status(world)
}

fn unavailable(msg: String) -> anyhow::Error {
    CniError::new(Code::Unavailable, msg).into()
}

impl Bridge {
    /// The error of code 51 if the bridge has ports, and carries or forwards nothing.
    fn look_after_pods(&self, found: &Link, world: &mut World<'_>) -> anyhow::Result<()> {
        let mut suffering = Vec::new();
        if !found.up {
            suffering.push(format!("bridge {} is down", found.name));
        }
        if self.is_gateway {
            let addresses = world.host()?.addresses(found)?;
            for (is_ipv4, name) in [(true, "ipv4/ip_forward"), (false, "ipv6/conf/all/forwarding")] {
                let is_gateway =
                    addresses.iter().any(|it| it.address.is_ipv4() == is_ipv4 && !is_link_local(it.address));
                if is_gateway && sysctl::read(name)? == "0" {
                    suffering.push(format!("sysctl net/{name} is 0: the host does not forward packets"));
                }
            }
        }
        // Asked last: it is what costs, and nearly never necessary.
        if suffering.is_empty() || !world.host()?.has_ports(found)? {
            return Ok(());
        }
        let msg = format!("pods on bridge {} suffer: {}", found.name, suffering.join("; "));
        Err(CniError::new(Code::Degraded, msg).into())
    }

    /// The error of code 50 that names what the kernel, or the host, does not have.
    fn look_for_features(&self, found: Option<&Link>, world: &mut World<'_>) -> anyhow::Result<()> {
        let has_bridges = match found {
            Some(found) if found.kind == "bridge" => true,
            Some(found) => {
                let kind = if found.kind.is_empty() { "device" } else { &found.kind };
                let msg =
                    format!("bridge: {:?} already exists but is not a bridge (it is a {kind})", found.name);
                return Err(unavailable(msg));
            }
            None => {
                let bridges = LinkKind { kind: "bridge", module: "bridge", what: "bridges (CONFIG_BRIDGE)" };
                bridges.is_at_work(world)?
            }
        };
        // With a port that works there have been veth pairs.
        if !found.is_some_and(|bridge| bridge.operational) {
            LinkKind { kind: "veth", module: "veth", what: "veth pairs (CONFIG_VETH)" }.is_at_work(world)?;
        }
        if self.vlans.is_some() && has_bridges && !world.host()?.filters_vlans()? {
            return Err(unavailable(
                "vlan, vlanTrunk: this kernel has no VLAN filtering for bridges (CONFIG_BRIDGE_VLAN_FILTERING)"
                    .to_owned(),
            ));
        }
        let key = if self.guards_mac {
            Some("macspoofchk")
        } else if self.guards_senders {
            Some("spoofGuard")
        } else if self.masquerades && feature::masquerades_by_nf_tables(self.masquerade_backend) {
            Some("ipMasq")
        } else {
            None
        };
        match key {
            Some(key) if !feature::has_nf_tables()? => {
                Err(unavailable(format!("{key}: this kernel has no nf_tables (CONFIG_NF_TABLES)")))
            }
            _ => Ok(()),
        }
    }
}

fn is_link_local(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(_) => false,
        std::net::IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
