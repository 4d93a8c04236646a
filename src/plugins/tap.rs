//! `tap`: a TAP device in the pod, for a virtual machine or another program at its other end.

use serde::Deserialize;
use serde_json::Value;

use super::conf::{DnsConf, requested_mac};
use super::feature::LinkKind;
use super::mtu::{MTU_DEFAULT, Mtu, check_ipv6};
use super::sublink::{leftovers, sandbox};
use super::{PluginType, ipam};
use crate::net::{Mac, selinux, tun};
use crate::plan::{Plan, Plugin};
use crate::resource::addressing::decide_next_hops;
use crate::resource::sublink::mac_of;
use crate::resource::{self, Lease, Resource, World};
use crate::spec::names::check_ifname;
use crate::spec::result::{Dns, Interface};
use crate::spec::{Attachment, CniError, CniResult, Code, Request, Version, json, version};

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
    attachment: Attachment,
    version: Version,
    multi_queue: bool,
    vnet_hdr: bool,
    mtu: Mtu,
    mac: Option<Mac>,
    owner: Option<u32>,
    group: Option<u32>,
    label: Option<String>,
    bridge: Option<String>,
    dns: Option<Dns>,
    lease: Option<Lease>,
}

/// The error of code 50 if an ADD could not be served now.
fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    let tap = Tap::parse(request)?;
    let unavailable = |msg: String| CniError::new(Code::Unavailable, msg);
    if !std::path::Path::new(tun::DEVICE).exists() {
        return Err(unavailable(format!("this host has no {}", tun::DEVICE)).into());
    }
    LinkKind { kind: "tun", module: "tun", what: "TAP devices (CONFIG_TUN)" }.is_at_work(world)?;
    tap.lease.map_or(Ok(()), |lease| ipam::status(&lease, world))
}

impl Tap {
    fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        request.config.check_ipam()?;
        request.config.lock_timeout()?;
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
            attachment: request.attachment.clone(),
            version: request.config.version,
            multi_queue: conf.multi_queue,
            vnet_hdr: conf.vnet_hdr,
            mtu: Mtu::parse(&conf.mtu)?,
            mac: requested_mac(request, &conf.mac)?,
            owner: conf.owner,
            group: conf.group,
            label: given(conf.selinux_context),
            bridge: given(conf.bridge),
            dns: conf.dns.into_override(),
            lease: Lease::wanted_by(request),
        })
    }

    fn device(
        &self,
        mac: Option<Mac>,
        mtu: Option<u32>,
        world: &mut World<'_>,
    ) -> anyhow::Result<resource::Tap> {
        Ok(resource::Tap {
            attachment: self.attachment.clone(),
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
        let ifname = &self.attachment.ifname;
        let mut resources = vec![Resource::Tap(device)];
        // Nobody is at the other end yet who could have the same address.
        let detect_duplicates = false;
        if ipam.ips.iter().any(|ip| ip.address.is_ipv6()) {
            resources.push(Resource::PodSysctls(resource::PodSysctls {
                ifname: ifname.clone(),
                detect_duplicates,
            }));
        }
        resources.push(Resource::Addressing(resource::Addressing {
            ifname: ifname.clone(),
            addresses: ipam.ips.iter().map(|ip| ip.address).collect(),
            routes: decide_next_hops(ipam),
            detect_duplicates,
        }));
        resources
    }
}

impl Plugin for Tap {
    fn lease(&self) -> Option<Lease> {
        self.lease.clone()
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let mut ipam = leased;
        if self.lease.is_some() && ipam.ips.is_empty() {
            return Err(CniError::config("ipam: IPAM plugin returned missing IP config").into());
        }
        if let Some(label) = self.label.as_ref().filter(|_| !selinux::is_enabled()) {
            let msg = format!("selinuxContext: {label:?} cannot be had: this kernel runs without SELinux");
            return Err(CniError::config(msg).into());
        }
        for ip in &mut ipam.ips {
            ip.interface = Some(0);
        }
        if let Some(dns) = &self.dns {
            ipam.dns = dns.clone();
        }
        let mtu = self.mtu.decide(world)?;
        check_ipv6(mtu, &ipam.ips)?;
        let mac = self.mac.unwrap_or_else(|| mac_of(&self.attachment));
        let device = self.device(Some(mac), mtu, world)?;
        let interface = Interface {
            name: self.attachment.ifname.clone(),
            mac: mac.to_string(),
            // Decoders of older versions may refuse a key that they do not know.
            mtu: (self.version >= Version::V1_1_0).then(|| mtu.unwrap_or(MTU_DEFAULT)),
            sandbox: device.sandbox.path.to_string_lossy().into_owned(),
            ..Interface::default()
        };
        let resources = self.resources(device, &ipam);
        Ok(Plan { resources, result: CniResult { interfaces: vec![interface], ..ipam } })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let ifname = &self.attachment.ifname;
        let path = sandbox(world)?.path.to_string_lossy().into_owned();
        let (interface, ipam) = prev.interface_of(ifname, &path)?;
        let mtu = match self.mtu {
            Mtu::Fixed(mtu) => Some(mtu),
            // What "auto" or the kernel chose then is in the result, if its version can say so.
            Mtu::Auto | Mtu::Default => interface.mtu,
        };
        let device = self.device(interface.mac.parse().ok(), mtu, world)?;
        let lease = self.lease.clone().map(|lease| Resource::Lease(lease.with_addresses_of(&ipam)));
        Ok(lease.into_iter().chain(self.resources(device, &ipam)).collect())
    }
}
