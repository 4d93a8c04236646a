//! The options of a network (`podman network create -o key=value`): as they were written, and what they mean.

use serde_json::{Value, json};

use super::network::{Ipam, OptionMap};
use crate::spec::{CniError, Code};

/// The options, by name. Those that netavark's own driver `bridge` has, too, mean the same here.
pub const NAMES: [&str; 10] = [
    "backend",
    "isolate",
    "metric",
    "mode",
    "mtu",
    "no_default_route",
    "open_forward",
    "port_isolation",
    "spoof_guard",
    "vlan",
];

/// Largest ID of a VLAN (IEEE 802.1Q; 4095 is reserved).
const VLAN_MAX: u16 = 4094;

/// Smallest and largest MTU, as the key of the plugin has it.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// What the options say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `backend`; `None` leaves it to the environment.
    pub backend: Option<Backend>,
    /// `isolate`: containers of other networks that are isolated, too, do not reach those of this one.
    pub isolate: bool,
    /// `metric` of routes.
    pub metric: Option<u32>,
    /// `mode=unmanaged`: the bridge is somebody else's, who also sees to addresses, NAT and firewall.
    pub is_unmanaged: bool,
    /// `mtu`, as the plugin's key.
    pub mtu: Option<Value>,
    /// `no_default_route`.
    pub no_default_route: bool,
    /// `open_forward`.
    pub open_forward: bool,
    /// `port_isolation`: containers of this network do not reach one another.
    pub port_isolation: bool,
    /// `spoof_guard`: containers send as themselves only.
    pub spoof_guard: bool,
    /// `vlan` of the containers on the bridge.
    pub vlan: Option<u16>,
}

/// Who writes rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `iptables`
    Iptables,
    /// `nftables`
    Nftables,
    /// `firewalld` lets packets through, and the other two do what it cannot.
    Firewalld,
    /// Nobody: neither NAT nor ports nor guards between networks.
    None,
}

impl Backend {
    /// The back end of that name; of none, the choice is the plugin's.
    ///
    /// Errors: `key` has another.
    pub fn parse(key: &str, text: &str) -> Result<Option<Self>, CniError> {
        Ok(Some(match text {
            "" => return Ok(None),
            "iptables" => Self::Iptables,
            "nftables" => Self::Nftables,
            "firewalld" => Self::Firewalld,
            "none" => Self::None,
            _ => {
                let wanted = "\"iptables\", \"nftables\", \"firewalld\" or \"none\"";
                return Err(CniError::config(format!(
                    "{key}: unknown back end {text:?}; wanted is {wanted}"
                )));
            }
        }))
    }
}

impl Options {
    /// Reads the options of a network.
    ///
    /// Errors: code 2 for one that is not offered, code 7 for a value that is wrong.
    pub fn parse(options: &OptionMap) -> Result<Self, CniError> {
        let text = |name: &str| options.get(name).map(String::as_str);
        if let Some(name) = options.keys().find(|name| !NAMES.contains(&name.as_str())) {
            let msg = format!("options.{name}: there is no such option; there are {}", NAMES.join(", "));
            return Err(CniError::new(Code::UnsupportedField, msg));
        }
        let flag = |name: &str, without: bool| match text(name) {
            None => Ok(without),
            Some(text) => boolean(text).ok_or_else(|| wrong(name, text, "\"true\" or \"false\"")),
        };
        if text("isolate") == Some("strict") {
            let msg = "options.isolate: \"strict\" is not offered; wanted is \"true\", which keeps this network from \
                       others that are isolated, or \"false\"";
            return Err(CniError::new(Code::UnsupportedField, msg));
        }
        let metric = text("metric").map(|text| {
            text.parse().map_err(|_| wrong("metric", text, &format!("a number from 0 to {}", u32::MAX)))
        });
        let vlan = text("vlan").map(|text| match text.parse() {
            Ok(vlan) if (1..=VLAN_MAX).contains(&vlan) => Ok(vlan),
            _ => Err(wrong("vlan", text, &format!("a number from 1 to {VLAN_MAX}"))),
        });
        let is_unmanaged = match text("mode") {
            None | Some("managed") => false,
            Some("unmanaged") => true,
            Some(text) => return Err(wrong("mode", text, "\"managed\" or \"unmanaged\"")),
        };
        let options = Self {
            backend: Backend::parse("options.backend", text("backend").unwrap_or_default())?,
            isolate: flag("isolate", false)?,
            metric: metric.transpose()?,
            is_unmanaged,
            mtu: text("mtu").map(mtu).transpose()?,
            no_default_route: flag("no_default_route", false)?,
            open_forward: flag("open_forward", false)?,
            port_isolation: flag("port_isolation", false)?,
            spoof_guard: flag("spoof_guard", !is_unmanaged)?,
            vlan: vlan.transpose()?,
        };
        if let Some(name) = ["backend", "isolate", "open_forward"]
            .into_iter()
            .find(|name| is_unmanaged && text(name).is_some())
        {
            let msg =
                format!("options.{name}: has no meaning with mode=unmanaged, where nothing is filtered");
            return Err(CniError::config(msg));
        }
        Ok(options)
    }
}

