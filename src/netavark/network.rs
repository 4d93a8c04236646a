//! A network as podman describes it, and what it says of a container; read only as far as it matters here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::spec::names::{check_identifier, check_ifname};
use crate::spec::{CniError, Code, Prefix, json};

/// Options of networks and containers.
pub type OptionMap = BTreeMap<String, String>;

/// A network: what `create` gets, and what `setup` and `teardown` have under `network`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its ID, 64 hexadecimal digits.
    pub id: String,
    /// The name of the bridge; empty where nobody has said.
    pub network_interface: String,
    /// Its subnets; none where addresses come from elsewhere, or `create` is to choose.
    pub subnets: Vec<Subnet>,
    /// Further routes of its containers.
    pub routes: Vec<Route>,
    /// Whether containers are to have IPv6 addresses.
    pub ipv6_enabled: bool,
    /// Whether it leads nowhere.
    pub internal: bool,
    /// Name servers for the containers.
    pub network_dns_servers: Vec<String>,
    /// What was written as `-o key=value`.
    pub options: OptionMap,
    /// How addresses are given: `driver` is one of [`Ipam`].
    pub ipam_options: OptionMap,
}

/// A subnet of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Subnet {
    subnet: Option<Prefix>,
    /// The address of the bridge in it.
    #[serde(deserialize_with = "json::address")]
    pub gateway: Option<IpAddr>,
    /// Which of its addresses are handed out.
    pub lease_range: Option<LeaseRange>,
}

/// A part of a subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LeaseRange {
    /// First address; that of the subnet where nobody has said.
    #[serde(deserialize_with = "json::address")]
    pub start_ip: Option<IpAddr>,
    /// Last address.
    #[serde(deserialize_with = "json::address")]
    pub end_ip: Option<IpAddr>,
}

/// A route of a network's containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Where to.
    pub destination: Option<Prefix>,
    /// Next hop.
    #[serde(deserialize_with = "json::address")]
    pub gateway: Option<IpAddr>,
    /// Lower first; that of the network where nobody has said.
    pub metric: Option<u32>,
    /// Other kinds than `unicast` are newer than podman 5.
    pub route_type: String,
}

/// Where addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipam {
    /// podman says which, or else the subnets.
    HostLocal,
    /// A server on the network.
    Dhcp,
    /// Nowhere.
    None,
}

/// What `setup` and `teardown` get.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Attaching {
    /// The container.
    pub container_id: String,
    /// Its ports.
    pub port_mappings: Vec<PortMapping>,
    /// The network.
    pub network: Network,
    /// What the container wants of it.
    pub network_options: ContainerOptions,
}

/// What a container wants of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ContainerOptions {
    /// The name of its interface.
    pub interface_name: String,
    /// Its addresses: those that podman has chosen, or its user.
    pub static_ips: Vec<IpAddr>,
    /// The MAC address of its interface.
    pub static_mac: String,
    /// What was written as `--network name:key=value`.
    pub options: OptionMap,
}

/// Ports of the host that lead to ports of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PortMapping {
    /// The first port of the container.
    pub container_port: u16,
    /// The first port of the host.
    pub host_port: u16,
    /// The address of the host; all of them without.
    pub host_ip: String,
    /// `tcp`, `udp`, `sctp`, or several of them with commas between; TCP without.
    pub protocol: String,
    /// How many ports; 0 is 1.
    pub range: u16,
}

impl Network {
    /// What can be said to be wrong with it wherever it comes from.
    ///
    /// Errors: code 7, naming key and value.
    pub fn check(&self) -> Result<(), CniError> {
        check_identifier(&self.name)
            .map_err(|why| CniError::config(format!("name: the network name {:?} {why}", self.name)))?;
        if !self.network_interface.is_empty() {
            check_ifname(&self.network_interface).map_err(|why| {
                CniError::config(format!("network_interface: {:?} {why}", self.network_interface))
            })?;
        }
        let ipam = self.ipam()?;
        if ipam != Ipam::HostLocal && !self.subnets.is_empty() {
            let driver = self.ipam_options.get("driver").map_or("", String::as_str);
            let msg = format!(
                "subnets: with the IPAM driver {driver:?} there are none; leave out --subnet or --ipam-driver"
            );
            return Err(CniError::config(msg));
        }
        for (index, subnet) in self.subnets.iter().enumerate() {
            let prefix = subnet.check(index)?;
            for (other, earlier) in self.subnets.iter().enumerate().take(index) {
                if earlier.prefix(other)?.overlaps(prefix) {
                    let msg = format!(
                        "subnets[{index}].subnet: {prefix} and subnets[{other}] have addresses in common"
                    );
                    return Err(CniError::config(msg));
                }
            }
        }
        self.routes.iter().enumerate().try_for_each(|(index, route)| route.check(index))
    }

