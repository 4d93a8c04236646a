//! Who has which port of the host: one file for every 64 ports of a protocol, with all their owners.
//!
//! So nothing here costs more with more pods: a file has as many entries as ports times addresses of the host, and a
//! call reads those of its own ports. All is under one lock, and a file is replaced as a whole. It lives as long as the
//! kernel's rules, on a tmpfs. A file that cannot be understood counts as empty: it costs a port its protection, and
//! nobody his attachment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use nix::libc;
use serde::{Deserialize, Serialize};

use super::super::{Ensured, FileLock, Finding, World};
use super::iptables::entry::Entry;
use super::unclaimed::{Stranger, Tally};
use crate::net::iptables::Transport;
use crate::private_file::{self, DRAFT, draft_of, remove_whatever};
use crate::spec::{Attachment, CniError, Code};

/// The directory, in the state directory, and the lock in it.
const DIRECTORY: &str = "ports";
const LOCK: &str = "lock";

/// Ports of one file.
const PORTS: u16 = 64;

/// For how long the number of entries of iptables tells that they are the same, while pods come and go.
const TALLY_HOLDS: Duration = Duration::from_secs(5);

/// Most bytes that are read of a file. Those of real hosts have a few thousand.
const MAX_BYTES: u64 = 1 << 20;

/// A port of the host at an address; unspecified, at all of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) protocol: Transport,
    pub(super) port: u16,
    pub(super) address: IpAddr,
}

impl Claim {
    /// Whether two owners cannot have both.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        let shares_addresses = self.address == other.address
            || self.address.is_ipv4() == other.address.is_ipv4()
                && (self.address.is_unspecified() || other.address.is_unspecified());
        (self.protocol, self.port) == (other.protocol, other.port) && shares_addresses
    }

    fn file_name(&self) -> String {
        file_name(self.protocol, self.port)
    }
}

fn file_name(protocol: Transport, port: u16) -> String {
    format!("{}-{}", protocol.name(), port / PORTS)
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, port, address } = self;
        let protocol = protocol.name();
        match address {
            _ if !address.is_unspecified() => write!(f, "{protocol} port {port} of {address}"),
            IpAddr::V4(_) => write!(f, "{protocol} port {port} (IPv4)"),
            IpAddr::V6(_) => write!(f, "{protocol} port {port} (IPv6)"),
        }
    }
}

/// What an owner has of a file's ports.
#[derive(Debug, Serialize, Deserialize)]
struct Share {
    owner: Attachment,
    claims: Vec<Claim>,
}

/// Ports that others have.
#[derive(Debug)]
pub struct Taken {
    /// Who has them, each once.
    pub owners: Vec<Attachment>,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} other attachments have them", self.owners.len())
    }
}

impl std::error::Error for Taken {}

/// The claims of all attachments, which nobody else changes as long as this lives.
#[derive(Debug)]
pub(super) struct Claims {
    directory: PathBuf,
    lock: FileLock,
}

/// What is to be done for an owner to have ports.
#[derive(Debug)]
pub(super) struct Claiming {
    files: Vec<(String, Vec<Share>)>,
    /// Those that it did not have.
    pub(super) fresh: Vec<Claim>,
}

/// Whether anybody has claimed anything. What cannot be read may have claims.
pub(super) fn are_there_any(world: &World<'_>) -> bool {
    let is_claim = |entry: io::Result<fs::DirEntry>| entry.map_or(true, |it| it.file_name() != LOCK);
    let found = private_file::entries_of(&world.state.join(DIRECTORY));
    found.map_or(true, |entries| entries.into_iter().flatten().any(is_claim))
}

impl Claims {
    /// Locks the claims; waits for another call, which takes a moment.
    ///
    /// Errors: code 11 naming the holder if it does not come to an end; code 105 for the file.
    pub(super) fn lock(world: &World<'_>) -> Result<Self> {
        let directory = world.state.join(DIRECTORY);
        let path = directory.join(LOCK);
        let file = open_lock(&directory, &path).map_err(|e| state_error("open", &path, &e))?;
        let lock = FileLock::take(file, &path, patience(world))?;
        Ok(Self { directory, lock })
    }

