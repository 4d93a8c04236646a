//! What others take away from pods that live, and how it is put back.

use super::{Finding, Forwarding, Resource, Scope, World};

/// What [`Resource::restore`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// What it is, in a word.
    pub what: &'static str,
    /// What was missing or otherwise, and is not any more.
    pub lost: Vec<Finding>,
}

impl Resource {
    /// What it is in a word, if it is what something else than a call of this program takes away from pods that live: a
    /// flush of the tables, a restart of the firewall, `sysctl --system`.
    ///
    /// What is kept in links, in the pod or on disk stays as long as these do.
    pub fn volatile(&self) -> Option<&'static str> {
        match self {
            Self::Forwarding(Forwarding::Ipv4) => Some("IPv4 forwarding"),
            Self::Forwarding(Forwarding::Ipv6) => Some("IPv6 forwarding"),
            Self::MacGuard(_) => Some("MAC guard"),
            Self::SpoofGuard(_) => Some("spoof guard"),
            Self::Masquerade(_) => Some("masquerade"),
            Self::Admission(_) => Some("admission"),
            Self::Isolation(_) => Some("isolation"),
            Self::Fence(_) => Some("fence"),
            Self::Passage(_) => Some("passage"),
            Self::ZoneSource(_) => Some("zone source"),
            Self::PortMappings(_) => Some("host ports"),
            Self::Lease(_)
            | Self::Bridge(_)
            | Self::VlanGateway(_)
            | Self::Gateway(_)
            | Self::Veth(_)
            | Self::ForeignVeth(_)
            | Self::Sublink(_)
            | Self::ForeignSublink(_)
            | Self::PortVlans(_)
            | Self::ReservedFrames(_)
            | Self::PodLinkUp(_)
            | Self::PodSysctls(_)
            | Self::Addressing(_)
            | Self::HostDevice(_)
            | Self::Tap(_)
            | Self::ForeignHostDevice(_)
            | Self::PointToPoint(_)
            | Self::PodRoutes(_)
            | Self::PortState(_)
            | Self::Neighbours(_)
            | Self::Connections(_)
            | Self::Announcement(_)
            | Self::ForeignMasquerade(_)
            | Self::LinkTuning(_)
            | Self::Sysctls(_)
            | Self::SourceRouting(_)
            | Self::ForeignSourceRouting(_)
            | Self::Ifb(_)
            | Self::ForeignIfb(_)
            | Self::TrafficShape(_)
            | Self::Vrf(_)
            | Self::VrfMember(_)
            | Self::ForeignPortMappings(_)
            | Self::Loopback(_) => None,
        }
    }

    /// Puts it back if it is [volatile](Self::volatile). Tells what was lost; only `restore` asks.
    pub fn restore(&self, world: &mut World<'_>) -> anyhow::Result<Option<Restored>> {
        let Some(what) = self.volatile() else { return Ok(None) };
        let lost = self.observe(world)?;
        if !lost.is_empty() {
            // What somebody else has by now is not taken away again.
            if let Some(taken) = lost.iter().find(|it| self.scope() == Scope::Attachment && it.is_taken()) {
                anyhow::bail!("{what}: {taken}, and is left alone");
            }
            self.ensure(world)?;
            if let Some(left) = self.observe(world)?.first() {
                anyhow::bail!("{what}: {left}, and it cannot be put back");
            }
        }
        Ok(Some(Restored { what, lost }))
    }
}
