//! host-local: what is left when it is killed, when the power fails, and when somebody spoils its files.
//!
//! Whatever the plugin keeps is found by looking, below the address store and below /run, so these cases mean the same
//! for every plugin. What must hold: no call for another pod fails, no address is lost for ever, none is given
//! twice, and no symbolic link is followed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cases;
use super::networks::{NEWEST, host_local};
use crate::call::{Answer, Call};
use crate::case::Need;
use crate::expect::{contains, equal, holds, text_at};
use crate::sandbox::{SCRATCH, STORE, Sandbox};

cases! {
    "host-local/damage" {
        spoilt_files_of_the_store_hurt_nobody;
        spoilt_files_below_run_hurt_nobody;
        spoilt_directories_below_run_hurt_nobody;
        a_lock_that_is_a_link_is_not_followed;
        what_is_kept_below_run_is_root_s_alone;
        names_cannot_lead_out_of_the_store;
    }
    "host-local/lock" {
        waiting_for_the_lock_is_bounded needs [Need::Plugin("bridgehead"), Need::Program("flock")];
        a_wrong_lock_timeout_is_refused_but_by_del needs [Need::Plugin("bridgehead")];
    }
}

/// A call for a container on a network of its own name.
pub(super) fn on(network: &str, id: &str) -> Call {
    host_local(id, json!({"subnet": "10.1.0.0/24"})).set("name", json!(network))
}

pub(super) fn address(answer: &Answer) -> Result<String> {
    Ok(text_at(&answer.result()?, "/ips/0/address")?.split('/').next().unwrap_or_default().to_owned())
}

pub(super) fn add(host: &Sandbox, network: &str, id: &str) -> Result<String> {
    address(&on(network, id).add().run(host)?).with_context(|| format!("ADD of {id}"))
}

pub(super) fn del(host: &Sandbox, network: &str, id: &str) -> Result<()> {
    on(network, id).del().run(host)?.silence().with_context(|| format!("DEL of {id}"))
}

/// What somebody has made of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Empty,
    Truncated,
    Binary,
    Foreign,
    EmptyDirectory,
    Directory,
    Link,
    DanglingLink,
    Fifo,
}

impl Damage {
    const ALL: [Self; 9] = [
        Self::Empty,
        Self::Truncated,
        Self::Binary,
        Self::Foreign,
        Self::EmptyDirectory,
        Self::Directory,
        Self::Link,
        Self::DanglingLink,
        Self::Fifo,
    ];

    fn apply(self, path: &Path, victim: &Path) -> Result<()> {
        let content = fs::read(path).unwrap_or_default();
        match self {
            Self::Empty => fs::write(path, b"")?,
            Self::Truncated => fs::write(path, &content[..content.len() / 2])?,
            Self::Binary => fs::write(path, [0xff; 300])?,
            Self::Foreign => {
                chown(path, Some(1000), Some(1000))?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o000))?;
            }
            Self::EmptyDirectory | Self::Directory | Self::Link | Self::DanglingLink | Self::Fifo => {
                if path.exists() {
                    fs::remove_file(path)?;
                }
                match self {
                    Self::EmptyDirectory => fs::create_dir(path)?,
                    Self::Directory => fs::create_dir_all(path.join("inside"))?,
                    Self::Link => symlink(victim, path)?,
                    Self::DanglingLink => symlink(ABSENT, path)?,
                    _ => nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600))?,
                }
            }
        }
        Ok(())
    }
}

/// Where a dangling link leads.
const ABSENT: &str = "/run/scratch/absent";

