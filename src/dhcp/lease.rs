//! A lease, and what it gives a pod.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::gob::Value;
use super::message::Message;
use super::options::{Options, code};
use crate::net::Mac;
use crate::spec::result::{Dns, IpConfig, Route};
use crate::spec::{CniResult, Prefix};

/// How long a lease is where the server does not say, as in the reference.
const DEFAULT_TIME: u32 = 3600;

/// Scope of a route that needs no router (linux/rtnetlink.h).
const SCOPE_LINK: u8 = 253;

/// What a server has granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The server, as it calls itself.
    pub server: Ipv4Addr,
    /// The neighbour that the grant came from: the server, or the way to it.
    pub server_mac: Mac,
    /// All that the server said.
    pub options: Options,
    /// When it was asked for, on the clock that [`now`] tells.
    pub since: Duration,
}

/// Time since the boot, which goes on while the machine sleeps, as the server's does.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

impl Lease {
    /// The lease that a grant gives to a request of that time; an error for what is no use to a pod.
    pub fn granted(grant: Message, from: Mac, since: Duration) -> Result<Self, String> {
        let server = grant.server().ok_or("the server does not say who it is (option 54)")?;
        if grant.yours.is_unspecified() {
            return Err("the server gives no address".to_owned());
        }
        if grant.options.prefix_len().is_none() {
            return Err(format!("the server gives no subnet mask (option 1) for {}", grant.yours));
        }
        Ok(Self { address: grant.yours, server, server_mac: from, options: grant.options, since })
    }

    fn times(&self) -> [u32; 3] {
        let seconds = |code| self.options.seconds(code).filter(|seconds| *seconds > 0);
        let end = seconds(code::LEASE_TIME).unwrap_or(DEFAULT_TIME);
        let rebind = seconds(code::REBINDING_TIME).filter(|it| *it < end).unwrap_or(end - end / 8);
        let renew = seconds(code::RENEWAL_TIME).filter(|it| *it < rebind).unwrap_or((end / 2).min(rebind));
        [renew, rebind, end]
    }

    /// When its server is to be asked for more time (T1).
    pub fn renewal(&self) -> Duration {
        self.since + Duration::from_secs(self.times()[0].into())
    }

    /// When all servers are to be asked (T2).
    pub fn rebinding(&self) -> Duration {
        self.since + Duration::from_secs(self.times()[1].into())
    }

    /// When it ends.
    pub fn end(&self) -> Duration {
        self.since + Duration::from_secs(self.times()[2].into())
    }

    /// What an ADD answers: an address with its gateway, routes, name servers.
    ///
    /// Option 121 takes the place of routers and of option 33 (RFC 3442). A next hop of zeros is none, and is told so, as
    /// the reference does: its main plugins would take the gateway in place of one that is left out.
    pub fn result(&self, priority: Option<u32>) -> CniResult {
        let prefix = |address: Ipv4Addr, len| Prefix::new(IpAddr::V4(address), len);
        let gateway = self.options.addresses(code::ROUTERS).first().copied().map(IpAddr::V4);
        let len = self.options.prefix_len().unwrap_or(32);
        let ips = prefix(self.address, len).map(|address| IpConfig { interface: None, address, gateway });
        let mut routes = Vec::new();
        match self.options.classless_routes() {
            Some(list) => {
                for (network, len, router) in list {
                    let Some(dst) = prefix(network, len) else { continue };
                    routes.push(match router.is_unspecified() {
                        true => Route { scope: Some(SCOPE_LINK), ..Route::via(dst, Some(router.into())) },
                        false => Route::via(dst, Some(router.into())),
                    });
                }
            }
            None => {
                let listed = self.options.static_routes().into_iter();
                routes.extend(listed.filter_map(|(network, len, router)| {
                    Some(Route::via(prefix(network, len)?, Some(router.into())))
                }));
                let anywhere = prefix(Ipv4Addr::UNSPECIFIED, 0).filter(|_| gateway.is_some());
                routes.extend(anywhere.map(|dst| Route::via(dst, gateway)));
            }
        }
        routes.iter_mut().for_each(|route| route.priority = priority);
        let nameservers = self.options.addresses(code::DNS_SERVERS);
        let dns = Dns {
            nameservers: nameservers.iter().map(Ipv4Addr::to_string).collect(),
            domain: self.options.text(code::DOMAIN_NAME).unwrap_or_default(),
            ..Dns::default()
        };
        CniResult { interfaces: Vec::new(), ips: ips.into_iter().collect(), routes, dns }
    }
}

/// A result as the daemon sends it ([`super::rpc::RESULT`]).
pub fn encode(result: &CniResult) -> Value {
    let address = |address: IpAddr| match address {
        IpAddr::V4(it) => Value::Bytes(it.octets().to_vec()),
        IpAddr::V6(it) => Value::Bytes(it.octets().to_vec()),
    };
    let optional = |it: Option<IpAddr>| it.map_or(Value::Bytes(Vec::new()), address);
    let network = |prefix: Prefix| {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.prefix_len())).unwrap_or_default();
        Value::of([("IP", address(prefix.address())), ("Mask", Value::Bytes(mask.to_be_bytes().to_vec()))])
    };
    let number = |it: Option<u32>| Value::Int(it.unwrap_or_default().into());
    let ips = result.ips.iter();
    let ips = ips.map(|ip| Value::of([("Address", network(ip.address)), ("Gateway", optional(ip.gateway))]));
    let routes = result.routes.iter().map(|route| {
        Value::of([
            ("Dst", network(route.dst)),
            ("GW", optional(route.gw)),
            ("Priority", number(route.priority)),
            ("Scope", number(route.scope.map(u32::from))),
        ])
    });
    let nameservers = result.dns.nameservers.iter().map(|it| Value::text(it)).collect();
    let dns =
        Value::of([("Nameservers", Value::List(nameservers)), ("Domain", Value::text(&result.dns.domain))]);
    Value::of([("IPs", Value::List(ips.collect())), ("Routes", Value::List(routes.collect())), ("DNS", dns)])
}

