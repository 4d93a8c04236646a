//! Whom a GC leaves alone, and what it removes of all others without a record.

use super::{Resource, World, firewall, ifb, mac_guard, masquerade, port_mappings, spoof_guard, veth};
use crate::spec::Attachment;

/// The attachments to a network that a GC leaves alone, as they are when it is called: those that are valid, and those
/// that have a record.
pub type Kept<'a> = dyn Fn() -> anyhow::Result<Vec<Attachment>> + 'a;

impl Resource {
    /// Removes what attachments to a network have left that are not kept, of which there is no record.
    ///
    /// Who is kept is asked for after what is there: what a call has made that began meanwhile belongs to somebody
    /// who is kept.
    ///
    /// Goes on past errors, and gives them all.
    pub fn collect(&self, network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Vec<anyhow::Error> {
        match self {
            Self::ForeignMasquerade(_) | Self::Masquerade(_) => masquerade::collect(network, kept, world),
            Self::PortMappings(_) | Self::ForeignPortMappings(_) => {
                port_mappings::collect(network, kept, world)
            }
            Self::MacGuard(_) => mac_guard::collect(network, kept, world).err().into_iter().collect(),
            Self::SpoofGuard(_) => spoof_guard::collect(network, kept, world).err().into_iter().collect(),
            Self::Veth(_) => veth::collect(network, kept, world),
            Self::Admission(_) => {
                firewall::admission::collect(network, kept, world).err().into_iter().collect()
            }
            Self::Fence(_) => firewall::fence::collect(network, kept, world).err().into_iter().collect(),
            Self::ZoneSource(_) => {
                firewall::zone_source::collect(network, kept, world).err().into_iter().collect()
            }
            Self::Passage(_) => firewall::passage::collect(network, kept, world).err().into_iter().collect(),
            Self::Isolation(_) => {
                firewall::isolation::collect(network, kept, world).err().into_iter().collect()
            }
            Self::Ifb(_) => ifb::collect(network, kept, world),
            // A lease is collected by itself, and what is shared stays.
            Self::Lease(_)
            | Self::Bridge(_)
            | Self::VlanGateway(_)
            | Self::Gateway(_)
            | Self::Forwarding(_)
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
            | Self::LinkTuning(_)
            | Self::Sysctls(_)
            | Self::SourceRouting(_)
            | Self::ForeignSourceRouting(_)
            | Self::ForeignIfb(_)
            | Self::TrafficShape(_)
            | Self::Vrf(_)
            | Self::VrfMember(_)
            | Self::Loopback(_) => Vec::new(),
        }
    }
}
