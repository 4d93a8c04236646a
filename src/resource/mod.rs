//! What an attachment is made of: one file per resource, each with `ensure`, `observe` and `remove`.
//!
//! Nothing else in this program acts on the kernel or on the address store. A resource is a plain value: it says
//! what should exist, and it can be written into the attachment's record and read back, so that DEL and GC remove
//! what ADD made and not what somebody thinks it made.

pub mod addressing;
pub mod aftermath;
pub mod announcement;
pub mod bridge;
pub mod bridge_use;
pub mod connections;
pub mod file_lock;
pub mod finding;
pub mod firewall;
pub mod forwarding;
pub mod gateway;
pub mod host_device;
pub mod ifb;
mod kept;
pub mod lease;
pub mod link_backup;
pub mod link_tuning;
pub mod loopback;
pub mod mac_guard;
pub mod masquerade;
pub mod neighbours;
mod owned;
pub mod owner;
pub mod pod_link_up;
pub mod pod_routes;
pub mod pod_sysctls;
pub mod point_to_point;
pub mod port_mappings;
pub mod port_state;
pub mod port_vlans;
pub mod reserved_frames;
mod restored;
mod share;
pub mod source_routing;
pub mod spoof_guard;
pub mod sublink;
pub mod sysctls;
pub mod tap;
pub mod traffic_shape;
mod unused_bridge;
pub mod veth;
pub mod vlan_gateway;
pub mod vrf;
pub mod world;

use serde::{Deserialize, Serialize};

use crate::spec::{CniError, Code};

pub use crate::ipam::StateDirectory;
pub use addressing::Addressing;
pub use announcement::Announcement;
pub use bridge::Bridge;
pub use connections::Connections;
pub use file_lock::FileLock;
pub use finding::{Drift, Finding};
pub use firewall::{Admission, Fence, Isolation, Passage, ZoneSource};
pub use forwarding::Forwarding;
pub use gateway::Gateway;
pub use host_device::{ForeignHostDevice, HostDevice};
pub use ifb::{ForeignIfb, Ifb};
pub use kept::Kept;
pub use lease::Lease;
pub use link_tuning::LinkTuning;
pub use loopback::Loopback;
pub use mac_guard::MacGuard;
pub use masquerade::{ForeignMasquerade, Masquerade};
pub use neighbours::Neighbours;
pub use pod_link_up::PodLinkUp;
pub use pod_routes::PodRoutes;
pub use pod_sysctls::PodSysctls;
pub use point_to_point::PointToPoint;
pub use port_mappings::{ForeignPortMappings, PortMappings};
pub use port_state::PortState;
pub use port_vlans::PortVlans;
pub use reserved_frames::ReservedFrames;
pub use restored::Restored;
pub use source_routing::{ForeignSourceRouting, SourceRouting};
pub use spoof_guard::SpoofGuard;
pub use sublink::{ForeignSublink, Sublink};
pub use sysctls::Sysctls;
pub use tap::Tap;
pub use traffic_shape::TrafficShape;
pub use unused_bridge::UnusedBridge;
pub use veth::{ForeignVeth, Veth};
pub use vlan_gateway::VlanGateway;
pub use vrf::{Vrf, VrfMember};
pub use world::World;

/// What `ensure` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was not there and is now; a roll-back removes it again.
    Created,
    /// It was there; a roll-back leaves it.
    Present,
}

/// Undoes what a failed attempt at something shared may have made, and gives the outcome back; its error comes with
/// what went wrong while undoing.
fn or_undo(outcome: anyhow::Result<()>, undo: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    match undo() {
        Ok(()) => Err(error),
        Err(e) => {
            let both = CniError::from_chain(&error, Code::Kernel);
            Err(both.also([format!("while undoing: {e:#}").as_str()]).into())
        }
    }
}

