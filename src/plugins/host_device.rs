//! `host-device`: a device of the host, which the pod has to itself until it goes back.

mod selector;

use std::cell::OnceCell;

use serde::Deserialize;

use super::PluginType;
use super::conf::DnsConf;
use super::pod_interface::PodInterface;
use super::sublink::sandbox;
use crate::plan::{Plan, Plugin};
use crate::resource::{self, Lease, Resource, World};
use crate::spec::result::Interface;
use crate::spec::{CniError, CniResult, Request, Version, json, version};
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
    pod: PodInterface,
    selector: Selector,
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
    HostDevice::parse(request)?.pod.status(world)
}

impl HostDevice {
    fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        let selector = Selector::parse(&conf)?;
        let mut pod = PodInterface::parse(request, conf.dns)?;
        pod.detect_duplicates = conf.enabledad;
        Ok(Self { pod, selector, found: OnceCell::new() })
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
                Some(resource::HostDevice::of(link.clone(), self.pod.attachment.ifname.clone(), sandbox))
            }
            Found::Userspace => None,
        })
    }

    /// What the attachment is made of.
    fn resources(&self, device: resource::HostDevice, ipam: &CniResult) -> Vec<Resource> {
        let mac = device.mac;
        let mut resources = vec![Resource::HostDevice(device)];
        resources.extend(self.pod.sysctls(ipam));
        resources.push(Resource::Addressing(self.pod.addressing(ipam)));
        resources.extend(self.pod.announcement(mac, ipam));
        resources
    }
}

impl Plugin for HostDevice {
    fn lease(&self) -> Option<Lease> {
        self.pod.lease.clone()
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn links(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let Some(device) = self.device(world)? else { return Ok(Vec::new()) };
        Ok(vec![Resource::HostDevice(device), self.pod.up()])
    }

    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let ipam = self.pod.adopt(leased, 0)?;
        let device = self.device(world)?;
        let (mac, mtu) = device.as_ref().map_or((None, None), |device| (device.mac, device.mtu));
        // As of the MTU.
        let pci_id = self.selector.pci_id().filter(|_| self.pod.version >= Version::V1_1_0);
        let interface =
            Interface { pci_id: pci_id.unwrap_or_default().to_owned(), ..self.pod.in_result(mac, mtu) };
        // Where there is no link, whoever uses the device configures its addresses, too.
        let resources = device.map(|device| self.resources(device, &ipam)).unwrap_or_default();
        Ok(Plan { resources, result: CniResult { interfaces: vec![interface], ..ipam } })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let ifname = &self.pod.attachment.ifname;
        let (interface, ipam) = prev.interface_of(ifname, &self.pod.sandbox)?;
        let lease = self.pod.leased(&ipam);
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
            modes: resource::link_tuning::Attributes::default(),
            sandbox: sandbox(world)?,
        };
        Ok(lease.into_iter().chain(self.resources(device, &ipam)).collect())
    }
}
