//! The store: one directory of reservations per network, shared with the Go host-local, which may run meanwhile.
//!
//! Everything that reads or changes it exists only on the [`LockedStore`], so the lock cannot be forgotten. It may be
//! held over more than one step: who releases an address and removes what is keyed by it does both under one lock,
//! and nobody can get the address in between.
//!
//! What the directory holds is remembered in an index and the index is trusted by this rule: after each change of
//! our own, the directory's modification time is set to the moment in nanoseconds, and the same is written into the
//! index. Every later change by anybody (the Go plugin, an administrator, ourselves if we are killed half-way) sets
//! another time, and the next call builds the index anew by reading the whole directory once. Therefore changes go
//! first to the directory, then to the index, and the stamp comes last. On a filesystem without nanoseconds the times
//! are never equal, which costs time but nothing else.

use std::cell::Cell;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use super::boot::{self, BootId};
use super::directory::{Directory, errno_of, state_error};
use super::flock::Held;
use super::index::{Index, Owners};
use super::lock::{self, Taken};
use super::reservation::{DRAFT, Found, Owner, address_of, clear, look, owner_of};
use crate::spec::{CniError, Code};

/// Where a network's reservations are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    network: String,
    path: PathBuf,
    state: PathBuf,
}

/// A store whose lock is held; it is released when this is dropped.
#[derive(Debug)]
pub struct LockedStore {
    pub(super) directory: Directory,
    pub(super) index: Index,
    pub(super) boot: Option<BootId>,
    /// What was found dead and removed while the index was built.
    pub(super) reclaimed: Vec<(Owner, IpAddr)>,
    /// Whether a file that means nothing could not be removed.
    pub(super) litter: Cell<bool>,
    _lock: Held,
}

/// A store as it is seen without its lock.
pub(super) struct Glance {
    pub(super) directory: Directory,
    /// The index, if it agrees with the directory.
    pub(super) index: Option<Index>,
    pub(super) boot: Option<BootId>,
}

impl Store {
    /// The store of a network beneath `data_dir`, with what is remembered of it beneath `state`.
    pub fn new(data_dir: &Path, network: &str, state: &Path) -> Self {
        Self { network: network.to_owned(), path: data_dir.join(network), state: state.to_owned() }
    }

    /// The directory of reservations.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock, waiting at most as long as `patience`; `None` if the directory is not there, and so nothing is
    /// reserved.
    ///
    /// Errors: code 11 names who holds the lock; code 105 the path that cannot be read.
    pub fn lock(&self, patience: Duration) -> Result<Option<LockedStore>, CniError> {
        let deadline = Instant::now() + patience;
        loop {
            match Directory::open(&self.path) {
                Ok(directory) => {
                    if let Some(locked) = self.lock_opened(directory, deadline)? {
                        return Ok(Some(locked));
                    }
                }
                Err(Errno::ENOENT) => return Ok(None),
                Err(errno) => return Err(state_error("open", &self.path, errno)),
            }
        }
    }

    /// The same, but creates the directory if it is not there. Its files are named after addresses of pods, which are
    /// nobody's business: unlike the reference's, it has the mode 0700. Its parents, which are shared, have 0755.
    pub fn lock_or_create(&self, patience: Duration) -> Result<LockedStore, CniError> {
        let deadline = Instant::now() + patience;
        loop {
            let locked = match Directory::open(&self.path) {
                Ok(directory) => self.lock_opened(directory, deadline)?,
                Err(Errno::ENOENT) => {
                    let builder = std::fs::DirBuilder::new;
                    let parent = self.path.parent().unwrap_or(&self.path);
                    let created = builder().recursive(true).mode(0o755).create(parent);
                    created
                        .and_then(|()| builder().recursive(true).mode(0o700).create(&self.path))
                        .map_err(|error| state_error("create", &self.path, errno_of(&error)))?;
                    None
                }
                Err(errno) => return Err(state_error("open", &self.path, errno)),
            };
            if let Some(locked) = locked {
                return Ok(locked);
            }
        }
    }

    /// `None` if the directory was removed while we waited: then it is to be opened again.
    fn lock_opened(&self, directory: Directory, deadline: Instant) -> Result<Option<LockedStore>, CniError> {
        let held = match lock::take(&directory, deadline)? {
            Taken::Held(held) => held,
            Taken::Stale if Instant::now() < deadline => return Ok(None),
            Taken::Stale => {
                let msg = format!("{} is removed again and again while it is locked", self.path.display());
                return Err(CniError::new(Code::TryAgainLater, msg));
            }
        };
        let (index, boot, is_trusted) = self.recall(&directory)?;
        let mut locked = LockedStore {
            directory,
            index,
            boot,
            reclaimed: Vec::new(),
            litter: Cell::new(false),
            _lock: held,
        };
        if !is_trusted {
            locked.rebuild()?;
        }
        Ok(Some(locked))
    }

