//! The result of an ADD, and its shapes in the versions of the specification.
//!
//! A result is kept in the newest shape and converted when it is printed, as in libcni.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::version::Family;
use super::{CniError, Code, Prefix, Version, json};

/// The result of an ADD (specification section 5, "ADD Success"); without interfaces, that of an IPAM plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces of the attachment, on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses that the container got.
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    pub routes: Vec<Route>,
    /// What the container may use to resolve names.
    #[serde(skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface that an ADD made or found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address in the kernel's form, lower-case hex with colons.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace it is in; empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that belongs to it (vhost-user); since 1.1.0.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Its PCI address; since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index in [`CniResult::interfaces`] of the interface that has it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "interface_index")]
    pub interface: Option<usize>,
    /// The address and the prefix length of its network.
    pub address: Prefix,
    /// The network's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "json::address")]
    pub gateway: Option<IpAddr>,
}

/// A route in the container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: Prefix,
    /// Next hop; without one, the gateway of an address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "json::address")]
    pub gw: Option<IpAddr>,
    /// MTU along the route in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// TCP maximum segment size to advertise in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Priority (metric), lower first; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as in rtnetlink.h: 0 universe, 253 link, 254 host; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route with a destination and a next hop only.
    pub fn via(dst: Prefix, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// DNS settings for the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search for short names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options for the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Some old plugins wrote -1 for "no interface".
fn interface_index<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    Ok(usize::try_from(i64::deserialize(deserializer)?).ok())
}

/// `ip4` or `ip6` of a result of 0.1.0 or 0.2.0.
#[derive(Deserialize)]
struct OldIp {
    ip: Prefix,
    #[serde(default, deserialize_with = "json::address")]
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct OldResult {
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
    #[serde(default)]
    dns: Dns,
}

fn failed(what: &str, why: String) -> CniError {
    CniError::new(Code::Decoding, format!("could not parse {what}: {why}"))
}

impl CniResult {
    /// Reads a result that must be of the same family as `version`: a `prevResult`, which the runtime has converted.
    pub fn of_family(value: &Value, version: Version, what: &str) -> Result<Self, CniError> {
        let own = Self::version_of(value, version, what)?;
        if own.family() == version.family() {
            return Self::from_value(value, version, what);
        }
        Err(failed(
            what,
            format!(
                "its cniVersion is {own}, which has another shape than results of the configuration's {version}"
            ),
        ))
    }

    /// Reads a result of any version. One that does not say its `cniVersion` is taken to be of `version`. `what` names
    /// the result in errors.
    pub fn from_value(value: &Value, version: Version, what: &str) -> Result<Self, CniError> {
        if value.is_null() {
            return Ok(Self::default());
        }
        let decoded = match Self::version_of(value, version, what)?.family() {
            Family::Ip4Ip6 => json::decode::<OldResult>(value).map(Self::from_old),
            Family::Lists | Family::V1 => json::decode::<Self>(value),
        };
        decoded.map_err(|e| failed(what, e.to_string()))
    }

    /// The interface of that name in that sandbox, and what of this result is about it: its addresses with those that are
    /// of no interface, routes, and DNS settings.
    ///
    /// Errors: code 7 where a `prevResult` has no such interface.
    pub fn interface_of(&self, ifname: &str, sandbox: &str) -> Result<(&Interface, Self), CniError> {
        let is_it = |(_, it): &(usize, &Interface)| it.name == ifname && it.sandbox == sandbox;
        let Some((index, interface)) = self.interfaces.iter().enumerate().find(is_it) else {
            let msg = format!("prevResult has no interface {ifname:?} with the sandbox {sandbox:?}");
            return Err(CniError::config(msg));
        };
        let mut about = Self { interfaces: Vec::new(), ..self.clone() };
        about.ips.retain(|ip| ip.interface.is_none_or(|i| i == index));
        Ok((interface, about))
    }

    fn version_of(value: &Value, otherwise: Version, what: &str) -> Result<Version, CniError> {
        let object = match value {
            Value::Null => return Ok(otherwise),
            Value::Object(object) => object,
            other => return Err(failed(what, format!("it is {other}, not an object"))),
        };
        match json::get(object, "cniVersion") {
            None => Ok(otherwise),
            Some(Value::String(text)) if text.is_empty() => Ok(otherwise),
            Some(Value::String(text)) => text.parse().map_err(|e| failed(what, format!("{e}"))),
            Some(other) => Err(failed(what, format!("its cniVersion is {other}, not text"))),
        }
    }

