//! A reservation: one file, named by its address, that tells whose it is.
//!
//! The form is that of the Go host-local: the container's id, CR LF, the interface's name, no newline at the end,
//! mode 0600. Old versions wrote the container's id only. White space around is ignored when it is read.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::{fmt, str};

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::unistd::linkat;

use super::boot::BootId;
use super::directory::{Directory, MAX_READ, errno_of, read_all};
use crate::spec::names::{check_identifier, check_ifname};
use crate::spec::{Attachment, CniError};

/// The name under which a reservation is written before it gets its address. No address begins so, and the Go
/// plugins pass over it. There is never more than one, since it exists only under the lock.
pub(super) const DRAFT: &str = ".bridgehead-draft";

/// How many other names are tried, each with a number at its end, if something is in the way that cannot be removed.
const MORE_DRAFTS: usize = 8;

/// Whose a reservation is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// ID of the container.
    pub container_id: String,
    /// Name of its interface; empty in reservations of old versions, which did not write it.
    pub ifname: String,
}

impl Owner {
    /// The owner that an attachment is.
    pub fn of(attachment: &Attachment) -> Self {
        Self { container_id: attachment.container_id.clone(), ifname: attachment.ifname.clone() }
    }

    /// The same container as old versions wrote it, without an interface.
    pub fn without_ifname(&self) -> Self {
        Self { container_id: self.container_id.clone(), ifname: String::new() }
    }

    /// The content of its reservations.
    fn encode(&self) -> String {
        format!("{}\r\n{}", self.container_id, self.ifname)
    }

    /// The owner that a reservation's content names; `None` if it names nobody that could ever release it.
    fn decode(content: &str) -> Option<Self> {
        let content = content.trim();
        let (container_id, ifname) = content.split_once('\n').unwrap_or((content, ""));
        let (container_id, ifname) = (container_id.trim_end(), ifname.trim());
        let valid =
            check_identifier(container_id).is_ok() && (ifname.is_empty() || check_ifname(ifname).is_ok());
        valid.then(|| Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}", self.container_id)?;
        if self.ifname.is_empty() { Ok(()) } else { write!(f, " interface {}", self.ifname) }
    }
}

/// The address that a file in the store is named after. Other spellings than the canonical one reserve nothing.
pub(super) fn address_of(name: &str) -> Option<IpAddr> {
    let address: IpAddr = name.parse().ok()?;
    (address.to_string() == name).then_some(address)
}

/// What stands at an address in the store.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Absent,
    /// A reservation, and the boot that it is marked with.
    Owned(Owner, Option<BootId>),
    /// A file without content, or with what is no text: the Go plugin creates the file first and writes afterwards,
    /// so this is what is left of it if it was killed in between, or of anybody's after a power failure. Also a file
    /// with a mark of ours whose content is not ours any more. It belongs to nobody.
    Torn(Option<BootId>),
    /// Something that is no reservation but occupies the name: a directory, a symbolic link, a file that cannot be
    /// read, or text that somebody put there by hand to keep the address out of use.
    Opaque,
}

/// Looks at what stands at an address. Never an error: what cannot be understood is [`Found::Opaque`].
pub(super) fn look(directory: &Directory, address: IpAddr, kind: Option<Type>) -> Found {
    if !matches!(kind, None | Some(Type::File)) {
        return Found::Opaque;
    }
    let mut file = match directory.open_file(&address.to_string(), OFlag::O_RDONLY, 0) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Found::Absent,
        Err(_) => return Found::Opaque,
    };
    if !file.metadata().is_ok_and(|it| it.is_file()) {
        return Found::Opaque;
    }
    let Ok(content) = read_all(&mut file) else { return Found::Opaque };
    let mark = BootId::of(&file);
    let text = str::from_utf8(&content).ok();
    if let Some(owner) = text.filter(|_| content.len() < MAX_READ).and_then(Owner::decode) {
        return Found::Owned(owner, mark);
    }
    if mark.is_some() || text.is_none_or(is_torn) { Found::Torn(mark) } else { Found::Opaque }
}

/// Whether nobody has written this. After a power failure a filesystem may show zeros, or what else the disk had,
/// where there should be content, wholly or in part.
fn is_torn(text: &str) -> bool {
    text.trim().is_empty() || text.chars().any(|c| c.is_control() && !c.is_whitespace())
}

