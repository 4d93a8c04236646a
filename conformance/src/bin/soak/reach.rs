//! Whether a pod is reached at its addresses: it, and no other that has the same address.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use conformance::pod::Pod;

/// How long a connection may take: a lost packet is sent again after one, three and seven seconds.
const PATIENCE: Duration = Duration::from_secs(9);

/// A pod that waits for connections at its addresses.
pub(crate) struct Reachable<'a> {
    pod: &'a Pod,
    listeners: Vec<TcpListener>,
}

impl<'a> Reachable<'a> {
    /// Has a pod listen at its addresses.
    pub(crate) fn listen(pod: &'a Pod, addresses: &[IpAddr]) -> Result<Self> {
        let bind = |address: &IpAddr| -> Result<TcpListener> {
            let listener = TcpListener::bind((*address, 0))
                .with_context(|| format!("the pod cannot listen at {address}"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listeners = pod.inside(|| addresses.iter().map(bind).collect::<Result<Vec<_>>>())??;
        Ok(Self { pod, listeners })
    }

    /// A connection from the host comes to this pod at each address; gives the longest time that one took.
    pub(crate) fn reach_from_host(&self) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        for listener in &self.listeners {
            let (took, _) = connect(listener.local_addr()?).context("from the host")?;
            accept(listener)?;
            longest = longest.max(took);
        }
        Ok(longest)
    }

    /// A connection from another pod comes to this one at each address, and from one of the other's addresses.
    pub(crate) fn reach_from_pod(&self, other: &Self) -> Result<Duration> {
        let own: Vec<IpAddr> =
            other.listeners.iter().filter_map(|it| Some(it.local_addr().ok()?.ip())).collect();
        let mut longest = Duration::ZERO;
        for listener in &self.listeners {
            let address = listener.local_addr()?;
            let from = || format!("from {}", other.pod.path().display());
            let (took, _) = other.pod.inside(|| connect(address))?.with_context(from)?;
            let source = accept(listener)?.ip();
            if !own.contains(&source) {
                bail!("what comes to {address} {} has the source {source}", from());
            }
            longest = longest.max(took);
        }
        Ok(longest)
    }
}

fn connect(address: SocketAddr) -> Result<(Duration, TcpStream)> {
    let began = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok((began.elapsed(), stream)),
            // The neighbour did not answer in time; the next packet asks again.
            Err(error) if error.kind() == ErrorKind::HostUnreachable && began.elapsed() < PATIENCE => {}
            Err(error) => {
                let took = began.elapsed();
                return Err(error).with_context(|| format!("no connection to {address} in {took:.1?}"));
            }
        }
    }
}

/// The peer of a connection that was made. It is there already, if it came here at all.
fn accept(listener: &TcpListener) -> Result<SocketAddr> {
    match listener.accept() {
        Ok((_, peer)) => Ok(peer),
        Err(error) => {
            let address = listener.local_addr()?;
            Err(error).with_context(|| format!("a connection to {address} was accepted by another pod"))
        }
    }
}
