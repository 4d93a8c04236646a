//! `loopback`: sets the pod's `lo` up, whatever `CNI_IFNAME` says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::bail;

use super::PluginType;
use crate::net::sysctl;
use crate::plan::{Plan, Plugin};
use crate::resource::{Lease, Loopback as Link, Resource, World, loopback::NAME};
use crate::spec::result::{Interface, IpConfig};
use crate::spec::{CniError, CniResult, Code, Prefix, Request, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "loopback",
    versions: &version::ALL,
    keys: || &[],
    parse,
    leftovers,
    status: |_, _| Ok(()),
    lease: |_| None,
};

struct Loopback {
    prev_result: Option<CniResult>,
    sandbox: String,
}

fn parse(request: &Request) -> Result<Box<dyn Plugin>, CniError> {
    let sandbox = request.netns.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Box::new(Loopback { prev_result: request.config.prev_result()?, sandbox }))
}

fn leftovers(_: &Request) -> Vec<Resource> {
    vec![Resource::Loopback(Link {})]
}

impl Plugin for Loopback {
    fn lease(&self) -> Option<Lease> {
        None
    }

    fn enters_pod(&self) -> bool {
        true
    }

    /// The addresses are those that the kernel gives `lo` when it comes up; another one is refused, as the reference
    /// does.
    fn plan(&self, _: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let pod = world.pod()?;
        let found = pod.existing_link(NAME)?;
        if let Some(other) = pod.rtnl()?.addresses(&found)?.iter().find(|a| !a.address.is_loopback()) {
            bail!(CniError::new(
                Code::Conflict,
                format!("loopback interface has the address {}, which is no loopback address", other.address),
            ));
        }
        let has_ipv6 =
            pod.visit(|| sysctl::read("ipv6/conf/lo/disable_ipv6"))?.is_ok_and(|value| value == "0");
        let addresses =
            [(IpAddr::V4(Ipv4Addr::LOCALHOST), 8, true), (IpAddr::V6(Ipv6Addr::LOCALHOST), 128, has_ipv6)];
        let ips =
            addresses.into_iter().filter(|(_, _, is_there)| *is_there).filter_map(|(address, len, _)| {
                Some(IpConfig { interface: Some(0), address: Prefix::new(address, len)?, gateway: None })
            });
        let result = self.prev_result.clone().unwrap_or_else(|| CniResult {
            interfaces: vec![Interface {
                name: NAME.to_owned(),
                mac: "00:00:00:00:00:00".to_owned(),
                sandbox: self.sandbox.clone(),
                ..Interface::default()
            }],
            ips: ips.collect(),
            ..CniResult::default()
        });
        Ok(Plan { resources: vec![Resource::Loopback(Link {})], result })
    }

    fn expect(&self, _: &CniResult, _: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        Ok(vec![Resource::Loopback(Link {})])
    }
}
