//! Whether the address of a new lease is somebody else's already (RFC 2131, section 3.1, point 5).

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::net::{ArpListener, Mac};

/// How often is asked. One question may be lost on a link that has just come up.
const QUESTIONS: u32 = 2;

/// A pod's link, over which is asked who has an address.
#[derive(Debug)]
pub struct Probe {
    socket: AsyncFd<ArpListener>,
    patience: Duration,
}

impl Probe {
    /// One over that socket, which takes that long.
    pub fn new(socket: ArpListener, patience: Duration) -> std::io::Result<Self> {
        // SAFETY: it owns its descriptor, which stays the same until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket, patience })
    }

    /// Who has the address, if anybody says so in time.
    pub async fn holder_of(&self, address: Ipv4Addr) -> crate::net::Result<Option<Mac>> {
        let socket = self.socket.get_ref();
        socket.listen(address)?;
        for _ in 0..QUESTIONS {
            match socket.ask(address) {
                // Down for now, or full.
                Err(e) if matches!(e.errno, Errno::ENETDOWN | Errno::ENOBUFS | Errno::EAGAIN) => {}
                outcome => outcome?,
            }
            if let Ok(holder) = timeout(self.patience / QUESTIONS, self.answer(address)).await {
                return Ok(holder);
            }
        }
        Ok(None)
    }

    async fn answer(&self, address: Ipv4Addr) -> Option<Mac> {
        loop {
            let Ok(mut ready) = self.socket.readable().await else { return None };
            match self.socket.get_ref().receive(address) {
                Ok(Some(mac)) => return Some(mac),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // Its own, or the link was set down, which is said once.
                _ => {}
            }
        }
    }
}
