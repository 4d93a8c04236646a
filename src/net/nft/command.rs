//! The command `nft`, for rules in words that only it understands.

use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;

use crate::net::iptables::commands;
use crate::net::{Error, Result};

/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// Whether it is installed.
pub fn is_installed() -> bool {
    commands::find("nft").is_some()
}

/// Has `nft` read a script: all of it takes effect, or nothing.
pub fn execute(script: &str) -> Result<()> {
    let deed = || format!("have nft read `{}`", script.trim_end());
    let path = commands::find("nft").ok_or_else(|| Error::new(deed(), Errno::ENOENT))?;
    let mut command = Command::new(path);
    command.args(["-f", "-"]);
    let outcome = commands::execute("nft", command, script, DEADLINE)?;
    if outcome.success {
        return Ok(());
    }
    Err(Error { deed: deed(), errno: Errno::EINVAL, text: outcome.said.trim().to_owned() })
}