/// Two pods are there, something is spoilt, and all goes on: `spoil` gets the network.
fn life_goes_on(host: &Sandbox, network: &str, spoil: impl FnOnce() -> Result<()>) -> Result<()> {
    let victim = host.scratch("victim", "precious")?;
    spoil().context("the damage itself")?;
    let c = add(host, network, "c")?;
    holds(c != "10.1.0.2" && c != "10.1.0.3", format!("{c}, which somebody has, was given again"))?;
    del(host, network, "c")?;
    holds(!host.leases(network)?.contains(&c), format!("{c} is still reserved after DEL"))?;
    del(host, network, "a").context("whose files are as they were")?;
    let d = add(host, network, "d")?;
    holds(d != "10.1.0.3", format!("{d}, which somebody has, was given again"))?;
    del(host, network, "d")?;
    equal("what a link leads to", fs::read_to_string(&victim)?.as_str(), "precious")?;
    holds(!Path::new(ABSENT).exists(), "a file was made through a dangling link")
}

/// Two pods on a new network.
fn populate(host: &Sandbox, network: &str) -> Result<()> {
    equal("address", add(host, network, "a")?.as_str(), "10.1.0.2")?;
    equal("address", add(host, network, "b")?.as_str(), "10.1.0.3")
}

fn spoilt_files_of_the_store_hurt_nobody(host: &Sandbox) -> Result<()> {
    let victim = host.scratch("victim", "precious")?;
    for (number, name) in ["lock", "last_reserved_ip.0", ".bridgehead-draft", "10.1.0.3"].iter().enumerate() {
        for damage in Damage::ALL {
            if *name == ".bridgehead-draft" && damage == Damage::Foreign {
                continue;
            }
            let network = format!("n{number}-{damage:?}");
            populate(host, &network)?;
            let path = Path::new(STORE).join(&network).join(name);
            let spoilt = format!("{name}: {damage:?}");
            life_goes_on(host, &network, || damage.apply(&path, &victim)).with_context(|| spoilt.clone())?;
            // What stands at its address is not its reservation any more.
            if *name != "10.1.0.3" || damage == Damage::Foreign {
                del(host, &network, "b").with_context(|| spoilt.clone())?;
                equal("leases", host.leases(&network)?, Vec::<String>::new()).context(spoilt)?;
            }
        }
    }
    Ok(())
}

/// All below /run that is about a network: paths with a part that begins with its name, and what is beneath.
fn kept(network: &str) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    fn walk(
        directory: &Path,
        is_inside: bool,
        network: &str,
        found: &mut (Vec<PathBuf>, Vec<PathBuf>),
    ) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            if [SCRATCH, "/run/netns", "/run/layers"].iter().any(|own| path == Path::new(own)) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_about = is_inside || name == network || name.starts_with(&format!("{network}."));
            let is_directory = entry.file_type()?.is_dir();
            if is_about {
                if is_directory { found.1.push(path.clone()) } else { found.0.push(path.clone()) }
            }
            if is_directory {
                walk(&path, is_about, network, found)?;
            }
        }
        Ok(())
    }
    let mut found = (Vec::new(), Vec::new());
    walk(Path::new("/run"), false, network, &mut found)?;
    found.0.sort();
    found.1.sort();
    Ok(found)
}

/// Two pods on new networks, once for each damage to each thing that is kept below /run: `choose` says which those are.
fn spoil_what_is_kept(
    host: &Sandbox,
    damages: &[Damage],
    choose: impl Fn(&str) -> Result<Vec<PathBuf>>,
    apply: impl Fn(Damage, &Path, &Path) -> Result<()>,
) -> Result<()> {
    let victim = host.scratch("victim", "precious")?;
    for damage in damages {
        for number in 0.. {
            let network = format!("n{number}{damage:?}");
            populate(host, &network)?;
            let chosen = choose(&network)?;
            // Of each pod, one will do.
            let Some(path) = chosen.get(number) else { break };
            if path.to_string_lossy().contains("a:eth0") {
                continue;
            }
            let spoilt = format!("{}: {damage:?}", path.display());
            life_goes_on(host, &network, || apply(*damage, path, &victim)).with_context(|| spoilt.clone())?;
            // Nothing of it is the only place that knows of a reservation.
            del(host, &network, "b").with_context(|| spoilt.clone())?;
            equal("leases", host.leases(&network)?, Vec::<String>::new()).context(spoilt)?;
        }
    }
    Ok(())
}

