//! What the kernel can do, for STATUS: nothing is made for a try, and no module is loaded.

use nix::errno::Errno;

use crate::net::iptables::{Protocol, Variant, installed};
use crate::net::module::{self, Presence};
use crate::net::nft::{Family, Nft, Table};
use crate::resource::World;
use crate::resource::masquerade::Backend;
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

/// Whether NAT would be done by nf_tables: in all cases but that of an old iptables.
pub(super) fn masquerades_by_nf_tables(configured: Option<Backend>) -> bool {
    match configured {
        Some(Backend::Nftables) => true,
        Some(Backend::Iptables) | None => installed(Protocol::Ipv4) != Some(Variant::Legacy),
    }
}

/// Whether the kernel has nf_tables, or would on demand.
pub(super) fn has_nf_tables() -> anyhow::Result<bool> {
    if module::presence("nf_tables") != Presence::Unknown {
        return Ok(true);
    }
    // Any question will do; it is who answers that matters.
    let answer =
        Nft::open().and_then(|mut nft| nft.has_chain(Table::new(Family::Inet, "bridgehead").chain("any")));
    match answer {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.errno, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