    fn from_old(old: OldResult) -> Self {
        let mut result = Self { dns: old.dns, ..Self::default() };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            result.ips.push(IpConfig { interface: None, address: ip.ip, gateway: ip.gateway });
            result.routes.extend(ip.routes);
        }
        result
    }

    /// The result in the shape of a version.
    ///
    /// Down to 0.2.0 only the first address of each family survives, with its family's routes; without any address
    /// there is nothing to say in that shape, which is an error (libcni's wording, which callers know).
    pub fn to_value(&self, version: Version) -> Result<Value, CniError> {
        let mut object = match version.family() {
            Family::V1 => self.to_lists(),
            Family::Lists => {
                let mut object = self.to_lists();
                if let Some(Value::Array(interfaces)) = object.get_mut("interfaces") {
                    for interface in interfaces.iter_mut().filter_map(Value::as_object_mut) {
                        interface.retain(|key, _| !matches!(key.as_str(), "mtu" | "socketPath" | "pciID"));
                    }
                }
                if let Some(Value::Array(ips)) = object.get_mut("ips") {
                    for (ip, config) in ips.iter_mut().zip(&self.ips) {
                        ip["version"] = json!(if config.address.is_ipv4() { "4" } else { "6" });
                    }
                }
                object.entry("dns").or_insert_with(|| json!({}));
                object
            }
            Family::Ip4Ip6 => self.to_old()?,
        };
        object.insert("cniVersion".to_owned(), json!(version.as_str()));
        Ok(Value::Object(object))
    }

    fn to_lists(&self) -> Map<String, Value> {
        let mut object = Map::new();
        for (key, list) in
            [("interfaces", json!(self.interfaces)), ("ips", json!(self.ips)), ("routes", json!(self.routes))]
        {
            if list.as_array().is_some_and(|l| !l.is_empty()) {
                object.insert(key.to_owned(), list);
            }
        }
        if !self.dns.is_empty() {
            object.insert("dns".to_owned(), json!(self.dns));
        }
        object
    }

    fn to_old(&self) -> Result<Map<String, Value>, CniError> {
        let mut object = Map::new();
        for (key, is_ipv4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == is_ipv4) else { continue };
            let mut entry = json!({ "ip": ip.address });
            if let Some(gateway) = ip.gateway {
                entry["gateway"] = json!(gateway);
            }
            let routes: Vec<Route> = self
                .routes
                .iter()
                .filter(|route| route.dst.is_ipv4() == is_ipv4)
                .map(|route| Route::via(route.dst, route.gw))
                .collect();
            if !routes.is_empty() {
                entry["routes"] = json!(routes);
            }
            object.insert(key.to_owned(), entry);
        }
        if object.is_empty() {
            return Err(CniError::new(Code::IncompatibleVersion, "cannot convert: no valid IP addresses"));
        }
        object.insert("dns".to_owned(), json!(self.dns));
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::version::ALL;

