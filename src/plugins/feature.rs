//! What the kernel can do, for STATUS: nothing is made for a try, and no module is loaded.

use crate::net::module::{self, Presence};
use crate::resource::World;
use crate::spec::{CniError, Code};

/// A kind of link that a plugin makes.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkKind<'a> {
    /// Its name in the kernel: `veth`.
    pub(super) kind: &'a str,
    /// The module that has it, as /sys/module names it; mostly the same.
    pub(super) module: &'a str,
    /// What to call it in an error: `veth pairs (CONFIG_VETH)`.
    pub(super) what: &'a str,
}

impl LinkKind<'_> {
    /// Whether links of the kind are at work in the kernel; `false` if they would be on demand. An error of code 50 if it
    /// does not have them.
    pub(super) fn is_at_work(self, world: &mut World<'_>) -> anyhow::Result<bool> {
        match module::presence(self.module) {
            Presence::Loaded => Ok(true),
            Presence::Available => Ok(false),
            Presence::Unknown if world.host()?.has_kind(self.kind)? => Ok(true),
            Presence::Unknown => {
                let msg = format!("this kernel has no {}", self.what);
                Err(CniError::new(Code::Unavailable, msg).into())
            }
        }
    }
}
