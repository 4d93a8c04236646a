//! A host of one's own.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{geteuid, getpid};

use crate::pod::Pod;

/// Where Debian and others install the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";

/// Where host-local keeps its reservations unless told otherwise.
pub const STORE: &str = "/var/lib/cni/networks";

/// A pod for calls that need any at all; see [`Call::somewhere`](crate::call::Call::somewhere).
pub const SOMEWHERE: &str = "/run/netns/somewhere";

/// A directory for the files of a case.
pub const SCRATCH: &str = "/run/scratch";

/// A host: network and mount namespace of its own, with empty /run, /var/lib/cni and /etc/cni. It dereferences to
/// the [`Pod`] that is its own network namespace, so `ip`, `run` and the like work on both.
#[derive(Debug)]
pub struct Sandbox {
    plugins: PathBuf,
    own: Pod,
    somewhere: OnceLock<Pod>,
    calls: Mutex<Transcript>,
    ids: Mutex<BTreeSet<String>>,
}

/// The last calls of plugins.
#[derive(Debug, Default)]
struct Transcript {
    shown: VecDeque<String>,
    skipped: usize,
}

/// A lock whose holder panicked is as good as any: what it guards is only ever added to.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Sandbox {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.own
    }
}

impl Sandbox {
    /// Takes the calling process out of the machine. It must be single-threaded, and can never go back.
    pub fn enter(plugins: &Path) -> Result<Self> {
        if !geteuid().is_root() {
            bail!("namespaces and plugins need root");
        }
        let plugins =
            plugins.canonicalize().with_context(|| format!("no directory {}", plugins.display()))?;
        for hidden in ["/run", "/var/lib/cni", "/etc/cni"] {
            if plugins.starts_with(hidden) {
                bail!("{} cannot be judged: every case has an empty {hidden} of its own", plugins.display());
            }
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare network and mounts")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("cannot make the mounts private")?;
        tmpfs("/run")?;
        for directory in ["/run/netns", "/run/lock", SCRATCH] {
            fs::create_dir_all(directory).with_context(|| format!("cannot create {directory}"))?;
        }
        empty_directory(Path::new("/var/lib"), "cni")?;
        empty_directory(Path::new("/etc"), "cni")?;
        if fs::read_link("/proc/self").ok().is_none_or(|own| own != Path::new(&getpid().to_string())) {
            // The process namespace is new, and what is mounted shows that of strangers.
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)
                .context("cannot mount /proc")?;
        }
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)
            .context("cannot mount /sys")?;
        let own = Pod::of_caller(PathBuf::from("/run/netns/host"))?;
        own.ip_set("link set lo up")?;
        Ok(Self { plugins, own, somewhere: OnceLock::new(), calls: Mutex::default(), ids: Mutex::default() })
    }

    /// The directory under test.
    pub fn plugins(&self) -> &Path {
        &self.plugins
    }

    /// Makes a pod's network namespace, named /run/netns/`name`.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        Pod::create(Path::new("/run/netns").join(name))
    }

    /// Makes the pod [`SOMEWHERE`] unless it is there.
    pub(crate) fn make_somewhere(&self) -> Result<()> {
        if self.somewhere.get().is_none() {
            let pod = Pod::create(PathBuf::from(SOMEWHERE))?;
            // If another thread was faster, creating it has failed.
            let _ = self.somewhere.set(pod);
        }
        Ok(())
    }

    /// Makes a namespace behind this host: `up0` here (192.0.2.1, 2001:db8:ffff::1) and `eth0` there (192.0.2.2,
    /// 2001:db8:ffff::2). It has no route to anything else, so it can answer only this host's own addresses.
    pub fn outside(&self) -> Result<Pod> {
        let outside = self.pod("outside")?;
        self.ip_set("link add up0 type veth peer name eth0 netns outside")?;
        self.ip_set("addr add 192.0.2.1/24 dev up0")?;
        self.ip_set("addr add 2001:db8:ffff::1/64 dev up0 nodad")?;
        self.ip_set("link set up0 up")?;
        outside.ip_set("addr add 192.0.2.2/24 dev eth0")?;
        outside.ip_set("addr add 2001:db8:ffff::2/64 dev eth0 nodad")?;
        outside.ip_set("link set eth0 up")?;
        Ok(outside)
    }

    /// Writes a file for the case, by its name below [`SCRATCH`], and gives its path.
    pub fn scratch(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = Path::new(SCRATCH).join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes a shell script that can be found as a plugin in [`SCRATCH`]/`directory`.
    pub fn fake_plugin(&self, directory: &str, name: &str, script: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.scratch(&format!("{directory}/{name}"), &format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Path::new(SCRATCH).join(directory))
    }

    /// The names in a network's directory of the address store, sorted; none if there is no such directory.
    pub fn store(&self, network: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        match fs::read_dir(Path::new(STORE).join(network)) {
            Ok(entries) => {
                for entry in entries {
                    names.push(entry?.file_name().to_string_lossy().into_owned());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        names.sort();
        Ok(names)
    }

    /// The reserved addresses of a network, sorted as text.
    pub fn leases(&self, network: &str) -> Result<Vec<String>> {
        let names = self.store(network)?;
        Ok(names.into_iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect())
    }

    /// Command lines of all processes but the calling one that have not ended; meaningful in a process namespace of
    /// one's own.
    pub fn processes(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let own = std::process::id().to_string();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name == own || !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let line = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
            // One that has ended, and that nobody has waited for yet, has no command line.
            if !line.is_empty() {
                found.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
        Ok(found)
    }

    /// Remembers a container that a plugin was called for.
    pub(crate) fn remember(&self, id: &str) {
        lock(&self.ids).insert(id.to_owned());
    }

    /// The containers that plugins were called for.
    pub(crate) fn containers(&self) -> BTreeSet<String> {
        lock(&self.ids).clone()
    }

    /// Remembers a call for the account of a failure.
    pub(crate) fn note(&self, text: String) {
        const SHOWN: usize = 3;
        let mut calls = lock(&self.calls);
        calls.shown.push_back(text);
        if calls.shown.len() > SHOWN {
            calls.shown.pop_front();
            calls.skipped += 1;
        }
    }

    /// The last calls of plugins, the newest at the end.
    pub fn transcript(&self) -> String {
        let calls = lock(&self.calls);
        let mut text = match calls.skipped {
            0 => String::new(),
            n => format!("({n} earlier calls are not shown)\n"),
        };
        text.push_str(&calls.shown.iter().map(String::as_str).collect::<Vec<_>>().join("\n"));
        text
    }
}

fn tmpfs(target: impl AsRef<Path>) -> Result<()> {
    let target = target.as_ref();
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))
        .with_context(|| format!("cannot mount a tmpfs on {}", target.display()))
}

/// Makes `parent/name` an empty directory that nobody else sees, without creating anything on the machine's disk.
fn empty_directory(parent: &Path, name: &str) -> Result<()> {
    let path = parent.join(name);
    if path.is_dir() {
        return tmpfs(&path);
    }
    let layers =
        Path::new("/run/layers").join(name.replace('/', "-") + &parent.to_string_lossy().replace('/', "-"));
    let (upper, work) = (layers.join("upper"), layers.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", parent.display(), upper.display(), work.display());
    mount(Some("overlay"), parent, Some("overlay"), MsFlags::empty(), Some(options.as_str())).with_context(
        || {
            format!(
                "{} is not there, and an overlay that would have it cannot be mounted; create it",
                path.display()
            )
        },
    )?;
    fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))
}
