//! A network namespace as a runtime gives one to a plugin.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use crate::exec::{Finished, PATH, Running};

/// A network namespace that a file under /run/netns names.
#[derive(Debug)]
pub struct Pod {
    path: PathBuf,
    netns: File,
}

impl Pod {
    /// Makes a new, empty network namespace (its `lo` is down, as runtimes leave it) and the file that names it.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let target = path.clone();
        in_thread(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare network namespace")?;
            bind(Path::new("/proc/thread-self/ns/net"), &target)
        })??;
        Self::open(path)
    }

    /// Names the calling thread's own network namespace by a file.
    pub(crate) fn of_caller(path: PathBuf) -> Result<Self> {
        File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        bind(Path::new("/proc/thread-self/ns/net"), &path)?;
        Self::open(path)
    }

    fn open(path: PathBuf) -> Result<Self> {
        let netns = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { path, netns })
    }

    /// The path to pass as `CNI_NETNS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path as text.
    pub fn netns(&self) -> &str {
        self.path.to_str().unwrap_or_default()
    }

    /// Removes the file. The namespace itself goes with the last thing that holds it, and this value no longer does.
    pub fn remove(self) -> Result<()> {
        umount2(&self.path, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", self.path.display()))?;
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }

    /// Runs the closure on a thread that is in this namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        in_thread(|| -> Result<T> {
            setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET)
                .context("cannot enter the network namespace")?;
            Ok(work())
        })?
    }

    /// Runs a program in this namespace, whatever its exit status.
    pub fn try_run(&self, argv: &[&str]) -> Result<Finished> {
        self.run_with_input(argv, b"")
    }

    /// Runs a program in this namespace with something on its stdin, whatever its exit status.
    pub fn run_with_input(&self, argv: &[&str], input: &[u8]) -> Result<Finished> {
        let Some((program, arguments)) = argv.split_first() else { bail!("nothing to run") };
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", PATH).env("LC_ALL", "C");
        enter_before_exec(&mut command, &self.netns);
        Running::start(command, input)?.finish()
    }

    /// Runs a program in this namespace and gives its stdout; an error if it fails.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let finished = self.try_run(argv)?;
        if !finished.status.success() {
            bail!("`{}`: {}: {}", argv.join(" "), finished.outcome(), finished.stderr.trim());
        }
        Ok(finished.stdout)
    }

    /// `ip -d -j <arguments>` in this namespace.
    pub fn ip(&self, arguments: &str) -> Result<Vec<Value>> {
        let mut argv = vec!["ip", "-d", "-j"];
        argv.extend(arguments.split_whitespace());
        let text = self.run(&argv)?;
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let list: Vec<Value> =
            serde_json::from_str(&text).with_context(|| format!("output of ip {arguments}"))?;
        // ip prints an empty object for each thing that its filter left out.
        Ok(list
            .into_iter()
            .filter(|entry| entry.as_object().is_some_and(|object| !object.is_empty()))
            .collect())
    }

    /// Changes the namespace by `ip <arguments>`; an error if ip refuses.
    pub fn ip_set(&self, arguments: &str) -> Result<()> {
        let mut argv = vec!["ip"];
        argv.extend(arguments.split_whitespace());
        self.run(&argv).map(drop)
    }

    /// The link of that name with all details, if there is one.
    pub fn link(&self, name: &str) -> Result<Option<Value>> {
        Ok(self.ip("link show")?.into_iter().find(|link| link["ifname"] == name))
    }

    /// The link of that name; an error if there is none.
    pub fn need_link(&self, name: &str) -> Result<Value> {
        self.link(name)?.ok_or_else(|| anyhow!("there is no link {name} in {}", self.path.display()))
    }

    /// The names of all links.
    pub fn link_names(&self) -> Result<Vec<String>> {
        Ok(self
            .ip("link show")?
            .iter()
            .filter_map(|link| link["ifname"].as_str())
            .map(str::to_owned)
            .collect())
    }

    /// The addresses of a link as `address/prefix`, without the link-local ones that the kernel makes; none if the
    /// link is not there.
    pub fn addresses(&self, name: &str) -> Result<Vec<String>> {
        let links = self.ip("addr show")?;
        let Some(link) = links.iter().find(|link| link["ifname"] == name) else { return Ok(Vec::new()) };
        Ok(link["addr_info"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|address| address["scope"] != "link")
            .map(|address| {
                format!("{}/{}", address["local"].as_str().unwrap_or_default(), address["prefixlen"])
            })
            .collect())
    }

    /// The routes of one family (`-4` or `-6`) in one table.
    pub fn routes(&self, family: &str, table: &str) -> Result<Vec<Value>> {
        let text = self.try_run(&["ip", "-d", "-j", family, "route", "show", "table", table])?;
        // A table without routes does not exist, which ip calls an error, and has begun a list by then.
        if text.stdout.trim().is_empty() || !text.status.success() {
            return Ok(Vec::new());
        }
        Ok(serde_json::from_str(&text.stdout)?)
    }

    /// Reads a file under /proc/sys/net, as it is in this namespace.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/net/{key}");
        let text = self.inside(|| std::fs::read_to_string(&path))?;
        Ok(text.with_context(|| format!("cannot read {path}"))?.trim().to_owned())
    }

    /// Writes a file under /proc/sys/net in this namespace.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.inside(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot write {value} to {path}"))
    }

    /// An address answers a ping within four seconds; the first packets may be lost to neighbour discovery and to
    /// duplicate address detection.
    pub fn ping(&self, address: &str) -> Result<()> {
        let mut last = None;
        for _ in 0..9 {
            let finished = self.try_run(&["ping", "-n", "-c", "1", "-W", "1", address])?;
            if finished.status.success() {
                return Ok(());
            }
            last = Some(finished);
        }
        let said = last.map(|finished| finished.stdout + &finished.stderr).unwrap_or_default();
        bail!("{address} does not answer in {}: {}", self.path.display(), said.trim())
    }
}

/// Has the program enter a network namespace before it starts.
fn enter_before_exec(command: &mut Command, netns: &File) {
    use std::os::unix::process::CommandExt;
    let fd = netns.as_raw_fd();
    // SAFETY: setns is one system call, so it may be called between fork and exec; `fd` stays open until the command
    // has been spawned because every caller spawns it while it borrows `netns`.
    unsafe {
        command.pre_exec(move || {
            let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
            setns(fd, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
        });
    }
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

/// Runs the closure on a thread of its own, so that a change of namespace ends with it.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("a thread in a namespace panicked"))
}