/// A result as a daemon sends it, ours or the reference's. None where it makes no sense.
pub fn decode(value: &Value) -> Option<CniResult> {
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|it| IpAddr::from(it).to_canonical()),
        _ => None,
    };
    let network = |value: Option<&Value>| {
        let value = value?;
        let address = address(value.bytes("IP"))?;
        let bits: u32 = value.bytes("Mask").iter().map(|byte| byte.count_ones()).sum();
        // Go may write a mask of IPv4 in sixteen bytes.
        let bits =
            if address.is_ipv4() && value.bytes("Mask").len() == 16 { bits.checked_sub(96)? } else { bits };
        Prefix::new(address, u8::try_from(bits).ok()?)
    };
    let number = |value: &Value, name: &str| u32::try_from(value.number(name)).ok().filter(|it| *it > 0);
    let mut result = CniResult::default();
    for ip in value.list("IPs") {
        let gateway = address(ip.bytes("Gateway"));
        result.ips.push(IpConfig { interface: None, address: network(ip.get("Address"))?, gateway });
    }
    for route in value.list("Routes") {
        result.routes.push(Route {
            dst: network(route.get("Dst"))?,
            gw: address(route.bytes("GW")),
            mtu: number(route, "MTU"),
            advmss: number(route, "AdvMSS"),
            priority: number(route, "Priority"),
            table: number(route, "Table"),
            scope: number(route, "Scope").and_then(|it| u8::try_from(it).ok()),
        });
    }
    if let Some(dns) = value.get("DNS") {
        let text = |value: &Value| match value {
            Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        };
        let list = |name: &str| dns.list(name).iter().map(text).collect();
        result.dns = Dns {
            nameservers: list("Nameservers"),
            domain: dns.string("Domain"),
            search: list("Search"),
            options: list("Options"),
        };
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(options: &[(u8, &[u8])]) -> Lease {
        let mut all = Options::default();
        all.set(code::SUBNET_MASK, [255, 255, 255, 0]);
        options.iter().for_each(|(code, value)| all.set(*code, *value));
        Lease {
            address: [10, 0, 0, 7].into(),
            server: [10, 0, 0, 1].into(),
            server_mac: Mac([2; 6]),
            options: all,
            since: Duration::from_secs(100),
        }
    }

    #[test]
    fn times_are_in_order_whatever_the_server_says() {
        let times =
            |lease: Lease| [lease.renewal(), lease.rebinding(), lease.end()].map(|it| it.as_secs() - 100);
        assert_eq!(times(lease(&[])), [1800, 3150, 3600]);
        let seconds = |seconds: u32| seconds.to_be_bytes();
        assert_eq!(
            times(lease(&[(51, &seconds(120)), (58, &seconds(10)), (59, &seconds(20))])),
            [10, 20, 120]
        );
        assert_eq!(
            times(lease(&[(51, &seconds(120)), (58, &seconds(0)), (59, &seconds(200))])),
            [60, 105, 120]
        );
        assert_eq!(times(lease(&[(51, &seconds(1))])), [0, 1, 1]);
        assert_eq!(times(lease(&[(51, &seconds(u32::MAX))]))[2], u64::from(u32::MAX));
    }

    #[test]
    fn a_result_has_address_routes_and_name_servers() {
        let router: (u8, &[u8]) = (code::ROUTERS, &[10, 0, 0, 1, 10, 0, 0, 2]);
        let result = lease(&[router, (code::DNS_SERVERS, &[9, 9, 9, 9]), (code::DOMAIN_NAME, b"lan\0")])
            .result(Some(5));
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.7/24");
        assert_eq!(result.ips[0].gateway, Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!((result.routes.len(), result.routes[0].priority), (1, Some(5)));
        assert_eq!((result.dns.nameservers[0].as_str(), result.dns.domain.as_str()), ("9.9.9.9", "lan"));
        let classless: (u8, &[u8]) =
            (code::CLASSLESS_ROUTES, &[24, 192, 0, 2, 10, 0, 0, 9, 8, 11, 0, 0, 0, 0]);
        let routes = lease(&[router, classless]).result(None).routes;
        let shown: Vec<String> =
            routes.iter().map(|r| format!("{} {:?} {:?}", r.dst, r.gw, r.scope)).collect();
        assert_eq!(shown, ["192.0.2.0/24 Some(10.0.0.9) None", "11.0.0.0/8 Some(0.0.0.0) Some(253)"]);
        assert!(lease(&[]).result(None).routes.is_empty());
    }

    #[test]
    fn a_result_comes_over_as_it_is() {
        let options: [(u8, &[u8]); 4] = [
            (code::ROUTERS, &[10, 0, 0, 1]),
            (code::STATIC_ROUTES, &[192, 0, 2, 0, 10, 0, 0, 2]),
            (code::DNS_SERVERS, &[9, 9, 9, 9]),
            (code::DOMAIN_NAME, b"lan"),
        ];
        for result in [lease(&options).result(Some(5)), lease(&[(121, &[0, 0, 0, 0, 0])]).result(None)] {
            assert_eq!(decode(&encode(&result)), Some(result));
        }
    }
}