fn spoilt_files_below_run_hurt_nobody(host: &Sandbox) -> Result<()> {
    spoil_what_is_kept(host, &Damage::ALL, |network| Ok(kept(network)?.0), Damage::apply)
}

fn spoilt_directories_below_run_hurt_nobody(host: &Sandbox) -> Result<()> {
    let beyond = Path::new(SCRATCH).join("beyond");
    fs::create_dir_all(&beyond)?;
    let replace = |damage: Damage, path: &Path, _: &Path| -> Result<()> {
        fs::remove_dir_all(path)?;
        match damage {
            Damage::Empty => fs::write(path, b"")?,
            Damage::EmptyDirectory => fs::create_dir(path)?,
            Damage::Link => symlink(&beyond, path)?,
            _ => symlink(ABSENT, path)?,
        }
        Ok(())
    };
    let damages = [Damage::Empty, Damage::EmptyDirectory, Damage::Link, Damage::DanglingLink];
    spoil_what_is_kept(host, &damages, |network| Ok(kept(network)?.1), replace)?;
    let found: Vec<_> = fs::read_dir(&beyond)?.collect();
    holds(found.is_empty(), format!("something was written through a link: {found:?}"))
}

fn a_lock_that_is_a_link_is_not_followed(host: &Sandbox) -> Result<()> {
    // Twenty at once, so that those who find the link are several.
    let directory = Path::new(STORE).join("net");
    fs::create_dir_all(&directory)?;
    symlink(ABSENT, directory.join("lock"))?;
    let started: Vec<_> =
        (0..20).map(|number| on("net", &format!("c{number}")).add().start(host)).collect::<Result<_>>()?;
    let mut found = BTreeSet::new();
    for one in started {
        found.insert(address(&one.answer(host)?)?);
    }
    equal("different addresses", found.len(), 20)?;
    holds(!Path::new(ABSENT).exists(), "a file was made through the link")?;
    holds(fs::symlink_metadata(directory.join("lock"))?.is_file(), "the lock is no file now")
}

fn what_is_kept_below_run_is_root_s_alone(host: &Sandbox) -> Result<()> {
    populate(host, "net")?;
    let (files, directories) = kept("net")?;
    for (paths, allowed) in [(files, 0o600), (directories, 0o700)] {
        for path in paths {
            let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
            equal(format!("mode of {}", path.display()), mode | allowed, allowed)?;
        }
    }
    Ok(())
}

fn names_cannot_lead_out_of_the_store(host: &Sandbox) -> Result<()> {
    let before = everything("/var/lib/cni", "/run")?;
    for name in ["..", ".", "../up", "a/b", "/etc", "a\0b", "a\nb", ""] {
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            on(name, "a")
                .command(command)
                .run(host)?
                .refusal()
                .with_context(|| format!("network {name:?}"))?;
        }
    }
    for id in ["..", ".", "../up", "a/b", "/etc", "a\nb", "a:b"] {
        for command in ["ADD", "DEL", "CHECK"] {
            on("net", id)
                .command(command)
                .run(host)?
                .refusal()
                .with_context(|| format!("container {id:?}"))?;
        }
    }
    for ifname in ["..", ".", "../up", "a/b", "/", "a\nb", "a:b"] {
        for command in ["ADD", "DEL", "CHECK"] {
            let call = on("net", "a").ifname(ifname).command(command);
            call.run(host)?.refusal().with_context(|| format!("interface {ifname:?}"))?;
        }
    }
    // In a list of what is valid names are only compared.
    let odd =
        json!([{"containerID": "../../up", "ifname": "../x"}, {"containerID": "a\u{0}b", "ifname": "/"}]);
    on("net", "a")
        .set("cniVersion", json!(NEWEST))
        .gc()
        .set("cni.dev/valid-attachments", odd)
        .run(host)?
        .silence()?;
    equal("files", everything("/var/lib/cni", "/run")?, before)
}

