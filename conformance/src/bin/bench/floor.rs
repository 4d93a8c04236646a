//! The floor: what a call costs on this machine at the least, whoever wrote the plugin.
//!
//! Two things nobody can save: a program has to be started, and the kernel has to be asked. Both are measured
//! without any plugin, so that budgets can be judged as multiples of them, on any machine.

use crate::batch::{Batch, Deletion};
use crate::call::{Call, Price};
use crate::host::{Host, Pod};
use crate::machine::{PATH, settle};
use crate::netlink::{End, Mac, Message, Socket};
use crate::scenario::{SUBNET, Verb};
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::libc::{CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// With this as its only argument, this program ends at once: it is the empty program.
pub(crate) const NOTHING: &str = "--nothing";
/// The bridge that is there already.
const BRIDGE: &str = "bench0";
/// The pod's end.
const IFNAME: &str = "eth0";
/// The length of the subnet's prefix, as in the scenarios.
const PREFIX: u8 = 16;

/// What has to be done, whoever does it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Floor {
    /// A program is started, and ends at once.
    Start,
    /// The kernel is asked to attach a pod with one IPv4 address to a bridge, and to detach it.
    Netlink,
}

impl Floor {
    /// All of it, in the order of the report.
    pub(crate) const ALL: [Self; 2] = [Self::Start, Self::Netlink];

    /// Its name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "floor: start of an empty program",
            Self::Netlink => "floor: netlink requests alone",
        }
    }

    /// What is timed, in this order.
    pub(crate) fn verbs(self) -> &'static [Verb] {
        match self {
            Self::Start => &[Verb::Start],
            Self::Netlink => &[Verb::Add, Verb::Del],
        }
    }

    /// Measures one batch.
    pub(crate) fn run(self, pods: usize) -> Result<Batch> {
        let load = settle()?;
        let (add, del, linger) = match self {
            Self::Start => (start(pods)?, Vec::new(), Duration::ZERO),
            Self::Netlink => Host::within(pods + 1, requests)?,
        };
        Ok(Batch { add, del, linger, load, deletion: Deletion::Works })
    }
}

/// Starts this program so that it does nothing, as plugins are started.
fn start(times: usize) -> Result<Vec<Price>> {
    let program = std::env::current_exe().context("find this program")?;
    let environment = vec![("PATH", PATH.to_owned())];
    let call = Call { program, environment, config: String::new() };
    let once = || {
        let mut command = Command::new(&call.program);
        command.arg(NOTHING);
        let (price, answer) = call.start(command)?.finish()?;
        if !answer.status.success() || !answer.stdout.is_empty() {
            bail!("{} {NOTHING} ended with {}", call.program.display(), answer.status);
        }
        Ok(price)
    };
    (0..times).map(|_| once()).collect()
}

/// Attaches all pods and then detaches them, in the same order. Returns the prices of both, and how long the kernel
/// went on with the last pod after it was gone.
fn requests(host: &Host) -> Result<(Vec<Price>, Vec<Price>, Duration)> {
    let mut socket = Socket::open()?;
    socket.execute([Message::new_bridge(BRIDGE, mac(0, 0))])?;
    let bridge = socket.link(BRIDGE)?;
    socket.execute([Message::new_address(bridge, gateway(), PREFIX)])?;
    let links = host.links()?;
    let mut netns: Vec<_> = host.pods.iter().map(Netns::open).collect::<Result<_>>()?;
    let Some((first, rest)) = netns.split_first_mut() else { bail!("no pods") };
    // The first port brings the bridge up, which is no part of attaching a pod. It is not counted, and stays.
    attach(&mut socket, bridge, first)?;
    let attached: Vec<_> =
        rest.iter_mut().map(|pod| attach(&mut socket, bridge, pod)).collect::<Result<_>>()?;
    let (add, ends): (Vec<_>, Vec<_>) = attached.into_iter().unzip();
    let mut events = Socket::subscribed()?;
    let detached: Vec<_> =
        ends.into_iter().map(|end| detach(&mut socket, &mut events, end)).collect::<Result<_>>()?;
    let (del, lingers): (Vec<_>, Vec<_>) = detached.into_iter().unzip();
    match host.links()?.checked_sub(links) {
        Some(1) => Ok((add, del, lingers.last().copied().unwrap_or_default())),
        _ => bail!("the host's end of a pod is left, or that of the first pod is gone"),
    }
}