/// A thing that an attachment is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Addresses from an IPAM.
    Lease(Lease),
    /// The bridge.
    Bridge(Bridge),
    /// The link with the gateway addresses of a VLAN.
    VlanGateway(VlanGateway),
    /// A gateway address.
    Gateway(Gateway),
    /// Forwarding of packets.
    Forwarding(Forwarding),
    /// The veth pair.
    Veth(Veth),
    /// A veth pair that another suite made.
    ForeignVeth(ForeignVeth),
    /// The pod's interface that shares a master with the host.
    Sublink(Sublink),
    /// A pod's interface of which there is no record.
    ForeignSublink(ForeignSublink),
    /// VLANs of the bridge port.
    PortVlans(PortVlans),
    /// The guard against false MAC addresses.
    MacGuard(MacGuard),
    /// The guard against false senders.
    SpoofGuard(SpoofGuard),
    /// What a spoof guard needs of the bridge port.
    ReservedFrames(ReservedFrames),
    /// The pod's interface, up before it has an address.
    PodLinkUp(PodLinkUp),
    /// The pod's interface, with a program at its other end.
    Tap(Tap),
    /// A device of the host that is the pod's interface.
    HostDevice(HostDevice),
    /// A device of the host that another suite moved.
    ForeignHostDevice(ForeignHostDevice),
    /// Sysctls of the pod's interface.
    PodSysctls(PodSysctls),
    /// Addresses and routes of the pod's interface.
    Addressing(Addressing),
    /// Addresses and routes of a pod's interface behind which there is only the host.
    PointToPoint(PointToPoint),
    /// The host's addresses and routes on a link behind which there is only a pod.
    PodRoutes(PodRoutes),
    /// The bridge port's readiness.
    PortState(PortState),
    /// What the host remembers of the pod's connections.
    Connections(Connections),
    /// What the host knows of the pod as a neighbour.
    Neighbours(Neighbours),
    /// The announcement of the pod's addresses.
    Announcement(Announcement),
    /// NAT of what leaves the host.
    Masquerade(Masquerade),
    /// What another suite left of its NAT.
    ForeignMasquerade(ForeignMasquerade),
    /// What lets the pod's packets pass in iptables.
    Admission(Admission),
    /// What isolates the pod's bridge in iptables.
    Isolation(Isolation),
    /// What keeps the pod from other networks in nftables.
    Fence(Fence),
    /// What lets the pod's packets pass where somebody else's chain would drop them.
    Passage(Passage),
    /// The pod's addresses in a zone of firewalld.
    ZoneSource(ZoneSource),
    /// Host ports that lead to the pod.
    PortMappings(PortMappings),
    /// What is left of host ports without a record.
    ForeignPortMappings(ForeignPortMappings),
    /// The pod's loopback interface.
    Loopback(Loopback),
    /// Attributes of the pod's interface.
    LinkTuning(LinkTuning),
    /// Sysctls of the pod's namespace.
    Sysctls(Sysctls),
    /// Rules and tables of the pod's interface.
    SourceRouting(SourceRouting),
    /// A VRF of the pod.
    Vrf(Vrf),
    /// What binds the pod's interface to a VRF.
    VrfMember(VrfMember),
    /// Rules that nobody has a record of.
    ForeignSourceRouting(ForeignSourceRouting),
    /// The link by which a pod's packets are sent on their way in.
    Ifb(Ifb),
    /// A link for the same that another suite made.
    ForeignIfb(ForeignIfb),
    /// Limits to what a pod receives and sends.
    TrafficShape(TrafficShape),
}

/// How long a resource lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// As long as its attachment: DEL removes it.
    Attachment,
    /// Shared by attachments, or the namespace's: only the roll-back of the call that made it removes it, if nobody uses
    /// it yet.
    Host,
}

impl Resource {
    /// How long it lives.
    pub fn scope(&self) -> Scope {
        match self {
            Self::Bridge(_)
            | Self::VlanGateway(_)
            | Self::Gateway(_)
            | Self::Forwarding(_)
            | Self::Sysctls(_) => Scope::Host,
            _ => Scope::Attachment,
        }
    }

    /// What is to be looked for where later plugins of the chain have tuned the pod's interface, which they look after.
    pub fn as_tuned(&self, tunings: &[LinkTuning]) -> Self {
        let mut resource = self.clone();
        for LinkTuning { wanted, .. } in tunings {
            let is_resized = wanted.mtu.is_some();
            match &mut resource {
                Self::Veth(veth) => {
                    veth.mac = wanted.mac.or(veth.mac);
                    veth.mtu = veth.mtu.filter(|_| !is_resized);
                }
                Self::Sublink(sublink) => {
                    sublink.mac = wanted.mac.or(sublink.mac);
                    if is_resized {
                        sublink.mtu = sublink::Mtu::Inherited(None);
                    }
                }
                Self::Tap(tap) => {
                    tap.mac = wanted.mac.or(tap.mac);
                    tap.mtu = tap.mtu.filter(|_| !is_resized);
                }
                Self::HostDevice(device) => {
                    device.mac = wanted.mac.or(device.mac);
                    device.mtu = device.mtu.filter(|_| !is_resized);
                }
                _ => {}
            }
        }
        resource
    }

