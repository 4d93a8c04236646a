//! All plugin types. Whoever adds one writes its file in `plugins/` and its line here.

use crate::plugins::{
    PluginType, bandwidth, bridge, dummy, firewall, host_device, ipam, ipvlan, loopback, macvlan, portmap,
    ptp, sbr, tap, tuning, vlan, vrf, whole,
};

/// The plugin types, by name.
pub const PLUGINS: &[&PluginType] = &[
    &bandwidth::TYPE,
    &bridge::TYPE,
    &ipam::DHCP,
    &whole::TYPE,
    &dummy::TYPE,
    &firewall::TYPE,
    &host_device::TYPE,
    &ipam::HOST_LOCAL,
    &ipvlan::TYPE,
    &loopback::TYPE,
    &macvlan::TYPE,
    &portmap::TYPE,
    &ptp::TYPE,
    &sbr::TYPE,
    &ipam::STATIC,
    &tap::TYPE,
    &tuning::TYPE,
    &vlan::TYPE,
    &vrf::TYPE,
];

/// The name that the tool for people and a plugin have in common.
pub const TOOL: &str = whole::TYPE.name;

/// The plugin that does the work of a whole chain.
pub const WHOLE: &PluginType = &whole::TYPE;

/// The plugin type of a name.
pub fn find(name: &str) -> Option<&'static PluginType> {
    PLUGINS.iter().copied().find(|plugin| plugin.name == name)
}
