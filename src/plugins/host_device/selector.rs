//! Which device of the host is meant.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

use super::Conf;
use crate::net::{Link, Mac};
use crate::resource::World;
use crate::spec::CniError;
use crate::spec::names::check_ifname;

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";
const DEVICES: &str = "/sys/devices";

/// Drivers that give a device to programs, and make no link of it: DPDK.
const USERSPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// How a device is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selector {
    /// `device`: by the name of its link.
    Name(String),
    /// `hwaddr`: by its MAC address.
    Mac(Mac),
    /// `kernelpath`: by its place in the tree of devices.
    KernelPath(PathBuf),
    /// `pciBusID` or `deviceID`: by its address on the PCI bus.
    Pci(String),
    /// `deviceID`: by its name on the auxiliary bus, as subfunctions have one.
    Auxiliary(String),
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A link of the host.
    Link(Link),
    /// A device that a driver gives to programs.
    Userspace,
}

impl Selector {
    /// The first that is given, in the reference's order; what the runtime says comes before `pciBusID` only.
    pub(super) fn parse(conf: &Conf) -> Result<Self, CniError> {
        let id = &conf.runtime_config.device_id;
        if !conf.device.is_empty() {
            check_ifname(&conf.device)
                .map_err(|why| CniError::config(format!("device: the name {:?} {why}", conf.device)))?;
            return Ok(Self::Name(conf.device.clone()));
        }
        if !conf.hwaddr.is_empty() {
            let mac = conf.hwaddr.parse().map_err(|e| CniError::config(format!("hwaddr: {e}")))?;
            return Ok(Self::Mac(mac));
        }
        if !conf.kernelpath.is_empty() {
            return kernel_path(&conf.kernelpath).map(Self::KernelPath);
        }
        if !id.is_empty() {
            check_id("runtimeConfig.deviceID", id)?;
            return if Path::new(PCI).join(id).exists() {
                Ok(Self::Pci(id.clone()))
            } else if Path::new(AUXILIARY).join(id).exists() {
                Ok(Self::Auxiliary(id.clone()))
            } else {
                Err(CniError::config(format!(
                    "runtimeConfig.deviceID: the host has no device {id:?}, neither in {PCI} nor in {AUXILIARY}"
                )))
            };
        }
        if !conf.pci_bus_id.is_empty() {
            check_id("pciBusID", &conf.pci_bus_id)?;
            return Ok(Self::Pci(conf.pci_bus_id.clone()));
        }
        Err(CniError::config(
            "device: specify either \"device\", \"hwaddr\", \"kernelpath\", \"pciBusID\" or runtimeConfig.deviceID",
        ))
    }

    /// The name of the link, where it is what the device is named by.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            _ => None,
        }
    }

    /// The address on the PCI bus, where it is what the device is named by.
    pub(super) fn pci_id(&self) -> Option<&str> {
        match self {
            Self::Pci(id) => Some(id),
            _ => None,
        }
    }

    /// Whether the device has a driver that gives it to programs.
    pub(super) fn is_for_userspace(&self) -> anyhow::Result<bool> {
        let Self::Pci(id) = self else { return Ok(false) };
        let link = Path::new(PCI).join(id).join("driver");
        let driver = match fs::read_link(&link) {
            Ok(driver) => driver,
            // Without a driver, or gone: then there is no link either, and that is said.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).with_context(|| format!("read {}", link.display())),
        };
        let name = driver.file_name().unwrap_or_default().to_string_lossy();
        Ok(USERSPACE_DRIVERS.contains(&name.as_ref()))
    }

    /// The device.
    pub(super) fn find(&self, world: &mut World<'_>) -> anyhow::Result<Found> {
        if self.is_for_userspace()? {
            return Ok(Found::Userspace);
        }
        let (key, value, names) = match self {
            Self::Name(name) => ("device", name.clone(), vec![name.clone()]),
            Self::Mac(mac) => {
                let links = world.host()?.links()?;
                let names = links.into_iter().filter(|link| link.mac == Some(*mac)).map(|link| link.name);
                ("hwaddr", mac.to_string(), names.collect())
            }
            Self::KernelPath(path) => ("kernelpath", path.display().to_string(), links_below(path)),
            Self::Pci(id) => {
                let device = Path::new(PCI).join(id);
                let mut names = links_below(&device);
                for part in names_in(&device).into_iter().filter(|name| name.starts_with("virtio")) {
                    names.extend(links_below(&device.join(part)));
                }
                ("pciBusID", id.clone(), names)
            }
            Self::Auxiliary(id) => {
                ("runtimeConfig.deviceID", id.clone(), links_below(&Path::new(AUXILIARY).join(id)))
            }
        };
        for name in names {
            if let Some(found) = world.host_link(&name)? {
                return if found.index == LOOPBACK {
                    Err(CniError::config(format!("{key}: {value:?} is the host's loopback interface")).into())
                } else {
                    Ok(Found::Link(found))
                };
            }
        }
        Err(CniError::config(format!("{key}: the host has no network device {value:?}")).into())
    }
}

