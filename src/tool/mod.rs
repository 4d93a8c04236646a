//! What `bridgehead` does for people: the part of a container runtime, by hand.

mod help;
mod options;
mod restoration;
mod session;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::ser::PrettyFormatter;

use self::options::{Asked, Misuse};
use self::restoration::{Detail, Restoration};
use self::session::Session;
use crate::dispatch::STATE;
use crate::plan;
use crate::runtime::Failure;
use crate::runtime::chain::Spoken;
use crate::spec::{CniError, Code, Command, version};

/// The exit status of a command line that makes no sense.
const MISUSE: u8 = 2;

/// Runs the tool with the arguments that follow the program's name, and the environment.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    // A log is read later, when nobody can look any more.
    let detail = if out.is_terminal() { Detail::InAWord } else { Detail::EachObject };
    ExitCode::from(Terminal { out: &mut out, err: &mut err, detail }.run(args, &variable))
}

/// Where the tool writes: results to `out`, words for people to `err`.
struct Terminal<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    detail: Detail,
}

/// Something failed, and has been told.
struct Told;

impl Terminal<'_> {
    fn run(
        &mut self,
        args: impl IntoIterator<Item = OsString>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> u8 {
        let done = match Asked::parse(args) {
            Err(misuse) => return self.explain(&misuse),
            Ok(Asked::Help(None)) => self.print(help::OVERVIEW),
            Ok(Asked::Help(Some(deed))) => self.print(help::of(deed)),
            Ok(Asked::OwnVersion) => self.print(&format!(
                "bridgehead {} (CNI {})\n",
                env!("CARGO_PKG_VERSION"),
                version::ALL.map(|v| v.as_str()).join(" ")
            )),
            Ok(Asked::Reap) => self.reap(Path::new(STATE)),
            Ok(Asked::Restore(network)) => self.restore(Path::new(STATE), network.as_deref()),
            Ok(Asked::Verb(options)) => match Session::new(&options, variable) {
                Ok(session) => self.carry_out(options.command, &session),
                Err(error) => self.say(&error),
            },
        };
        u8::from(done.is_err())
    }

    fn carry_out(&mut self, command: Command, session: &Session) -> Result<(), Told> {
        for error in &session.passed_over {
            self.note(&format!("passed over, where libcni would give up: {error}"));
        }
        let chain = session.chain();
        match command {
            Command::Add => self.add(session),
            Command::Del => chain.del(&session.parameters).or_else(|failure| self.report(&[failure])),
            Command::Check => {
                if session.list.disable_check {
                    self.note("the network has disableCheck; nothing was checked");
                }
                chain.check(&session.parameters).or_else(|failure| self.report(&[failure]))
            }
            Command::Gc => {
                if session.list.disable_gc {
                    self.note("the network has disableGC; nothing was removed");
                } else {
                    self.note_age(session, command, "only known attachments were looked at");
                }
                self.report(&chain.gc(&session.valid))
            }
            Command::Status => {
                self.note_age(session, command, "no plugin was asked");
                chain.status().or_else(|failure| self.report(&[failure]))
            }
            Command::Version => self.print_versions(session, &chain.versions()),
        }
    }

    /// Puts back what was lost, and tells of each attachment while it goes on.
    fn restore(&mut self, state: &Path, network: Option<&str>) -> Result<(), Told> {
        let mut restoration = Restoration::new(self.detail);
        let mut outcome = Ok(());
        let errors = plan::restore(state, network, |attachment| {
            let (done, failed) = restoration.tell(attachment);
            if let Some(line) = done
                && self.print(&line).is_err()
            {
                outcome = Err(Told);
            }
            for line in failed {
                self.note(&line);
                outcome = Err(Told);
            }
        });
        let outcome = self.tell_troubles(&errors, outcome);
        self.print(&restoration.summary()).and(outcome)
    }

    /// Tells what could not be looked at, and who could do it, if that or anything before has failed.
    fn tell_troubles(&mut self, errors: &[anyhow::Error], before: Result<(), Told>) -> Result<(), Told> {
        for error in errors {
            self.note(&format!("{error:#}"));
        }
        let outcome = if errors.is_empty() { before } else { Err(Told) };
        if outcome.is_err() && !nix::unistd::geteuid().is_root() {
            self.note("only root can do this");
        }
        outcome
    }

    /// Removes what is left of the dead, and tells of each.
    fn reap(&mut self, state: &Path) -> Result<(), Told> {
        let (mut removed, mut outcome) = (0, Ok(()));
        let (left, errors) = plan::reap(state, |attachment, reaped| match reaped {
            Ok(()) => {
                removed += 1;
                if self.print(&format!("{attachment}: removed\n")).is_err() {
                    outcome = Err(Told);
                }
            }
            Err(error) => {
                self.note(&format!("{attachment}: {error:#}"));
                outcome = Err(Told);
            }
        });
        let outcome = self.tell_troubles(&errors, outcome);
        let removed = match removed {
            0 => "nothing is left of any that is gone".to_owned(),
            1 => "removed what was left of 1 attachment".to_owned(),
            removed => format!("removed what was left of {removed} attachments"),
        };
        self.print(&format!("{removed}; {left} not known to be gone\n")).and(outcome)
    }

    /// ADD, and after a failure DEL, as runtimes do.
    fn add(&mut self, session: &Session) -> Result<(), Told> {
        let chain = session.chain();
        if let Err(failure) = chain.find_all(Command::Add) {
            return self.report(&[failure]);
        }
        let was_attached = session.is_attached();
        let failure = match chain.add(&session.parameters) {
            Ok(result) => return self.print_json(&result),
            Err(failure) => failure,
        };
        let reported = self.report(&[failure]);
        if was_attached {
            self.note("it was attached before, so nothing has been undone; `bridgehead del` would detach it");
            return reported;
        }
        let failures = chain.undo(&session.parameters);
        for failure in &failures {
            self.note(&format!("while undoing what had been done: {failure}"));
        }
        self.note(if failures.is_empty() {
            "what had been done until then is undone"
        } else {
            "something may be left; `bridgehead del` tries again to remove it"
        });
        reported
    }

    fn print_versions(&mut self, session: &Session, plugins: &[Spoken]) -> Result<(), Told> {
        let wanted = session.list.version.as_str();
        let mut done = Ok(());
        for plugin in plugins {
            let plugin_type = &plugin.plugin_type;
            match &plugin.answer {
                Ok((program, versions)) => {
                    self.print(&format!("{plugin_type} {} {}\n", program.display(), versions.join(" ")))?;
                    if !versions.iter().any(|version| version == wanted) {
                        let msg =
                            format!("plugin {plugin_type} does not speak {wanted}, the network's version");
                        done = self.say(&CniError::new(Code::IncompatibleVersion, msg));
                    }
                }
                Err(failure) => {
                    done = self.say(&failure.error).and(done);
                }
            }
        }
        done
    }

    /// Tells what failed: a plugin's own error also as the object that a runtime would see. Nothing failed, nothing told.
    fn report(&mut self, failures: &[Failure]) -> Result<(), Told> {
        for failure in failures {
            if failure.plugin.is_some() {
                // If stdout takes nothing, stderr still says all.
                let _ = self.print_json(&failure.error);
            }
            self.note(&format!("{failure} (code {})", failure.error.code));
            self.advise(&failure.error);
        }
        if failures.is_empty() {
            return Ok(());
        }
        if !nix::unistd::geteuid().is_root() {
            self.note("most plugins can only do their work for root");
        }
        Err(Told)
    }

    /// Tells an error that is no plugin's.
    fn say(&mut self, error: &CniError) -> Result<(), Told> {
        self.note(&error.to_string());
        self.advise(error);
        Err(Told)
    }

    /// What may help.
    fn advise(&mut self, error: &CniError) {
        if error.code == Code::Delegate as u32 && error.msg.starts_with("cannot find plugin") {
            self.note("--plugin-dir or CNI_PATH tell where plugins are");
        }
        if error.msg.starts_with("no network is named") {
            self.note("--net-dir or NETCONFPATH tell where networks are described");
        }
    }

    fn note_age(&mut self, session: &Session, command: Command, so: &str) {
        if session.list.version < command.since() {
            let (verb, since, own) = (command.as_str(), command.since(), session.list.version);
            self.note(&format!("the network's cniVersion is {own} and {verb} is there since {since}; {so}"));
        }
    }

    fn explain(&mut self, misuse: &Misuse) -> u8 {
        self.note(&misuse.what);
        let command = misuse.deed.map_or("", options::name_of);
        let help = ["bridgehead", command, "--help"].map(str::to_owned).join(" ").replace("  ", " ");
        self.note(&format!("try `{help}`"));
        MISUSE
    }

    fn note(&mut self, text: &str) {
        // There is nowhere left to tell that this did not work.
        let _ = writeln!(self.err, "bridgehead: {text}");
    }

    fn print(&mut self, text: &str) -> Result<(), Told> {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|error| {
            self.note(&format!("cannot write to stdout: {error}"));
            Told
        })
    }

    /// Prints a value as libcni does, with four spaces.
    fn print_json(&mut self, value: &impl Serialize) -> Result<(), Told> {
        let mut text = Vec::new();
        let formatter = PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        match value.serialize(&mut serializer) {
            Ok(()) => self.print(&format!("{}\n", String::from_utf8_lossy(&text))),
            Err(error) => {
                self.note(&format!("cannot write JSON: {error}"));
                Err(Told)
            }
        }
    }
}

#[cfg(test)]
mod tests;