    fn sample() -> CniResult {
        CniResult {
            interfaces: vec![
                Interface { name: "cni0".into(), mac: "02:00:00:00:00:01".into(), ..Interface::default() },
                Interface {
                    name: "eth0".into(),
                    sandbox: "/n".into(),
                    mtu: Some(1400),
                    ..Interface::default()
                },
            ],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.1.0.5/16".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                },
                IpConfig { interface: Some(1), address: "fd00::5/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![Route {
                priority: Some(7),
                ..Route::via("0.0.0.0/0".parse().unwrap(), Some("10.1.0.1".parse().unwrap()))
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn index_zero_is_written_and_dns_left_out() {
        let value = sample().to_value(Version::V1_1_0).unwrap();
        assert_eq!(value["ips"][0]["interface"], json!(0));
        assert_eq!(value.get("dns"), None);
        assert_eq!(value["cniVersion"], "1.1.0");
    }

    #[test]
    fn old_lists_have_versions_and_no_new_fields() {
        let value = sample().to_value(Version::V0_4_0).unwrap();
        assert_eq!(value["ips"][1]["version"], "6");
        assert_eq!(value["interfaces"][1].get("mtu"), None);
        assert_eq!(value["routes"][0]["priority"], 7);
        assert_eq!(value["dns"], json!({}));
    }

    #[test]
    fn the_oldest_shape_keeps_first_addresses_with_their_routes() {
        let value = sample().to_value(Version::V0_2_0).unwrap();
        assert_eq!(value["ip4"]["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]));
        assert_eq!(value["ip6"], json!({"ip": "fd00::5/64"}));
        let error = CniResult::default().to_value(Version::V0_1_0).unwrap_err();
        assert_eq!(error.msg, "cannot convert: no valid IP addresses");
    }

    #[test]
    fn a_result_of_another_family_is_refused() {
        let value = json!({"cniVersion": "0.4.0"});
        let error = CniResult::of_family(&value, Version::V1_0_0, "prevResult").unwrap_err();
        assert!(error.msg.starts_with("could not parse prevResult"), "{error}");
        assert!(CniResult::of_family(&json!({"cniVersion": "1.0.0"}), Version::V1_1_0, "x").is_ok());
        let old = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8"}});
        assert_eq!(CniResult::from_value(&old, Version::V1_0_0, "x").unwrap().ips.len(), 1);
        assert_eq!(CniResult::from_value(&Value::Null, Version::V1_1_0, "x").unwrap(), CniResult::default());
    }

    #[test]
    fn an_interface_has_its_addresses_and_those_of_none() {
        let mut result = sample();
        let (interface, about) = result.interface_of("eth0", "/n").unwrap();
        assert_eq!((interface.mtu, about.interfaces.len(), about.routes.len()), (Some(1400), 0, 1));
        assert_eq!(about.ips, result.ips[1..]);
        result.ips[0].interface = None;
        assert_eq!(result.interface_of("eth0", "/n").unwrap().1.ips, result.ips);
        let error = result.interface_of("eth0", "").unwrap_err();
        assert!(error.code == 7 && error.msg.contains("\"eth0\""), "{error}");
    }

    #[test]
    fn minus_one_is_no_interface() {
        let value = json!({"ips": [{"address": "10.0.0.1/8", "interface": -1}]});
        let result = CniResult::from_value(&value, Version::V0_3_1, "x").unwrap();
        assert_eq!(result.ips[0].interface, None);
    }

    fn prefix(v4: bool) -> impl Strategy<Value = Prefix> {
        (any::<u64>(), 0u8..=32).prop_map(move |(bits, len)| {
            let address: IpAddr = if v4 {
                IpAddr::V4((bits as u32).into())
            } else {
                IpAddr::V6((0x2001_0db8_u128 << 96 | u128::from(bits)).into())
            };
            Prefix::new(address, len).unwrap()
        })
    }

    prop_compose! {
        fn results()(
            v4 in proptest::collection::vec(prefix(true), 0..3),
            v6 in proptest::collection::vec(prefix(false), 0..3),
            routes in proptest::collection::vec((prefix(true), any::<Option<u32>>()), 0..3),
        ) -> CniResult {
            CniResult {
                interfaces: vec![],
                ips: v4.into_iter().chain(v6)
                    .map(|address| IpConfig { interface: None, address, gateway: Some(address.first_host()) })
                    .collect(),
                routes: routes.into_iter()
                    .map(|(dst, priority)| Route { priority, ..Route::via(dst, None) })
                    .collect(),
                dns: Dns::default(),
            }
        }
    }

    proptest! {
        #[test]
        fn lists_round_trip_through_every_version(result in results()) {
            for version in ALL.into_iter().filter(|v| v.family() != Family::Ip4Ip6) {
                let value = result.to_value(version).unwrap();
                prop_assert_eq!(CniResult::from_value(&value, version, "x").unwrap(), result.clone());
            }
        }

        #[test]
        fn old_results_survive_the_way_up_and_down(result in results()) {
            if let Ok(old) = result.to_value(Version::V0_2_0) {
                let up = CniResult::from_value(&old, Version::V0_2_0, "x").unwrap();
                prop_assert_eq!(up.to_value(Version::V0_2_0).unwrap(), old);
            }
        }
    }
}