/// Index of `lo`, which is the first link of every namespace.
const LOOPBACK: u32 = 1;

/// The links that a device in /sys has.
fn links_below(device: &Path) -> Vec<String> {
    names_in(&device.join("net"))
}

/// The names in a directory, sorted; none where there is no such directory.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn kernel_path(text: &str) -> Result<PathBuf, CniError> {
    let path = Path::new(text);
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if is_plain && path.starts_with(DEVICES) && path != Path::new(DEVICES) {
        return Ok(path.to_owned());
    }
    Err(CniError::config(format!("kernelpath: {text:?} is wrong; wanted is a path below {DEVICES}")))
}

/// The error of code 7 for what cannot be the name of a device: a path.
fn check_id(key: &str, id: &str) -> Result<(), CniError> {
    let mut parts = Path::new(id).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) if !id.contains('/') => Ok(()),
        _ => Err(CniError::config(format!("{key}: {id:?} is no name of a device"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(value: Value) -> Result<Selector, CniError> {
        Selector::parse(&crate::spec::json::decode(&value).unwrap())
    }

    #[test]
    fn the_first_key_counts() {
        let name = Selector::Name("eth1".to_owned());
        assert_eq!(
            parse(json!({"device": "eth1", "hwaddr": "x", "runtimeConfig": {"deviceID": "x"}})),
            Ok(name)
        );
        let mac = Selector::Mac(Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(parse(json!({"hwaddr": "02:00:00:00:00:01", "pciBusID": "0000:00:01.0"})), Ok(mac));
        let path = Selector::KernelPath("/sys/devices/pci0000:00/0000:00:1f.6".into());
        assert_eq!(parse(json!({"kernelpath": "/sys/devices/pci0000:00/0000:00:1f.6"})), Ok(path));
        assert_eq!(parse(json!({"pciBusID": "0000:00:01.0"})), Ok(Selector::Pci("0000:00:01.0".to_owned())));
    }

    #[test]
    fn what_is_no_device_is_refused_by_its_key() {
        for (value, key) in [
            (json!({}), "device"),
            (json!({"device": "a/b"}), "device"),
            (json!({"hwaddr": "02:00"}), "hwaddr"),
            (json!({"kernelpath": "/sys/class/net/eth0"}), "kernelpath"),
            (json!({"kernelpath": "/sys/devices/../class/net/eth0"}), "kernelpath"),
            (json!({"kernelpath": "sys/devices/x"}), "kernelpath"),
            (json!({"kernelpath": "/sys/devices"}), "kernelpath"),
            (json!({"pciBusID": "../../devices"}), "pciBusID"),
            (json!({"pciBusID": ".."}), "pciBusID"),
            (json!({"runtimeConfig": {"deviceID": "no/device"}}), "deviceID"),
            (json!({"runtimeConfig": {"deviceID": "ffff:ff:ff.f"}}), "deviceID"),
        ] {
            let error = parse(value.clone()).unwrap_err();
            assert!(error.code == 7 && error.msg.contains(key), "{value}: {error}");
        }
    }
}
