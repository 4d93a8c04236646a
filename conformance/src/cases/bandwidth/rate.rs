//! How fast packets arrive.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc;

use crate::expect::holds;
use crate::pod::Pod;

/// Payload of a packet, and what Ethernet, IPv4 and UDP put before it: a limit is one of frames.
const PAYLOAD: usize = 1400;
const HEADERS: usize = 14 + 20 + 8;

const PORT: u16 = 9999;

/// How long packets are sent before any counts, so that what was saved for a burst is used up; and how long they are
/// counted.
const BURST: Duration = Duration::from_millis(300);
const COUNTED: Duration = Duration::from_millis(1800);

/// The rate that is measured is the wanted one, within 10 %. A machine that is busy with something else for too long
/// may spoil a measurement, but not three.
pub(super) fn is(wanted: u32, measure: impl Fn() -> Result<f64>) -> Result<()> {
    let mut found = Vec::new();
    for _ in 0..3 {
        let rate = measure()?;
        if (rate / f64::from(wanted) - 1.0).abs() <= 0.1 {
            return Ok(());
        }
        found.push(rate);
    }
    holds(false, format!("wanted {wanted} bit/s within 10 %, measured {found:.0?}"))
}

/// Bits per second of the frames that arrive at an address of one namespace while another sends more than that.
pub(super) fn measure(from: &Pod, to: &Pod, address: &str) -> Result<f64> {
    let address: Ipv4Addr = address.parse()?;
    let receiver = to.inside(|| UdpSocket::bind((address, PORT)))?.context("receiver")?;
    enlarge(&receiver);
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sender = from.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?.context("sender")?;
    sender.connect((address, PORT))?;
    sender.set_nonblocking(true)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let packet = [0; PAYLOAD];
            while !is_over.load(Ordering::Relaxed) {
                for _ in 0..16 {
                    // What finds no room need not be sent.
                    let _ = sender.send(&packet);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let rate = count(&receiver);
        is_over.store(true, Ordering::Relaxed);
        rate
    })
}

fn count(receiver: &UdpSocket) -> Result<f64> {
    let mut buffer = [0; 2 * PAYLOAD];
    let begin = Instant::now();
    // Counted from one packet to another, so that the first is not among them.
    let (mut first, mut latest, mut frames) = (None, begin, 0_u32);
    while begin.elapsed() < BURST + COUNTED {
        if receiver.recv(&mut buffer).is_err() || begin.elapsed() < BURST {
            continue;
        }
        latest = Instant::now();
        match first {
            None => first = Some(latest),
            Some(_) => frames += 1,
        }
    }
    let first = first.context("no packet has arrived")?;
    let seconds = latest.duration_since(first).as_secs_f64();
    holds(seconds > 1.0, "packets have arrived for less than a second")?;
    Ok(f64::from(frames) * (PAYLOAD + HEADERS) as f64 * 8.0 / seconds)
}

/// Makes room for what arrives while this program does not run.
fn enlarge(socket: &UdpSocket) {
    let size: libc::c_int = 16 << 20;
    let len = size_of_val(&size) as libc::socklen_t;
    // SAFETY: the option is an int that lives as long as the call. If it is refused, a busy machine may spoil a
    // measurement.
    unsafe {
        let option = (&raw const size).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, option, len);
    }
}
