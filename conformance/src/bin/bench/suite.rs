//! A directory of plugins to be measured.

use crate::machine::PATH;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One directory of plugin executables.
pub(crate) struct Suite {
    /// How the report calls it.
    pub(crate) label: &'static str,
    /// The directory, absolute.
    pub(crate) dir: PathBuf,
    /// What its `bridge` says of itself when started without a command.
    pub(crate) banner: String,
}

impl Suite {
    /// Opens the directory and asks its `bridge` plugin for its version. Fails if the directory is not there or
    /// lies below `/run`, which the private host covers.
    pub(crate) fn open(label: &'static str, dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
        if dir.starts_with("/run") {
            bail!(
                "{}: plugins below /run cannot be measured, since the private host has its own",
                dir.display()
            );
        }
        let banner = banner(&dir.join("bridge"));
        Ok(Self { label, dir, banner })
    }

    /// The executable of this plugin type.
    pub(crate) fn program(&self, plugin: &str) -> PathBuf {
        self.dir.join(plugin)
    }
}

/// What a plugin prints when started without `CNI_COMMAND`, in one line; both streams are in use for it.
fn banner(program: &Path) -> String {
    let output = Command::new(program).env_clear().env("PATH", PATH).stdin(Stdio::null()).output();
    let Ok(output) = output else { return "no bridge plugin".to_owned() };
    let text = [output.stderr, output.stdout].concat();
    let lines: Vec<_> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
    if lines.is_empty() { "no version banner".to_owned() } else { lines.join("; ") }
}
