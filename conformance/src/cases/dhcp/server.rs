//! A DHCP server with leases as short as a case wants, which tells what it has heard, and the daemon that asks it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;

use crate::exec::PATH;
use crate::sandbox::Sandbox;

/// The bridge on which the server is.
pub const BRIDGE: &str = "cni0";

/// How a server takes what it hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    Kind,
    /// It says nothing.
    Silent,
    /// It refuses who has an address, and gives it again to who looks for one.
    Forgetful,
}

/// Times of leases in seconds: T1, T2, end.
pub type Times = [u32; 3];

/// Long enough to last as long as a case.
pub const LONG: Times = [100, 150, 200];

/// What a server has heard.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Option 53: 1 discover, 3 request, 4 decline, 7 release.
    pub kind: u8,
    /// The address that the client has.
    pub client: [u8; 4],
    /// Whether it asks for an answer to all.
    pub broadcast: bool,
    /// All options.
    pub options: BTreeMap<u8, Vec<u8>>,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    times: Times,
    options: Vec<u8>,
    heard: Vec<Heard>,
    given: Vec<Vec<u8>>,
}

/// A server that runs until it is dropped. Its addresses are 10.88.0.10 and on.
#[derive(Debug)]
pub struct Server {
    state: Arc<Mutex<State>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Makes the bridge, with the server's address.
pub fn network(host: &Sandbox) -> Result<()> {
    host.ip_set(&format!("link add {BRIDGE} type bridge"))?;
    host.ip_set(&format!("addr add 10.88.0.1/24 dev {BRIDGE}"))?;
    host.ip_set(&format!("link set {BRIDGE} up"))
}

impl Server {
    /// Starts a server on the bridge, which it makes. It gives these options besides mask and times.
    pub fn start(host: &Sandbox, times: Times, options: &[u8]) -> Result<Self> {
        network(host)?;
        let socket = UdpSocket::bind(("0.0.0.0", 67)).context("bind the port of DHCP servers")?;
        socket.set_broadcast(true)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let name = format!("{BRIDGE}\0");
        // SAFETY: the name is as long as is said.
        let bound = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                name.as_ptr().cast(),
                name.len() as libc::socklen_t,
            )
        };
        if bound != 0 {
            bail!("bind to {BRIDGE}: {}", std::io::Error::last_os_error());
        }
        let state = State {
            mood: Mood::Kind,
            times,
            options: options.to_vec(),
            heard: Vec::new(),
            given: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let ends = Arc::new(AtomicBool::new(false));
        let (of_thread, ends_thread) = (Arc::clone(&state), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 2048];
            while !ends_thread.load(Ordering::Relaxed) {
                let Ok((len, _)) = socket.recv_from(&mut packet) else { continue };
                let mut state = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((answer, to)) = packet.get(..len).and_then(|it| state.answer(it)) {
                    let _ = socket.send_to(&answer, (std::net::Ipv4Addr::from(to), 68));
                }
            }
        });
        Ok(Self { state, ends, thread: Some(thread) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how it answers.
    pub fn be(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// What it has heard of one kind.
    pub fn heard(&self, kind: u8) -> Vec<Heard> {
        self.state().heard.iter().filter(|it| it.kind == kind).cloned().collect()
    }

    /// The requests for more time that it has heard.
    pub fn renewals(&self) -> usize {
        self.heard(3).iter().filter(|it| it.client != [0; 4]).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn answer(&mut self, packet: &[u8]) -> Option<(Vec<u8>, [u8; 4])> {
        let mut options = BTreeMap::new();
        let mut rest = packet.get(240..)?;
        while let [code, tail @ ..] = rest {
            rest = tail;
            match code {
                0 => continue,
                255 => break,
                _ => {}
            }
            let (len, tail) = rest.split_first()?;
            let (value, tail) = tail.split_at_checked(usize::from(*len))?;
            options.insert(*code, value.to_vec());
            rest = tail;
        }
        let kind = *options.get(&53)?.first()?;
        let client: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
        let broadcast = packet.get(10)? & 0x80 != 0;
        let id = options.get(&61).cloned().unwrap_or_default();
        self.heard.push(Heard { kind, client, broadcast, options });
        let has_address = client != [0; 4];
        let kind = match (kind, self.mood) {
            (_, Mood::Silent) => return None,
            (1, _) => 2,
            (3, Mood::Forgetful) if has_address => 6,
            (3, _) => 5,
            _ => return None,
        };
        let place = self.given.iter().position(|it| *it == id).unwrap_or_else(|| {
            self.given.push(id);
            self.given.len() - 1
        });
        let mut answer = packet.get(..240)?.to_vec();
        answer[0] = 2;
        answer[16..20].copy_from_slice(&[10, 88, 0, 10 + place as u8]);
        answer.extend([53, 1, kind, 54, 4, 10, 88, 0, 1]);
        if kind != 6 {
            answer.extend([1, 4, 255, 255, 255, 0]);
            let [renew, rebind, end] = self.times;
            for (code, seconds) in [(58, renew), (59, rebind), (51, end)] {
                answer.extend([code, 4]);
                answer.extend(seconds.to_be_bytes());
            }
            answer.extend(&self.options);
        }
        answer.push(255);
        answer.resize(answer.len().max(300), 0);
        Some((answer, if has_address && kind != 6 { client } else { [255; 4] }))
    }
}

/// A daemon that is killed when it is dropped.
#[derive(Debug)]
pub struct Daemon(Child);

impl Daemon {
    /// Starts the daemon under test, with these flags.
    pub fn start(host: &Sandbox, flags: &[&str]) -> Result<Self> {
        Self::start_from(host.plugins(), flags)
    }

    /// Starts the daemon of a directory of plugins.
    pub fn start_from(plugins: &Path, flags: &[&str]) -> Result<Self> {
        let log = File::options().create(true).append(true).open("/run/scratch/daemon.log")?;
        let mut command = Command::new(plugins.join("dhcp"));
        command.arg("daemon").args(flags).env_clear().env("PATH", PATH).current_dir("/");
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let mut daemon = Self(child.context("start the daemon")?);
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::os::unix::net::UnixStream::connect(SOCKET).is_err() {
            if daemon.0.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the daemon does not listen on {SOCKET}: {}", said());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Tells it to end, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the daemon does not end: {}", said());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the daemon listens.
pub const SOCKET: &str = "/run/cni/dhcp.sock";

/// What daemons have written.
pub fn said() -> String {
    fs::read_to_string("/run/scratch/daemon.log").unwrap_or_default()
}
