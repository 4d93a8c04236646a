//! `host-device`: a device of the host, which the pod has to itself until it goes back.

mod selector;

use std::cell::OnceCell;

use serde::Deserialize;

use super::PluginType;
use super::conf::DnsConf;
use super::ipam;
use super::sublink::sandbox;
use crate::plan::{Plan, Plugin};
use crate::resource::addressing::decide_next_hops;
use crate::resource::{self, Lease, Resource, World};
use crate::spec::result::{Dns, Interface};
use crate::spec::{Attachment, CniError, CniResult, Request, Version, json, version};
use selector::{Found, Selector};

/// The plugin type.
pub const TYPE: PluginType = PluginType {
    name: "host-device",
    versions: &version::ALL,
    keys: json::keys_of::<Conf>,
    parse: |request| Ok(Box::new(HostDevice::parse(request)?)),
    leftovers,
    lease: Lease::wanted_by,
    status,
};

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    device: String,
    hwaddr: String,
    kernelpath: String,
    #[serde(rename = "pciBusID")]
    pci_bus_id: String,
    enabledad: bool,
    dns: DnsConf,
    runtime_config: RuntimeConf,
}

/// What the runtime says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConf {
    #[serde(rename = "deviceID")]
    device_id: String,
}

/// What is wanted, decided.
struct HostDevice {
    attachment: Attachment,
    version: Version,
    selector: Selector,
    detect_duplicates: bool,
    dns: Option<Dns>,
    lease: Option<Lease>,
    /// The device; once it is in the pod, it cannot be found any more.
    found: OnceCell<Found>,
}

fn leftovers(request: &Request) -> Vec<Resource> {
    let lease = Lease::wanted_by(request).map(Resource::Lease);
    let name = request.config.decode::<Conf>().ok().map(|conf| conf.device).filter(|name| !name.is_empty());
    let foreign = resource::ForeignHostDevice { ifname: request.attachment.ifname.clone(), name };
    lease.into_iter().chain([Resource::ForeignHostDevice(foreign)]).collect()
}

/// The error of code 50 if no address could be had. That the device is with a pod is no error: it is what it is for.
fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    HostDevice::parse(request)?.lease.map_or(Ok(()), |lease| ipam::status(&lease, world))
}

impl HostDevice {
    fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        request.config.check_ipam()?;
        request.config.lock_timeout()?;
        Ok(Self {
            attachment: request.attachment.clone(),
            version: request.config.version,
            selector: Selector::parse(&conf)?,
            detect_duplicates: conf.enabledad,
            dns: conf.dns.into_override(),
            lease: Lease::wanted_by(request),
            found: OnceCell::new(),
        })
    }

    /// Looks for the device, once.
    fn find(&self, world: &mut World<'_>) -> anyhow::Result<&Found> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let found = self.selector.find(world)?;
        Ok(self.found.get_or_init(|| found))
    }

    /// The device on its way to the pod; `None` where a driver has it that makes no link of it.
    fn device(&self, world: &mut World<'_>) -> anyhow::Result<Option<resource::HostDevice>> {
        let sandbox = sandbox(world)?;
        Ok(match self.find(world)? {
            Found::Link(link) => {
                Some(resource::HostDevice::of(link.clone(), self.attachment.ifname.clone(), sandbox))
            }
            Found::Userspace => None,
        })
    }

    /// What the attachment is made of.
    fn resources(&self, device: resource::HostDevice, ipam: &CniResult) -> Vec<Resource> {
        let ifname = &self.attachment.ifname;
        let mac = device.mac;
        let mut resources = vec![Resource::HostDevice(device)];
        if ipam.ips.iter().any(|ip| ip.address.is_ipv6()) {
            resources.push(Resource::PodSysctls(resource::PodSysctls {
                ifname: ifname.clone(),
                detect_duplicates: self.detect_duplicates,
            }));
        }
        resources.push(Resource::Addressing(resource::Addressing {
            ifname: ifname.clone(),
            addresses: ipam.ips.iter().map(|ip| ip.address).collect(),
            routes: decide_next_hops(ipam),
            detect_duplicates: self.detect_duplicates,
        }));
        if let Some(mac) = mac.filter(|_| !ipam.ips.is_empty()) {
            let is_ready = |address: &std::net::IpAddr| address.is_ipv4() || !self.detect_duplicates;
            resources.push(Resource::Announcement(resource::Announcement {
                ifname: ifname.clone(),
                mac,
                addresses: ipam.ips.iter().map(|ip| ip.address.address()).filter(is_ready).collect(),
            }));
        }
        resources
    }
}

impl Plugin for HostDevice {
    fn lease(&self) -> Option<Lease> {
        self.lease.clone()
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn links(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let Some(device) = self.device(world)? else { return Ok(Vec::new()) };
        let up = resource::PodLinkUp { ifname: self.attachment.ifname.clone() };
        Ok(vec![Resource::HostDevice(device), Resource::PodLinkUp(up)])
    }

    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let mut ipam = leased;
        if self.lease.is_some() && ipam.ips.is_empty() {
            return Err(CniError::config("ipam: IPAM plugin returned missing IP config").into());
        }
        for ip in &mut ipam.ips {
            ip.interface = Some(0);
        }
        if let Some(dns) = &self.dns {
            ipam.dns = dns.clone();
        }
        let device = self.device(world)?;
        let is_newest = self.version >= Version::V1_1_0;
        let interface = Interface {
            name: self.attachment.ifname.clone(),
            mac: device.as_ref().and_then(|it| it.mac).map(|mac| mac.to_string()).unwrap_or_default(),
            // Decoders of older versions may refuse a key that they do not know.
            mtu: device.as_ref().and_then(|it| it.mtu).filter(|_| is_newest),
            sandbox: sandbox(world)?.path.to_string_lossy().into_owned(),
            pci_id: self.selector.pci_id().filter(|_| is_newest).unwrap_or_default().to_owned(),
            ..Interface::default()
        };
        // Where there is no link, whoever uses the device configures its addresses, too.
        let resources = device.map(|device| self.resources(device, &ipam)).unwrap_or_default();
        Ok(Plan { resources, result: CniResult { interfaces: vec![interface], ..ipam } })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let ifname = &self.attachment.ifname;
        let sandbox = sandbox(world)?;
        let path = sandbox.path.to_string_lossy();
        let (interface, ipam) = prev.interface_of(ifname, &path)?;
        let lease = self.lease.clone().map(|lease| Resource::Lease(lease.with_addresses_of(&ipam)));
        if self.selector.is_for_userspace()? {
            return Ok(lease.into_iter().collect());
        }
        let device = resource::HostDevice {
            ifname: ifname.clone(),
            name: self.selector.name().map(str::to_owned),
            kind: String::new(),
            mac: interface.mac.parse().ok(),
            mtu: interface.mtu,
            alias: String::new(),
            up: false,
            sandbox,
        };
        Ok(lease.into_iter().chain(self.resources(device, &ipam)).collect())
    }
}
