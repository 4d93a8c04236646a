//! The configuration of `tuning`: its keys as they were written, and what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::sysctl_key;
use crate::net::Mac;
use crate::resource::link_tuning::Attributes;
use crate::spec::{Attachment, CniError, Request, Version};

/// Where the reference keeps what links were.
const BACKUPS: &str = "/run/cni/tuning";

/// Smallest MTU that IPv4 allows (RFC 791), and largest that a link has by default: that of `lo`.
const MTU: RangeInclusive<i64> = 68..=65536;

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Conf {
    sysctl: BTreeMap<String, String>,
    mac: String,
    mtu: i64,
    promisc: bool,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<i64>,
    data_dir: String,
    args: ArgsConf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ArgsConf {
    cni: CniConf,
}

/// `args.cni`: the same keys once more, and they have the say.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniConf {
    sysctl: BTreeMap<String, String>,
    mtu: i64,
    promisc: bool,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<i64>,
}

/// What is wanted, decided.
#[derive(Clone, Debug)]
pub(super) struct Tuning {
    pub(super) attachment: Attachment,
    pub(super) version: Version,
    /// Key, names below /proc/sys/net that it may mean, value.
    pub(super) sysctls: Vec<(String, Vec<String>, String)>,
    pub(super) wanted: Attributes,
    pub(super) backups: PathBuf,
}

impl Tuning {
    /// Decides on everything that the configuration says.
    pub(super) fn parse(request: &Request) -> Result<Self, CniError> {
        let mut conf: Conf = request.config.decode()?;
        if let Some(key) = repeated_sysctl(&request.stdin) {
            let msg = format!("sysctl: duplicated sysctl keys are not allowed, and {key:?} is there twice");
            return Err(CniError::config(msg));
        }
        let cni = conf.args.cni;
        conf.sysctl.extend(cni.sysctl);
        let ifname = &request.attachment.ifname;
        let mtu = match (cni.mtu, conf.mtu) {
            (0, 0) => None,
            (0, mtu) => Some(in_range("mtu", mtu, &MTU)?),
            (mtu, _) => Some(in_range("args.cni.mtu", mtu, &MTU)?),
        };
        let tx_queue_len = match (cni.tx_queue_len, conf.tx_queue_len) {
            (Some(len), _) => Some(in_range("args.cni.txQLen", len, &(0..=i64::from(u32::MAX)))?),
            (None, Some(len)) => Some(in_range("txQLen", len, &(0..=i64::from(u32::MAX)))?),
            (None, None) => None,
        };
        let backups = backups(request);
        if !backups.is_absolute() {
            let msg = format!("dataDir: {:?} is wrong; wanted is a path from the root", conf.data_dir);
            return Err(CniError::config(msg));
        }
        Ok(Self {
            attachment: request.attachment.clone(),
            version: request.config.version,
            sysctls: sysctls(conf.sysctl, ifname)?,
            wanted: Attributes {
                mac: mac(request, &conf.mac)?,
                promisc: (conf.promisc || cni.promisc).then_some(true),
                mtu,
                allmulti: cni.allmulti.or(conf.allmulti),
                tx_queue_len,
            },
            backups,
        })
    }
}

/// The directory of the files that say what links were; with any configuration.
pub(super) fn backups(request: &Request) -> PathBuf {
    let configured = request.config.get("dataDir").and_then(Value::as_str).filter(|text| !text.is_empty());
    PathBuf::from(configured.unwrap_or(BACKUPS))
}

/// The MAC address that is asked for with this call, else the one that the configuration has for all.
fn mac(request: &Request, configured: &str) -> Result<Option<Mac>, CniError> {
    let configured = (!configured.is_empty()).then(|| (configured.to_owned(), "mac"));
    let Some((text, key)) = request.config.requested_mac(&request.args()?).or(configured) else {
        return Ok(None);
    };
    let mac: Mac = text.parse().map_err(|e| CniError::config(format!("{key}: {e}")))?;
    if !mac.is_valid() {
        let msg = format!("{key}: {mac} is no unicast address, so no interface can have it");
        return Err(CniError::config(msg));
    }
    Ok(Some(mac))
}

fn in_range(key: &str, value: i64, range: &RangeInclusive<i64>) -> Result<u32, CniError> {
    u32::try_from(value).ok().filter(|_| range.contains(&value)).ok_or_else(|| {
        let (low, high) = (range.start(), range.end());
        CniError::config(format!(
            "{key}: the value {value} is wrong; wanted is a number from {low} to {high}"
        ))
    })
}

