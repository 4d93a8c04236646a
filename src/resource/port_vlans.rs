//! The VLANs that a bridge port carries.

use std::ops::RangeInclusive;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{Ensured, Finding, World};
use crate::net::rtnl::vlan::{self, Membership};

/// Membership of a bridge port in VLANs. It goes with the port, so there is nothing to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortVlans {
    /// The port.
    pub link: String,
    /// The VLAN of untagged packets (PVID), whose packets also go out untagged.
    pub native: Option<u16>,
    /// VLANs that are carried with tags, ascending.
    pub tagged: Vec<u16>,
    /// Whether the VLANs that the bridge gave the port when it joined (normally 1) stay.
    pub keep_default: bool,
}

impl PortVlans {
    /// Makes the port carry the VLANs: one request for those that go, one for those that come.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        let port = world.existing_host_link(&self.link)?;
        let host = world.host()?;
        if !self.keep_default {
            let had: Vec<u16> = host.port_vlans(&port)?.into_iter().map(|(vid, _)| vid).collect();
            if !had.is_empty() {
                host.execute_one(vlan::delete(&port, &ranges(&had)))?;
            }
        }
        // The tagged ones first: a native VLAN that is also in the trunk must end up native.
        let tagged = ranges(&self.tagged).into_iter().map(|range| (range, Membership::Tagged));
        let native = self.native.map(|vid| (vid..=vid, Membership::Native));
        let wanted: Vec<_> = tagged.chain(native).collect();
        if !wanted.is_empty() {
            host.execute_one(vlan::add(&port, &wanted)).context("vlan, vlanTrunk")?;
        }
        Ok(Ensured::Created)
    }

    /// Tells which VLANs the port does not carry, carries otherwise, or should not carry.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        let Some(port) = world.host_link(&self.link)? else { return Ok(Vec::new()) };
        let have = world.host()?.port_vlans(&port)?;
        let mut findings = Vec::new();
        let tagged =
            self.tagged.iter().filter(|vid| self.native != Some(**vid)).map(|v| (*v, Membership::Tagged));
        let want: Vec<_> = tagged.chain(self.native.map(|vid| (vid, Membership::Native))).collect();
        let word = |membership: Membership| match membership {
            Membership::Tagged => "tagged",
            Membership::Native => "native",
        };
        for (vid, membership) in &want {
            let object = format!("VLAN {vid} of bridge port {}", self.link);
            match have.iter().find(|(v, _)| v == vid) {
                None => findings.push(Finding::missing(object)),
                Some((_, found)) if found != membership => {
                    findings.push(Finding::differs(object, word(*membership), word(*found)));
                }
                Some(_) => {}
            }
        }
        if !self.keep_default {
            for (vid, _) in have.iter().filter(|(v, _)| !want.iter().any(|(w, _)| w == v)) {
                findings.push(Finding::differs(
                    format!("VLAN {vid} of bridge port {}", self.link),
                    "not there",
                    "there",
                ));
            }
        }
        Ok(findings)
    }
}

/// Ascending numbers as ranges, so that a trunk of 4094 VLANs is one entry and not 4094 requests.
fn ranges(vids: &[u16]) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for &vid in vids {
        match ranges.last_mut() {
            Some(last) if *last.end() + 1 == vid => *last = *last.start()..=vid,
            _ => ranges.push(vid..=vid),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join_into_ranges() {
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), [1..=3, 7..=7, 9..=10]);
        assert_eq!(ranges(&[]), []);
    }
}