    /// Where its addresses come from.
    ///
    /// Errors: code 2 for what is not offered.
    pub fn ipam(&self) -> Result<Ipam, CniError> {
        match self.ipam_options.get("driver").map_or("", String::as_str) {
            "" | "host-local" => Ok(Ipam::HostLocal),
            "dhcp" => Ok(Ipam::Dhcp),
            "none" => Ok(Ipam::None),
            other => {
                let msg = format!(
                    "ipam_options.driver: {other:?} is not offered; wanted is \"host-local\", \"dhcp\" or \"none\""
                );
                Err(CniError::new(Code::UnsupportedField, msg))
            }
        }
    }

    /// Its subnets, as far as they can be understood.
    pub fn prefixes(&self) -> Vec<Prefix> {
        self.subnets.iter().filter_map(|subnet| subnet.subnet.map(Prefix::network)).collect()
    }

    /// The bridge, if a name is given or can be told from the ID: ten letters, so that a VLAN's name finds room behind.
    pub fn bridge(&self) -> Option<String> {
        let digits: String = self.id.chars().take(8).collect();
        match self.network_interface.as_str() {
            "" if digits.len() == 8 => Some(format!("bh{digits}")),
            "" => None,
            name => Some(name.to_owned()),
        }
    }
}

impl Subnet {
    /// The network, without host bits.
    ///
    /// Errors: code 7 if it is not there.
    pub fn prefix(&self, index: usize) -> Result<Prefix, CniError> {
        let missing =
            || CniError::config(format!("subnets[{index}].subnet: missing; wanted is one as 10.1.0.0/24"));
        self.subnet.map(Prefix::network).ok_or_else(missing)
    }

    fn check(&self, index: usize) -> Result<Prefix, CniError> {
        let prefix = self.prefix(index)?;
        let most = if prefix.is_ipv4() { 30 } else { 126 };
        if prefix.prefix_len() > most || prefix.is_default() {
            let msg = format!(
                "subnets[{index}].subnet: {prefix} has no room for a gateway and a container, or is everything; \
                 wanted is a prefix of 1 to {most} bits"
            );
            return Err(CniError::config(msg));
        }
        let range = self.lease_range.clone().unwrap_or_default();
        for (key, address) in [
            ("gateway", self.gateway),
            ("lease_range.start_ip", range.start_ip),
            ("lease_range.end_ip", range.end_ip),
        ] {
            if let Some(address) = address.filter(|address| !prefix.contains(*address)) {
                return Err(CniError::config(format!(
                    "subnets[{index}].{key}: {address} is not in {prefix}"
                )));
            }
        }
        if let Some(gateway) = self.gateway.filter(|gateway| !prefix.has_host(*gateway)) {
            let msg = format!("subnets[{index}].gateway: {gateway} is no address of a host in {prefix}");
            return Err(CniError::config(msg));
        }
        match (range.start_ip, range.end_ip) {
            (Some(start), Some(end)) if start > end => {
                let msg =
                    format!("subnets[{index}].lease_range: it ends at {end}, before it begins at {start}");
                Err(CniError::config(msg))
            }
            _ => Ok(prefix),
        }
    }
}

impl Route {
    fn check(&self, index: usize) -> Result<(), CniError> {
        let key = |name: &str| format!("routes[{index}].{name}");
        if !matches!(self.route_type.as_str(), "" | "unicast") {
            let msg =
                format!("{}: {:?} is not offered; wanted is \"unicast\"", key("route_type"), self.route_type);
            return Err(CniError::new(Code::UnsupportedField, msg));
        }
        let Some(destination) = self.destination else {
            let msg = format!("{}: missing; wanted is one as 10.1.0.0/24", key("destination"));
            return Err(CniError::config(msg));
        };
        match self.gateway {
            None => Err(CniError::config(format!("{}: missing; wanted is an address", key("gateway")))),
            Some(gateway) if gateway.is_ipv4() != destination.is_ipv4() => Err(CniError::config(format!(
                "{}: {gateway} is of another family than {destination}",
                key("gateway")
            ))),
            Some(_) => Ok(()),
        }
    }
}

impl Attaching {
    /// What can be said to be wrong with it on `teardown` too: whose interface it is must be known.
    ///
    /// Errors: code 7, naming key and value.
    pub fn check_names(&self) -> Result<(), CniError> {
        let names = [
            ("container_id", &self.container_id, check_identifier(&self.container_id)),
            ("network.name", &self.network.name, check_identifier(&self.network.name)),
            (
                "network_options.interface_name",
                &self.network_options.interface_name,
                check_ifname(&self.network_options.interface_name),
            ),
        ];
        names.into_iter().try_for_each(|(key, name, checked)| {
            checked.map_err(|why| CniError::config(format!("{key}: {name:?} {why}")))
        })
    }
}

/// The object that podman or netavark has written.
///
/// Errors: code 6.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, CniError> {
    let wrong = |why: String| CniError::new(Code::Decoding, format!("what is on stdin is {why}"));
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("not a JSON object".to_owned())),
        Err(e) => Err(wrong(format!("not JSON: {e}"))),
    }
}

/// The object as one of these types. Keys that are not known are passed over, and `null` is the same as nothing.
///
/// Errors: code 6, naming key and value.
pub fn decode<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T, CniError> {
    json::decode_object(object).map_err(|e| CniError::new(Code::Decoding, e.to_string()))
}