    /// The same where there may be something to lock; `None` where nobody has ever claimed anything.
    pub(super) fn lock_existing(world: &World<'_>) -> Result<Option<Self>> {
        if are_there_any(world) { Self::lock(world).map(Some) } else { Ok(None) }
    }

    /// What is to be written for an owner to have ports, all of them.
    ///
    /// Errors: code 102 naming the owners of ports that others have, with [`Taken`] beneath it.
    pub(super) fn plan(&self, owner: &Attachment, wanted: &[Claim]) -> Result<Claiming> {
        let mut claiming = Claiming { files: Vec::new(), fresh: Vec::new() };
        let mut taken = Vec::new();
        for (name, wanted) in by_file(wanted) {
            let mut shares = self.read(&name);
            // Runtimes send the ports of a container to each of its networks; there, the first is as good as any.
            for share in shares.iter().filter(|share| share.owner.container_id != owner.container_id) {
                let excluding =
                    share.claims.iter().filter(|have| wanted.iter().any(|want| have.excludes(want)));
                taken.extend(excluding.map(|have| (*have, share.owner.clone())));
            }
            let position = shares.iter().position(|share| share.owner == *owner);
            let mut own = match position {
                Some(position) => shares.swap_remove(position),
                None => Share { owner: owner.clone(), claims: Vec::new() },
            };
            let mut fresh: Vec<Claim> =
                wanted.into_iter().filter(|claim| !own.claims.contains(claim)).collect();
            fresh.dedup();
            if !fresh.is_empty() {
                own.claims.extend(&fresh);
                own.claims.sort_unstable();
                shares.push(own);
                claiming.files.push((name, shares));
                claiming.fresh.append(&mut fresh);
            }
        }
        if taken.is_empty() { Ok(claiming) } else { Err(refusal(&taken)) }
    }

    /// Does what was [planned](Self::plan). Created if there was any port that the owner did not have.
    pub(super) fn carry_out(&self, claiming: &Claiming) -> Result<Ensured> {
        for (name, shares) in &claiming.files {
            self.write(name, shares)?;
        }
        Ok(if claiming.files.is_empty() { Ensured::Present } else { Ensured::Created })
    }

    /// Those entries of iptables that are of no container that has claimed any of their ports.
    pub(super) fn without_claim(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        let mut files: BTreeMap<String, Vec<Share>> = BTreeMap::new();
        entries.retain(|entry| {
            let is_claimed = entry.ports.iter().any(|&port| {
                let name = file_name(entry.transport, port);
                let shares = files.entry(name).or_insert_with_key(|name| self.read(name));
                shares.iter().any(|share| {
                    let has = |claim: &Claim| (claim.protocol, claim.port) == (entry.transport, port);
                    share.claims.iter().any(has) && entry.is_of_container(&share.owner)
                })
            });
            !is_claimed
        });
        entries
    }

    /// Whether there are no entries of iptables but of pods with claims: the chain is used as much as after our last
    /// change, which was just now. Later, somebody may have exchanged one for another.
    pub(super) fn are_all(&self, now: Tally) -> bool {
        let known = || -> io::Result<bool> {
            let file = self.lock.file();
            let mut bytes = [[0; 4]; 2];
            file.read_exact_at(bytes.as_flattened_mut(), 0)?;
            let age = file.metadata()?.modified()?.elapsed().unwrap_or(Duration::MAX);
            Ok(Tally(bytes.map(u32::from_ne_bytes)) == now && age < TALLY_HOLDS)
        };
        now == Tally::default() || known().unwrap_or(false)
    }

    /// Remembers how much it is used after a change. What cannot be written costs a look into the chain.
    pub(super) fn set_tally(&self, Tally(uses): Tally) {
        let bytes = uses.map(u32::to_ne_bytes);
        if let Err(e) = self.lock.file().write_all_at(bytes.as_flattened(), 0) {
            log::debug!("{}: {e}", self.directory.join(LOCK).display());
        }
    }

    /// Who else has some of these claims, or ones that stand against them: interfaces of the same container.
    pub(super) fn of_same_container(&self, owner: &Attachment, claims: &[Claim]) -> Vec<Attachment> {
        let mut found = Vec::new();
        for (name, claims) in by_file(claims) {
            let has_any =
                |share: &Share| share.claims.iter().any(|it| claims.iter().any(|own| own.excludes(it)));
            let others = self.read(&name).into_iter().filter(|share| {
                share.owner != *owner && share.owner.container_id == owner.container_id && has_any(share)
            });
            for other in others {
                if !found.contains(&other.owner) {
                    found.push(other.owner);
                }
            }
        }
        found
    }