/// The sysctls with the names that they may have; one that is named in two ways with two values is refused.
fn sysctls(
    wanted: BTreeMap<String, String>,
    ifname: &str,
) -> Result<Vec<(String, Vec<String>, String)>, CniError> {
    let mut sysctls: Vec<(String, Vec<String>, String)> = Vec::new();
    for (key, value) in wanted {
        let names = sysctl_key::names(&key, ifname)?;
        if let Some((other, ..)) = sysctls.iter().find(|(_, its, had)| *its == names && *had != value) {
            let msg = format!("sysctl: {other:?} and {key:?} are the same, with different values");
            return Err(CniError::config(msg));
        }
        sysctls.push((key, names, value));
    }
    Ok(sysctls)
}

/// A key that stands twice in the object `sysctl`. JSON allows it, and decoders keep one of them without a word.
fn repeated_sysctl(config: &[u8]) -> Option<String> {
    // That it is an object was found out before.
    serde_json::from_slice::<Document>(config).ok().and_then(|document| document.0)
}

/// The first key that is repeated in an object of a document.
struct Document(Option<String>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut repeated = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key.eq_ignore_ascii_case("sysctl") {
                        repeated = map.next_value::<Object>()?.0.or(repeated);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Document(repeated))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The first key that is repeated in an object.
struct Object(Option<String>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object or null")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Object, E> {
                Ok(Object(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let (mut seen, mut repeated) = (BTreeSet::new(), None);
                while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                    if !seen.insert(key.clone()) {
                        repeated = repeated.or(Some(key));
                    }
                }
                Ok(Object(repeated))
            }
        }
        deserializer.deserialize_any(Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Command;
    use crate::spec::request::Environment;

    fn parse(keys: &str) -> Result<Tuning, CniError> {
        let environment =
            Environment { container_id: "c".into(), ifname: "eth0".into(), ..Environment::default() };
        let config = format!(r#"{{"cniVersion": "1.0.0", "name": "n"{keys}}}"#);
        Tuning::parse(&Request::parse(Command::Add, &environment, config.into_bytes()).unwrap())
    }

    #[test]
    fn what_is_asked_for_with_the_call_has_the_say() {
        let tuning = parse(
            r#", "mac": "02:00:00:00:00:01", "mtu": 1400, "allmulti": true, "txQLen": 5, "promisc": false,
               "sysctl": {"net.core.somaxconn": "1"}, "runtimeConfig": {"mac": "02:00:00:00:00:02"},
               "args": {"cni": {"mac": "02:00:00:00:00:03", "mtu": 1300, "allmulti": false, "txQLen": 0,
                                "promisc": true, "sysctl": {"net.core.somaxconn": "2"}}}"#,
        )
        .unwrap();
        let wanted = Attributes {
            mac: "02:00:00:00:00:02".parse().ok(),
            promisc: Some(true),
            mtu: Some(1300),
            allmulti: Some(false),
            tx_queue_len: Some(0),
        };
        assert_eq!(tuning.wanted, wanted);
        assert_eq!(tuning.sysctls.len(), 1);
        assert_eq!(tuning.sysctls[0].2, "2");
        assert!(parse("").unwrap().wanted.is_empty());
    }

    #[test]
    fn sysctls_of_the_call_alone_are_taken() {
        let tuning = parse(r#", "args": {"cni": {"sysctl": {"net.core.somaxconn": "2"}}}"#).unwrap();
        assert_eq!(tuning.sysctls.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (keys, word) in [
            (r#", "sysctl": {"net.a.b": "1", "net.c": "1", "net.a.b": "2"}"#, "net.a.b"),
            (r#", "SysCtl": {"net.a.b": "1", "net.a.b": "1"}"#, "net.a.b"),
            (r#", "sysctl": {"net.a.b": "1", "net/a/b": "2"}"#, "different values"),
            (r#", "sysctl": {"kernel.hostname": "1"}"#, "kernel.hostname"),
            (r#", "mac": "02:00:00:00:00""#, "mac"),
            (r#", "mac": "01:00:00:00:00:01""#, "unicast"),
            (r#", "runtimeConfig": {"mac": "x"}"#, "runtimeConfig.mac"),
            (r#", "mtu": -1"#, "mtu"),
            (r#", "mtu": 67"#, "mtu"),
            (r#", "args": {"cni": {"mtu": 100000}}"#, "args.cni.mtu"),
            (r#", "txQLen": -1"#, "txQLen"),
            (r#", "dataDir": "run""#, "dataDir"),
        ] {
            let error = parse(keys).unwrap_err();
            assert!(error.code == 7 && error.msg.contains(word), "{keys}: {error}");
        }
        for keys in [r#", "sysctl": {"net.a": 1}"#, r#", "sysctl": []"#, r#", "mtu": "1""#, r#", "args": 1"#]
        {
            assert_eq!(parse(keys).unwrap_err().code, 6, "{keys}");
        }
        parse(r#", "sysctl": null, "mtu": 0, "args": null, "allmulti": null"#).unwrap();
    }
}