    /// Makes it, unless it is there as it should be.
    pub fn ensure(&self, world: &mut World<'_>) -> anyhow::Result<Ensured> {
        match self {
            // A lease has an answer, so the plan asks for it by itself; see plan::add.
            Self::Lease(lease) => lease.ensure(world).map(|_| Ensured::Created),
            Self::Bridge(bridge) => bridge.ensure(world),
            Self::VlanGateway(gateway) => gateway.ensure(world),
            Self::Gateway(gateway) => gateway.ensure(world),
            Self::Forwarding(forwarding) => forwarding.ensure(world),
            Self::Veth(veth) => veth.ensure(world),
            Self::Sublink(sublink) => sublink.ensure(world),
            Self::PortVlans(vlans) => vlans.ensure(world),
            Self::MacGuard(guard) => guard.ensure(world),
            Self::SpoofGuard(guard) => guard.ensure(world),
            Self::ReservedFrames(frames) => frames.ensure(world),
            Self::PodLinkUp(link) => link.ensure(world),
            Self::PodSysctls(sysctls) => sysctls.ensure(world),
            Self::Addressing(addressing) => addressing.ensure(world),
            Self::HostDevice(device) => device.ensure(world),
            Self::Tap(tap) => tap.ensure(world),
            Self::PointToPoint(addressing) => addressing.ensure(world),
            Self::PodRoutes(routes) => routes.ensure(world),
            Self::PortState(port) => port.ensure(world),
            Self::Neighbours(neighbours) => neighbours.ensure(world),
            Self::Connections(connections) => connections.ensure(world),
            Self::Announcement(announcement) => announcement.ensure(world),
            Self::Masquerade(masquerade) => masquerade.ensure(world),
            Self::Admission(admission) => admission.ensure(world),
            Self::Isolation(isolation) => isolation.ensure(world),
            Self::Fence(fence) => fence.ensure(world),
            Self::Passage(passage) => passage.ensure(world),
            Self::ZoneSource(source) => source.ensure(world),
            Self::PortMappings(mappings) => mappings.ensure(world),
            Self::Loopback(loopback) => loopback.ensure(world),
            Self::LinkTuning(tuning) => tuning.ensure(world),
            Self::Sysctls(sysctls) => sysctls.ensure(world),
            Self::SourceRouting(routing) => routing.ensure(world),
            Self::Vrf(vrf) => vrf.ensure(world),
            Self::VrfMember(member) => member.ensure(world),
            Self::ForeignSourceRouting(_) => Ok(Ensured::Present),
            Self::Ifb(ifb) => ifb.ensure(world),
            Self::TrafficShape(shape) => shape.ensure(world),
            // What others made is only ever removed.
            Self::ForeignIfb(_)
            | Self::ForeignVeth(_)
            | Self::ForeignHostDevice(_)
            | Self::ForeignSublink(_)
            | Self::ForeignMasquerade(_)
            | Self::ForeignPortMappings(_) => Ok(Ensured::Present),
        }
    }

