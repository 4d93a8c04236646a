//! What podman says of a container and a network, as the configuration of the CNI plugin that does the work.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value, json};

use super::network::{Attaching, Ipam, PortMapping, Subnet};
use super::options::{Backend, Options};
use crate::registry;
use crate::spec::result::CniResult;
use crate::spec::{CniError, Code, Prefix, Version};

/// The metric of routes by an interface without a number of its own, as in netavark.
const METRIC: u32 = 100;

/// The name of the first interface of a container.
const FIRST: &str = "eth0";

/// Most ports of a container, which have room in a configuration.
const PORTS_MAX: usize = 15_000;

/// The configuration of an ADD. `firewall_driver` is what the environment says (`NETAVARK_FW`).
///
/// Errors: code 2 for what is not offered, code 7 for what is wrong.
pub(super) fn for_setup(attaching: &Attaching, firewall_driver: &str) -> Result<Value, CniError> {
    attaching.check_names()?;
    attaching.network.check()?;
    let (network, container) = (&attaching.network, &attaching.network_options);
    let options = Options::parse(&network.options)?;
    options.check_with(network.ipam()?)?;
    if let Some(name) = container.options.keys().next() {
        let msg = format!("network_options.options.{name}: options of a single container are not offered");
        return Err(CniError::new(Code::UnsupportedField, msg));
    }
    let backend = match options.backend {
        Some(backend) => Some(backend),
        None => Backend::parse("NETAVARK_FW", firewall_driver)?,
    };
    let wish = Wish { attaching, options, backend, ipam: network.ipam()? };
    let mut config = Map::new();
    config.insert("bridge".to_owned(), json!(bridge(attaching)?));
    config.extend(wish.links());
    config.extend(wish.rules());
    config.extend(wish.ipam()?);
    let mut runtime = Map::new();
    if !container.static_mac.is_empty() {
        runtime.insert("mac".to_owned(), json!(container.static_mac));
    }
    if wish.has_rules() && !network.internal {
        let ports = ports(&attaching.port_mappings)?;
        if !ports.is_empty() {
            runtime.insert("portMappings".to_owned(), json!(ports));
        }
    }
    // No error: podman names a container's ports to each of its networks. It shows what is written to stderr.
    if let Some(why) = wish.why_unpublished() {
        log::warn!("{why}");
    }
    config.insert("runtimeConfig".to_owned(), Value::Object(runtime));
    Ok(whole(attaching, config))
}

/// The configuration of a DEL, which must do with whatever podman has.
pub(super) fn for_teardown(attaching: &Attaching) -> Value {
    let network = &attaching.network;
    let mut config = Map::new();
    let ipam = match network.ipam() {
        Ok(Ipam::Dhcp) => Some("dhcp"),
        Ok(Ipam::None) => None,
        // Whether podman has chosen the addresses or a range, that of the range has nothing to lose.
        Ok(Ipam::HostLocal) | Err(_) => Some("host-local"),
    };
    if let Some(plugin) = ipam {
        config.insert("ipam".to_owned(), json!({ "type": plugin }));
    }
    // By what is known of it, if nobody has kept a record.
    let result = json!({
        "cniVersion": Version::V1_1_0.as_str(),
        "interfaces": [{"name": network.bridge()}, {"name": attaching.network_options.interface_name, "sandbox": "/"}],
        "ips": addresses(attaching).into_iter().map(|address| json!({"interface": 1, "address": address})).collect::<Vec<_>>(),
    });
    config.insert("prevResult".to_owned(), result);
    whole(attaching, config)
}

/// What netavark reads of `setup`.
pub(super) fn status_block(ifname: &str, result: &CniResult) -> Value {
    let inside =
        result.interfaces.iter().enumerate().find(|(_, it)| it.name == ifname && !it.sandbox.is_empty());
    let is_own =
        |interface: Option<usize>| interface.is_none() || interface == inside.map(|(index, _)| index);
    let subnets: Vec<Value> = (result.ips.iter().filter(|ip| is_own(ip.interface)))
        .map(|ip| match ip.gateway {
            Some(gateway) => json!({"ipnet": ip.address, "gateway": gateway}),
            None => json!({"ipnet": ip.address}),
        })
        .collect();
    let mac = inside.map_or("", |(_, interface)| interface.mac.as_str());
    let domain = Some(&result.dns.domain).filter(|domain| !domain.is_empty());
    json!({
        "dns_search_domains": domain.into_iter().chain(&result.dns.search).collect::<Vec<_>>(),
        "dns_server_ips": result.dns.nameservers,
        "interfaces": {ifname: {"mac_address": mac, "subnets": subnets}},
    })
}

