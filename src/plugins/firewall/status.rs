//! STATUS of `firewall`: whether an ADD could be served, and whether pods that are there can work. Looks only.

use super::conf::Firewall;
use crate::net::firewalld::Firewalld;
use crate::resource::World;
use crate::resource::firewall::{Backend, Obstacle, obstacles};
use crate::spec::{CniError, Code, Request};

/// The error of code 50 if firewalld is asked for and does not run; that of code 51 if somebody else's firewall drops what pods send, whatever is let through here.
pub(super) fn status(request: &Request, world: &mut World<'_>) -> anyhow::Result<()> {
    let firewall = Firewall::parse(request)?;
    let backend = firewall.choose_backend()?;
    if backend == Backend::Firewalld && Firewalld::find()?.is_none() {
        let msg = "backend: firewalld does not run (nobody has its name on D-Bus)";
        return Err(CniError::new(Code::Unavailable, msg).into());
    }
    // That an internal network's packets are dropped is what is wanted of it.
    if firewall.internal {
        return Ok(());
    }
    let mut found = obstacles(backend, world.nft()?)?;
    if firewall.opens_forward {
        // No rule of ours gets into those.
        found.retain(|obstacle| obstacle.legacy);
    }
    if found.is_empty() {
        return Ok(());
    }
    let found: Vec<String> = found.iter().map(Obstacle::to_string).collect();
    let msg = format!(
        "pods' packets are dropped: {}, and no rule there lets them through; accept them there, or set openForward",
        found.join("; ")
    );
    Err(CniError::new(Code::Degraded, msg).into())
}
