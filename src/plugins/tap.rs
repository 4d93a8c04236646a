//! `tap`: a TAP device in the pod, for a virtual machine or another program at its other end.

use serde::Deserialize;
use serde_json::Value;

use super::PluginType;
use super::conf::{DnsConf, requested_mac};
use super::feature::LinkKind;
use super::mtu::{MTU_DEFAULT, Mtu, check_ipv6};
use super::pod_interface::PodInterface;
use super::sublink::{leftovers, sandbox};
use crate::net::{Mac, selinux, tun};
use crate::plan::{Plan, Plugin};
use crate::resource::sublink::mac_of;
use crate::resource::{self, Lease, Resource, World};
use crate::spec::names::check_ifname;
use crate::spec::{CniError, CniResult, Code, Request, json, version};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "tap",
    versions: &version::ALL,
    keys: json::keys_of::<Conf>,
    parse: |request| Ok(Box::new(Tap::parse(request)?)),
    // Those of the reference have no alias.
    leftovers: |request| leftovers(request, "tun"),
    lease: Lease::wanted_by,
    status,
};

/// The keys, as they were written.
#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    multi_queue: bool,
    vnet_hdr: bool,
    mtu: Value,
    mac: String,
    owner: Option<u32>,
    group: Option<u32>,
    selinux_context: String,
    bridge: String,
    dns: DnsConf,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            multi_queue: false,
            vnet_hdr: true,
            mtu: Value::Null,
            mac: String::new(),
            owner: None,
            group: None,
            selinux_context: String::new(),
            bridge: String::new(),
            dns: DnsConf::default(),
        }
    }
}

/// What is wanted, decided.
struct Tap {
    pod: PodInterface,
    multi_queue: bool,
    vnet_hdr: bool,
    mtu: Mtu,
    mac: Option<Mac>,
    owner: Option<u32>,
    group: Option<u32>,
    label: Option<String>,
    bridge: Option<String>,
}

/// The error of code 50 if an ADD could not be served now.
fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    let tap = Tap::parse(request)?;
    let unavailable = |msg: String| CniError::new(Code::Unavailable, msg);
    tap.check_label().map_err(|error| unavailable(error.msg))?;
    if !std::path::Path::new(tun::DEVICE).exists() {
        return Err(unavailable(format!("this host has no {}", tun::DEVICE)).into());
    }
    LinkKind { kind: "tun", module: "tun", what: "TAP devices (CONFIG_TUN)" }.is_at_work(world)?;
    tap.pod.status(world)
}

impl Tap {
    fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        // Nobody is at the other end yet who could have the same address, so nothing looks for duplicates.
        let pod = PodInterface::parse(request, conf.dns)?;
        if !conf.bridge.is_empty() {
            check_ifname(&conf.bridge)
                .map_err(|why| CniError::config(format!("bridge: the name {:?} {why}", conf.bridge)))?;
        }
        if conf.selinux_context.contains('\0') {
            return Err(CniError::config("selinuxContext: no context has a NUL in it"));
        }
        // 2^32-1 is the kernel's word for nobody.
        for (key, id) in [("owner", conf.owner), ("group", conf.group)] {
            if id == Some(u32::MAX) {
                return Err(CniError::config(format!("{key}: {} is no ID", u32::MAX)));
            }
        }
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Self {
            pod,
            multi_queue: conf.multi_queue,
            vnet_hdr: conf.vnet_hdr,
            mtu: Mtu::parse(&conf.mtu)?,
            mac: requested_mac(request, &conf.mac)?,
            owner: conf.owner,
            group: conf.group,
            label: given(conf.selinux_context),
            bridge: given(conf.bridge),
        })
    }

    /// The error of code 7 if a context is asked for that the kernel knows nothing of.
    fn check_label(&self) -> Result<(), CniError> {
        match self.label.as_ref().filter(|_| !selinux::is_enabled()) {
            None => Ok(()),
            Some(label) => Err(CniError::config(format!(
                "selinuxContext: {label:?} cannot be had: this kernel runs without SELinux"
            ))),
        }
    }

    fn device(
        &self,
        mac: Option<Mac>,
        mtu: Option<u32>,
        world: &mut World<'_>,
    ) -> anyhow::Result<resource::Tap> {
        Ok(resource::Tap {
            attachment: self.pod.attachment.clone(),
            sandbox: sandbox(world)?,
            mac,
            mtu,
            owner: self.owner,
            group: self.group,
            multi_queue: self.multi_queue,
            vnet_hdr: self.vnet_hdr,
            bridge: self.bridge.clone(),
            label: self.label.clone(),
        })
    }

    /// What the attachment is made of.
    fn resources(&self, device: resource::Tap, ipam: &CniResult) -> Vec<Resource> {
        let mut resources = vec![Resource::Tap(device)];
        resources.extend(self.pod.sysctls(ipam));
        resources.push(Resource::Addressing(self.pod.addressing(ipam)));
        resources
    }
}

impl Plugin for Tap {
    fn lease(&self) -> Option<Lease> {
        self.pod.lease.clone()
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let ipam = self.pod.adopt(leased, 0)?;
        self.check_label()?;
        let mtu = self.mtu.decide(world)?;
        check_ipv6(mtu, &ipam.ips)?;
        let mac = self.mac.unwrap_or_else(|| mac_of(&self.pod.attachment));
        let device = self.device(Some(mac), mtu, world)?;
        let interface = self.pod.in_result(Some(mac), Some(mtu.unwrap_or(MTU_DEFAULT)));
        let resources = self.resources(device, &ipam);
        Ok(Plan { resources, result: CniResult { interfaces: vec![interface], ..ipam } })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let (interface, ipam) = prev.interface_of(&self.pod.attachment.ifname, &self.pod.sandbox)?;
        let mtu = self.mtu.expected(interface.mtu);
        let device = self.device(interface.mac.parse().ok(), mtu, world)?;
        Ok(self.pod.leased(&ipam).into_iter().chain(self.resources(device, &ipam)).collect())
    }
}