    /// Looks at the store without the lock and without any change; `None` if there is no directory.
    pub(super) fn glance(&self) -> Result<Option<Glance>, CniError> {
        let directory = match Directory::open(&self.path) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(state_error("open", &self.path, errno)),
        };
        let (index, boot, is_trusted) = self.recall(&directory)?;
        Ok(Some(Glance { directory, index: is_trusted.then_some(index), boot }))
    }

    /// What is remembered of the directory, this boot, and whether both belong together.
    fn recall(&self, directory: &Directory) -> Result<(Index, Option<BootId>, bool), CniError> {
        let stat = directory.stat().map_err(|errno| state_error("stat", &self.path, errno))?;
        let boot = BootId::current();
        let index = Index::open(&self.state, &self.network, stat.st_dev, stat.st_ino);
        let is_trusted = index.has_stamp(&stamp(boot.as_ref(), stat.st_mtime, stat.st_mtime_nsec));
        Ok((index, boot, is_trusted))
    }

    /// Releases all that an owner has and returns it, waiting for the lock as long as `patience`. Nothing there is
    /// success, and nothing is created.
    ///
    /// `given` are addresses that it is believed to have: if the index knows of none, it is not believed before these
    /// were looked at.
    pub fn release(
        &self,
        owner: &Owner,
        given: &[IpAddr],
        patience: Duration,
    ) -> Result<Vec<IpAddr>, CniError> {
        let Some(mut locked) = self.lock(patience)? else { return Ok(Vec::new()) };
        let released = locked.release(owner)?;
        let is_owners = |address: &IpAddr| owner_of(&locked.directory, *address).as_ref() == Some(owner);
        if !released.is_empty() || !given.iter().any(is_owners) {
            return Ok(released);
        }
        locked.rebuild()?;
        locked.release(owner)
    }
}

/// The text that ties an index to a state of the directory. It has the boot, so that an index on a disk instead of a
/// tmpfs does not hide from the next boot that its reservations are dead.
fn stamp(boot: Option<&BootId>, seconds: i64, nanoseconds: i64) -> String {
    format!("1 {} {seconds}.{nanoseconds:09}\n", boot.map_or("-", BootId::as_str))
}

