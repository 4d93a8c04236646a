//! The system calls at which a fault is injected: those by which a program touches anything but itself.
//!
//! Left out is what concerns the program alone: memory, signals, the clock, its own identity. Nothing can be left
//! behind there.

use nix::errno::Errno;
use nix::libc;

/// What an error does to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The call fails and has done nothing.
    Instead,
    /// The call does its work and reports an error all the same: close(2) always closes.
    Afterwards,
}

/// A system call, and the errors it may end with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    /// Its number on this machine.
    pub(crate) number: libc::c_long,
    /// Its name.
    pub(crate) name: &'static str,
    /// An error that will not go away: EIO, or where that cannot be, what can.
    pub(crate) hard: Option<Errno>,
    /// An error for want of something: memory, space, descriptors, processes.
    pub(crate) scarce: Option<Errno>,
    /// Whether a signal may interrupt it (its manual page has EINTR).
    pub(crate) interruptible: bool,
    /// What an error does to it.
    pub(crate) effect: Effect,
}

impl Watched {
    /// The call with this number, if faults are injected at it.
    pub(crate) fn by_number(number: u64) -> Option<&'static Self> {
        WATCHED.iter().find(|call| u64::try_from(call.number) == Ok(number))
    }

    /// The call with this name.
    pub(crate) fn by_name(name: &str) -> Option<&'static Self> {
        WATCHED.iter().find(|call| call.name == name)
    }

    const fn interruptible(self) -> Self {
        Self { interruptible: true, ..self }
    }

    const fn hard(self, errno: Errno) -> Self {
        Self { hard: Some(errno), ..self }
    }

    const fn afterwards(self) -> Self {
        Self { effect: Effect::Afterwards, ..self }
    }
}

/// A call that may fail with EIO, and for want of something.
const fn call(number: libc::c_long, name: &'static str, scarce: Errno) -> Watched {
    let (hard, scarce) = (Some(Errno::EIO), Some(scarce));
    Watched { number, name, hard, scarce, interruptible: false, effect: Effect::Instead }
}

/// A call that does not fail here, but before which the program may be killed.
const fn sure(number: libc::c_long, name: &'static str) -> Watched {
    Watched { number, name, hard: None, scarce: None, interruptible: false, effect: Effect::Instead }
}

