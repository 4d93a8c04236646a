//! What must hold alike for macvlan, ipvlan, vlan and dummy: plugins that make one interface, in the pod, of a master.
//!
//! Each case is a function that is generic over the plugin ([`Kind`]); the list at the end names it once for all four.

mod change;
mod exchange;
mod lifecycle;
pub(super) mod master;
mod removal;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::networks::{Attachment, NEWEST, USUAL, pool, with};
use crate::call::Call;
use crate::case::{Case, Need};
use crate::pod::Pod;
use crate::sandbox::Sandbox;
use change::*;
use exchange::*;
use lifecycle::*;
use removal::*;

/// The link that is the master of all.
pub(super) const MASTER: &str = "up0";

/// One of the plugins.
pub(super) trait Kind {
    /// Its name, which is also the kernel's for such links.
    const PLUGIN: &'static str;
    /// Whether its links have a master.
    const HAS_MASTER: bool = true;
    /// Whether its links have their master's MAC address.
    const SHARES_MAC: bool = false;

    /// Its own keys for one of several pods.
    fn keys(number: u16) -> Value;
}

/// The plugin `macvlan`.
pub(super) struct Macvlan;
/// The plugin `dummy`.
pub(super) struct Dummy;
/// The plugin `vlan`.
pub(super) struct Vlan;
/// The plugin `ipvlan`.
pub(super) struct Ipvlan;

impl Kind for Macvlan {
    const PLUGIN: &'static str = "macvlan";
    fn keys(_: u16) -> Value {
        json!({"master": MASTER})
    }
}

impl Kind for Dummy {
    const PLUGIN: &'static str = "dummy";
    const HAS_MASTER: bool = false;
    fn keys(_: u16) -> Value {
        json!({})
    }
}

impl Kind for Vlan {
    const PLUGIN: &'static str = "vlan";
    const SHARES_MAC: bool = true;
    fn keys(number: u16) -> Value {
        // A master has each VLAN only once.
        json!({"master": MASTER, "vlanId": 100 + number})
    }
}

impl Kind for Ipvlan {
    const PLUGIN: &'static str = "ipvlan";
    const SHARES_MAC: bool = true;
    fn keys(_: u16) -> Value {
        json!({"master": MASTER})
    }
}

/// Makes the master, and what it is connected to.
pub(super) fn uplink(host: &Sandbox) -> Result<()> {
    host.ip_set("link add up0 address 02:00:00:00:aa:01 type veth peer name far0")?;
    host.ip_set("link set up0 up")?;
    host.ip_set("link set far0 up")
}

/// Addresses of both families, and a default route.
pub(super) fn addresses() -> Value {
    let ipam = pool(&["10.30.0.0/24", "fd30::/64"]);
    json!({"ipam": with(ipam, json!({"routes": [{"dst": "0.0.0.0/0"}]}))})
}

/// As [`addresses`], but from an IPAM that gives everybody the same.
pub(super) fn same_addresses() -> Value {
    let given = json!([
        {"address": "10.30.0.2/24", "gateway": "10.30.0.1"},
        {"address": "fd30::2/64", "gateway": "fd30::1"},
    ]);
    json!({"ipam": {"type": "static", "addresses": given, "routes": [{"dst": "0.0.0.0/0"}]}})
}

/// The plugin for `eth0` of the pod of a number, on a network called `net`, with these keys more. No verb is chosen.
pub(super) fn call<K: Kind>(id: &str, number: u16, pod: &Pod, more: Value) -> Call {
    let config = with(json!({"cniVersion": USUAL, "name": "net", "type": K::PLUGIN}), K::keys(number));
    Call::new(K::PLUGIN).id(id).ifname("eth0").netns(pod).config(with(config, more))
}

/// Makes a pod and attaches it; name and container id are the same.
pub(super) fn attach<K: Kind>(host: &Sandbox, id: &str, number: u16, more: Value) -> Result<Attachment> {
    let pod = host.pod(id)?;
    let call = call::<K>(id, number, &pod, more);
    let result = call.add().run(host)?.result().with_context(|| format!("ADD of {id}"))?;
    Ok(Attachment { pod, call, result })
}

/// The usual pod: the first, with addresses, on a host with an uplink.
fn usual<K: Kind>(host: &Sandbox) -> Result<Attachment> {
    uplink(host)?;
    attach::<K>(host, "a", 0, addresses())
}

fn newest(keys: Value) -> Value {
    with(keys, json!({"cniVersion": NEWEST}))
}

