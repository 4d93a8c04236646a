//! `create`: a new network as its user has described it becomes one that containers can be attached to.
//!
//! What is there stays as it is, also what is not known here; podman refuses a network whose name, ID or driver has
//! changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value, json};

use super::network::{self, Ipam, Network};
use super::occupied::Occupied;
use super::options::Options;
use crate::spec::digest::sha512_hex;
use crate::spec::names::check_ifname;
use crate::spec::request::Environment;
use crate::spec::{CniError, Code, Command, Prefix, Request, Version};
use crate::{dispatch, registry};

/// Where IPv4 subnets are taken from: the largest of the ranges that podman has for its own.
const POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 128, 0, 0), 9);

/// Length of the prefix of an IPv4 subnet that is chosen, and of an IPv6 one.
const CHOSEN: (u8, u8) = (24, 64);

/// How many IPv6 subnets are tried. They have 40 bits of chance each.
const ATTEMPTS: u32 = 16;

/// The completed network.
///
/// Errors: code 2, 6 or 7, naming key and value; code 102 for what others have.
pub(super) fn complete(stdin: &[u8]) -> Result<Value, CniError> {
    let document = network::object(stdin)?;
    let network: Network = network::decode(&document)?;
    network.check()?;
    let options = Options::parse(&network.options)?;
    options.check_with(network.ipam()?)?;
    let mut occupied = Occupied::look(&network)?;
    if clear_the_way(&network, &occupied)? {
        occupied = Occupied::look(&network)?;
    }
    fill(document, &network, &options, &occupied)
}

/// Removes bridges of this suite that nobody uses, where they have addresses that the network is to have: of networks that
/// are gone, with containers that vanished. Tells whether there were any.
fn clear_the_way(network: &Network, occupied: &Occupied) -> Result<bool, CniError> {
    let config =
        json!({"cniVersion": Version::V1_1_0.as_str(), "name": network.name, "type": registry::TOOL});
    let request = Request::parse(Command::Gc, &Environment::default(), config.to_string().into_bytes())?;
    let wanted = network.prefixes();
    let overlap = |(prefix, _): &&(Prefix, String)| wanted.iter().any(|it| it.overlaps(*prefix));
    let in_the_way: Vec<_> = occupied.routes.iter().filter(overlap).collect();
    for (prefix, link) in &in_the_way {
        dispatch::remove_unused_bridge(link, &[*prefix], &request)?;
    }
    Ok(!in_the_way.is_empty())
}

/// The same, given what others have.
fn fill(
    mut document: Map<String, Value>,
    network: &Network,
    options: &Options,
    occupied: &Occupied,
) -> Result<Value, CniError> {
    if let Some(server) = network.network_dns_servers.first() {
        let msg =
            format!("network_dns_servers: {server:?}: DNS is not offered on this network; leave out --dns");
        return Err(CniError::new(Code::UnsupportedField, msg));
    }
    let bridge = bridge(network, options, occupied)?;
    if let Some(vlan) = options.vlan {
        let link = format!("{bridge}.{vlan}");
        check_ifname(&link).map_err(|why| {
            CniError::config(format!(
                "network_interface, options.vlan: the gateway's link {link:?} {why}; shorten it"
            ))
        })?;
    }
    document.insert("network_interface".to_owned(), json!(bridge));
    // Names of containers are answered by aardvark-dns, which netavark starts for its own drivers only.
    document.insert("dns_enabled".to_owned(), json!(false));
    if network.ipam()? == Ipam::HostLocal {
        let subnets = subnets(network, options, occupied)?;
        let is_ipv6 = network.ipv6_enabled || subnets.iter().any(|(_, prefix)| prefix.is_ipv6());
        let subnets: Vec<Value> = subnets.into_iter().map(|(subnet, _)| subnet).collect();
        document.insert("subnets".to_owned(), with_written(&document, subnets));
        document.insert("ipv6_enabled".to_owned(), json!(is_ipv6));
    }
    Ok(Value::Object(document))
}

/// The name of the bridge: the one that is asked for, or one that nobody has.
fn bridge(network: &Network, options: &Options, occupied: &Occupied) -> Result<String, CniError> {
    let name = &network.network_interface;
    if name.is_empty() {
        if options.is_unmanaged {
            let msg = "network_interface: mode=unmanaged is about a bridge that is there; name it with --interface-name";
            return Err(CniError::config(msg));
        }
        return derived(network, occupied);
    }
    let refuse =
        |what: String| Err(CniError::new(Code::Conflict, format!("network_interface: {name:?} is {what}")));
    match occupied.links.iter().find(|link| link.name == *name) {
        Some(link) if link.kind != "bridge" => {
            return refuse("a link of this host, and no bridge".to_owned());
        }
        _ => {}
    }
    let other = occupied.networks.iter().find(|other| other.bridge == *name);
    match other.filter(|_| !options.is_unmanaged && options.vlan.is_none()) {
        Some(other) => refuse(format!("the bridge of network {:?}", other.name)),
        None => Ok(name.clone()),
    }
}

