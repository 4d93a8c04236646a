//! One call of a plugin: environment and configuration in, result or error object out.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::plan::{self, Records, Resting};
use crate::plugins::PluginType;
use crate::resource::aftermath::Aftermath;
use crate::resource::{UnusedBridge, World};
use crate::spec::config::{MAX_BYTES, ValidAttachments};
use crate::spec::request::Environment;
use crate::spec::{CniError, CniResult, Code, Command, NetConf, Prefix, Request, version};

/// The version of the reference plugins that this suite stands in for. Nomad and nerdctl read it from the banner and
/// refuse to work with plugins that are too old for them.
const REFERENCE_VERSION: &str = "1.9.1";

/// Where state is kept that belongs to this boot: a tmpfs on every system that has systemd, and most others.
pub const STATE: &str = "/run/bridgehead";

/// How long the configuration may take to arrive.
const STDIN_DEADLINE: Duration = Duration::from_secs(60);

/// Serves one call of a plugin.
pub fn run(plugin: &PluginType) -> ExitCode {
    let environment = Environment::read(|name| std::env::var(name).ok());
    if environment.command.is_empty() {
        // Parsed by Nomad and nerdctl, who execute plugins without any variable to learn their version.
        // Whoever reads on no further than the first line is no reason to fail.
        let _ = std::io::stderr().write_all((banner(plugin) + "\n").as_bytes());
        return ExitCode::SUCCESS;
    }
    let mut cni_version = None;
    let is_told = Cell::new(false);
    match caught(|| serve(plugin, &environment, &mut cni_version, &is_told)) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(aftermath)) => aftermath.end(),
        // The attachment is there, and the caller knows of it.
        Err(error) if is_told.get() => {
            log::error!("{error}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            // A delegate's error object is passed on as it is.
            let error = CniError { cni_version: error.cni_version.clone().or(cni_version), ..error };
            let value = json!(error);
            if write_stdout(&pretty(&value)).is_err() {
                log::error!("{error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What a call gives. Whatever a fault in this program is, the caller gets an error object, and the journal has undone
/// the changes.
pub fn caught<T>(serve: impl FnOnce() -> Result<T, CniError>) -> Result<T, CniError> {
    catch_unwind(AssertUnwindSafe(serve)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(CniError::new(Code::Internal, format!("a fault in bridgehead: {text}")))
    })
}

/// ADD for a caller who has another protocol than CNI's and gets its answer by `tell`. Gives back what is to be done
/// when it has it.
pub fn attach(
    plugin: &PluginType,
    request: &Request,
    tell: impl FnOnce(&CniResult) -> anyhow::Result<()>,
) -> Result<Option<Aftermath>, CniError> {
    let mut world = World::new(request, STATE.into());
    if let Some(path) = own_netns(&mut world)? {
        let msg = format!("network namespace {path} is the one that the plugin itself runs in");
        return Err(CniError::new(Code::InvalidNetns, msg));
    }
    let wanted = (plugin.parse)(request)?;
    let records = Records::new(Path::new(STATE), plugin.name);
    plan::add(wanted.as_ref(), &records, &mut world, tell)
        .map_err(|error| CniError::from_chain(&error, Code::Kernel))?;
    Ok(world.take_aftermath())
}

/// DEL for such a caller.
pub fn detach(plugin: &PluginType, request: &Request) -> Result<(), CniError> {
    let records = Records::new(Path::new(STATE), plugin.name);
    plan::del(|| (plugin.leftovers)(request), &records, &mut World::new(request, STATE.into()))
        .map_err(|error| CniError::from_chain(&error, Code::Kernel))
}

/// Removes a bridge that was made for attachments and has none any more; see [`UnusedBridge`].
pub fn remove_unused_bridge(name: &str, subnets: &[Prefix], request: &Request) -> Result<(), CniError> {
    UnusedBridge { name, subnets }
        .remove(&mut World::new(request, STATE.into()))
        .map_err(|error| CniError::from_chain(&error, Code::Kernel))
}

/// Removes the attachments to the request's network whose namespace is provably gone: for a caller who never says so.
pub fn collect_dead(plugin: &PluginType, request: &Request) -> Result<(), CniError> {
    let records = Records::new(Path::new(STATE), plugin.name);
    // The pod of this call is not that of the dead.
    let mut request = request.clone();
    (request.command, request.netns) = (Command::Gc, None);
    let (resting, mut world) = (records.resting(), World::new(&request, STATE.into()));
    plan::collect(resting, &ValidAttachments::NotGiven, &[], None, &records, &mut world)
        .map_err(|error| CniError::from_chain(&error, Code::Kernel))
}

/// The text on a call without `CNI_COMMAND`.
pub fn banner(plugin: &PluginType) -> String {
    let versions: Vec<&str> = plugin.versions.iter().map(|v| v.as_str()).collect();
    format!(
        "CNI {} plugin v{REFERENCE_VERSION} (bridgehead {})\nCNI protocol versions supported: {}",
        plugin.name,
        env!("CARGO_PKG_VERSION"),
        versions.join(", ")
    )
}

/// Serves a call, and gives back what is to be done when the caller has its answer.
fn serve(
    plugin: &PluginType,
    environment: &Environment,
    cni_version: &mut Option<String>,
    is_told: &Cell<bool>,
) -> Result<Option<Aftermath>, CniError> {
    environment.check()?;
    let command = Command::parse(&environment.command);
    if command == Some(Command::Version) {
        let versions: Vec<&str> = plugin.versions.iter().map(|v| v.as_str()).collect();
        let answer = json!({ "cniVersion": version::CURRENT.as_str(), "supportedVersions": versions });
        return write_stdout(&format!("{answer}\n")).map(|()| None);
    }
    let records = Records::new(Path::new(STATE), plugin.name);
    // The list of what is valid comes on stdin.
    let resting = (command == Some(Command::Gc)).then(|| records.resting());
    let stdin = read_stdin()?;
    let Some(command) = command else {
        // A configuration that is wrong is said first, as the reference does.
        NetConf::parse(&stdin)?;
        let msg = format!("unknown CNI_COMMAND: {}", environment.command);
        return Err(CniError::new(Code::InvalidEnvironment, msg));
    };
    let request = Request::parse(command, environment, stdin)?;
    *cni_version = Some(request.config.version.to_string());
    request.config.check_version(plugin.versions)?;
    let mut world = World::new(&request, STATE.into());
    if !environment.allows_own_netns()
        && let Some(path) = own_netns(&mut world)?
    {
        let msg = format!("CNI_NETNS: {path} is the network namespace that the plugin itself runs in");
        return Err(CniError::new(Code::InvalidNetns, msg).with_details("CNI_NETNS_OVERRIDE=1 allows it"));
    }
    let verb = Verb { plugin, records: &records, request: &request, is_told };
    let outcome = match command {
        Command::Add => verb.add(&mut world),
        Command::Del => plan::del(|| (plugin.leftovers)(&request), &records, &mut world),
        Command::Check => verb.check(&mut world),
        Command::Gc => verb.gc(resting.unwrap_or_else(|| Ok(Resting::default())), &mut world),
        Command::Status | Command::Version => verb.status(&mut world),
    };
    outcome.map_err(|error| CniError::from_chain(&error, Code::Kernel))?;
    Ok(world.take_aftermath())
}

/// A call whose verb is known.
struct Verb<'a> {
    plugin: &'a PluginType,
    records: &'a Records,
    request: &'a Request,
    /// Whether the caller has the result of its ADD.
    is_told: &'a Cell<bool>,
}

impl Verb<'_> {
    fn add(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let plugin = (self.plugin.parse)(self.request)?;
        plan::add(plugin.as_ref(), self.records, world, |result| {
            let answer = result.to_value(self.request.config.version)?;
            write_stdout(&pretty(&answer))?;
            self.is_told.set(true);
            Ok(())
        })
    }

    fn check(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let plugin = (self.plugin.parse)(self.request)?;
        let Some(prev) = self.request.config.prev_result()? else {
            let msg = "prevResult: required on CHECK and missing; it is the result of the ADD";
            return Err(CniError::config(msg).into());
        };
        if self.records.read(&self.request.attachment)?.is_none() {
            world.expect_another_suites();
        }
        let resources = plugin.expect(&prev, world)?;
        plan::drift(&plan::check(&resources, world)?)?;
        Ok(())
    }

    fn gc(&self, resting: anyhow::Result<Resting>, world: &mut World<'_>) -> anyhow::Result<()> {
        let user = geteuid();
        if !user.is_root() {
            // It would see no record and be refused nothing, since it finds nothing to remove.
            let msg = format!("GC needs root, and this is user {user}");
            return Err(CniError::new(Code::Kernel, msg).into());
        }
        let valid = self.request.config.valid_attachments()?;
        let leftovers = (self.plugin.leftovers)(self.request);
        let lease = (self.plugin.lease)(self.request);
        plan::collect(resting, &valid, &leftovers, lease.as_ref(), self.records, world)
    }

    fn status(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let outcome = (self.plugin.status)(self.request, world);
        let is_only_unavailable = |error: &anyhow::Error| {
            error.downcast_ref::<CniError>().is_some_and(|it| it.code == Code::Unavailable as u32)
        };
        // That pods suffer is said first, but a configuration that is wrong is about no network.
        if outcome.as_ref().err().is_none_or(is_only_unavailable) {
            plan::restore::look_for_losses(self.records, &self.request.config.name, &world.state)?;
        }
        outcome?;
        Records::check_place(&world.state).map_err(|e| {
            CniError::new(Code::Unavailable, format!("an ADD cannot write its record: {}", e.msg)).into()
        })
    }
}

/// The path of the pod's namespace where that is the one that this program runs in: the host's, by all appearance, and no
/// pod's. Found before anything is done.
fn own_netns(world: &mut World<'_>) -> Result<Option<String>, CniError> {
    let failed = |error: anyhow::Error| CniError::from_chain(&error, Code::Kernel);
    if !world.has_pod().map_err(failed)? {
        return Ok(None);
    }
    let own = world.home().map_err(|e| failed(e.into()))?.identity();
    let pod = world.pod().map_err(failed)?.netns();
    Ok((pod.identity() == own).then(|| pod.path().display().to_string()))
}

/// What the caller has to say. Bounded in size and time: one that never closes the pipe must not keep a plugin alive.
///
/// Errors: code 5, or 6 for what is too large.
pub fn read_stdin() -> Result<Vec<u8>, CniError> {
    let failed =
        |why: String| CniError::new(Code::Io, format!("cannot read the configuration from stdin: {why}"));
    // Without the buffer of std: what is read is kept anyway.
    // SAFETY: std has seen to it at the start that it is open, and nothing closes it.
    let stdin = unsafe { BorrowedFd::borrow_raw(nix::libc::STDIN_FILENO) };
    let deadline = Instant::now() + STDIN_DEADLINE;
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        // A whole configuration is nearly always there already; the wait is for the others.
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut readable = [PollFd::new(stdin, PollFlags::POLLIN)];
        let outcome = match poll(&mut readable, PollTimeout::ZERO) {
            Ok(0) if stdin.is_terminal() => {
                return Err(failed("it is a terminal; pipe a network configuration in".into()));
            }
            Ok(0) => poll(&mut readable, timeout),
            outcome => outcome,
        };
        match outcome {
            Ok(0) => return Err(failed(format!("it did not end within {} s", STDIN_DEADLINE.as_secs()))),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(failed(e.to_string())),
        }
        match nix::unistd::read(stdin, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(len) => bytes.extend_from_slice(&chunk[..len]),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(failed(e.desc().to_owned())),
        }
        if bytes.len() > MAX_BYTES {
            return Err(CniError::new(
                Code::Decoding,
                format!("the network configuration on stdin has more than {MAX_BYTES} bytes"),
            ));
        }
    }
}

/// Writes an answer, without a buffer: a pipe takes one of usual size whole or not at all, and after a failure there is
/// room for an error object.
///
/// Errors: code 5.
pub fn write_stdout(text: &str) -> Result<(), CniError> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match nix::unistd::write(std::io::stdout(), rest) {
            Ok(len) => rest = rest.get(len..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(e) => {
                return Err(CniError::new(
                    Code::Io,
                    format!("cannot write the answer to stdout: {}", e.desc()),
                ));
            }
        }
    }
    Ok(())
}

/// JSON as the reference prints it: four spaces, no line end.
fn pretty(value: &Value) -> String {
    use serde::Serialize;
    let mut bytes = Vec::with_capacity(512);
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(bytes).unwrap_or_default(),
        Err(_) => value.to_string(),
    }
}
