//! The arguments of the daemon, as Go's package `flag` reads them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::exchange::Timing;
use super::rpc;

/// What the daemon was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Where to write the process id.
    pub pidfile: Option<PathBuf>,
    /// What stands before paths of the host, for a daemon in a container.
    pub host_prefix: PathBuf,
    /// Where to listen.
    pub socket: PathBuf,
    /// Whether servers are to answer to all.
    pub broadcast: bool,
    /// How long a server may take to keep its offer.
    pub timeout: Duration,
    /// Longest time between two messages.
    pub resend_max: Duration,
    /// How long a lease is tried to be had.
    pub resend_timeout: Duration,
    /// How long whoever has the address of a new lease already may take to say so.
    pub probe: Duration,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            pidfile: None,
            host_prefix: PathBuf::new(),
            socket: rpc::SOCKET.into(),
            broadcast: false,
            timeout: Duration::from_secs(10),
            resend_max: Duration::from_secs(62),
            resend_timeout: Duration::from_secs(208),
            probe: Duration::from_millis(200),
        }
    }
}

/// What `-help` says.
pub const USAGE: &str = "usage: dhcp daemon [flags]
  -pidfile PATH          write the process id to this file
  -hostprefix PATH       stands before the paths of sockets, namespaces and state
  -socketpath PATH       where to listen (/run/cni/dhcp.sock)
  -broadcast             have servers answer to all: for links that take only what is for their address
  -timeout TIME          how long a server may take to keep its offer (10s)
  -resendmax TIME        longest time between two messages (1m2s)
  -resendtimeout TIME    how long a lease is tried to be had (3m28s)
  -probe TIME            how long another that has the address already may take to say so; 0 asks nobody (200ms)
With LISTEN_FDS=1 it listens on the socket that it is given instead.
";

impl Flags {
    /// Reads the arguments after `daemon`. None if it was asked for help. An error is a sentence.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut flags = Self::default();
        let mut arguments = arguments.into_iter().map(|it| it.to_string_lossy().into_owned());
        while let Some(argument) = arguments.next() {
            let bare = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let Some(bare) = bare.filter(|it| !it.is_empty()) else {
                return Err(format!("{argument:?} is no flag"));
            };
            let (name, given) = match bare.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (bare, None),
            };
            match name {
                "h" | "help" => return Ok(None),
                "broadcast" => {
                    flags.broadcast = match given.as_deref() {
                        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
                        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
                        Some(other) => {
                            return Err(format!("-broadcast: {other:?} is neither true nor false"));
                        }
                    };
                    continue;
                }
                _ => {}
            }
            let mut value =
                || given.clone().or_else(|| arguments.next()).ok_or(format!("-{name}: its value is missing"));
            let time_or_none = |text: String| {
                go_duration(&text)
                    .ok_or_else(|| format!("-{name}: {text:?} is no time such as 10s, 1m30s or 500ms"))
            };
            let time = |text: String| match time_or_none(text) {
                Ok(Duration::ZERO) => {
                    Err(format!("-{name}: 0s is too short; wanted is a time such as 10s, 1m30s or 500ms"))
                }
                outcome => outcome,
            };
            match name {
                "pidfile" => {
                    let path = PathBuf::from(value()?);
                    if !path.is_absolute() {
                        return Err(format!("-pidfile: {path:?} is not absolute"));
                    }
                    flags.pidfile = Some(path);
                }
                "hostprefix" => flags.host_prefix = value()?.into(),
                "socketpath" => flags.socket = value()?.into(),
                "timeout" => flags.timeout = time(value()?)?,
                "resendmax" => flags.resend_max = time(value()?)?,
                "resendtimeout" => flags.resend_timeout = time(value()?)?,
                "probe" => flags.probe = time_or_none(value()?)?,
                _ => return Err(format!("there is no flag -{name}")),
            }
        }
        Ok(Some(flags))
    }

    /// A path of the host as the daemon sees it: behind the prefix, as text, even if it is absolute.
    pub fn on_host(&self, path: &std::path::Path) -> PathBuf {
        if self.host_prefix.as_os_str().is_empty() {
            return path.to_owned();
        }
        self.host_prefix.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// How long is waited for what.
    pub fn timing(&self) -> Timing {
        Timing {
            answer: self.timeout,
            resend_max: self.resend_max,
            resend_timeout: self.resend_timeout,
            probe: self.probe,
        }
    }
}

/// A time in Go's form: numbers with units, such as `1m2.5s`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = None;
    while !rest.is_empty() {
        let len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|len| *len > 0)?;
        let (number, tail) = rest.split_at(len);
        let units =
            [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, seconds) = units.into_iter().find(|(unit, _)| tail.starts_with(unit))?;
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = Some(part.checked_add(total.unwrap_or_default())?);
        rest = tail.get(unit.len()..)?;
    }
    // What an Instant can be added to.
    total.filter(|total| *total < Duration::from_secs(1 << 32))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Option<Flags>, String> {
        Flags::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn the_forms_of_go_are_read() {
        let flags = parse(&[
            "-pidfile",
            "/run/d.pid",
            "--hostprefix=/host",
            "-broadcast=true",
            "-timeout",
            "1m2.5s",
            "-resendmax=500ms",
        ]);
        let flags = flags.unwrap().unwrap();
        assert_eq!(flags.pidfile.as_deref(), Some(Path::new("/run/d.pid")));
        assert_eq!(flags.on_host(Path::new("/run/x")), Path::new("/host/run/x"));
        assert_eq!(
            (flags.timeout, flags.resend_max),
            (Duration::from_millis(62500), Duration::from_millis(500))
        );
        assert!(flags.broadcast && parse(&["-broadcast"]).unwrap().unwrap().broadcast);
        assert_eq!(parse(&["-probe=0"]).unwrap().unwrap().probe, Duration::ZERO);
        assert_eq!(parse(&[]), Ok(Some(Flags::default())));
        assert_eq!(parse(&["-help"]), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (arguments, word) in [
            (&["-pidfile", "d.pid"][..], "absolute"),
            (&["-pidfile"], "missing"),
            (&["-timeout", "10"], "10s"),
            (&["-timeout=0s"], "0s"),
            (&["-timeout=-1s"], "-1s"),
            (&["-probe=soon"], "soon"),
            (&["-broadcast=maybe"], "maybe"),
            (&["-nonsense"], "nonsense"),
            (&["stray"], "stray"),
        ] {
            let said = parse(arguments).unwrap_err();
            assert!(said.contains(word), "{arguments:?}: {said}");
        }
    }
}