impl Options {
    /// What is wrong with them where addresses are not this host's to give.
    ///
    /// Errors: code 7, naming the option.
    pub fn check_with(&self, ipam: Ipam) -> Result<(), CniError> {
        if ipam == Ipam::Dhcp && self.no_default_route {
            let msg =
                "options.no_default_route: with --ipam-driver dhcp, the server says which routes there are";
            return Err(CniError::config(msg));
        }
        Ok(())
    }
}

/// The values that podman takes for its own drivers (Go's `strconv.ParseBool`).
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn mtu(text: &str) -> Result<Value, CniError> {
    let (low, high) = (MTU.start(), MTU.end());
    match text.parse::<u32>() {
        _ if text == "auto" => Ok(json!("auto")),
        Ok(bytes) if bytes == 0 || MTU.contains(&bytes) => Ok(json!(bytes)),
        _ => Err(wrong("mtu", text, &format!("a number from {low} to {high}, or \"auto\""))),
    }
}

fn wrong(name: &str, text: &str, wanted: &str) -> CniError {
    CniError::config(format!("options.{name}: the value {text:?} is wrong; wanted is {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options, CniError> {
        Options::parse(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn without_options_the_guard_is_there_and_nothing_is_isolated() {
        let options = parse(&[]).unwrap();
        assert!(
            options.spoof_guard && !options.isolate && !options.is_unmanaged && options.backend.is_none()
        );
        assert!(!parse(&[("mode", "unmanaged")]).unwrap().spoof_guard);
    }

    #[test]
    fn values_are_read() {
        let options =
            parse(&[("mtu", "1400"), ("metric", "7"), ("vlan", "12"), ("isolate", "1"), ("backend", "none")])
                .unwrap();
        assert_eq!((options.mtu, options.metric, options.vlan), (Some(json!(1400)), Some(7), Some(12)));
        assert!(options.isolate && options.backend == Some(Backend::None));
        assert_eq!(parse(&[("mtu", "auto")]).unwrap().mtu, Some(json!("auto")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value, code, named) in [
            ("vrf", "red", 2, "options.vrf: there is no such option; there are backend, "),
            ("spoofGuard", "true", 2, "options.spoofGuard: "),
            ("isolate", "strict", 2, "options.isolate: \"strict\""),
            ("isolate", "yes", 7, "options.isolate: the value \"yes\" is wrong"),
            ("mtu", "67", 7, "options.mtu: the value \"67\""),
            ("mtu", "-1", 7, "options.mtu: "),
            ("metric", "x", 7, "options.metric: "),
            ("vlan", "0", 7, "options.vlan: "),
            ("vlan", "4095", 7, "options.vlan: "),
            ("mode", "l2", 7, "options.mode: "),
            ("backend", "ipfw", 7, "options.backend: "),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.code == code && error.msg.starts_with(named), "{error}");
        }
        let routeless = parse(&[("no_default_route", "1")]).unwrap();
        assert!(routeless.check_with(Ipam::HostLocal).is_ok() && routeless.check_with(Ipam::Dhcp).is_err());
        assert!(parse(&[("mode", "unmanaged"), ("isolate", "true")]).unwrap_err().msg.contains("isolate"));
    }
}