/// A pod's network namespace, with a socket in it.
struct Netns {
    index: usize,
    file: File,
    socket: Socket,
}

impl Netns {
    /// Opens the namespace, and the socket in a thread that goes there and does not come back.
    fn open(pod: &Pod) -> Result<Self> {
        let file = File::open(&pod.netns).with_context(|| format!("open {}", pod.netns))?;
        let enter = || {
            setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", pod.netns))?;
            Socket::open()
        };
        let socket = thread::scope(|scope| scope.spawn(enter).join());
        let socket = socket.map_err(|_| anyhow!("the thread in pod {} panicked", pod.index))??;
        Ok(Self { index: pod.index, file, socket })
    }
}

/// The requests of ADD. Returns their price and the index of the host's end.
fn attach(host: &mut Socket, bridge: u32, pod: &mut Netns) -> Result<(Price, u32)> {
    let name = format!("veth{}", pod.index);
    let host_end = End { name: &name, mac: mac(1, pod.index) };
    let pod_end = End { name: IFNAME, mac: mac(2, pod.index) };
    let address = address(pod.index + 2);
    let (begin, cpu) = (Instant::now(), thread_time()?);
    host.execute([Message::new_veth(&host_end, bridge, &pod_end, pod.file.as_fd())])?;
    let link = pod.socket.link(IFNAME)?;
    pod.socket.execute([
        Message::new_address(link, address, PREFIX),
        Message::set_up(link),
        Message::new_default_route(link, gateway()),
    ])?;
    let end = host.link(&name)?;
    Ok((Price { wall: begin.elapsed(), cpu: thread_time()?.saturating_sub(cpu) }, end))
}

/// The request of DEL, until the link is gone. The kernel acknowledges it long after that, so a thread waits for the
/// acknowledgement; from when that thread sends until this one has the event, the clock runs. Returns the price, with
/// the processor time of both threads, and how long after the event the acknowledgement came.
fn detach(host: &mut Socket, events: &mut Socket, link: u32) -> Result<(Price, Duration)> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (begin, cpu) = (Instant::now(), thread_time()?);
            host.execute([Message::delete_link(link)])?;
            Ok::<_, anyhow::Error>((begin, thread_time()?.saturating_sub(cpu)))
        });
        let cpu = thread_time()?;
        let gone = events.await_gone(link);
        let (end, cpu) = (Instant::now(), thread_time()?.saturating_sub(cpu));
        // If the request was refused, there is no event, and the refusal tells more.
        let (begin, sender_cpu) = sender.join().map_err(|_| anyhow!("the thread of DEL panicked"))??;
        gone?;
        Ok((Price { wall: end - begin, cpu: cpu + sender_cpu }, end.elapsed()))
    })
}

/// A locally administered address that no other link of the host has: who it is for, and its number.
fn mac(role: u8, index: usize) -> Mac {
    let [.., a, b, c] = index.to_be_bytes();
    [0x02, 0x88, role, a, b, c]
}

/// The address of this number in the subnet of the scenarios.
fn address(number: usize) -> Ipv4Addr {
    let [.., high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, SUBNET, high, low)
}

/// The bridge's address.
fn gateway() -> Ipv4Addr {
    address(1)
}

/// User and system time of the calling thread so far.
fn thread_time() -> Result<Duration> {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live, writable timespec.
    Errno::result(unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) })
        .context("read the thread's clock")?;
    Ok(Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_pods_differ_and_stay_in_the_subnet() {
        assert_eq!(gateway(), Ipv4Addr::new(10, 88, 0, 1));
        assert_eq!(address(256), Ipv4Addr::new(10, 88, 1, 0));
        assert_eq!(mac(1, 258), [0x02, 0x88, 1, 0, 1, 2]);
        assert_ne!(mac(1, 258), mac(2, 258));
    }
}
