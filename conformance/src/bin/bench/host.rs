//! A private host: a network and a mount namespace with pods in it, gone without trace when the work is done.

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::path::Path;
use std::thread;

/// Where network namespaces have their names (ip-netns(8)).
const NETNS_DIR: &str = "/run/netns";
/// Where the plugins keep what must survive a call.
const STATE_DIR: &str = "/var/lib/cni";
/// Where host-local keeps its reservations.
const NETWORKS_DIR: &str = "/var/lib/cni/networks";

/// One pod: a network namespace with nothing but `lo` in it.
pub(crate) struct Pod {
    /// Its number in the host, from 0.
    pub(crate) index: usize,
    /// The container ID; as long as those of the runtimes, because it becomes a part of names and hashes.
    pub(crate) container: String,
    /// The path of the network namespace.
    pub(crate) netns: String,
}

/// The host with its pods. Exists only inside `Host::within`.
pub(crate) struct Host {
    /// All pods, unattached at first.
    pub(crate) pods: Vec<Pod>,
}

impl Host {
    /// Does the work in a new host with this many pods. The calling thread stays where it is; the work, and every
    /// thread and process that it starts, is inside. The kernel takes the namespaces and mounts away when the last
    /// of them ends.
    pub(crate) fn within<T: Send>(pods: usize, work: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| work(&Self::create(pods)?));
            inside.join().map_err(|_| anyhow!("the thread of the private host panicked"))?
        })
    }

    /// Takes the calling thread into new namespaces and makes the pods.
    fn create(pods: usize) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .context("new namespaces (root is needed)")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("make all mounts private")?;
        cover("/run", "tmpfs")?;
        // Without a /var/lib/cni of its own the machine gets none: its parent is covered instead.
        cover(if Path::new(STATE_DIR).exists() { STATE_DIR } else { "/var/lib" }, "tmpfs")?;
        // Plugins only read /etc/cni; where there is none, there is nothing to hide.
        if Path::new("/etc/cni").exists() {
            cover("/etc/cni", "tmpfs")?;
        }
        // A sysfs shows the network namespace in which it was mounted.
        cover("/sys", "sysfs")?;
        fs::create_dir_all(NETNS_DIR).with_context(|| format!("create {NETNS_DIR}"))?;
        fs::create_dir_all(STATE_DIR).with_context(|| format!("create {STATE_DIR}"))?;
        let pods = (0..pods).map(Pod::create).collect::<Result<_>>()?;
        Ok(Self { pods })
    }

    /// How many links the host's own namespace has.
    pub(crate) fn links(&self) -> Result<usize> {
        Ok(fs::read_dir("/sys/class/net").context("list /sys/class/net")?.count())
    }

    /// Reserves the first `count` addresses of 10.`second`.0.0/16 after the gateway's for pods that do not exist, in
    /// the files that host-local would have written for them.
    pub(crate) fn reserve(&self, network: &str, second: u8, count: u32) -> Result<()> {
        let directory = Path::new(NETWORKS_DIR).join(network);
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let address = |number: u32| format!("10.{second}.{}.{}", (number + 2) / 256, (number + 2) % 256);
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        for number in 0..count {
            write(&address(number), &format!("{number:0>56x}reserved\r\neth0"))?;
        }
        match count {
            0 => Ok(()),
            _ => write("last_reserved_ip.0", &address(count - 1)),
        }
    }
}

impl Pod {
    /// Makes a network namespace and gives it a name.
    fn create(index: usize) -> Result<Self> {
        let netns = format!("{NETNS_DIR}/pod-{index}");
        File::create(&netns).with_context(|| format!("create {netns}"))?;
        let name = || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Some("/proc/thread-self/ns/net");
            mount(own, netns.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        };
        // Only the short-lived thread changes its network namespace; the mounts are the host's.
        let named = thread::scope(|scope| scope.spawn(name).join());
        named
            .map_err(|_| anyhow!("the thread of pod {index} panicked"))?
            .with_context(|| format!("make {netns}"))?;
        Ok(Self { index, container: format!("{:0>60x}bcde", index + 1), netns })
    }
}

/// Mounts a new file system of this type over the directory.
fn cover(target: &str, kind: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount a {kind} over {target}"))
}
