//! The caller's half: what the plugin asks the daemon.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::conf::passing;
use super::daemon::is_absent;
use super::gob::{Malformed, Value};
use super::lease::decode;
use super::rpc::{ARGUMENTS, End, GREETING, REQUEST, UNKNOWN_METHOD, WELCOME, method};
use super::store::Store;
use crate::net::Netns;
use crate::spec::{Attachment, CniError, CniResult, Code, Request};

/// How long the daemon may take for what needs no server.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long it may take to get a lease: longer than it tries by default, and shorter than the kubelet waits.
const ACQUIRED: Duration = Duration::from_secs(230);

/// Pause before the daemon is tried again that has too many callers.
const PAUSE: Duration = Duration::from_millis(20);

/// A caller of the daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
enum Failure {
    /// Nobody listens.
    Absent(CniError),
    /// Anything else.
    Other(CniError),
}

impl From<Failure> for CniError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Absent(error) | Failure::Other(error) => error,
        }
    }
}

impl Client {
    /// A caller of the daemon that listens there.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Gets a lease. Errors: code 11 where no daemon or no server answers.
    pub fn allocate(&self, request: &Request) -> Result<CniResult, CniError> {
        let answer = self.call(method::ALLOCATE, &arguments(request, &request.attachment), ACQUIRED)?;
        self.result(&answer)
    }

    /// The lease that the daemon has. Errors: code 103 where it has none, or has lost it.
    ///
    /// The daemon of the reference cannot be asked without getting one where there is none.
    pub fn look(&self, request: &Request) -> Result<CniResult, CniError> {
        let arguments = arguments(request, &request.attachment);
        match self.call(method::LOOK, &arguments, DEADLINE).map_err(CniError::from) {
            Err(e) if e.msg.contains(UNKNOWN_METHOD) => self.allocate(request),
            outcome => self.result(&outcome?),
        }
    }

    /// Gives a lease back. Without a daemon, the server is told from here; what is kept of it is below `state`.
    pub fn release(&self, request: &Request, of: &Attachment, state: &Path) -> Result<(), CniError> {
        match self.call(method::RELEASE, &arguments(request, of), DEADLINE) {
            Ok(_) => Ok(()),
            Err(Failure::Absent(_)) => self.release_alone(of, state),
            Err(Failure::Other(error)) => Err(error),
        }
    }

    fn release_alone(&self, of: &Attachment, state: &Path) -> Result<(), CniError> {
        let store = Store::new(state, &self.socket);
        let Some(record) = store.read(of) else { return Ok(()) };
        let released =
            Netns::own().map_err(Into::into).and_then(|home| record.release(&record.netns_path, &home));
        if let Err(e) = released {
            log::warn!("{of}: cannot give {} back: {e:#}", record.lease.address);
        }
        store.remove(of)
    }

    /// The attachments to the request's network that have a lease. None where the daemon does not tell: that of the
    /// reference, or one that does not run and so keeps nothing.
    pub fn list(&self, request: &Request) -> Result<Vec<Attachment>, CniError> {
        let answer = match self.call(method::LIST, &arguments(request, &request.attachment), DEADLINE) {
            Ok(answer) => answer,
            Err(Failure::Absent(_)) => return Ok(Vec::new()),
            Err(Failure::Other(e)) if e.msg.contains(UNKNOWN_METHOD) => return Ok(Vec::new()),
            Err(failure) => return Err(failure.into()),
        };
        let of = |it: &Value| Attachment {
            network: request.config.name.clone(),
            container_id: it.string("ContainerID"),
            ifname: it.string("IfName"),
        };
        Ok(answer.list("All").iter().map(of).collect())
    }

    /// The error of code 50 if the daemon does not answer.
    pub fn status(&self) -> Result<(), CniError> {
        let unavailable =
            |failure: Failure| CniError { code: Code::Unavailable as u32, ..CniError::from(failure) };
        self.greet(Instant::now() + DEADLINE).map(drop).map_err(unavailable)
    }

    fn result(&self, answer: &Value) -> Result<CniResult, CniError> {
        decode(answer).ok_or_else(|| self.nonsense("its result makes no sense"))
    }

    fn nonsense(&self, why: &str) -> CniError {
        let msg = format!("the DHCP daemon on {}: {why}", self.socket.display());
        CniError::new(Code::Delegate, msg)
    }