    /// Those that an owner should have and has not.
    pub(super) fn missing(&self, owner: &Attachment, wanted: &[Claim]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (name, wanted) in by_file(wanted) {
            let shares = self.read(&name);
            let has = |claim: &Claim| shares.iter().any(|it| it.owner == *owner && it.claims.contains(claim));
            for claim in wanted.iter().filter(|claim| !has(claim)) {
                let is_other = |it: &&Share| it.owner.container_id != owner.container_id;
                let excludes = |it: &&Share| it.claims.iter().any(|have| have.excludes(claim));
                let other = shares.iter().find(|it| is_other(it) && excludes(it));
                findings.push(match other {
                    Some(other) => Finding::differs(format!("owner of {claim}"), owner, &other.owner),
                    None => Finding::missing(format!("claim of {claim}")),
                });
            }
        }
        findings
    }

    /// Gives ports back; those of others stay.
    pub(super) fn release(&self, owner: &Attachment, claims: &[Claim]) -> Result<()> {
        for (name, claims) in by_file(claims) {
            self.retain(&name, |of, claim| of != owner || !claims.contains(claim))?;
        }
        Ok(())
    }

    /// Gives all ports of an owner back; looks at all files.
    pub(super) fn release_all_of(&self, owner: &Attachment) -> Result<()> {
        for name in self.names()? {
            self.retain(&name, |of, _| of != owner)?;
        }
        Ok(())
    }

    /// All who have a port, in no order, some of them more than once.
    pub(super) fn owners(&self) -> Result<Vec<Attachment>> {
        let names = self.names()?;
        Ok(names.iter().flat_map(|name| self.read(name)).map(|share| share.owner).collect())
    }

    /// The names of all files, also of those of which there is only what a killed call was writing.
    fn names(&self) -> Result<BTreeSet<String>> {
        let failed = |e: io::Error| state_error("list", &self.directory, &e);
        let mut names = BTreeSet::new();
        for name in private_file::names_in(&self.directory).map_err(failed)? {
            let Ok(name) = name.into_string() else { continue };
            if name != LOCK {
                names.insert(name.strip_suffix(DRAFT).unwrap_or(&name).to_owned());
            }
        }
        Ok(names)
    }

    /// Removes what killed calls were writing; it names pods, too.
    pub(super) fn remove_drafts(&self) -> Result<()> {
        self.names()?.iter().try_for_each(|name| self.remove_draft(name))
    }

    fn remove_draft(&self, name: &str) -> Result<()> {
        let draft = draft_of(&self.directory.join(name));
        Ok(remove_whatever(&draft).map_err(|e| state_error("remove", &draft, &e))?)
    }

    fn retain(&self, name: &str, stays: impl Fn(&Attachment, &Claim) -> bool) -> Result<()> {
        self.remove_draft(name)?;
        let mut shares = self.read(name);
        let count = |shares: &[Share]| shares.iter().map(|share| share.claims.len()).sum::<usize>();
        let before = count(&shares);
        for Share { owner, claims } in &mut shares {
            claims.retain(|claim| stays(owner, claim));
        }
        shares.retain(|share| !share.claims.is_empty());
        if before > 0 && count(&shares) == before {
            return Ok(());
        }
        self.write(name, &shares)
    }

