//! The configuration of `portmap`: its keys as they were written, and what they mean.

use std::net::IpAddr;

use serde::Deserialize;

use crate::net::iptables::Transport;
use crate::resource::masquerade::Backend;
use crate::resource::port_mappings::{Marking, PortMapping, SourceNat};
use crate::spec::{Attachment, CniError, CniResult, Request};

/// The bit of the mark if the configuration does not say.
const MARK_BIT: i64 = 13;

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Conf {
    backend: String,
    snat: Option<bool>,
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    conditions_v4: Vec<String>,
    conditions_v6: Vec<String>,
    runtime_config: RuntimeConf,
}

/// `runtimeConfig`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConf {
    port_mappings: Vec<MappingConf>,
}

/// An element of `portMappings`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MappingConf {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

/// What is wanted, decided.
#[derive(Clone, Debug)]
pub(super) struct Portmap {
    pub(super) attachment: Attachment,
    pub(super) prev_result: Option<CniResult>,
    pub(super) backend: Option<Backend>,
    pub(super) mappings: Vec<PortMapping>,
    pub(super) source_nat: SourceNat,
    pub(super) marking: Marking,
    pub(super) conditions_v4: Vec<String>,
    pub(super) conditions_v6: Vec<String>,
}

impl Portmap {
    /// Reads a configuration.
    ///
    /// Errors: code 6 or 7, naming the key.
    pub(super) fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        request.config.lock_timeout()?;
        let source_nat = match (conf.snat.unwrap_or(true), conf.masq_all) {
            (false, _) => SourceNat::None,
            (true, false) => SourceNat::Hairpin,
            (true, true) => SourceNat::All,
        };
        Ok(Self {
            attachment: request.attachment.clone(),
            prev_result: request.config.prev_result()?,
            backend: backend(&conf)?,
            mappings: mappings(&conf.runtime_config.port_mappings)?,
            source_nat,
            marking: marking(&conf)?,
            conditions_v4: conditions("conditionsV4", conf.conditions_v4)?,
            conditions_v6: conditions("conditionsV6", conf.conditions_v6)?,
        })
    }
}

/// The configured back end, or that which other keys are for; `None` leaves the choice.
fn backend(conf: &Conf) -> Result<Option<Backend>, CniError> {
    let configured = match conf.backend.as_str() {
        "" => None,
        "iptables" => Some(Backend::Iptables),
        "nftables" => Some(Backend::Nftables),
        text => {
            return Err(CniError::config(format!(
                "backend: unrecognized backend {text:?}; wanted is \"iptables\" or \"nftables\""
            )));
        }
    };
    let mut wanted = Vec::new();
    if conf.mark_masq_bit.is_some() {
        wanted.push(("markMasqBit", Backend::Iptables));
    }
    if conf.external_set_mark_chain.is_some() {
        wanted.push(("externalSetMarkChain", Backend::Iptables));
    }
    for (key, words) in [("conditionsV4", &conf.conditions_v4), ("conditionsV6", &conf.conditions_v6)] {
        // As the reference tells the languages apart.
        wanted.extend(words.first().map(|first| match first.starts_with(['-', '!']) {
            true => (key, Backend::Iptables),
            false => (key, Backend::Nftables),
        }));
    }
    let name = |backend| match backend {
        Backend::Iptables => "iptables",
        Backend::Nftables => "nftables",
    };
    let mut decided = configured.map(|backend| ("backend", backend));
    for (key, backend) in wanted {
        match decided {
            Some((other, chosen)) if chosen != backend => {
                return Err(CniError::config(format!(
                    "{key}: is for the back end {}, but {other} is for {}",
                    name(backend),
                    name(chosen)
                )));
            }
            Some(_) => {}
            None => decided = Some((key, backend)),
        }
    }
    Ok(decided.map(|(_, backend)| backend))
}

fn marking(conf: &Conf) -> Result<Marking, CniError> {
    match (&conf.external_set_mark_chain, conf.mark_masq_bit) {
        (Some(_), Some(_)) => {
            Err(CniError::config("externalSetMarkChain, markMasqBit: cannot specify both; leave out one"))
        }
        (Some(name), None) => {
            // What the kernel takes (`XT_EXTENSION_MAXNAMELEN`), and what cannot be taken for an option.
            let is_name = !name.is_empty() && name.len() < 29 && !name.starts_with(['-', '!']);
            if !is_name || name.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
                let msg =
                    format!("externalSetMarkChain: {name:?} is no name of a chain, of at most 28 letters");
                return Err(CniError::config(msg));
            }
            Ok(Marking::Chain(name.clone()))
        }
        (None, bit) => {
            let bit = bit.unwrap_or(MARK_BIT);
            match u32::try_from(bit).ok().and_then(|bit| 1u32.checked_shl(bit)) {
                Some(mark) => Ok(Marking::Bit(mark)),
                None => Err(CniError::config(format!("markMasqBit: must be between 0 and 31, and is {bit}"))),
            }
        }
    }
}

/// Further matches. They become words of a command's input, a rule to a line.
fn conditions(key: &str, words: Vec<String>) -> Result<Vec<String>, CniError> {
    let ends_the_rule = |letter: char| letter.is_control() || letter == ';' || letter == '#';
    match words.iter().find(|word| word.contains(ends_the_rule)) {
        Some(word) => {
            let msg =
                format!("{key}: {word:?} has a letter that ends a rule; wanted are the words of one match");
            Err(CniError::config(msg))
        }
        None => Ok(words),
    }
}