impl LockedStore {
    /// The addresses that an owner has; those that an old version reserved for the container alone are not counted.
    ///
    /// Only files of this owner are opened, to see that they still say so.
    pub fn owned(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, CniError> {
        if let Ok(addresses) = self.index.owned(owner)
            && addresses.iter().all(|address| owner_of(&self.directory, *address).as_ref() == Some(owner))
        {
            return Ok(addresses);
        }
        self.rebuild()?;
        Ok(self.index.owned(owner).unwrap_or_default())
    }

    /// Releases all that an owner has and returns it.
    ///
    /// If it has nothing, what an old version reserved for the container alone is released. Goes on past errors and
    /// reports them together; what could not be released stays recorded.
    pub fn release(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, CniError> {
        let mut owner = owner.clone();
        let mut addresses = self.owned(&owner)?;
        if addresses.is_empty() {
            owner = owner.without_ifname();
            addresses = self.owned(&owner)?;
        }
        self.release_these(&owner, &addresses)?;
        Ok(addresses)
    }

    /// Releases what an owner is known to have.
    pub(super) fn release_these(&mut self, owner: &Owner, addresses: &[IpAddr]) -> Result<(), CniError> {
        if addresses.is_empty() {
            return Ok(());
        }
        let (released, failures) = self.unlink_all(addresses);
        if failures.is_empty() {
            self.index.remove(owner, &released);
            self.seal();
            return Ok(());
        }
        // Without a seal the next call builds the index anew, from what is really there.
        Err(join(failures))
    }

    /// Removes reservations; ones that are gone already count as removed.
    pub(super) fn unlink_all(&self, addresses: &[IpAddr]) -> (Vec<IpAddr>, Vec<CniError>) {
        let (mut removed, mut failures) = (Vec::new(), Vec::new());
        for address in addresses {
            let name = address.to_string();
            match self.directory.unlink(&name) {
                Ok(()) | Err(Errno::ENOENT) => removed.push(*address),
                Err(errno) => failures.push(self.directory.error("remove", &name, errno)),
            }
        }
        (removed, failures)
    }

    /// Declares the directory and the index to agree. To be called after a change, when both have it.
    ///
    /// Where litter is left it does not: the next call then builds the index anew, and tidies up.
    pub(super) fn seal(&mut self) {
        if self.litter.get() {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = TimeSpec::from_duration(now);
        match futimens(self.directory.fd(), &TimeSpec::UTIME_OMIT, &time) {
            Ok(()) => self.index.seal(&stamp(self.boot.as_ref(), time.tv_sec(), time.tv_nsec())),
            Err(errno) => log::debug!("{}", self.directory.error("set the time of", "", errno)),
        }
    }

    /// Reads the whole directory and builds the index from it, removing what is provably dead on the way:
    ///
    /// * reservations that another boot of this machine has made: their pods cannot be alive;
    /// * files without content, or with what was never text: their writer holds the lock while it writes, and it is
    ///   we who hold it;
    /// * a draft of ours, for the same reason.
    ///
    /// A reservation that the Go plugin made carries no boot id and is never judged.
    pub(super) fn rebuild(&mut self) -> Result<(), CniError> {
        let current = boot_to_judge_by(self.boot.clone(), &self.directory);
        let entries = self.directory.entries().map_err(|errno| self.directory.error("list", "", errno))?;
        let mut owners = Owners::new();
        let mut opaque = Vec::new();
        for (name, kind) in entries {
            if name.starts_with(DRAFT) {
                self.discard(&name);
                continue;
            }
            let Some(address) = address_of(&name) else { continue };
            match judge(look(&self.directory, address, kind), current.as_ref()) {
                Judged::Absent => {}
                Judged::Nobodys => opaque.push(address),
                Judged::Dead(owner) => match (self.discard(&name), owner) {
                    (true, Some(owner)) => self.reclaimed.push((owner, address)),
                    (true, None) => {}
                    (false, Some(owner)) => owners.entry(owner).or_default().push(address),
                    (false, None) => opaque.push(address),
                },
                Judged::Owned(owner) => owners.entry(owner).or_default().push(address),
            }
        }
        owners.values_mut().for_each(|addresses| addresses.sort());
        self.index.build(owners, &opaque);
        self.seal();
        Ok(())
    }

    /// Removes a name that means nothing any more; whether it is gone.
    fn discard(&self, name: &str) -> bool {
        let path = self.directory.path().join(name);
        let gone = clear(&self.directory, name);
        if gone {
            log::info!("removed {}: what it was for is gone", path.display());
        } else {
            log::warn!("could not remove {}", path.display());
        }
        gone
    }
}

/// What a name in the directory means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// It is not there.
    Absent,
    /// It keeps its address from being used, and nobody knows for whom.
    Nobodys,
    /// What it was for is gone; whose it was, if it tells.
    Dead(Option<Owner>),
    /// It is a reservation.
    Owned(Owner),
}

/// The boot by which marks are judged; `None` where nothing can be said by them.
pub(super) fn boot_to_judge_by(current: Option<BootId>, directory: &Directory) -> Option<BootId> {
    current.filter(|_| boot::is_local(directory))
}

/// Judges what stands at an address by what it says alone; `current` is this boot, if that means anything.
pub(super) fn judge(found: Found, current: Option<&BootId>) -> Judged {
    let is_of_another_boot = |mark: &Option<BootId>| match (current, mark) {
        (Some(current), Some(mark)) => current != mark,
        _ => false,
    };
    match found {
        Found::Absent => Judged::Absent,
        Found::Opaque => Judged::Nobodys,
        // Somebody may have emptied a reservation of ours; its pod may well be alive.
        Found::Torn(mark) if mark.is_some() && !is_of_another_boot(&mark) => Judged::Nobodys,
        Found::Torn(_) => Judged::Dead(None),
        Found::Owned(owner, mark) if is_of_another_boot(&mark) => Judged::Dead(Some(owner)),
        Found::Owned(owner, _) => Judged::Owned(owner),
    }
}

/// One error of several: the first one's code and message, the others as details.
pub(super) fn join(errors: Vec<CniError>) -> CniError {
    let mut errors = errors.into_iter();
    let first = errors.next().unwrap_or_else(|| CniError::new(Code::Internal, "no error to report"));
    errors.fold(first, |mut first, error| {
        let comma = if first.details.is_empty() { "" } else { "; " };
        first.details = format!("{}{comma}{error}", first.details);
        first
    })
}