/// All paths below two directories, without those of the case itself.
fn everything(one: &str, other: &str) -> Result<BTreeSet<PathBuf>> {
    fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            if [SCRATCH, "/run/netns", "/run/layers"].iter().any(|own| path == Path::new(own)) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                walk(&path, found)?;
            }
            found.insert(path);
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    walk(Path::new(one), &mut found)?;
    walk(Path::new(other), &mut found)?;
    Ok(found)
}

/// Has a program hold the lock of a network for as long as the case runs, as a plugin that is called for `id`.
fn hold_the_lock(host: &Sandbox, network: &str, id: &str) -> Result<()> {
    let lock = Path::new(STORE).join(network).join("lock");
    let script = format!(
        "env CNI_COMMAND=ADD CNI_CONTAINERID={id} CNI_IFNAME=eth0 flock {} sh -c 'echo > /run/scratch/held; exec sleep 60' \
         >/dev/null 2>&1 & while ! [ -e /run/scratch/held ]; do sleep 0.01; done",
        lock.display()
    );
    host.run(&["sh", "-c", &script]).map(drop)
}

fn with_ipam(call: &Call, network: &str, key: &str, value: Value) -> Call {
    let mut ipam = json!({"type": "host-local", "subnet": "10.1.0.0/24"});
    ipam[key] = value;
    call.set("ipam", ipam).set("name", json!(network))
}

fn waiting_for_the_lock_is_bounded(host: &Sandbox) -> Result<()> {
    add(host, "net", "a")?;
    hold_the_lock(host, "net", "holder1")?;
    // What bounds the wait from above is far less than the default of ten seconds, and far more than it takes.
    for (call, least, most) in [
        (on("net", "b").set("lockTimeout", json!(1)), 1000, 9000),
        (
            with_ipam(&on("net", "b"), "net", "lockTimeout", json!(1)).set("lockTimeout", json!(60)),
            1000,
            9000,
        ),
        (with_ipam(&on("net", "b"), "net", "lockTimeout", json!(0)), 0, 9000),
    ] {
        for call in [
            call.add(),
            call.del(),
            call.gc().set("cniVersion", json!(NEWEST)).set("cni.dev/valid-attachments", json!([])),
        ] {
            let answer = call.run(host)?;
            let refusal = answer.refused_with(11)?;
            contains("the error", &refusal.text(), "/net/lock is held by process ")?;
            contains("the error names the holder", &refusal.text(), "flock")?;
            contains(
                "the error names the container",
                &refusal.text(),
                "ADD of container holder1 interface eth0",
            )?;
            let took = answer.took().as_millis();
            holds((least..most).contains(&took), format!("it took {took} ms"))?;
        }
    }
    // Whoever only asks does not wait.
    let answer = on("net", "b").set("cniVersion", json!(NEWEST)).status().run(host)?;
    answer.silence()?;
    holds(answer.took().as_secs() < 9, format!("STATUS took {:?}", answer.took()))?;
    equal("leases", host.leases("net")?, ["10.1.0.2"])
}

fn a_wrong_lock_timeout_is_refused_but_by_del(host: &Sandbox) -> Result<()> {
    add(host, "net", "a")?;
    for value in [json!(-1), json!("10"), json!(1.5), json!(100_000), json!([])] {
        let call = with_ipam(&on("net", "b"), "net", "lockTimeout", value.clone());
        let refusal = call.add().run(host)?.refused_with(7)?;
        contains("the error", &refusal.text(), "ipam.lockTimeout")?;
        call.del().run(host)?.silence()?;
    }
    equal("leases", host.leases("net")?, ["10.1.0.2"])
}
