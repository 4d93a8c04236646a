//! A raw socket on an interface: sends any frame, and hears every one.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::expect::PATIENCE;
use crate::pod::Pod;

/// How long those are waited for that should not come, after one came that was sent behind them.
const GRACE: Duration = Duration::from_millis(30);

/// A socket of `AF_PACKET` (packet(7)), bound to an interface.
#[derive(Debug)]
pub(in crate::cases) struct Wire(OwnedFd);

impl Wire {
    /// Opens it on an interface of a namespace.
    pub(in crate::cases) fn open(pod: &Pod, ifname: &str) -> Result<Self> {
        let name = CString::new(ifname)?;
        let opened = pod.inside(|| -> io::Result<OwnedFd> {
            let every_protocol = (libc::ETH_P_ALL as u16).to_be();
            let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: three numbers; the descriptor that comes back is nobody else's.
            let fd = unsafe {
                let fd = libc::socket(libc::AF_PACKET, flags, i32::from(every_protocol));
                if fd < 0 {
                    return Err(io::Error::last_os_error());
                }
                OwnedFd::from_raw_fd(fd)
            };
            // SAFETY: all zeros are a valid address, and the name ends with a NUL.
            let (mut address, index) =
                unsafe { (std::mem::zeroed::<libc::sockaddr_ll>(), libc::if_nametoindex(name.as_ptr())) };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = every_protocol;
            address.sll_ifindex = index as i32;
            let len = size_of_val(&address) as libc::socklen_t;
            // SAFETY: the address is as long as is said.
            if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(fd)
        })?;
        Ok(Self(opened.with_context(|| format!("open a raw socket on {ifname} of {}", pod.netns()))?))
    }

    /// Sends a frame, from its destination on.
    pub(in crate::cases) fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the buffer is as long as is said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if usize::try_from(sent) != Ok(frame.len()) {
            bail!("send a frame of {} bytes: {}", frame.len(), io::Error::last_os_error());
        }
        Ok(())
    }

    /// The next frame, without the VLAN tag that it may have had; none once the time is over.
    pub(in crate::cases) fn hear(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 4096];
        loop {
            // SAFETY: the buffer is as long as is said.
            let len = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            if let Ok(len) = usize::try_from(len) {
                frame.truncate(len);
                return Ok(Some(frame));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error).context("hear a frame");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if left.is_zero() || poll(&mut fds, PollTimeout::try_from(millis)?)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Hears frames until the last of those that are listed has come, and a moment longer; tells of each if it came.
    pub(in crate::cases) fn heard(&self, wanted: &[&[u8]]) -> Result<Vec<bool>> {
        let mut heard = vec![false; wanted.len()];
        let mut deadline = Instant::now() + PATIENCE;
        while let Some(frame) = self.hear(deadline)? {
            let Some(index) = wanted.iter().position(|one| *one == frame) else { continue };
            heard[index] = true;
            if index + 1 == wanted.len() {
                deadline = deadline.min(Instant::now() + GRACE);
            }
        }
        Ok(heard)
    }
}