    /// Tells how it is otherwise than it should be.
    pub fn observe(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Finding>> {
        match self {
            Self::Lease(lease) => lease.observe(world),
            Self::Bridge(bridge) => bridge.observe(world),
            Self::VlanGateway(gateway) => gateway.observe(world),
            Self::Gateway(gateway) => gateway.observe(world),
            Self::Forwarding(forwarding) => forwarding.observe(world),
            Self::Veth(veth) => veth.observe(world),
            Self::Sublink(sublink) => sublink.observe(world),
            Self::PortVlans(vlans) => vlans.observe(world),
            Self::MacGuard(guard) => guard.observe(world),
            Self::SpoofGuard(guard) => guard.observe(world),
            Self::ReservedFrames(frames) => frames.observe(world),
            Self::PodLinkUp(link) => link.observe(world),
            Self::PodSysctls(sysctls) => sysctls.observe(world),
            Self::Addressing(addressing) => addressing.observe(world),
            Self::HostDevice(device) => device.observe(world),
            Self::Tap(tap) => tap.observe(world),
            Self::PointToPoint(addressing) => addressing.observe(world),
            Self::PodRoutes(routes) => routes.observe(world),
            Self::PortState(port) => port.observe(world),
            Self::Neighbours(neighbours) => neighbours.observe(world),
            Self::Connections(connections) => connections.observe(world),
            Self::Announcement(announcement) => announcement.observe(world),
            Self::Masquerade(masquerade) => masquerade.observe(world),
            Self::PortMappings(mappings) => mappings.observe(world),
            Self::Admission(admission) => admission.observe(world),
            Self::Isolation(isolation) => isolation.observe(world),
            Self::Fence(fence) => fence.observe(world),
            Self::Passage(passage) => passage.observe(world),
            Self::ZoneSource(source) => source.observe(world),
            Self::Loopback(loopback) => loopback.observe(world),
            Self::LinkTuning(tuning) => tuning.observe(world),
            Self::Sysctls(sysctls) => sysctls.observe(world),
            Self::SourceRouting(routing) => routing.observe(world),
            Self::Vrf(vrf) => vrf.observe(world),
            Self::VrfMember(member) => member.observe(world),
            Self::ForeignSourceRouting(_) => Ok(Vec::new()),
            Self::Ifb(ifb) => ifb.observe(world),
            Self::TrafficShape(shape) => shape.observe(world),
            Self::ForeignIfb(_)
            | Self::ForeignVeth(_)
            | Self::ForeignHostDevice(_)
            | Self::ForeignSublink(_)
            | Self::ForeignMasquerade(_)
            | Self::ForeignPortMappings(_) => Ok(Vec::new()),
        }
    }

    /// Whether it is looked for in the pod by the interface's name alone, and so may be another network's.
    pub fn is_known_by_interface(&self) -> bool {
        matches!(
            self,
            Self::ForeignVeth(_)
                | Self::ForeignHostDevice(_)
                | Self::ForeignSublink(_)
                | Self::ForeignSourceRouting(_)
                | Self::LinkTuning(_)
                | Self::VrfMember(_)
        )
    }

    /// Whether it is looked for by network and container alone, and so may be another interface's: chains of iptables
    /// have such names.
    pub fn is_known_by_container(&self) -> bool {
        matches!(self, Self::ForeignMasquerade(_) | Self::ForeignPortMappings(_))
    }

    /// Removes it. That it is not there is fine.
    pub fn remove(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        match self {
            Self::Lease(lease) => lease.remove(world),
            Self::Bridge(bridge) => bridge.remove(world),
            Self::VlanGateway(gateway) => gateway.remove(world),
            Self::Gateway(gateway) => gateway.remove(world),
            Self::Forwarding(forwarding) => forwarding.remove(world),
            Self::Veth(veth) => veth.remove(world),
            Self::ForeignVeth(veth) => veth.remove(world),
            Self::HostDevice(device) => device.remove(world),
            Self::Tap(tap) => tap.remove(world),
            Self::ForeignHostDevice(device) => device.remove(world),
            Self::Sublink(sublink) => sublink.remove(world),
            Self::ForeignSublink(sublink) => sublink.remove(world),
            Self::MacGuard(guard) => guard.remove(world),
            Self::SpoofGuard(guard) => guard.remove(world),
            Self::Masquerade(masquerade) => masquerade.remove(world),
            Self::ForeignMasquerade(masquerade) => masquerade.remove(world),
            Self::Neighbours(neighbours) => neighbours.remove(world),
            Self::Connections(connections) => connections.remove(world),
            Self::Admission(admission) => admission.remove(world),
            Self::Isolation(isolation) => isolation.remove(world),
            Self::Fence(fence) => fence.remove(world),
            Self::Passage(passage) => passage.remove(world),
            Self::ZoneSource(source) => source.remove(world),
            Self::PortMappings(mappings) => mappings.remove(world),
            Self::ForeignPortMappings(mappings) => mappings.remove(world),
            Self::Loopback(loopback) => loopback.remove(world),
            Self::LinkTuning(tuning) => tuning.remove(world),
            Self::Sysctls(sysctls) => sysctls.remove(world),
            Self::SourceRouting(routing) => routing.remove(world),
            Self::Vrf(vrf) => vrf.remove(world),
            Self::VrfMember(member) => member.remove(world),
            Self::ForeignSourceRouting(routing) => routing.remove(world),
            Self::Ifb(ifb) => ifb.remove(world),
            Self::ForeignIfb(ifb) => ifb.remove(world),
            Self::TrafficShape(shape) => shape.remove(world),
            // They go with the link.
            Self::Announcement(_)
            | Self::PortVlans(_)
            | Self::ReservedFrames(_)
            | Self::PodLinkUp(_)
            | Self::PodSysctls(_)
            | Self::Addressing(_)
            | Self::PointToPoint(_)
            | Self::PodRoutes(_)
            | Self::PortState(_) => Ok(()),
        }
    }
}