fn whole(attaching: &Attaching, mut config: Map<String, Value>) -> Value {
    config.insert("cniVersion".to_owned(), json!(Version::V1_1_0.as_str()));
    config.insert("name".to_owned(), json!(attaching.network.name));
    config.insert("type".to_owned(), json!(registry::TOOL));
    Value::Object(config)
}

fn bridge(attaching: &Attaching) -> Result<String, CniError> {
    attaching.network.bridge().ok_or_else(|| {
        CniError::config("network_interface: missing, and id is too short to name a bridge after it")
    })
}

/// What is wanted, decided.
struct Wish<'a> {
    attaching: &'a Attaching,
    options: Options,
    backend: Option<Backend>,
    ipam: Ipam,
}

impl Wish<'_> {
    /// Whether anything is translated or filtered: on a bridge of somebody else's, with addresses of somebody else's, or
    /// with none, it is theirs to do.
    fn has_rules(&self) -> bool {
        !self.options.is_unmanaged && self.ipam == Ipam::HostLocal && self.backend != Some(Backend::None)
    }

    /// Why nothing leads to the container's ports, if it is to have any.
    fn why_unpublished(&self) -> Option<String> {
        let Attaching { container_id, port_mappings, network, .. } = self.attaching;
        let reason = match self.ipam {
            _ if port_mappings.is_empty() => return None,
            _ if network.internal => "is internal",
            _ if self.options.is_unmanaged => "has the option mode=unmanaged",
            Ipam::None => "has the IPAM driver none, and so no addresses",
            Ipam::Dhcp => "has the IPAM driver dhcp: its addresses are not this host's",
            Ipam::HostLocal if self.backend == Some(Backend::None) => "has the back end none",
            Ipam::HostLocal => return None,
        };
        Some(format!(
            "port_mappings: nothing leads to the ports of container {container_id} by network {}, which {reason}; only \
             by another network can it have them",
            network.name
        ))
    }

    /// Whether the bridge has addresses of its own.
    fn has_gateway(&self) -> bool {
        let network = &self.attaching.network;
        !self.options.is_unmanaged
            && self.ipam == Ipam::HostLocal
            && (!network.internal || network.subnets.iter().any(|subnet| subnet.gateway.is_some()))
    }

    fn has_default_route(&self) -> bool {
        !self.attaching.network.internal && !self.options.no_default_route
    }

    /// The keys about links.
    fn links(&self) -> Map<String, Value> {
        let options = &self.options;
        let mut keys = Map::new();
        let mut set = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        // A container is to reach its own ports of the host, too.
        set("hairpinMode", json!(!options.is_unmanaged));
        set("isGateway", json!(self.has_gateway()));
        set("spoofGuard", json!(options.spoof_guard && self.ipam == Ipam::HostLocal));
        set("portIsolation", json!(options.port_isolation));
        if let Some(mtu) = &options.mtu {
            set("mtu", mtu.clone());
        }
        if let Some(vlan) = options.vlan {
            set("vlan", json!(vlan));
        }
        // With several interfaces, answers of one that is not the first must not leave by another, whose guard lets
        // nobody else's address pass, and where nobody waits for them.
        let is_first = self.attaching.network_options.interface_name == FIRST;
        if !is_first && self.has_gateway() && self.has_default_route() {
            set("keepMainRoutes", json!(true));
        }
        keys
    }

    /// The keys about NAT and filters.
    fn rules(&self) -> Map<String, Value> {
        let mut keys = Map::new();
        let mut set = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        if !self.has_rules() {
            return keys;
        }
        let is_internal = self.attaching.network.internal;
        set("firewall", json!(true));
        set("ipMasq", json!(!is_internal));
        let name = match self.backend {
            // Only there is such a thing.
            _ if is_internal => Some("nftables"),
            Some(Backend::Iptables) => Some("iptables"),
            Some(Backend::Nftables) => Some("nftables"),
            Some(Backend::Firewalld) => Some("firewalld"),
            Some(Backend::None) | None => None,
        };
        if let Some(name) = name {
            set("backend", json!(name));
            if name != "firewalld" {
                set("ipMasqBackend", json!(name));
            }
        }
        set("internal", json!(is_internal));
        if self.options.isolate {
            set("ingressPolicy", json!("same-bridge"));
        }
        if self.options.open_forward {
            set("openForward", json!(true));
        }
        keys
    }

    /// The key `ipam`, if there is any.
    fn ipam(&self) -> Result<Option<(String, Value)>, CniError> {
        let ipam = match self.ipam {
            Ipam::None => return Ok(None),
            Ipam::Dhcp => json!({"type": "dhcp", "priority": self.metric()}),
            Ipam::HostLocal => {
                let subnets = self.subnets()?;
                if subnets.is_empty() {
                    let msg = "network.subnets: there are none, and so no addresses; make the network with --subnet, or \
                               with --ipam-driver none";
                    return Err(CniError::config(msg));
                }
                let routes = self.routes(&subnets)?;
                let wanted = self.static_addresses(&subnets)?;
                if wanted.is_empty() {
                    json!({"type": "host-local", "ranges": ranges(&subnets), "routes": routes})
                } else {
                    json!({"type": "static", "addresses": wanted, "routes": routes})
                }
            }
        };
        Ok(Some(("ipam".to_owned(), ipam)))
    }

    /// The subnets, with the gateways that they have on this network.
    fn subnets(&self) -> Result<Vec<(Prefix, Subnet)>, CniError> {
        let network = &self.attaching.network;
        let decide = |(index, subnet): (usize, &Subnet)| {
            let prefix = subnet.prefix(index)?;
            let mut subnet = subnet.clone();
            if subnet.gateway.is_none() && !network.internal {
                subnet.gateway = Some(prefix.first_host());
            }
            Ok((prefix, subnet))
        };
        network.subnets.iter().enumerate().map(decide).collect()
    }

    /// What podman has chosen, with prefix lengths and gateways.
    fn static_addresses(&self, subnets: &[(Prefix, Subnet)]) -> Result<Vec<Value>, CniError> {
        let addresses = self.attaching.network_options.static_ips.iter().enumerate();
        let with_subnet = |(index, address): (usize, &IpAddr)| {
            let address = address.to_canonical();
            let wrong = |why: String| {
                CniError::config(format!("network_options.static_ips[{index}]: {address} {why}"))
            };
            let Some((prefix, subnet)) = subnets.iter().find(|(prefix, _)| prefix.contains(address)) else {
                let all: Vec<String> = subnets.iter().map(|(prefix, _)| prefix.to_string()).collect();
                return Err(wrong(format!("is in no subnet of the network, which has {}", all.join(", "))));
            };
            if !prefix.has_host(address) {
                return Err(wrong(format!("is no address of a host in {prefix}")));
            }
            if subnet.gateway == Some(address) {
                return Err(wrong("is the gateway's".to_owned()));
            }
            let mut value = json!({"address": format!("{address}/{}", prefix.prefix_len())});
            if let Some(gateway) = subnet.gateway {
                value["gateway"] = json!(gateway);
            }
            Ok(value)
        };
        addresses.map(with_subnet).collect()
    }

    /// The routes of the container, default routes first.
    fn routes(&self, subnets: &[(Prefix, Subnet)]) -> Result<Vec<Value>, CniError> {
        let metric = self.metric();
        let mut routes = Vec::new();
        let anywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        for dst in anywhere.into_iter().filter(|_| self.has_default_route()) {
            let of_family = |(prefix, subnet): &(Prefix, Subnet)| {
                subnet.gateway.filter(|_| prefix.is_ipv4() == dst.is_ipv4() && self.is_wanted(*prefix))
            };
            if let Some(gateway) = subnets.iter().find_map(of_family) {
                routes.push(json!({"dst": format!("{dst}/0"), "gw": gateway, "priority": metric}));
            }
        }
        let own = self.attaching.network.routes.iter();
        routes.extend(own.map(|it| {
            json!({"dst": it.destination.map(Prefix::network), "gw": it.gateway, "priority": it.metric.unwrap_or(metric)})
        }));
        Ok(routes)
    }

    /// Whether the container gets an address of a subnet.
    fn is_wanted(&self, prefix: Prefix) -> bool {
        let wanted = &self.attaching.network_options.static_ips;
        wanted.is_empty() || wanted.iter().any(|address| prefix.contains(address.to_canonical()))
    }

    /// The metric of routes: of several interfaces, the first has the lowest, so that it is known which of the default
    /// routes is taken.
    fn metric(&self) -> u32 {
        let name = &self.attaching.network_options.interface_name;
        let letters = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
        let number = name.get(letters.len()..).and_then(|digits| digits.parse::<u32>().ok());
        self.options.metric.unwrap_or_else(|| METRIC.saturating_add(number.unwrap_or_default()))
    }
}