fn mappings(written: &[MappingConf]) -> Result<Vec<PortMapping>, CniError> {
    let mut mappings: Vec<PortMapping> = Vec::new();
    for (index, conf) in written.iter().enumerate() {
        let key = |name: &str| format!("runtimeConfig.portMappings[{index}].{name}");
        let port = |name: &str, value: i64| {
            u16::try_from(value).map_err(|_| {
                CniError::config(format!(
                    "{}: {value} is no port; wanted is a number from 1 to 65535",
                    key(name)
                ))
            })
        };
        let (host_port, container_port) =
            (port("hostPort", conf.host_port)?, port("containerPort", conf.container_port)?);
        // Runtimes list all ports of a container, also those that the host is not to have.
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            return Err(CniError::config(format!(
                "{}: 0 is no port; wanted is a number from 1 to 65535",
                key("containerPort")
            )));
        }
        let mapping = PortMapping {
            host_port,
            container_port,
            protocol: protocol(&conf.protocol, || key("protocol"))?,
            host_address: host_address(&conf.host_ip, || key("hostIP"))?,
        };
        let same = mappings.iter().find(|other| {
            (other.protocol, other.host_port, other.host_address)
                == (mapping.protocol, mapping.host_port, mapping.host_address)
        });
        match same {
            Some(other) if other.container_port != container_port => {
                let msg = format!("{}: {mapping}, but there is also {other}", key("hostPort"));
                return Err(CniError::config(msg));
            }
            Some(_) => {}
            None => mappings.push(mapping),
        }
    }
    Ok(mappings)
}

fn protocol(text: &str, key: impl Fn() -> String) -> Result<Transport, CniError> {
    if text.is_empty() {
        return Ok(Transport::Tcp);
    }
    let found = Transport::ALL.into_iter().find(|it| it.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        CniError::config(format!("{}: unknown protocol {text:?}; wanted is tcp, udp or sctp", key()))
    })
}

fn host_address(text: &str, key: impl Fn() -> String) -> Result<Option<IpAddr>, CniError> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Some(address.to_canonical())),
        Err(_) => Err(CniError::config(format!("{}: {text:?} is no IP address", key()))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::spec::Command;
    use crate::spec::request::Environment;

    fn parse(keys: Value) -> Result<Portmap, CniError> {
        let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "portmap"});
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let request =
            Request::parse(Command::Add, &Environment::default(), config.to_string().into_bytes()).unwrap();
        Portmap::parse(&request)
    }

    fn mapped(list: Value) -> Result<Vec<String>, CniError> {
        let portmap = parse(json!({"runtimeConfig": {"portMappings": list}}))?;
        Ok(portmap.mappings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn mappings_are_read_as_runtimes_write_them() {
        let list = json!([
            {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
            {"hostPort": 1, "containerPort": 2, "protocol": "sctp", "hostIP": "2001:db8::1"},
            {"hostPort": 0, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 3, "containerPort": 4, "hostIP": "0.0.0.0"},
        ]);
        let wanted = ["tcp 8080 -> 80", "udp 192.0.2.1:53 -> 53", "sctp [2001:db8::1]:1 -> 2", "tcp 3 -> 4"];
        assert_eq!(mapped(list).unwrap(), wanted);
        assert_eq!(mapped(Value::Null).unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (one, part) in [
            (json!({"hostPort": 65536, "containerPort": 1}), "portMappings[0].hostPort: 65536"),
            (json!({"hostPort": -1, "containerPort": 1}), "hostPort: -1"),
            (json!({"hostPort": 1}), "containerPort: 0"),
            (
                json!({"hostPort": 1, "containerPort": 1, "protocol": "icmp"}),
                "protocol: unknown protocol \"icmp\"",
            ),
            (json!({"hostPort": 1, "containerPort": 1, "hostIP": "x"}), "hostIP: \"x\""),
        ] {
            let error = mapped(json!([one])).unwrap_err();
            assert!(error.code == 7 && error.msg.contains(part), "{error}");
        }
        let both = json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2}]);
        assert!(mapped(both).unwrap_err().msg.contains("there is also tcp 1 -> 1"));
        for (keys, part) in [
            (json!({"backend": "ipfw"}), "backend: unrecognized backend \"ipfw\""),
            (json!({"markMasqBit": 32}), "markMasqBit: must be between 0 and 31"),
            (json!({"markMasqBit": 1, "externalSetMarkChain": "X"}), "cannot specify both"),
            (json!({"markMasqBit": 1, "backend": "nftables"}), "markMasqBit: is for the back end iptables"),
            (json!({"conditionsV4": ["-d", "1.2.3.4"], "backend": "nftables"}), "conditionsV4: is for"),
            (json!({"conditionsV6": ["ip6", "daddr"], "backend": "iptables"}), "conditionsV6: is for"),
            (json!({"conditionsV4": ["ip", "daddr;"]}), "conditionsV4: \"daddr;\""),
            (json!({"externalSetMarkChain": "-j"}), "externalSetMarkChain: \"-j\""),
        ] {
            let error = parse(keys).unwrap_err();
            assert!(error.code == 7 && error.msg.contains(part), "{error}");
        }
    }

    #[test]
    fn keys_of_one_back_end_choose_it() {
        assert_eq!(parse(json!({})).unwrap().backend, None);
        assert_eq!(parse(json!({"markMasqBit": 0})).unwrap().backend, Some(Backend::Iptables));
        assert_eq!(parse(json!({"conditionsV4": ["ip"]})).unwrap().backend, Some(Backend::Nftables));
        assert_eq!(parse(json!({"markMasqBit": 31})).unwrap().marking, Marking::Bit(1 << 31));
    }
}
