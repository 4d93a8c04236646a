//! TAP devices (linux/if_tun.h): links whose other end is a program.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;

use super::error::uninterrupted;
use super::rtnl::{nested, u32_of};
use super::{Error, Result};

/// Where the kernel makes them.
pub const DEVICE: &str = "/dev/net/tun";

/// Attributes of their kind (linux/if_link.h).
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;

/// `IFF_TAP` as the type of such a link.
const TYPE_TAP: u8 = 2;

/// A TAP device as it is to be born.
#[derive(Clone, Debug)]
pub struct NewTap<'a> {
    /// Its name.
    pub name: &'a str,
    /// User who may open it; `None` for all.
    pub owner: Option<u32>,
    /// Group whose members may open it; `None` for all.
    pub group: Option<u32>,
    /// Whether programs may have several queues of it.
    pub multi_queue: bool,
    /// Whether packets have a header of virtio, unless the program that opens it says otherwise.
    pub vnet_hdr: bool,
}

/// A TAP device that ends with this value, unless it is made to stay.
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: File,
}

/// What the kernel tells of a TUN or TAP device; nothing before Linux 4.18.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunInfo {
    /// Whether it is a TAP device: with Ethernet frames.
    pub is_tap: bool,
    /// User who may open it, if not all.
    pub owner: Option<u32>,
    /// Group whose members may open it, if not all.
    pub group: Option<u32>,
    /// Whether it stays when no program has it open.
    pub persistent: bool,
    /// Whether programs may have several queues of it.
    pub multi_queue: bool,
}

impl TunInfo {
    /// Reads the data of the kind `tun`.
    pub(super) fn parse(data: &[u8]) -> Self {
        let mut info = Self::default();
        for (kind, value) in nested(data) {
            match kind {
                IFLA_TUN_OWNER => info.owner = u32_of(value),
                IFLA_TUN_GROUP => info.group = u32_of(value),
                IFLA_TUN_TYPE => info.is_tap = value.first() == Some(&TYPE_TAP),
                IFLA_TUN_PERSIST => info.persistent = value.first() == Some(&1),
                IFLA_TUN_MULTI_QUEUE => info.multi_queue = value.first() == Some(&1),
                _ => {}
            }
        }
        info
    }
}

impl Tap {
    /// Makes a TAP device in the thread's namespace. `EBUSY` where there is a link of that name, `ENOENT` or `ENODEV` where
    /// the kernel has no such devices.
    pub fn create(new: &NewTap<'_>) -> Result<Self> {
        let deed = || format!("create TAP device {}", new.name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
        let file = options.open(DEVICE).map_err(|e| Error::from_io(format!("open {DEVICE}"), &e))?;
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
        if new.multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        if new.vnet_hdr {
            flags |= libc::IFF_VNET_HDR;
        }
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            // All flags are in the lower half.
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
        };
        // The last byte stays the end of the text.
        for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(new.name.bytes()) {
            *to = from as libc::c_char;
        }
        uninterrupted(|| {
            // SAFETY: TUNSETIFF takes a struct ifreq, which lives as long as the call.
            Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })
        })
        .map_err(|e| Error::new(deed(), e))?;
        for (number, value) in [(libc::TUNSETOWNER, new.owner), (libc::TUNSETGROUP, new.group)] {
            if let Some(id) = value {
                set(file.as_raw_fd(), number, id.into()).map_err(|e| Error::new(deed(), e))?;
            }
        }
        Ok(Self { name: new.name.to_owned(), file })
    }

    /// Has it stay when it is closed.
    pub fn persist(self) -> Result<()> {
        set(self.file.as_raw_fd(), libc::TUNSETPERSIST, 1)
            .map_err(|e| Error::new(format!("have TAP device {} stay", self.name), e))
    }
}

/// A request whose argument is a number.
fn set(fd: RawFd, number: libc::Ioctl, value: libc::c_ulong) -> nix::Result<()> {
    // SAFETY: these requests take their argument by value.
    uninterrupted(|| Errno::result(unsafe { libc::ioctl(fd, number, value) })).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn attributes_are_read() {
        // `ip -d link show` of `ip tuntap add t0 mode tap user 7 multi_queue`, seen with strace.
        let data = [
            8, 0, 1, 0, 7, 0, 0, 0, 5, 0, 3, 0, 2, 0, 0, 0, 5, 0, 4, 0, 0, 0, 0, 0, 5, 0, 5, 0, 0, 0, 0, 0,
            5, 0, 6, 0, 1, 0, 0, 0, 5, 0, 7, 0, 1, 0, 0, 0,
        ];
        let wanted =
            TunInfo { is_tap: true, owner: Some(7), group: None, persistent: true, multi_queue: true };
        assert_eq!(TunInfo::parse(&data), wanted);
        assert_eq!(TunInfo::parse(&[8, 0, 1]), TunInfo::default());
    }
}
