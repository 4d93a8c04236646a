//! Sysctls of the pod's namespace that a configuration names.

use anyhow::Context;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World, or_undo};
use crate::net::{self, sysctl};

/// Sysctls with the values that they should have. They are the namespace's, which others use too, and so they stay when
/// the attachment goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctls {
    /// Each of them.
    pub sysctls: Vec<Sysctl>,
}

/// A sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// How the configuration calls it.
    pub key: String,
    /// Its name below /proc/sys/net.
    pub name: String,
    /// What it should be.
    pub value: String,
    /// What it was; unknown of one that can only be written.
    pub had: Option<String>,
}

impl Sysctls {
    /// Looks in the pod which of the names that a key may mean is there, and what its value is. Where none is, the first
    /// is kept: what is said of it is what the reader of the configuration expects.
    pub fn find(
        wanted: impl IntoIterator<Item = (String, Vec<String>, String)>,
        world: &mut World<'_>,
    ) -> anyhow::Result<Self> {
        let sysctls = world.pod()?.visit(|| {
            wanted
                .into_iter()
                .map(|(key, names, value)| {
                    let found = names.iter().find_map(|name| match sysctl::read(name) {
                        Ok(had) => Some((name.clone(), Some(had))),
                        Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR) => None,
                        Err(_) => Some((name.clone(), None)),
                    });
                    let (name, had) =
                        found.unwrap_or_else(|| (names.into_iter().next().unwrap_or_default(), None));
                    Sysctl { key, name, value, had }
                })
                .collect()
        })?;
        Ok(Self { sysctls })
    }

    /// Sets them, all or none.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        if self.sysctls.is_empty() {
            return Ok(Ensured::Present);
        }
        let mut done = 0;
        world.pod()?.visit(|| {
            let mut set_all = || {
                for sysctl in &self.sysctls {
                    // It may be set although it is not as it was asked for.
                    done += 1;
                    sysctl.set().with_context(|| format!("sysctl {:?}", sysctl.key))?;
                }
                Ok(())
            };
            let outcome = set_all();
            or_undo(outcome, || reset(self.sysctls.get(..done).unwrap_or_default()))
        })??;
        Ok(Ensured::Created)
    }

    /// Tells which have another value. White space between the numbers of a list does not matter.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        if self.sysctls.is_empty() {
            return Ok(Vec::new());
        }
        let values: Vec<_> =
            world.pod()?.visit(|| self.sysctls.iter().map(|it| sysctl::read(&it.name)).collect())?;
        let mut findings = Vec::new();
        for (sysctl, value) in self.sysctls.iter().zip(values) {
            let object = format!("sysctl net/{} of the pod", sysctl.name);
            match value {
                Ok(value) if value.split_whitespace().eq(sysctl.value.split_whitespace()) => {}
                Ok(value) => findings.push(Finding::differs(object, &sysctl.value, value)),
                Err(e) if e.errno == Errno::ENOENT => findings.push(Finding::missing(object)),
                // One that can only be written.
                Err(e) if e.errno == Errno::EACCES => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(findings)
    }

    /// Sets them back; only the roll-back of the ADD that has set them does so.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        if self.sysctls.is_empty() || !world.has_pod()? {
            return Ok(());
        }
        world.pod()?.visit(|| reset(&self.sysctls))?
    }
}

impl Sysctl {
    fn set(&self) -> net::Result<()> {
        match self.had {
            Some(_) => sysctl::set(&self.name, &self.value).map(drop),
            None => sysctl::write(&self.name, &self.value),
        }
    }
}

/// Sets back what has a value to go back to, newest first.
fn reset(sysctls: &[Sysctl]) -> anyhow::Result<()> {
    let mut first = Ok(());
    for Sysctl { name, had, .. } in sysctls.iter().rev() {
        if let Some(had) = had
            && let Err(e) = sysctl::set(name, had)
            && first.is_ok()
        {
            first = Err(e.into());
        }
    }
    first
}
