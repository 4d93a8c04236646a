//! Runs a program under ptrace(2), counts the watched system calls of each of its processes, and injects a fault at
//! one of them.
//!
//! strace(1) can inject faults too, but counts for each process by itself: the first `sendto` of a child cannot be hit
//! without hitting the first of its parent before. Children are where plugins hide their slow work.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::calls::{Effect, Watched};
use crate::fault::Injection;
use crate::point::{Likeness, Point, about};
use crate::registers;
use crate::request::{self, Disturbed, Reply, Seen};

/// Variables that tell a tracer what to do. Everything else it is given, arguments too, goes to the program as it is.
pub(crate) const PROGRAM: &str = "FAULTS_PROGRAM";
/// File that the points are written to: all, or where a fault is injected, that one.
pub(crate) const LOG: &str = "FAULTS_LOG";
/// The point where a fault is injected, [encoded](Point::encode).
pub(crate) const POINT: &str = "FAULTS_POINT";
/// The fault's injection as [`encode`]d.
pub(crate) const INJECTION: &str = "FAULTS_INJECTION";

/// Exit status of a tracer whose program has not ended in time.
pub(crate) const HANG: i32 = 124;

/// How long a program may take: less than who calls the tracer waits, so that it can be said where the program hangs.
const DEADLINE: Duration = Duration::from_secs(18);

/// An injection as the text of a variable.
pub(crate) fn encode(injection: Injection) -> String {
    match injection {
        Injection::Kill => "kill".to_owned(),
        Injection::Error(errno, Effect::Instead) => format!("instead {}", errno as i32),
        Injection::Error(errno, Effect::Afterwards) => format!("afterwards {}", errno as i32),
        Injection::Reply(reply) => reply.encode(),
    }
}

fn decode(text: &str) -> Result<Injection> {
    let Some((word, errno)) = text.split_once(' ') else { return Ok(Injection::Kill) };
    let errno = errno.parse()?;
    if let Some(reply) = Reply::decode(word, errno) {
        return Ok(Injection::Reply(reply));
    }
    let effect = if word == "afterwards" { Effect::Afterwards } else { Effect::Instead };
    Ok(Injection::Error(Errno::from_raw(errno), effect))
}

/// The whole life of a tracer, which stands between a caller and the program; gives the exit status. A program that a
/// signal ended takes the tracer with it.
pub(crate) fn run() -> Result<i32> {
    let variable = |name: &str| std::env::var(name).ok();
    let program = variable(PROGRAM).context("no program")?;
    let log = variable(LOG).context("no log")?;
    let target = match (variable(POINT), variable(INJECTION)) {
        (Some(point), Some(injection)) => {
            Some(Target { point: Point::decode(&point)?, injection: decode(&injection)? })
        }
        _ => None,
    };
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1));
    for name in [PROGRAM, LOG, POINT, INJECTION] {
        command.env_remove(name);
    }
    // SAFETY: ptrace is one system call, so it may be called between fork and exec.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from)) };
    let child = command.spawn().with_context(|| format!("cannot execute {program}"))?;
    let first = Pid::from_raw(i32::try_from(child.id())?);
    interrupt_after(DEADLINE)?;
    let mut tracer = Tracer {
        deadline: Instant::now() + DEADLINE,
        log: File::create(&log).with_context(|| format!("cannot create {log}"))?,
        target,
        disturbed: None,
        threads: HashMap::new(),
        processes: Vec::new(),
        counts: Vec::new(),
        alike: HashMap::new(),
    };
    match tracer.follow(first)? {
        WaitStatus::Exited(_, status) => Ok(status),
        WaitStatus::Signaled(_, signal, _) => {
            raise(signal)?;
            bail!("signal {signal} does not end this process")
        }
        other => bail!("the program ended with {other:?}"),
    }
}

/// Where a fault is injected.
struct Target {
    point: Point,
    injection: Injection,
}