/// Whose the reservation of an address is, if anybody's. Cheaper than [`look`]: for addresses of one's own.
pub(super) fn owner_of(directory: &Directory, address: IpAddr) -> Option<Owner> {
    let content = directory.read(&address.to_string()).ok()?;
    str::from_utf8(&content).ok().and_then(Owner::decode)
}

/// A complete reservation that has no address yet.
///
/// It is given one with link(2), which refuses to replace: so a reservation appears with all that it says, or not at
/// all. Neither O_TMPFILE (not on overlay or NFS) nor renameat2(2) would be cheaper.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    directory: &'a Directory,
    litter: &'a Cell<bool>,
    name: String,
}

impl<'a> Draft<'a> {
    /// Writes a draft. The caller holds the lock, and learns by `litter` if the draft could not be removed again.
    pub(super) fn write(
        directory: &'a Directory,
        litter: &'a Cell<bool>,
        owner: &Owner,
        boot: Option<&BootId>,
    ) -> Result<Self, CniError> {
        let failed = |errno| directory.error("write", DRAFT, errno);
        let (name, mut file) = create_draft(directory).map_err(failed)?;
        let draft = Self { directory, litter, name };
        file.write_all(owner.encode().as_bytes()).map_err(|error| failed(errno_of(&error)))?;
        if let Some(boot) = boot
            && let Err(errno) = boot.mark(&file)
        {
            log::debug!("no boot id on reservations in {}: {errno}", directory.path().display());
        }
        Ok(draft)
    }

    /// Gives it an address; `false` if that is taken. May be tried with one address after another.
    pub(super) fn publish(&self, address: IpAddr) -> Result<bool, CniError> {
        let name = address.to_string();
        let fd = self.directory.fd();
        match linkat(fd, self.name.as_str(), fd, name.as_str(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(self.directory.error("create", &name, errno)),
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Err(errno) = self.directory.unlink(&self.name) {
            self.litter.set(true);
            log::debug!("{}", self.directory.error("remove", &self.name, errno));
        }
    }
}

/// Creates an empty draft, with the name that it has.
///
/// One that is there was left by a process that was killed; nobody else is here. It is not written anew in place,
/// because it may have got its address already and would be somebody's reservation.
fn create_draft(directory: &Directory) -> Result<(String, File), Errno> {
    let create =
        |name: &str| directory.open_file(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, 0o600);
    let mut name = DRAFT.to_owned();
    for number in 1..=MORE_DRAFTS {
        match create(&name) {
            Ok(file) => return Ok((name, file)),
            Err(Errno::EEXIST) if clear(directory, &name) => {}
            // What cannot be removed, such as a directory with something in it, is left alone.
            Err(Errno::EEXIST) => name = format!("{DRAFT}-{number}"),
            Err(errno) => return Err(errno),
        }
    }
    create(&name).map(|file| (name, file))
}

/// Removes whatever has a name, except for a directory that is not empty; whether it is gone.
pub(super) fn clear(directory: &Directory, name: &str) -> bool {
    let outcome = match directory.unlink(name) {
        Err(Errno::EISDIR | Errno::EPERM) => directory.remove_directory(name),
        outcome => outcome,
    };
    matches!(outcome, Ok(()) | Err(Errno::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(container_id: &str, ifname: &str) -> Owner {
        Owner { container_id: container_id.into(), ifname: ifname.into() }
    }

    #[test]
    fn content_is_that_of_the_reference() {
        assert_eq!(owner("abc", "eth0").encode(), "abc\r\neth0");
    }

    #[test]
    fn content_is_read_with_white_space_and_in_its_old_form() {
        for (content, expected) in [
            ("abc\r\neth0", owner("abc", "eth0")),
            (" abc\r\neth0\n", owner("abc", "eth0")),
            ("abc\neth0", owner("abc", "eth0")),
            ("abc", owner("abc", "")),
            ("abc\r\n", owner("abc", "")),
        ] {
            assert_eq!(Owner::decode(content), Some(expected), "{content:?}");
        }
        for content in ["", "../x", "kept by hand", "a\r\nb\r\nc", "a\r\nb/c"] {
            assert_eq!(Owner::decode(content), None, "{content:?}");
        }
    }

    #[test]
    fn only_canonical_names_are_addresses() {
        assert!(address_of("10.0.0.1").is_some() && address_of("2001:db8::1").is_some());
        for name in ["lock", "last_reserved_ip.0", "2001:DB8::1", "2001:db8:0::1", "10.0.0.01", DRAFT] {
            assert_eq!(address_of(name), None, "{name}");
        }
    }
}
