//! The bytes of a legacy table, as the kernel gives them out. All that is read from them is whether a chain is there,
//! and which ports are named: questions that the command answers only by being executed.

use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::Protocol;
use super::native::ports_in;
use crate::net::{Error, Result};

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES` (linux/netfilter_ipv4/ip_tables.h; the same for IPv6).
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// How often a table is read that changes between the question for its size and the one for its content.
const TRIES: usize = 10;

/// struct ipt_getinfo, which is struct ip6t_getinfo too.
#[repr(C)]
#[derive(Default)]
struct GetInfo {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

/// Length of struct ipt_get_entries before its entries: the table's name, their size, and what aligns them to eight
/// bytes.
const ENTRIES_OFFSET: usize = 40;

/// How many bytes the name and the revision of a match take.
const MATCH_NAME: usize = 30;

/// Whether the `nat` table of a protocol has a chain. The table must be in use in this namespace: asking for it
/// would make it.
pub(super) fn nat_has_chain(protocol: Protocol, chain: &str) -> Result<bool> {
    Ok(has_chain(&nat_table(protocol)?, chain))
}

/// Whether the `nat` table of a protocol has a chain, and a list of ports with one of these.
pub(super) fn nat_may_name(protocol: Protocol, chain: &str, ports: &[u16]) -> Result<bool> {
    let entries = nat_table(protocol)?;
    Ok(has_chain(&entries, chain) && names_port(&entries, ports))
}

fn nat_table(protocol: Protocol) -> Result<Vec<u8>> {
    let failed = |e: Errno| Error::new(format!("read the legacy nat table of {}", protocol.command()), e);
    let (family, level) = match protocol {
        Protocol::Ipv4 => (AddressFamily::Inet, libc::IPPROTO_IP),
        Protocol::Ipv6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Raw, flags, SockProtocol::Raw).map_err(failed)?;
    for _ in 0..TRIES {
        let mut info = GetInfo::default();
        info.name[..3].copy_from_slice(b"nat");
        get(&socket, level, GET_INFO, bytes_of(&mut info)).map_err(failed)?;
        let mut entries = vec![0; ENTRIES_OFFSET + info.size as usize];
        entries[..3].copy_from_slice(b"nat");
        entries[32..36].copy_from_slice(&info.size.to_ne_bytes());
        match get(&socket, level, GET_ENTRIES, &mut entries) {
            Ok(()) => return Ok(entries),
            // The size is not the table's any more.
            Err(Errno::EAGAIN) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Err(failed(Errno::EAGAIN))
}

/// A chain begins with an entry that has its name, filled with zeros, behind a revision number that is zero
/// (struct xt_error_target). No other text in a table stands between zeros and is the name of a chain.
fn has_chain(entries: &[u8], chain: &str) -> bool {
    let name = [b"\0", chain.as_bytes(), b"\0"].concat();
    entries.windows(name.len()).any(|window| window == name)
}

/// A list of ports is a match with that name, which fills [`MATCH_NAME`] bytes with its revision behind it, and then
/// struct xt_multiport_v1 (struct xt_entry_match of linux/netfilter/x_tables.h).
fn names_port(entries: &[u8], ports: &[u16]) -> bool {
    const NAME: &[u8] = b"multiport\0";
    let begins = entries.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME);
    let mut lists = begins.filter_map(|(at, _)| ports_in(entries.get(at + MATCH_NAME..)?));
    lists.any(|list| list.iter().any(|port| ports.contains(port)))
}

fn bytes_of(info: &mut GetInfo) -> &mut [u8] {
    // SAFETY: the struct is plain integers without padding (84 bytes, all of them u8 or u32), so all its bytes are
    // initialised and all bytes are valid for it; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(info).cast::<u8>(), size_of::<GetInfo>()) }
}

fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &mut [u8]) -> nix::Result<()> {
    let mut len = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EMSGSIZE)?;
    // SAFETY: `value` is valid for writes of `len` bytes, and the kernel writes no more than that.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(answer).map(drop)
}
