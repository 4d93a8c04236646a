//! What a case is and what it needs.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::Result;
use nix::libc;

use crate::sandbox::{REFERENCE, STORE, Sandbox};

/// One thing that a directory of plugins is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Section of the specification, or plugin and topic.
    pub group: &'static str,
    /// Name of the function, which reads as a sentence.
    pub name: &'static str,
    /// What must be there for the case to mean anything.
    pub needs: &'static [Need],
    /// The case itself.
    pub run: fn(&Sandbox) -> Result<()>,
}

impl Case {
    /// Group and name, as `--list` prints it and `--filter` matches it.
    pub fn title(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }
}

/// Something that a machine or a directory may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A program on the search path.
    Program(&'static str),
    /// A plugin beyond bridge, host-local, static and loopback in the directory under test.
    Plugin(&'static str),
    /// A reference plugin in /usr/lib/cni.
    Reference(&'static str),
    /// A kernel that makes links of this `ip link` type.
    LinkType(&'static str),
    /// A kernel whose bridges filter by VLAN.
    VlanFiltering,
    /// A kernel with IPv6.
    Ipv6,
    /// A file system for the address store that keeps extended attributes of users; a tmpfs does since Linux 6.6.
    UserAttributes,
    /// A kernel with TAP devices, and the file that they are made by.
    Tun,
    /// A kernel that runs with SELinux.
    Selinux,
    /// A working `iptables`.
    Iptables,
    /// A systemd, and a kernel with control groups of the second version, whether or not it is at work here.
    Systemd,
    /// Working `iptables-legacy` and `ip6tables-legacy`: the commands, and their tables in the kernel.
    LegacyIptables,
    /// A working `nft` and nf_tables in the kernel.
    Nftables,
}

impl Need {
    /// Why the need is not met here, if it is not. May leave traces in the sandbox only if it is not met.
    pub fn unmet(&self, host: &Sandbox) -> Option<String> {
        match *self {
            Self::Program(name) => host
                .try_run(&["which", name])
                .ok()
                .filter(|it| it.status.success())
                .map_or(Some(format!("the program {name} is not installed")), |_| None),
            Self::Plugin(name) if host.plugins().join(name).exists() => None,
            Self::Plugin(name) => Some(format!("the directory has no {name}")),
            Self::Reference(name) if Path::new(REFERENCE).join(name).exists() => None,
            Self::Reference(name) => Some(format!("there is no reference {name} in {REFERENCE}")),
            Self::LinkType(kind) => {
                // Some kinds need a master, a VLAN an ID, and a VRF a table.
                let script = "ip link add trial0 type $0 $1 2>/dev/null || {
                    ip link add trial1 type bridge && ip link add link trial1 name trial0 type $0 $1; }";
                let more = match kind {
                    "vlan" => "id 1",
                    "vrf" => "table 1",
                    _ => "",
                };
                let undo = "ip link del trial0; ip link del trial1 2>/dev/null || true";
                trial(host, &["sh", "-c", script, kind, more], &["sh", "-c", undo])
                    .then(|| format!("the kernel has no links of type {kind}"))
            }
            Self::VlanFiltering => trial(
                host,
                &["ip", "link", "add", "trial0", "type", "bridge", "vlan_filtering", "1"],
                &["ip", "link", "del", "trial0"],
            )
            .then(|| "the kernel's bridges do not filter by VLAN".to_owned()),
            Self::Ipv6 => {
                (!Path::new("/proc/sys/net/ipv6").exists()).then(|| "the kernel has no IPv6".to_owned())
            }
            Self::UserAttributes => (!keeps_user_attributes()).then(|| {
                "the file system of the address store keeps no extended attributes of users".to_owned()
            }),
            Self::Tun => {
                (!Path::new("/dev/net/tun").exists()).then(|| "the machine has no /dev/net/tun".to_owned())
            }
            Self::Selinux => (!Path::new("/sys/fs/selinux/enforce").exists())
                .then(|| "the kernel runs without SELinux".to_owned()),
            Self::Iptables => trial(host, &["iptables", "--version"], &["true"])
                .then(|| "iptables does not work".to_owned()),
            Self::Systemd => {
                let each = "which systemctl && [ -x /lib/systemd/systemd ] && mount -t cgroup2 cgroup2 /mnt && [ -w /mnt/cgroup.procs ]";
                trial(host, &["unshare", "-m", "sh", "-c", each], &["true"])
                    .then(|| "there is no systemd, or no cgroup2 to write to".to_owned())
            }
            Self::LegacyIptables => {
                let each = "iptables-legacy -t nat -S && ip6tables-legacy -t nat -S && iptables-legacy -S";
                trial(host, &["unshare", "-n", "sh", "-c", each], &["true"])
                    .then(|| "iptables-legacy or its tables in the kernel are not there".to_owned())
            }
            Self::Nftables => {
                trial(host, &["nft", "list", "ruleset"], &["true"]).then(|| "nft does not work".to_owned())
            }
        }
    }
}

/// Whether a file beside the address store keeps an extended attribute.
fn keeps_user_attributes() -> bool {
    let path = Path::new(STORE).with_file_name("trial");
    let Ok(file) = File::create(&path) else { return false };
    let (name, value) = (c"user.trial", b"1");
    // SAFETY: name and value live as long as the call, and the value is as long as it says.
    let kept = unsafe {
        libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) == 0
    };
    let _ = std::fs::remove_file(&path);
    kept
}

/// Whether the first command failed; if not, the second takes its effect back.
fn trial(host: &Sandbox, attempt: &[&str], undo: &[&str]) -> bool {
    let failed = !host.try_run(attempt).is_ok_and(|finished| finished.status.success());
    if !failed {
        // If this fails the case will say so by itself.
        let _ = host.run(undo);
    }
    failed
}