/// What is handed out of each subnet if podman has not chosen.
fn ranges(subnets: &[(Prefix, Subnet)]) -> Vec<Value> {
    let range = |(prefix, subnet): &(Prefix, Subnet)| {
        let mut range = json!({ "subnet": prefix });
        let lease = subnet.lease_range.clone().unwrap_or_default();
        for (key, address) in
            [("gateway", subnet.gateway), ("rangeStart", lease.start_ip), ("rangeEnd", lease.end_ip)]
        {
            // podman ends a range that is a whole subnet with the broadcast address.
            if let Some(address) = address.filter(|address| prefix.has_host(*address)) {
                range[key] = json!(address);
            }
        }
        json!([range])
    };
    subnets.iter().map(range).collect()
}

/// The container's addresses with the lengths of their subnets, as far as that can be said.
fn addresses(attaching: &Attaching) -> Vec<Prefix> {
    let subnets = attaching.network.prefixes();
    let with_subnet = |address: &IpAddr| {
        let address = address.to_canonical();
        let prefix = subnets.iter().find(|prefix| prefix.contains(address))?;
        Prefix::new(address, prefix.prefix_len())
    };
    attaching.network_options.static_ips.iter().filter_map(with_subnet).collect()
}

/// Each port for itself: ranges and lists of protocols have no place in a `portMappings`.
fn ports(mappings: &[PortMapping]) -> Result<Vec<Value>, CniError> {
    let mut found = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let wrong =
            |key: &str, why: String| Err(CniError::config(format!("port_mappings[{index}].{key}: {why}")));
        if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
            return wrong("host_ip", format!("{:?} is no IP address", mapping.host_ip));
        }
        let more = mapping.range.max(1) - 1;
        for (key, first) in [("host_port", mapping.host_port), ("container_port", mapping.container_port)] {
            if first == 0 || first.checked_add(more).is_none() {
                let count = u32::from(more) + 1;
                return wrong(key, format!("there are no {count} ports from {first} on; they end at 65535"));
            }
        }
        let protocols = if mapping.protocol.is_empty() { "tcp" } else { &mapping.protocol };
        for protocol in protocols.split(',') {
            if !["tcp", "udp", "sctp"].iter().any(|known| known.eq_ignore_ascii_case(protocol)) {
                return wrong(
                    "protocol",
                    format!("unknown protocol {protocol:?}; wanted is tcp, udp or sctp"),
                );
            }
            for number in 0..=more {
                let (host, container) = (mapping.host_port + number, mapping.container_port + number);
                let mut port = json!({"hostPort": host, "containerPort": container, "protocol": protocol.to_ascii_lowercase()});
                if !mapping.host_ip.is_empty() {
                    port["hostIP"] = json!(mapping.host_ip);
                }
                found.push(port);
            }
        }
    }
    if found.len() > PORTS_MAX {
        let msg =
            format!("port_mappings: {} ports are too many; a container can have {PORTS_MAX}", found.len());
        return Err(CniError::config(msg));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