/// All of them, by what they touch.
const WATCHED: &[Watched] = &[
    // Files: reservations, records, locks, sysctls, namespaces, other programs.
    call(libc::SYS_openat, "openat", Errno::EMFILE).interruptible(),
    call(libc::SYS_openat2, "openat2", Errno::EMFILE).interruptible(),
    call(libc::SYS_read, "read", Errno::ENOMEM).interruptible(),
    call(libc::SYS_readv, "readv", Errno::ENOMEM).interruptible(),
    call(libc::SYS_pread64, "pread64", Errno::ENOMEM).interruptible(),
    call(libc::SYS_write, "write", Errno::ENOSPC).interruptible(),
    call(libc::SYS_writev, "writev", Errno::ENOSPC).interruptible(),
    call(libc::SYS_pwrite64, "pwrite64", Errno::ENOSPC).interruptible(),
    call(libc::SYS_close, "close", Errno::ENOSPC).interruptible().afterwards(),
    call(libc::SYS_newfstatat, "newfstatat", Errno::ENOMEM),
    call(libc::SYS_fstat, "fstat", Errno::ENOMEM),
    call(libc::SYS_statx, "statx", Errno::ENOMEM),
    call(libc::SYS_statfs, "statfs", Errno::ENOMEM).interruptible(),
    call(libc::SYS_fstatfs, "fstatfs", Errno::ENOMEM).interruptible(),
    call(libc::SYS_faccessat, "faccessat", Errno::ENOMEM),
    call(libc::SYS_faccessat2, "faccessat2", Errno::ENOMEM),
    call(libc::SYS_readlinkat, "readlinkat", Errno::ENOMEM),
    call(libc::SYS_getdents64, "getdents64", Errno::ENOMEM),
    call(libc::SYS_mkdirat, "mkdirat", Errno::ENOSPC),
    call(libc::SYS_renameat, "renameat", Errno::ENOSPC),
    call(libc::SYS_renameat2, "renameat2", Errno::ENOSPC),
    call(libc::SYS_linkat, "linkat", Errno::ENOSPC),
    call(libc::SYS_symlinkat, "symlinkat", Errno::ENOSPC),
    call(libc::SYS_unlinkat, "unlinkat", Errno::ENOMEM),
    call(libc::SYS_fchmod, "fchmod", Errno::EPERM),
    call(libc::SYS_fchmodat, "fchmodat", Errno::EPERM),
    call(libc::SYS_ftruncate, "ftruncate", Errno::EPERM).interruptible(),
    call(libc::SYS_fsync, "fsync", Errno::ENOSPC).interruptible(),
    call(libc::SYS_fdatasync, "fdatasync", Errno::ENOSPC).interruptible(),
    call(libc::SYS_utimensat, "utimensat", Errno::EPERM),
    call(libc::SYS_fsetxattr, "fsetxattr", Errno::ENOSPC),
    call(libc::SYS_fgetxattr, "fgetxattr", Errno::ENOTSUP),
    // Descriptors, which the children of a program and its caller share.
    call(libc::SYS_dup, "dup", Errno::EMFILE),
    call(libc::SYS_dup3, "dup3", Errno::EMFILE).interruptible(),
    call(libc::SYS_pipe2, "pipe2", Errno::EMFILE).hard(Errno::ENFILE),
    sure(libc::SYS_fcntl, "fcntl"),
    sure(libc::SYS_ioctl, "ioctl"),
    sure(libc::SYS_close_range, "close_range"),
    // Locks, which outlive nobody but may be waited for.
    call(libc::SYS_flock, "flock", Errno::ENOLCK).interruptible(),
    // Waiting for others.
    call(libc::SYS_ppoll, "ppoll", Errno::ENOMEM).hard(Errno::EINVAL).interruptible(),
    call(libc::SYS_wait4, "wait4", Errno::ECHILD).hard(Errno::EINVAL).interruptible(),
    call(libc::SYS_waitid, "waitid", Errno::ECHILD).hard(Errno::EINVAL).interruptible(),
    // Sockets: what is asked of the kernel, and what it answers.
    call(libc::SYS_socket, "socket", Errno::EMFILE).hard(Errno::EPERM),
    call(libc::SYS_bind, "bind", Errno::ENOMEM).hard(Errno::EPERM),
    call(libc::SYS_connect, "connect", Errno::EAGAIN).interruptible(),
    call(libc::SYS_getsockname, "getsockname", Errno::ENOBUFS),
    call(libc::SYS_setsockopt, "setsockopt", Errno::ENOMEM).hard(Errno::EPERM),
    call(libc::SYS_getsockopt, "getsockopt", Errno::ENOMEM),
    call(libc::SYS_sendto, "sendto", Errno::ENOBUFS).interruptible(),
    call(libc::SYS_sendmsg, "sendmsg", Errno::ENOBUFS).interruptible(),
    call(libc::SYS_recvfrom, "recvfrom", Errno::ENOBUFS).interruptible(),
    call(libc::SYS_recvmsg, "recvmsg", Errno::ENOBUFS).interruptible(),
    // Namespaces.
    call(libc::SYS_setns, "setns", Errno::ENOMEM).hard(Errno::EPERM),
    call(libc::SYS_unshare, "unshare", Errno::ENOMEM).hard(Errno::EPERM),
    // Processes and programs.
    call(libc::SYS_clone, "clone", Errno::EAGAIN).hard(Errno::ENOMEM),
    call(libc::SYS_clone3, "clone3", Errno::EAGAIN).hard(Errno::ENOMEM),
    call(libc::SYS_execve, "execve", Errno::ENOMEM),
    call(libc::SYS_chdir, "chdir", Errno::ENOMEM),
    call(libc::SYS_setsid, "setsid", Errno::EPERM).hard(Errno::EPERM),
    sure(libc::SYS_exit_group, "exit_group"),
    // The same under the names that only older machines have.
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_open, "open", Errno::EMFILE).interruptible(),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_stat, "stat", Errno::ENOMEM),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_lstat, "lstat", Errno::ENOMEM),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_access, "access", Errno::ENOMEM),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_readlink, "readlink", Errno::ENOMEM),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_mkdir, "mkdir", Errno::ENOSPC),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_rename, "rename", Errno::ENOSPC),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_link, "link", Errno::ENOSPC),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_unlink, "unlink", Errno::ENOMEM),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_rmdir, "rmdir", Errno::ENOMEM),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_dup2, "dup2", Errno::EMFILE).interruptible(),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_pipe, "pipe", Errno::EMFILE).hard(Errno::ENFILE),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_poll, "poll", Errno::ENOMEM).hard(Errno::EINVAL).interruptible(),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_fork, "fork", Errno::EAGAIN).hard(Errno::ENOMEM),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_vfork, "vfork", Errno::EAGAIN).hard(Errno::ENOMEM),
];
