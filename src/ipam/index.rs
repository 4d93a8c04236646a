//! What is remembered of a network's directory, so that no call need list it or open what belongs to others.
//!
//! The directory of reservations is the truth and is shared with the Go plugins; this is only ours, and lost with
//! every boot. It lies in `<state>/ipam/<network>.<device>-<inode of the directory>/`:
//!
//! * `owners/<container id>:<interface>`: the owner's addresses, one per line, and a last line that tells that nothing
//!   is missing;
//! * `taken/<4 or 6>-<upper bits in hex>`: a [`Bitmap`] of the addresses that share them, as a sparse file. A hint:
//!   whether an address can be had is decided by link(2) alone;
//! * `stamp`: which state of the directory all this describes.
//!
//! It is named after the directory's inode, not its path, because the lock belongs to the inode: two mount
//! namespaces may have different directories at the same path and share /run.
//!
//! Nothing here is ever an error to the caller. What cannot be read is not trusted; what cannot be written is given
//! up, and the next call builds it anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::{io, str};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::bitmap::{BYTES, Bitmap};
use super::directory::{Directory, errno_of};
use super::range::{Stretch, to_number};
use super::reservation::Owner;
use super::state_directory::StateDirectory;
use crate::spec::digest::sha512_hex;

/// The last line of an owner's file.
const END: &str = "end";

/// Everything that a directory holds.
pub(super) type Owners = BTreeMap<Owner, Vec<IpAddr>>;

/// The index cannot tell; it must be built anew.
#[derive(Debug)]
pub(super) struct Unknown;

/// Which block an address is in: whether it is IPv4, and all but the last 16 bits of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct BlockId {
    ipv4: bool,
    upper: u128,
}

impl BlockId {
    fn of(address: IpAddr) -> Self {
        Self { ipv4: address.is_ipv4(), upper: to_number(address) >> 16 }
    }

    fn file(self) -> String {
        format!("taken/{}-{:x}", if self.ipv4 { 4 } else { 6 }, self.upper)
    }

    fn parse(name: &str) -> Option<Self> {
        let (family, upper) = name.split_once('-')?;
        Some(Self { ipv4: family == "4", upper: u128::from_str_radix(upper, 16).ok()? })
    }
}

/// The offset of an address in its block.
fn offset(number: u128) -> u16 {
    (number & 0xffff) as u16
}

/// A block that was looked at: its bits, and its file if there is one.
#[derive(Debug)]
struct Block {
    bits: Bitmap,
    file: Option<File>,
}

/// The index of one directory. All use is under that directory's lock.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// `None` where there is none yet, or it had to be given up.
    directory: Option<Directory>,
    stamp: Option<File>,
    /// All owners; known only in the call that built the index.
    owners: Option<Owners>,
    blocks: BTreeMap<BlockId, Block>,
}

impl Index {
    /// The index of a network's directory, which has this device and inode number, beneath the state directory.
    pub(super) fn open(state: &Path, network: &str, dev: u64, ino: u64) -> Self {
        // The number makes it unique; the name is for people, and must leave room for the number.
        let name: String = network.chars().take(200).collect();
        let path = state.join("ipam").join(format!("{name}.{dev:x}-{ino:x}"));
        let directory = if StateDirectory::is_usable(state) { Directory::open_own(&path).ok() } else { None };
        let stamp = directory.as_ref().and_then(|it| it.open_file("stamp", OFlag::O_RDWR, 0).ok());
        Self { path, directory, stamp, owners: None, blocks: BTreeMap::new() }
    }

    /// Whether it describes the state of the directory that this stamp was made for.
    pub(super) fn has_stamp(&self, stamp: &str) -> bool {
        let mut content = [0; 256];
        let read = self.stamp.as_ref().and_then(|file| file.read_at(&mut content, 0).ok());
        read.and_then(|len| content.get(..len)) == Some(stamp.as_bytes())
    }

    /// Whether it was built in this call, so that nothing newer can be had.
    pub(super) fn is_fresh(&self) -> bool {
        self.owners.is_some()
    }

    /// Begins anew with everything that the directory holds: its owners, and what is taken by nobody known.
    pub(super) fn build(&mut self, owners: Owners, opaque: &[IpAddr]) {
        self.stamp = None;
        self.blocks.clear();
        for address in owners.values().flatten().chain(opaque) {
            let number = to_number(*address);
            let block = self.blocks.entry(BlockId::of(*address));
            block.or_insert_with(|| Block { bits: Bitmap::default(), file: None }).bits.set(offset(number));
        }
        let written = self.write(&owners);
        self.owners = Some(owners);
        if let Err(errno) = written {
            self.give_up(errno);
        }
    }

