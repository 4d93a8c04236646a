//! What a stopped thread is doing, and changing it. The only part that knows a machine's registers.

use std::mem::{MaybeUninit, size_of};

use anyhow::Result;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// `PTRACE_GET_SYSCALL_INFO` and what it says (linux/ptrace.h).
const GET_SYSCALL_INFO: i32 = 0x420e;
const ENTRY: u8 = 1;

/// struct ptrace_syscall_info, with the part for an entry; C libraries other than GNU's do not declare it. After a call,
/// its result stands where its number was.
#[repr(C)]
struct Info {
    op: u8,
    _pad: [u8; 3],
    _arch: u32,
    _instruction: u64,
    _stack: u64,
    number: u64,
    arguments: [u64; 6],
}

/// On which side of a system call a thread has stopped.
pub(crate) enum Stop {
    /// Before it.
    Entry {
        /// Its number.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// After it.
    Exit {
        /// What it gives, or an error below zero.
        result: i64,
    },
}

/// On which side of a system call a thread has stopped.
pub(crate) fn stop(pid: Pid) -> Result<Stop> {
    let mut info = MaybeUninit::<Info>::zeroed();
    // SAFETY: the kernel writes at most as many bytes as it is told that there are.
    let result =
        unsafe { libc::ptrace(GET_SYSCALL_INFO as _, pid.as_raw(), size_of::<Info>(), info.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: all bit patterns are values of its fields, and it was zeroed.
    let info = unsafe { info.assume_init() };
    Ok(match info.op {
        ENTRY => Stop::Entry { number: info.number, arguments: info.arguments },
        _ => Stop::Exit { result: info.number.cast_signed() },
    })
}

/// Makes a call that a thread has stopped before do nothing.
#[cfg(target_arch = "x86_64")]
pub(crate) fn skip_call(pid: Pid) -> Result<()> {
    write(pid, std::mem::offset_of!(libc::user_regs_struct, orig_rax), -1)
}

/// Gives a call that a thread has stopped behind another result.
#[cfg(target_arch = "x86_64")]
pub(crate) fn set_result(pid: Pid, result: i64) -> Result<()> {
    write(pid, std::mem::offset_of!(libc::user_regs_struct, rax), result)
}

#[cfg(target_arch = "x86_64")]
fn write(pid: Pid, register: usize, value: i64) -> Result<()> {
    Ok(nix::sys::ptrace::write_user(pid, register as nix::sys::ptrace::AddressType, value)?)
}

/// Makes a call that a thread has stopped before do nothing.
#[cfg(target_arch = "aarch64")]
pub(crate) fn skip_call(pid: Pid) -> Result<()> {
    const NT_ARM_SYSTEM_CALL: i32 = 0x404;
    let mut number: i32 = -1;
    let mut part = libc::iovec { iov_base: (&raw mut number).cast(), iov_len: size_of::<i32>() };
    // SAFETY: the kernel reads the number through the vector, and both live until the call returns.
    let result =
        unsafe { libc::ptrace(libc::PTRACE_SETREGSET as _, pid.as_raw(), NT_ARM_SYSTEM_CALL, &raw mut part) };
    Errno::result(result)?;
    Ok(())
}

/// Gives a call that a thread has stopped behind another result.
#[cfg(target_arch = "aarch64")]
pub(crate) fn set_result(pid: Pid, result: i64) -> Result<()> {
    let mut registers = nix::sys::ptrace::getregs(pid)?;
    registers.regs[0] = result.cast_unsigned();
    Ok(nix::sys::ptrace::setregs(pid, registers)?)
}