/// The cases of one plugin: each function of a list, for its type.
macro_rules! cases_of {
    ($kind:ident, $plugin:literal, $needs:expr; $($topic:literal { $($name:ident $(with $need:expr)?;)+ })+) => {
        &[$($(Case {
            group: concat!($plugin, "/", $topic),
            name: stringify!($name),
            needs: &[$needs[0], $needs[1], $needs[2] $(, $need)?],
            run: $name::<$kind>,
        },)+)+]
    };
}

macro_rules! all_of {
    ($kind:ident, $plugin:literal, $needs:expr) => {
        cases_of! { $kind, $plugin, $needs;
            "result" {
                the_result_has_the_interface_and_the_addresses;
                old_versions_get_old_results;
                the_newest_version_tells_the_mtu with Need::Plugin("bridgehead");
            }
            "add" {
                the_pod_has_link_addresses_and_routes;
                the_link_names_its_owner with Need::Plugin("bridgehead");
                ipv6_addresses_can_be_used_at_once with Need::Plugin("bridgehead");
                duplicates_are_looked_for_on_request;
                a_name_that_the_host_has_is_no_hindrance;
                a_taken_interface_name_is_an_error_and_nothing_changes;
                a_late_failure_leaves_nothing;
                a_failing_ipam_leaves_nothing;
                an_ipam_without_addresses_leaves_nothing;
                an_answer_that_cannot_be_written_is_undone;
                add_again_gives_the_same_result;
                add_again_repairs;
                add_again_in_a_new_namespace_starts_anew;
                wrong_values_are_named_and_change_nothing;
            }
            "del" {
                del_restores_everything;
                del_without_previous_result;
                del_without_namespace;
                del_with_a_dangling_namespace;
                del_with_a_file_that_is_no_namespace;
                del_without_a_record with Need::Plugin("bridgehead");
                del_twice;
                del_of_what_was_never_added;
                del_when_the_interface_is_gone;
                del_when_the_master_is_gone;
                del_with_a_wrong_configuration;
                del_leaves_links_of_others with Need::Plugin("bridgehead");
                names_can_be_used_again_at_once;
                no_process_stays_behind;
            }
            "check" {
                all_is_well_after_add;
                check_changes_nothing;
                a_missing_previous_result_is_named;
                each_damage_is_named;
                the_reservation_is_removed with Need::Plugin("bridgehead");
            }
            "ipam" {
                ipam_finds_the_interface_up with Need::Plugin("bridgehead");
                ipam_is_told_to_delete_while_the_interface_is_there with Need::Plugin("bridgehead");
            }
            "gc" {
                gc_removes_all_but_the_valid with Need::Plugin("bridgehead");
                gc_removes_the_link_of_a_living_namespace with Need::Plugin("bridgehead");
                gc_without_a_list_removes_the_dead with Need::Plugin("bridgehead");
            }
            "status" {
                status_is_silent_where_an_add_would_succeed;
                status_says_50_where_no_address_is_left with Need::Plugin("bridgehead");
                status_says_50_where_the_master_is_missing with Need::Plugin("bridgehead");
            }
            "exchange" {
                we_remove_what_the_reference_added with Need::Reference($plugin);
                we_remove_it_without_namespace with Need::Reference($plugin);
                the_reference_removes_what_we_added with Need::Reference($plugin);
                we_find_pods_of_the_reference_sound with Need::Reference($plugin);
                the_reference_finds_our_pods_sound with Need::Reference($plugin);
            }
            "concurrency" {
                forty_come_and_go_at_once;
            }
        }
    };
}

const MACVLAN_NEEDS: [Need; 3] = [Need::Plugin("macvlan"), Need::LinkType("macvlan"), Need::Ipv6];
const VLAN_NEEDS: [Need; 3] = [Need::Plugin("vlan"), Need::LinkType("vlan"), Need::Ipv6];
const IPVLAN_NEEDS: [Need; 3] = [Need::Plugin("ipvlan"), Need::LinkType("ipvlan"), Need::Ipv6];
const DUMMY_NEEDS: [Need; 3] = [Need::Plugin("dummy"), Need::LinkType("dummy"), Need::Ipv6];

/// The cases of macvlan.
pub(super) const MACVLAN: &[Case] = all_of!(Macvlan, "macvlan", MACVLAN_NEEDS);
/// The cases of dummy.
pub(super) const DUMMY: &[Case] = all_of!(Dummy, "dummy", DUMMY_NEEDS);
/// The cases of vlan.
pub(super) const VLAN: &[Case] = all_of!(Vlan, "vlan", VLAN_NEEDS);
/// The cases of ipvlan.
pub(super) const IPVLAN: &[Case] = all_of!(Ipvlan, "ipvlan", IPVLAN_NEEDS);