/// What is known of a thread.
#[derive(Clone, Copy, Default)]
struct Thread {
    /// Index of its process.
    process: usize,
    /// The error that the call it is in is to end with.
    due: Option<Errno>,
    /// The call that it is in, with its arguments, if that is a watched one.
    inside: Option<(&'static Watched, [u64; 6])>,
}

struct Tracer {
    deadline: Instant,
    log: File,
    target: Option<Target>,
    /// The request whose answer is to be another.
    disturbed: Option<Disturbed>,
    threads: HashMap<Pid, Thread>,
    /// Process ids in the order in which they appeared.
    processes: Vec<Pid>,
    /// Watched calls so far, of each process.
    counts: Vec<usize>,
    /// The same, of each kind.
    alike: HashMap<Likeness, usize>,
}

impl Tracer {
    /// Follows all processes until the last has ended; gives the end of the first.
    fn follow(&mut self, first: Pid) -> Result<WaitStatus> {
        let mut end = None;
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(status) => status,
                Err(Errno::EINTR) if Instant::now() < self.deadline => continue,
                Err(Errno::EINTR) => {
                    writeln!(std::io::stderr(), "{}", self.whereabouts())?;
                    // The processes end with their tracer.
                    std::process::exit(HANG)
                }
                Err(Errno::ECHILD) => break,
                Err(errno) => return Err(errno).context("waitpid"),
            };
            let Some(pid) = status.pid() else { continue };
            let signal = match status {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                    self.threads.remove(&pid);
                    if pid == first {
                        end = Some(status);
                    }
                    continue;
                }
                WaitStatus::PtraceSyscall(_) => {
                    ignore_death(self.at_system_call(pid))?;
                    None
                }
                WaitStatus::Stopped(_, signal) => {
                    if self.threads.contains_key(&pid) {
                        Some(signal)
                    } else {
                        // Its first stop, which tracing brings about.
                        ignore_death(self.meet(pid))?;
                        None
                    }
                }
                _ => None,
            };
            ignore_death(ptrace::syscall(pid, signal).map_err(Into::into))?;
        }
        end.context("the program was never seen to end")
    }

    /// What all threads are doing.
    fn whereabouts(&self) -> String {
        let about = |(pid, thread): (&Pid, &Thread)| {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let process = thread.process;
            format!(
                "process {process} after {} calls: {}{}",
                self.counts[process],
                read("syscall"),
                read("stack")
            )
        };
        self.threads.iter().map(about).collect()
    }

    fn meet(&mut self, pid: Pid) -> Result<()> {
        let process = process_of(pid);
        let index = self.processes.iter().position(|known| *known == process).unwrap_or_else(|| {
            self.processes.push(process);
            self.counts.push(0);
            self.processes.len() - 1
        });
        self.threads.insert(pid, Thread { process: index, ..Thread::default() });
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        Ok(ptrace::setoptions(pid, options)?)
    }

    fn at_system_call(&mut self, pid: Pid) -> Result<()> {
        let Some(thread) = self.threads.get_mut(&pid) else { return Ok(()) };
        let (number, arguments) = match registers::stop(pid)? {
            registers::Stop::Entry { number, arguments } => (number, arguments),
            registers::Stop::Exit { result } => {
                let inside = thread.inside.take();
                if let Some(errno) = thread.due.take() {
                    registers::set_result(pid, -i64::from(errno as i32))?;
                } else if let Some((call, arguments)) = inside {
                    self.after(pid, call, &arguments, result)?;
                }
                return Ok(());
            }
        };
        let Some(call) = Watched::by_number(number) else { return Ok(()) };
        thread.inside = Some((call, arguments));
        let process = thread.process;
        self.counts[process] += 1;
        let number = self.counts[process];
        let requests = request::sent(pid, call.name, &arguments);
        let names: Vec<String> = requests.iter().map(|sent| sent.request.name()).collect();
        let about = format!("{} {}", about(pid, call, &arguments), names.join("+")).trim_end().to_owned();
        let mut point =
            Point { process, number, call: call.name.to_owned(), about, earlier: 0, request: None };
        let alike = self.alike.entry(point.likeness()).or_default();
        point.earlier = *alike;
        *alike += 1;
        let Some(target) = &self.target else {
            writeln!(self.log, "{}", point.encode())?;
            for sent in requests {
                point.request = Some(sent.request);
                writeln!(self.log, "{}", point.encode())?;
            }
            return Ok(());
        };
        let meant = &target.point;
        if (meant.likeness(), meant.earlier) != (point.likeness(), point.earlier) {
            return Ok(());
        }
        let sent = requests.iter().find(|sent| Some(sent.request) == meant.request);
        if sent.is_none() && meant.request.is_some() {
            return Ok(());
        }
        let hit = meant.encode();
        match (target.injection, sent) {
            (Injection::Kill, _) => kill(self.processes[process], Signal::SIGKILL)?,
            (Injection::Error(errno, effect), _) => {
                self.threads.entry(pid).and_modify(|thread| thread.due = Some(errno));
                if effect == Effect::Instead {
                    registers::skip_call(pid)?;
                }
            }
            (Injection::Reply(reply), Some(sent)) => {
                // What is done of it is only known when the answer is there.
                self.disturbed = Some(Disturbed::send(pid, arguments[0], sent, reply)?);
                return Ok(());
            }
            (Injection::Reply(_), None) => return Ok(()),
        }
        writeln!(self.log, "{hit}")?;
        Ok(())
    }

    /// After a watched call into which no error was injected.
    fn after(&mut self, pid: Pid, call: &Watched, arguments: &[u64; 6], result: i64) -> Result<()> {
        let (Some(disturbed), Some(target)) = (&mut self.disturbed, &self.target) else { return Ok(()) };
        match call.name {
            "sendto" | "sendmsg" => disturbed.is_sent(pid)?,
            "recvfrom" | "recvmsg" => {
                let seen = disturbed.received(pid, call.name, arguments, result)?;
                match seen {
                    Seen::Other => return Ok(()),
                    Seen::Answer => {}
                    Seen::Lost(errno) => {
                        registers::set_result(pid, -i64::from(errno as i32))?;
                        self.disturbed = None;
                    }
                }
                writeln!(self.log, "{}", target.point.encode())?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Has a signal interrupt whatever this process waits for then.
fn interrupt_after(time: Duration) -> Result<()> {
    extern "C" fn nothing(_: nix::libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    nix::unistd::alarm::set(u32::try_from(time.as_secs())? + 1);
    Ok(())
}

/// A process may be killed at any time, also by us.
fn ignore_death(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::ESRCH) => Ok(()),
        other => other,
    }
}

/// The process that a thread belongs to.
fn process_of(thread: Pid) -> Pid {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let id = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    id.map_or(thread, Pid::from_raw)
}