/// A name made of the network's ID.
fn derived(network: &Network, occupied: &Occupied) -> Result<String, CniError> {
    let is_free = |name: &String| {
        !occupied.links.iter().any(|link| link.name == *name)
            && !occupied.networks.iter().any(|other| other.bridge == *name)
    };
    let first = network.bridge().into_iter();
    let others =
        (0..ATTEMPTS).map(|attempt| format!("bh{}", sha512_hex(&[&network.id, &attempt.to_string()], 8)));
    let mut names = first.chain(others);
    names.find(is_free).ok_or_else(|| {
        CniError::new(
            Code::Conflict,
            "network_interface: no name is free for a bridge; give one by --interface-name",
        )
    })
}

/// The subnets as they are to be written, with gateways, and those that were wanted and not said.
fn subnets(
    network: &Network,
    options: &Options,
    occupied: &Occupied,
) -> Result<Vec<(Value, Prefix)>, CniError> {
    let mut found = Vec::new();
    let mut add = |prefix: Prefix, gateway: Option<IpAddr>| {
        let gateway = gateway.or_else(|| (!network.internal).then(|| prefix.first_host()));
        let mut subnet = json!({ "subnet": prefix });
        if let Some(gateway) = gateway {
            subnet["gateway"] = json!(gateway);
        }
        found.push((subnet, prefix));
    };
    let is_shared = options.is_unmanaged || options.vlan.is_some();
    for (index, subnet) in network.subnets.iter().enumerate() {
        let prefix = subnet.prefix(index)?;
        if let Some(who) = occupied.holder(prefix).filter(|_| !is_shared) {
            let msg = format!("subnets[{index}].subnet: {prefix} has addresses in common with {who}");
            return Err(CniError::new(Code::Conflict, msg));
        }
        add(prefix, subnet.gateway);
    }
    if network.subnets.is_empty() && options.is_unmanaged {
        let msg = "subnets: mode=unmanaged needs --subnet, or --ipam-driver dhcp or none";
        return Err(CniError::config(msg));
    }
    if network.subnets.is_empty() {
        add(free_ipv4(network, occupied)?, None);
    }
    if network.ipv6_enabled && !network.prefixes().iter().any(|prefix| prefix.is_ipv6()) {
        add(free_ipv6(network, occupied)?, None);
    }
    Ok(found)
}

/// The subnets with what else is written of each.
fn with_written(document: &Map<String, Value>, subnets: Vec<Value>) -> Value {
    let written = document.get("subnets").and_then(Value::as_array).cloned().unwrap_or_default();
    let merged = subnets.into_iter().enumerate().map(|(index, decided)| {
        let mut subnet = written.get(index).and_then(Value::as_object).cloned().unwrap_or_default();
        subnet.extend(decided.as_object().cloned().unwrap_or_default());
        Value::Object(subnet)
    });
    Value::Array(merged.collect())
}

/// A subnet that nobody has. Where the search begins follows from the network's ID, so that networks that do not know of
/// one another rarely meet.
fn free_ipv4(network: &Network, occupied: &Occupied) -> Result<Prefix, CniError> {
    let (pool, len) = POOL;
    let count = 1u32 << (CHOSEN.0 - len);
    let start = u32::from_str_radix(&sha512_hex(&["subnet", &network.id], 7), 16).unwrap_or_default();
    let candidates = (0..count).filter_map(|step| {
        let number = (start + step) % count;
        let address = u32::from(pool) | (number << (32 - CHOSEN.0));
        Prefix::new(IpAddr::V4(address.into()), CHOSEN.0)
    });
    free(candidates, occupied)
}

/// A unique local subnet (RFC 4193): `fd`, 40 bits that follow from the network's ID, and subnet 0.
fn free_ipv6(network: &Network, occupied: &Occupied) -> Result<Prefix, CniError> {
    let candidates = (0..ATTEMPTS).filter_map(|attempt| {
        let digits = sha512_hex(&["subnet6", &network.id, &attempt.to_string()], 10);
        let global = u128::from_str_radix(&digits, 16).ok()?;
        Prefix::new(IpAddr::V6(Ipv6Addr::from((0xfd << 120) | (global << 80))), CHOSEN.1)
    });
    free(candidates, occupied)
}

fn free(mut candidates: impl Iterator<Item = Prefix>, occupied: &Occupied) -> Result<Prefix, CniError> {
    candidates.find(|prefix| occupied.holder(*prefix).is_none()).ok_or_else(|| {
        CniError::new(Code::Exhausted, "subnets: none is free for this network; give one by --subnet")
    })
}

#[cfg(test)]
mod tests;