    fn read(&self, name: &str) -> Vec<Share> {
        let path = self.directory.join(name);
        let read = || -> io::Result<Vec<Share>> {
            let mut bytes = Vec::new();
            private_file::open(&path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
            serde_json::from_slice(&bytes).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
        };
        read().unwrap_or_else(|e| {
            if e.kind() != ErrorKind::NotFound {
                log::warn!("{}: {e}: it counts as empty", path.display());
            }
            Vec::new()
        })
    }

    /// Replaces a file, or removes it where nobody has a share.
    fn write(&self, name: &str, shares: &[Share]) -> Result<()> {
        let path = self.directory.join(name);
        let outcome = match shares {
            [] => remove_whatever(&path),
            _ => serde_json::to_vec(shares)
                .map_err(io::Error::from)
                .and_then(|bytes| private_file::replace(&path, &bytes)),
        };
        Ok(outcome.map_err(|e| state_error("write", &path, &e))?)
    }
}

/// How long to wait for the lock; DEL has to work with any configuration.
fn patience(world: &World<'_>) -> Duration {
    world.request.config.lock_timeout().unwrap_or(crate::spec::config::LOCK_TIMEOUT)
}

fn open_lock(directory: &Path, path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match options.open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            options.open(path)
        }
        opened => opened,
    }
}

/// Claims with the names of the files that they belong in.
fn by_file(claims: &[Claim]) -> Vec<(String, Vec<Claim>)> {
    let mut sorted = claims.to_vec();
    sorted.sort_unstable();
    let mut files: Vec<(String, Vec<Claim>)> = Vec::new();
    for claim in sorted {
        let name = claim.file_name();
        match files.last_mut() {
            Some((last, claims)) if *last == name => claims.push(claim),
            _ => files.push((name, vec![claim])),
        }
    }
    files
}

fn refusal(taken: &[(Claim, Attachment)]) -> anyhow::Error {
    let sentences: Vec<String> =
        taken.iter().map(|(claim, owner)| format!("{claim} is taken by {owner}")).collect();
    let mut owners: Vec<Attachment> = taken.iter().map(|(_, owner)| owner.clone()).collect();
    owners.sort_unstable();
    owners.dedup();
    let first = sentences.first().cloned().unwrap_or_default();
    let msg = format!("runtimeConfig.portMappings: {first}");
    let error = match sentences.len() {
        0 | 1 => CniError::new(Code::Conflict, msg),
        several => CniError::new(Code::Conflict, format!("{msg}, and {} more are taken", several - 1))
            .with_details(sentences.join("; ")),
    };
    anyhow::Error::new(Taken { owners }).context(error)
}

/// The error where others have ports without a claim.
pub(super) fn refusal_for(strangers: &[Stranger]) -> CniError {
    let sentences: Vec<String> =
        strangers.iter().map(|Stranger { claim, holder }| format!("{claim} is taken by {holder}")).collect();
    let first = sentences.first().cloned().unwrap_or_default();
    let msg = format!("runtimeConfig.portMappings: {first}, whose rules another program has made");
    match sentences.len() {
        0 | 1 => CniError::new(Code::Conflict, msg),
        _ => CniError::new(Code::Conflict, msg).with_details(sentences.join("; ")),
    }
}

fn state_error(deed: &str, path: &Path, error: &io::Error) -> CniError {
    CniError::new(Code::State, format!("cannot {deed} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(port: u16, address: &str) -> Claim {
        Claim { protocol: Transport::Tcp, port, address: address.parse().unwrap() }
    }

    #[test]
    fn wildcards_exclude_all_of_their_family() {
        for (one, other, excludes) in [
            ("0.0.0.0", "0.0.0.0", true),
            ("0.0.0.0", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("0.0.0.0", "::", false),
            ("::", "2001:db8::1", true),
            ("0.0.0.0", "2001:db8::1", false),
        ] {
            assert_eq!(claim(80, one).excludes(&claim(80, other)), excludes, "{one} {other}");
            assert_eq!(claim(80, other).excludes(&claim(80, one)), excludes, "{other} {one}");
            assert!(!claim(80, one).excludes(&claim(81, other)));
            let udp = Claim { protocol: Transport::Udp, ..claim(80, other) };
            assert!(!claim(80, one).excludes(&udp));
        }
    }

    proptest! {
        #[test]
        fn what_excludes_one_another_is_in_one_file(a in 1u16.., b in 1u16.., is_same in any::<bool>()) {
            let (one, other) = (claim(a, "0.0.0.0"), claim(if is_same { a } else { b }, "192.0.2.1"));
            if one.excludes(&other) {
                prop_assert_eq!(one.file_name(), other.file_name());
            }
            let files = by_file(&[one, other, one]);
            prop_assert_eq!(files.iter().map(|(_, claims)| claims.len()).sum::<usize>(), 3);
        }
    }
}
