//! The `static` IPAM: the addresses that the configuration or its caller names, recorded nowhere.
//!
//! ```json
//! {"type": "static", "addresses": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}]}
//! ```

use std::net::IpAddr;

use serde::Deserialize;

use super::range::check_room;
use crate::spec::result::{Dns, IpConfig, Route};
use crate::spec::{Args, CniError, CniResult, Code, NetConf, Prefix, json};

/// What the configuration and its caller ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Static {
    addresses: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

/// The configuration as far as it concerns this IPAM.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conf {
    ipam: Option<IpamConf>,
    runtime_config: Ips,
    args: ArgsConf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IpamConf {
    addresses: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ArgsConf {
    cni: Ips,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ips {
    ips: Vec<Prefix>,
}

impl Static {
    /// The keys of `ipam`.
    pub fn keys() -> &'static [&'static str] {
        json::keys_of::<IpamConf>()
    }

    /// Reads a configuration for ADD or CHECK; DEL has nothing to do and must not fail over it.
    ///
    /// `IP` of `CNI_ARGS` adds to the configured addresses, with the `GATEWAY` that lies in its network;
    /// `args.cni.ips` takes the place of all these, and `runtimeConfig.ips` of those again. No address at all is
    /// right, as in the reference.
    ///
    /// Errors: code 6 for JSON of the wrong shape, which includes an address without a prefix length; code 4 for
    /// `CNI_ARGS`; code 7 if there is no `ipam`, or more addresses than the version has room for.
    pub fn parse(conf: &NetConf, args: &Args) -> Result<Self, CniError> {
        let parsed: Conf = conf.decode()?;
        let Some(ipam) = parsed.ipam else {
            return Err(CniError::config("IPAM config missing 'ipam' key"));
        };
        let mut addresses: Vec<IpConfig> = ipam.addresses;
        for address in &mut addresses {
            address.interface = None;
        }
        addresses.extend(named_in(args)?);
        for ips in [parsed.args.cni.ips, parsed.runtime_config.ips] {
            if !ips.is_empty() {
                addresses = ips.into_iter().map(without_gateway).collect();
            }
        }
        let ipv4 = addresses.iter().filter(|it| it.address.is_ipv4()).count();
        check_room(conf.version, ipv4, addresses.len() - ipv4)?;
        Ok(Self { addresses, routes: ipam.routes, dns: ipam.dns })
    }

    /// ADD: what is asked for.
    pub fn result(&self) -> CniResult {
        CniResult {
            interfaces: Vec::new(),
            ips: self.addresses.clone(),
            routes: self.routes.clone(),
            dns: self.dns.clone(),
        }
    }

    /// CHECK: how a previous result differs from what is asked for, as sentences. It may have more addresses.
    pub fn observe(&self, previous: &CniResult) -> Vec<String> {
        let mut findings = Vec::new();
        for want in &self.addresses {
            match previous.ips.iter().find(|have| have.address == want.address) {
                None => findings.push(format!("address {} is not in the previous result", want.address)),
                // Where none is configured, the plugin that has the interface may have decided on one.
                Some(have) if want.gateway.is_some() && have.gateway != want.gateway => {
                    findings.push(format!(
                        "address {} has gateway {} in the previous result; configured is {}",
                        want.address,
                        text(have.gateway),
                        text(want.gateway)
                    ))
                }
                Some(_) => {}
            }
        }
        findings
    }
}

fn text(gateway: Option<IpAddr>) -> String {
    gateway.map_or_else(|| "none".to_owned(), |gateway| gateway.to_string())
}

fn without_gateway(address: Prefix) -> IpConfig {
    IpConfig { interface: None, address, gateway: None }
}

/// The addresses of `IP`, each with the last one of `GATEWAY` that lies in its network; both are comma lists.
fn named_in(args: &Args) -> Result<Vec<IpConfig>, CniError> {
    let list = |key: &str| -> Vec<String> {
        args.get(key).into_iter().flat_map(|text| text.split(',')).map(|it| it.trim().to_owned()).collect()
    };
    let invalid = |msg: String| CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS: {msg}"));
    let mut addresses = Vec::new();
    for text in list("IP") {
        let address: Prefix = text.parse().map_err(|why| invalid(format!("IP: {why}")))?;
        addresses.push(without_gateway(address));
    }
    for text in list("GATEWAY") {
        let gateway: IpAddr = text.parse().map_err(|_| {
            invalid(format!("GATEWAY: invalid gateway address {text:?}; wanted is one such as 10.1.0.1"))
        })?;
        let gateway = gateway.to_canonical();
        for address in addresses.iter_mut().filter(|it| it.address.contains(gateway)) {
            address.gateway = Some(gateway);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, args: &str) -> Result<Static, CniError> {
        Static::parse(&NetConf::parse(json.as_bytes()).unwrap(), &Args::parse(args).unwrap())
    }

    fn ips(json: &str, args: &str) -> Vec<String> {
        let config = parse(json, args).unwrap();
        config.result().ips.iter().map(|ip| format!("{} {}", ip.address, text(ip.gateway))).collect()
    }

    const IPAM: &str = r#""name": "n", "cniVersion": "1.0.0", "ipam": {"type": "static",
        "addresses": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}, {"address": "2001:db8::5/64"}]}"#;

    #[test]
    fn the_configured_addresses() {
        assert_eq!(ips(&format!("{{{IPAM}}}"), ""), ["10.1.0.5/16 10.1.0.1", "2001:db8::5/64 none"]);
        assert!(ips(r#"{"name": "n", "ipam": {"type": "static"}}"#, "").is_empty());
    }

    #[test]
    fn cni_args_add_to_them() {
        assert_eq!(
            ips(&format!("{{{IPAM}}}"), "IP=10.9.0.5/16,10.8.0.5/16;GATEWAY=10.9.0.1,2001:db8::1"),
            ["10.1.0.5/16 10.1.0.1", "2001:db8::5/64 none", "10.9.0.5/16 10.9.0.1", "10.8.0.5/16 none"]
        );
    }

    #[test]
    fn args_replace_and_the_runtime_replaces_again() {
        let args = r#""args": {"cni": {"ips": ["10.1.0.5/16"]}}"#;
        assert_eq!(ips(&format!("{{{IPAM}, {args}}}"), "IP=10.9.0.5/16"), ["10.1.0.5/16 none"]);
        let runtime = r#""runtimeConfig": {"ips": ["10.7.0.5/16"]}"#;
        assert_eq!(ips(&format!("{{{IPAM}, {args}, {runtime}}}"), ""), ["10.7.0.5/16 none"]);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let refused = |json: &str, args: &str| parse(json, args).unwrap_err().to_string();
        assert!(refused(r#"{"name": "n"}"#, "").contains("ipam"));
        assert!(
            refused(r#"{"name": "n", "ipam": {"addresses": [{"address": "10.1.0.5"}]}}"#, "")
                .contains("ipam.addresses[0].address: invalid CIDR address \"10.1.0.5\"")
        );
        assert!(
            refused(r#"{"name": "n", "ipam": {}, "runtimeConfig": {"ips": ["x"]}}"#, "")
                .contains("runtimeConfig.ips[0]: invalid CIDR address \"x\"")
        );
        assert!(refused(r#"{"name": "n", "ipam": {}}"#, "IP=10.1.0.5").contains("IP: invalid CIDR"));
        assert!(refused(r#"{"name": "n", "ipam": {}}"#, "GATEWAY=x").contains("gateway address \"x\""));
        assert!(
            refused(r#"{"name": "n", "ipam": {}}"#, "IP=10.1.0.5/16,10.2.0.5/16")
                .contains("CNI version 0.1.0 does not support more than 1 address per family")
        );
    }

    #[test]
    fn a_check_finds_what_is_missing_or_differs() {
        let config = parse(&format!("{{{IPAM}}}"), "").unwrap();
        assert!(config.observe(&config.result()).is_empty());
        let mut previous = config.result();
        previous.ips.remove(1);
        previous.ips[0].gateway = None;
        let findings = config.observe(&previous);
        assert!(findings[0].contains("has gateway none") && findings[1].contains("2001:db8::5/64 is not"));
    }
}
