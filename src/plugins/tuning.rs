//! `tuning`: sysctls of the pod's namespace, and attributes of an interface that a plugin before it has made.

mod allowlist;
mod conf;
mod sysctl_key;

use super::PluginType;
use super::conf::not_chained;
use crate::net::Mac;
use crate::plan::{Plan, Plugin};
use crate::resource::link_tuning::Attributes;
use crate::resource::{Lease, LinkTuning, Resource, Sysctls, World};
use crate::spec::{CniError, CniResult, Code, Request, Version, json, version};
use allowlist::Allowlist;
use conf::Tuning;

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "tuning",
    versions: &version::ALL,
    keys: json::keys_of::<conf::Conf>,
    parse,
    leftovers,
    lease: |_| None,
    status,
};

struct Chained {
    tuning: Tuning,
    prev_result: CniResult,
}

fn parse(request: &Request) -> Result<Box<dyn Plugin>, CniError> {
    let tuning = Tuning::parse(request)?;
    let prev_result = request.config.prev_result()?;
    let prev_result = prev_result.ok_or_else(|| not_chained("tuning", "makes the interface"))?;
    Ok(Box::new(Chained { tuning, prev_result }))
}

fn leftovers(request: &Request) -> Vec<Resource> {
    vec![Resource::LinkTuning(LinkTuning::of(&request.attachment, conf::backups(request)))]
}

/// Whether the sysctls are allowed. The rest is the kernel's, and is there in all of them.
fn status(request: &Request, _: &mut World<'_>) -> anyhow::Result<()> {
    let tuning = Tuning::parse(request)?;
    let allowed = Allowlist::read()?.check(tuning.sysctls.iter().map(|(key, _, _)| key.as_str()));
    Ok(allowed.map_err(|e| CniError { code: Code::Unavailable as u32, ..e })?)
}

impl Plugin for Chained {
    fn lease(&self) -> Option<Lease> {
        None
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn plan(&self, _: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let Tuning { attachment, sysctls, wanted, backups, .. } = &self.tuning;
        let mut resources = Vec::new();
        if !sysctls.is_empty() {
            Allowlist::read()?.check(sysctls.iter().map(|(key, _, _)| key.as_str()))?;
            resources.push(Resource::Sysctls(Sysctls::find(sysctls.iter().cloned(), world)?));
        }
        if !wanted.is_empty() {
            let ifname = &attachment.ifname;
            let found = world.pod()?.rtnl()?.link(ifname)?.ok_or_else(|| {
                let msg = format!("the pod has no interface {ifname} that could be tuned");
                CniError::new(Code::Kernel, msg).with_details("prevResult is of a plugin that has made it")
            })?;
            resources.push(Resource::LinkTuning(LinkTuning {
                had: Some(wanted.of_link(&found)),
                wanted: wanted.clone(),
                ..LinkTuning::of(attachment, backups.clone())
            }));
        }
        Ok(Plan { resources, result: self.result() })
    }

    /// What a later plugin of the chain has changed is as that wants it, which the result tells of MAC address and MTU.
    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let Tuning { attachment, sysctls, wanted, backups, .. } = &self.tuning;
        let interface =
            prev.interfaces.iter().find(|it| it.name == attachment.ifname && !it.sandbox.is_empty());
        let told_mac = interface.and_then(|it| it.mac.parse::<Mac>().ok());
        let told_mtu = interface.and_then(|it| it.mtu);
        let wanted = Attributes {
            mac: wanted.mac.map(|mac| told_mac.unwrap_or(mac)),
            mtu: wanted.mtu.map(|mtu| told_mtu.unwrap_or(mtu)),
            ..wanted.clone()
        };
        let sysctls = Sysctls::find(sysctls.iter().cloned(), world)?;
        let link = LinkTuning { wanted, ..LinkTuning::of(attachment, backups.clone()) };
        let is_tuned = !link.wanted.is_empty();
        let link = is_tuned.then_some(Resource::LinkTuning(link));
        Ok([Resource::Sysctls(sysctls)].into_iter().chain(link).collect())
    }
}

impl Chained {
    /// The result of the plugin before, with the interface as it is now.
    fn result(&self) -> CniResult {
        let Tuning { attachment, wanted, version, .. } = &self.tuning;
        let mut result = self.prev_result.clone();
        // Not a link of the host that happens to have the same name, unless the result knows no pod at all.
        let knows_pod =
            result.interfaces.iter().any(|it| it.name == attachment.ifname && !it.sandbox.is_empty());
        for interface in &mut result.interfaces {
            if interface.name != attachment.ifname || (knows_pod && interface.sandbox.is_empty()) {
                continue;
            }
            if let Some(mac) = wanted.mac {
                interface.mac = mac.to_string();
            }
            // Decoders of older versions may refuse a key that they do not know.
            if wanted.mtu.is_some() && (*version >= Version::V1_1_0 || interface.mtu.is_some()) {
                interface.mtu = wanted.mtu;
            }
        }
        result
    }
}