    fn call(&self, name: &str, arguments: &Value, patience: Duration) -> Result<Value, Failure> {
        let deadline = Instant::now() + patience;
        let mut line = self.greet(deadline)?;
        let head = Value::of([("ServiceMethod", Value::text(name)), ("Seq", Value::Uint(1))]);
        let call = line.end.encode((&REQUEST, &head), (&ARGUMENTS, arguments));
        line.send(&call)?;
        let head = line.take()?;
        let answer = line.take()?;
        let error = head.string("Error");
        if error.is_empty() {
            return Ok(answer);
        }
        // The daemon of the reference says only what, in words.
        let code = u32::try_from(head.number("Code")).ok().filter(|code| *code > 0);
        let code = code.unwrap_or(Code::Delegate as u32);
        Err(Failure::Other(CniError { code, ..self.nonsense(&error) }))
    }

    /// A connection to a daemon that speaks our protocol.
    fn greet(&self, deadline: Instant) -> Result<Line<'_>, Failure> {
        let mut line = Line { client: self, stream: self.connect(deadline)?, end: End::default(), deadline };
        line.send(GREETING.as_bytes())?;
        loop {
            if let Some(answer) = line.end.greeting().map_err(|e| line.malformed(e))? {
                if answer != WELCOME.trim_end() {
                    let why = format!("it speaks another protocol: {answer:?}");
                    return Err(Failure::Other(self.nonsense(&why)));
                }
                return Ok(line);
            }
            line.receive()?;
        }
    }

    fn connect(&self, deadline: Instant) -> Result<UnixStream, Failure> {
        let failed = |errno: Errno| {
            let socket = self.socket.display();
            let msg = format!("cannot reach the DHCP daemon on {socket}: {}", errno.desc());
            if !is_absent(errno) {
                return Failure::Other(passing(msg));
            }
            let details =
                "start it with `systemctl start bridgehead-dhcp.socket`, or with the command `dhcp daemon`";
            Failure::Absent(passing(msg).with_details(details))
        };
        let address = UnixAddr::new(&self.socket).map_err(failed)?;
        // One that has too many callers would keep a caller waiting for ever.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
        loop {
            match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address) {
                Ok(()) => break,
                Err(Errno::EAGAIN) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(false).map_err(|_| failed(Errno::EIO))?;
        Ok(stream)
    }
}

/// A connection to the daemon.
struct Line<'a> {
    client: &'a Client,
    stream: UnixStream,
    end: End,
    deadline: Instant,
}

impl Line<'_> {
    fn broken(&self, why: &str) -> Failure {
        Failure::Other(CniError { code: Code::TryAgainLater as u32, ..self.client.nonsense(why) })
    }

    fn malformed(&self, error: Malformed) -> Failure {
        Failure::Other(self.client.nonsense(&format!("its answer makes no sense: {}", error.0)))
    }

    /// What is left of the time; an error where that is nothing.
    fn left(&self) -> Result<Duration, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.broken("it does not answer in time")) } else { Ok(left) }
    }

    fn io(&self, error: &std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::WouldBlock => self.broken("it does not answer in time"),
            _ => self.broken(&error.to_string()),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let left = self.left()?;
        let sent = self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|e| self.io(&e))
    }

    fn receive(&mut self) -> Result<(), Failure> {
        let left = self.left()?;
        let mut chunk = [0; 8192];
        let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut chunk));
        match read {
            Ok(0) => Err(self.broken("it has closed the connection without an answer")),
            Ok(len) => {
                self.end.arrive(chunk.get(..len).unwrap_or_default());
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(self.io(&e)),
        }
    }

    fn take(&mut self) -> Result<Value, Failure> {
        loop {
            if let Some(value) = self.end.take().map_err(|e| self.malformed(e))? {
                return Ok(value);
            }
            self.receive()?;
        }
    }
}

/// What the daemon is told of a call.
fn arguments(request: &Request, of: &Attachment) -> Value {
    // The daemon has another working directory.
    let netns = request.netns.as_ref().map(|it| std::path::absolute(it).unwrap_or_else(|_| it.clone()));
    let path: Vec<String> = request.path.iter().map(|it| it.display().to_string()).collect();
    Value::of([
        ("ContainerID", Value::text(&of.container_id)),
        ("Netns", Value::text(&netns.unwrap_or_default().to_string_lossy())),
        ("IfName", Value::text(&of.ifname)),
        ("Args", Value::text(request.raw_args())),
        ("Path", Value::text(&path.join(":"))),
        ("StdinData", Value::Bytes(request.stdin.clone())),
    ])
}
