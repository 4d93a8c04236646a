//! Which boot of the kernel wrote a reservation.
//!
//! A pod does not survive a reboot, its reservation on disk does, and no runtime removes it. So every reservation
//! carries the boot id of the kernel that its pod runs on, as an extended attribute: the content is a contract with
//! the Go plugins and has no room for it, and file times cannot be trusted across a boot (clocks start wrong).

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::fstatfs;

use super::directory::Directory;

/// Name of the attribute.
const ATTRIBUTE: &std::ffi::CStr = c"user.bridgehead.boot";

/// Where the kernel tells the id; a random UUID for each boot (Documentation/admin-guide/sysctl/kernel.rst, random).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Filesystems that several machines may share: there, another boot id may be that of a living neighbour.
/// Magic numbers from linux/magic.h; those of CIFS and SMB2 from fs/smb/client/cifsglob.h.
const SHARED: [i64; 10] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x00c3_6400, // Ceph
    0x6573_5546, // FUSE, as GlusterFS is mounted
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0x5346_414f, // AFS
    0x6b41_4653, // AFS, the kernel's own client
    0x0102_1997, // 9P
];

/// The id of a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BootId(String);

impl BootId {
    /// The id of the running kernel's boot; `None` without /proc, and then nothing is provably dead.
    pub(super) fn current() -> Option<Self> {
        let mut text = [0; 64];
        match File::open(BOOT_ID).and_then(|mut file| file.read(&mut text)) {
            Ok(len) => Self::parse(text.get(..len)?),
            Err(error) => {
                log::debug!("could not read {BOOT_ID}: {error}; reservations carry no boot id");
                None
            }
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// Its text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Writes the id on a file. Where that is not possible (a tmpfs of a kernel before 6.6: EOPNOTSUPP) the file is
    /// merely not provably of an earlier boot.
    pub(super) fn mark(&self, file: &File) -> Result<(), Errno> {
        // SAFETY: the name is a C string, and the kernel reads exactly the given number of bytes of the value.
        let result = unsafe {
            libc::fsetxattr(file.as_raw_fd(), ATTRIBUTE.as_ptr(), self.0.as_ptr().cast(), self.0.len(), 0)
        };
        Errno::result(result).map(drop)
    }

    /// The id that is written on a file, if any.
    pub(super) fn of(file: &File) -> Option<Self> {
        let mut value = [0_u8; 64];
        // SAFETY: the name is a C string, and the kernel writes at most the given number of bytes into the value.
        let len = unsafe {
            libc::fgetxattr(file.as_raw_fd(), ATTRIBUTE.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        Self::parse(value.get(..usize::try_from(len).ok()?)?)
    }
}

/// Whether the directory is this machine's alone, so that another boot's id can only be an earlier one of its own.
pub(super) fn is_local(directory: &Directory) -> bool {
    #[allow(clippy::unnecessary_cast, reason = "the type of the number differs between C libraries")]
    fstatfs(directory.fd()).is_ok_and(|stat| !SHARED.contains(&(stat.filesystem_type().0 as i64)))
}
