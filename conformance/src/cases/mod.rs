//! The cases, one file per topic.
//!
//! To add a case, write a function `fn what_must_hold(host: &Sandbox) -> Result<()>` in the file of its topic and name
//! it in the `cases!` list of that file, below its group. The list is the only registry:
//!
//! ```text
//! cases! {
//!     "bridge/links" {
//!         the_host_link_is_enslaved;
//!         vlan_is_untagged_on_the_port needs [Need::VlanFiltering];
//!     }
//! }
//! ```
//!
//! A case that is generic over what it is a case of is named with that: `links_are_up of Macvlan;`.
//!
//! A case has a host of its own (see [`crate::sandbox`]) and need not tidy up. It makes pods with `host.pod("a")`,
//! calls plugins with [`Call`](crate::call::Call), looks at the answer (`result()`, `silence()`, `refusal()`), at the
//! kernel (`host.ip("link show")`, `pod.addresses("eth0")`, `pod.ping(..)`) and at the store (`host.leases("net")`), and
//! returns the first thing that is wrong as an error. The functions of [`crate::expect`] phrase it. The last calls are
//! printed with it.
//!
//! To add a topic, write a file, and add it twice below. Configurations that several topics start from are in
//! [`networks`].

use crate::case::Case;

pub mod networks;

mod bandwidth;
mod bridge_addressing;
mod bridge_check;
mod bridge_crowd;
mod bridge_errors;
mod bridge_lifecycle;
mod bridge_links;
mod bridge_masquerade;
mod chained;
mod delegation;
pub mod dhcp;
mod drafts;
mod environment;
mod firewall;
mod firewall_firewalld;
mod firewall_nftables;
mod firewall_packets;
mod fixed;
mod flushed;
mod forwarding;
mod gc;
mod host_device;
mod host_local_ranges;
mod host_local_requests;
mod host_local_store;
mod iptables_legacy;
mod ipvlan;
mod loopback;
mod macvlan;
mod mutations;
pub mod netavark;
mod netavark_leftovers;
mod netavark_packets;
mod portmap;
mod portmap_packets;
mod portmap_sctp;
mod ptp;
mod reboot;
mod records;
mod restore;
mod results;
mod reuse;
mod sbr;
mod spoof_guard;
mod state_directory;
mod status;
mod store_crash;
mod store_damage;
mod sublinks;
mod systemd;
mod tap;
mod tuning;
mod tuning_sysctl;
mod versions;
mod vlan;
mod vrf;
mod whole;

/// Lists the cases of a file: groups of functions, each with what it needs.
macro_rules! cases {
    ($($group:literal { $($name:ident $(of $kind:ident)? $(needs [$($need:expr),+])?;)+ })+) => {
        /// The cases of this file.
        pub(super) const CASES: &[crate::case::Case] = &[$($(
            crate::case::Case {
                group: $group,
                name: stringify!($name),
                needs: &[$($($need),+)?],
                run: $name$(::<$kind>)?,
            },
        )+)+];
    };
}
use cases;

/// All cases in the order in which they are run.
pub fn all() -> Vec<Case> {
    [
        environment::CASES,
        versions::CASES,
        whole::CASES,
        results::CASES,
        delegation::CASES,
        chained::CASES,
        host_local_ranges::CASES,
        host_local_requests::CASES,
        host_local_store::CASES,
        store_crash::CASES,
        store_damage::CASES,
        reboot::CASES,
        status::CASES,
        fixed::CASES,
        loopback::CASES,
        sbr::CASES,
        tuning::CASES,
        tuning_sysctl::CASES,
        vrf::CASES,
        mutations::CASES,
        bandwidth::CASES,
        bridge_links::CASES,
        bridge_addressing::CASES,
        bridge_masquerade::CASES,
        bridge_lifecycle::CASES,
        spoof_guard::CASES,
        forwarding::CASES,
        reuse::CASES,
        ptp::CASES,
        host_device::CASES,
        tap::CASES,
        bridge_check::CASES,
        bridge_errors::CASES,
        sublinks::MACVLAN,
        macvlan::CASES,
        sublinks::DUMMY,
        dhcp::CASES,
        dhcp::KEEPING,
        dhcp::FAILURES,
        dhcp::OCCUPIED,
        dhcp::UPLINKS,
        sublinks::VLAN,
        vlan::CASES,
        sublinks::IPVLAN,
        ipvlan::CASES,
        restore::CASES,
        firewall::CASES,
        firewall_packets::CASES,
        firewall_nftables::CASES,
        firewall_firewalld::CASES,
        flushed::CASES,
        records::CASES,
        drafts::CASES,
        gc::CASES,
        state_directory::CASES,
        portmap::CASES,
        portmap_packets::CASES,
        portmap_sctp::CASES,
        iptables_legacy::CASES,
        systemd::CASES,
        netavark::CASES,
        netavark_leftovers::CASES,
        netavark_packets::CASES,
        // Last: while the kernel takes so many links away, it holds up all namespaces.
        bridge_crowd::CASES,
    ]
    .concat()
}