    fn write(&mut self, owners: &Owners) -> Result<(), Errno> {
        if !self.path.parent().and_then(Path::parent).is_some_and(StateDirectory::is_usable) {
            return Err(Errno::ENOTDIR);
        }
        // First of all: if this call is killed while the rest goes, nobody must believe what is left.
        if let Some(directory) = self.directory.take() {
            match directory.unlink("stamp") {
                Ok(()) | Err(Errno::ENOENT | Errno::EISDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let removed = match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(&self.path),
            other => other,
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(errno_of(&error)),
            _ => {}
        }
        if let Some(parent) = self.path.parent()
            && parent.is_symlink()
        {
            std::fs::remove_file(parent).map_err(|error| errno_of(&error))?;
        }
        for part in ["owners", "taken"] {
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(self.path.join(part));
            made.map_err(|error| errno_of(&error))?;
        }
        let directory = Directory::open_own(&self.path)?;
        for (owner, addresses) in owners {
            write_owner(&directory, owner, addresses)?;
        }
        for (id, block) in &mut self.blocks {
            let file = create(&directory, &id.file())?;
            file.write_all_at(block.bits.bytes(), 0).map_err(|error| errno_of(&error))?;
            block.file = Some(file);
        }
        self.directory = Some(directory);
        Ok(())
    }

    /// Lets the index go: without a stamp the next call builds it anew, and this one keeps what it has in memory.
    fn give_up(&mut self, errno: Errno) {
        log::debug!("the index {} is of no use: {errno}", self.path.display());
        if let Some(directory) = self.directory.take() {
            let _ = directory.unlink("stamp");
            // What is of no use shall not lie about either; as far as it goes.
            let _ = std::fs::remove_dir_all(&self.path);
        }
        self.stamp = None;
        for block in self.blocks.values_mut() {
            block.file = None;
        }
    }

    /// Declares that it describes the state that `stamp` stands for.
    pub(super) fn seal(&mut self, stamp: &str) {
        let Some(directory) = &self.directory else { return };
        let sealed = match &self.stamp {
            Some(file) => file.write_all_at(stamp.as_bytes(), 0).map_err(|error| errno_of(&error)),
            None => create(directory, "stamp")
                .and_then(|mut file| file.write_all(stamp.as_bytes()).map_err(|error| errno_of(&error))),
        };
        if let Err(errno) = sealed {
            self.give_up(errno);
        }
    }

    /// The addresses of an owner.
    pub(super) fn owned(&self, owner: &Owner) -> Result<Vec<IpAddr>, Unknown> {
        if let Some(owners) = &self.owners {
            return Ok(owners.get(owner).cloned().unwrap_or_default());
        }
        let content = match self.directory.as_ref().ok_or(Unknown)?.read(&owner_file(owner)) {
            Ok(content) => content,
            Err(Errno::ENOENT) => return Ok(Vec::new()),
            Err(_) => return Err(Unknown),
        };
        decode(&content).ok_or(Unknown)
    }

    /// All owners; known only if [`Self::is_fresh`].
    pub(super) fn owners(&self) -> Result<&Owners, Unknown> {
        self.owners.as_ref().ok_or(Unknown)
    }

    /// Records what an owner has now, and that it is taken.
    pub(super) fn insert(&mut self, owner: &Owner, addresses: &[IpAddr]) {
        if let Some(owners) = &mut self.owners {
            owners.insert(owner.clone(), addresses.to_vec());
        }
        let written = self.directory.as_ref().map(|directory| write_owner(directory, owner, addresses));
        if let Some(Err(errno)) = written {
            self.give_up(errno);
        }
        for address in addresses {
            self.set_taken(*address);
        }
    }

    /// Records that an owner has nothing any more, and that these addresses are free.
    pub(super) fn remove(&mut self, owner: &Owner, addresses: &[IpAddr]) {
        if let Some(owners) = &mut self.owners {
            owners.remove(owner);
        }
        match self.directory.as_ref().map(|directory| directory.unlink(&owner_file(owner))) {
            None | Some(Ok(()) | Err(Errno::ENOENT)) => {}
            Some(Err(errno)) => self.give_up(errno),
        }
        for address in addresses {
            self.set_free(*address);
        }
    }

    /// Records that an address is taken, whoever by.
    pub(super) fn set_taken(&mut self, address: IpAddr) {
        let number = to_number(address);
        let id = BlockId::of(address);
        let (place, byte) = self.block(id).bits.set(offset(number));
        self.store(id, place, byte);
    }

    /// Records that an address is free.
    pub(super) fn set_free(&mut self, address: IpAddr) {
        let number = to_number(address);
        let id = BlockId::of(address);
        let block = self.block(id);
        let (place, byte) = block.bits.clear(offset(number));
        // Requested IPv6 addresses may be anywhere, each in a block of its own: what is empty goes, so that there
        // are never more blocks than reservations.
        if byte == 0 && block.file.is_some() && block.bits.is_empty() {
            self.blocks.remove(&id);
            if let Some(Err(errno)) = self.directory.as_ref().map(|directory| directory.unlink(&id.file())) {
                self.give_up(errno);
            }
        } else {
            self.store(id, place, byte);
        }
    }

    /// The number of the first free address of a stretch.
    pub(super) fn first_free(&mut self, stretch: &Stretch) -> Option<u128> {
        let (last, except) = (stretch.last, stretch.gateway());
        let mut next = stretch.first;
        while next <= last {
            let block_end = next | 0xffff;
            let until = last.min(block_end);
            let id = BlockId { ipv4: stretch.is_ipv4(), upper: next >> 16 };
            match self.block(id).bits.first_clear(offset(next), offset(until)) {
                Some(found) => {
                    let number = (next & !0xffff) | u128::from(found);
                    if number != except {
                        return Some(number);
                    }
                    next = number.checked_add(1)?;
                }
                None => next = block_end.checked_add(1)?,
            }
        }
        None
    }

    /// How many addresses of a stretch are taken.
    pub(super) fn count_taken(&mut self, stretch: &Stretch) -> u128 {
        let (first, last, except) = (stretch.first, stretch.last, stretch.gateway());
        let mut ids: Vec<BlockId> = self.blocks.keys().copied().collect();
        if !self.is_fresh()
            && let Some(Ok(taken)) =
                self.directory.as_ref().map(|it| Directory::open_own(&it.path().join("taken")))
        {
            let names = taken.entries().unwrap_or_default();
            ids.extend(names.iter().filter_map(|(name, _)| BlockId::parse(name)));
            ids.sort();
            ids.dedup();
        }
        let mut count = 0;
        for id in ids.into_iter().filter(|id| id.ipv4 == stretch.is_ipv4()) {
            let (low, high) = (id.upper << 16, (id.upper << 16) | 0xffff);
            if low > last || high < first {
                continue;
            }
            let bits = &self.block(id).bits;
            count += u128::from(bits.count(offset(low.max(first)), offset(high.min(last))));
            let excepted = (low.max(first)..=high.min(last)).contains(&except) && bits.is_set(offset(except));
            count -= u128::from(excepted);
        }
        count
    }

    /// A block, read on first use; what cannot be read counts as free, since link(2) decides.
    fn block(&mut self, id: BlockId) -> &mut Block {
        let (directory, fresh) = (&self.directory, self.owners.is_some());
        self.blocks.entry(id).or_insert_with(|| {
            // What has just been built is complete: a block that it does not have, there is not.
            let file = directory
                .as_ref()
                .filter(|_| !fresh)
                .and_then(|it| it.open_file(&id.file(), OFlag::O_RDWR, 0).ok());
            let read = file.as_ref().map_or_else(|| Ok(Bitmap::default()), Bitmap::read);
            let bits = read.unwrap_or_else(|error| {
                log::debug!("could not read {}: {error}", id.file());
                Bitmap::default()
            });
            Block { bits, file }
        })
    }

    /// Writes one byte of a block.
    fn store(&mut self, id: BlockId, place: usize, byte: u8) {
        debug_assert!(place < BYTES);
        let Some(directory) = &self.directory else { return };
        let Some(block) = self.blocks.get_mut(&id) else { return };
        let file = match block.file.take() {
            Some(file) => Ok(file),
            None => create(directory, &id.file()),
        };
        let written = file.and_then(|file| {
            file.write_all_at(&[byte], place as u64).map_err(|error| errno_of(&error))?;
            Ok(file)
        });
        match written {
            Ok(file) => block.file = Some(file),
            Err(errno) => self.give_up(errno),
        }
    }
}

/// The file of an owner. The container id has no colon, and begins with a letter or digit, so names are unambiguous.
fn owner_file(owner: &Owner) -> String {
    let name = format!("{}:{}", owner.container_id, owner.ifname);
    if name.len() <= 255 { format!("owners/{name}") } else { format!("owners/#{}", sha512_hex(&[&name], 64)) }
}

/// The addresses in an owner's file; `None` if it is not as it was written.
fn decode(content: &[u8]) -> Option<Vec<IpAddr>> {
    let lines = str::from_utf8(content).ok()?.strip_suffix(END)?.lines();
    lines.map(|line| line.parse().ok()).collect()
}

fn write_owner(directory: &Directory, owner: &Owner, addresses: &[IpAddr]) -> Result<(), Errno> {
    let mut content: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    content.push_str(END);
    let mut file = create(directory, &owner_file(owner))?;
    file.write_all(content.as_bytes()).map_err(|error| errno_of(&error))
}

fn create(directory: &Directory, name: &str) -> Result<File, Errno> {
    directory.open_file(name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC, 0o600)
}
