//! The network configuration: what every plugin's has in common.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::digest::sha512_hex;
use super::{Args, CniError, CniResult, Code, Version, json, names};

/// Most bytes that a configuration may have. Real ones have a few hundred; a prevResult may add some kilobytes.
pub const MAX_BYTES: usize = 1 << 20;

/// How long a call waits for a lock if the configuration does not say.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a delegate may take. The kubelet gives a pod's sandbox four minutes, and if an ADD takes that long to fail,
/// its DEL of the same delegate must fit in, too. The reference's `dhcp` takes a minute before it gives up.
pub const DELEGATE_TIMEOUT: Duration = Duration::from_secs(90);

/// Longest wait that can be configured, for a lock or a plugin: no runtime is as patient.
const TIMEOUT_MAX: u64 = 3600;

/// Keys of a plugin's object that are not its author's (specification section 3, "Deriving request configuration").
const INJECTED: [&str; 6] = ["cniVersion", "cniVersions", "name", "prevResult", "runtimeConfig", "args"];

/// What plugins here look at of that which runtimes inject. Others, such as annotations of a pod, come and go while it
/// lives, and are no reason to attach it anew.
const WISHES: [&[&str]; 8] = [
    &["runtimeConfig", "bandwidth"],
    &["runtimeConfig", "deviceID"],
    &["runtimeConfig", "ipRanges"],
    &["runtimeConfig", "ips"],
    &["runtimeConfig", "mac"],
    &["runtimeConfig", "portMappings"],
    &["args", "cni", "ips"],
    &["args", "cni", "mac"],
];

/// Length of a digest: 128 bits.
const DIGEST_CHARS: usize = 32;

/// A network configuration as a plugin receives it on stdin: the plugin's own object of the conflist, with the keys
/// that the runtime injects (specification section 3, "Deriving request configuration").
#[derive(Clone, Debug)]
pub struct NetConf {
    /// `cniVersion`; without one, 0.1.0.
    pub version: Version,
    /// `name` of the network.
    pub name: String,
    /// `ipam.type`; `None` where there is no IPAM, as for a bridge without addresses.
    pub ipam_type: Option<String>,
    document: Map<String, Value>,
}

/// The attachments that a GC is to leave alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValidAttachments {
    /// The key was not there at all: nobody said what is valid.
    NotGiven,
    /// These are valid, and no others; may be empty (`[]` or `null`).
    Only(Vec<ValidAttachment>),
}

/// An entry of `cni.dev/valid-attachments`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// ID of the container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Name of its interface.
    pub ifname: String,
}

impl NetConf {
    /// Reads a configuration and what all plugins need of it.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        if bytes.len() > MAX_BYTES {
            let msg = format!("the network configuration has more than {MAX_BYTES} bytes");
            return Err(CniError::new(Code::Decoding, msg));
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|e| {
            CniError::new(Code::Decoding, format!("the network configuration on stdin is not JSON: {e}"))
        })?;
        let Value::Object(document) = value else {
            return Err(CniError::new(
                Code::Decoding,
                "the network configuration on stdin is not a JSON object",
            ));
        };
        let text = |object: &Map<String, Value>, key: &str| match json::get(object, key) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => {
                let msg = format!("{key}: the value {other} is wrong; wanted is a string");
                Err(CniError::new(Code::Decoding, msg))
            }
        };
        let name = text(&document, "name")?;
        names::check_network(&name).map_err(|why| match why {
            names::BadName::Empty => CniError::config("the network configuration has no name"),
            _ => {
                CniError::config(format!("name: the network name {name:?} {why}")).with_details(name.clone())
            }
        })?;
        let version = match text(&document, "cniVersion")?.as_str() {
            "" => Version::V0_1_0,
            text => text.parse().map_err(|_| incompatible(text, &super::version::ALL))?,
        };
        let ipam_type = match json::get(&document, "ipam") {
            // A DEL has to work with whatever stands there; see `check_ipam`.
            Some(Value::Object(ipam)) => text(ipam, "type").ok().filter(|t| !t.is_empty()),
            _ => None,
        };
        Ok(Self { version, name, ipam_type, document })
    }

    /// The error of code 1 if the version is not among those that a plugin speaks.
    pub fn check_version(&self, supported: &[Version]) -> Result<(), CniError> {
        if supported.contains(&self.version) {
            Ok(())
        } else {
            Err(incompatible(self.version.as_str(), supported))
        }
    }

    /// The error of code 6 if `ipam` or its `type` are not what they should be as JSON.
    pub fn check_ipam(&self) -> Result<(), CniError> {
        let wrong = |key: &str, value: &Value, wanted: &str| {
            CniError::new(Code::Decoding, format!("{key}: the value {value} is wrong; wanted is {wanted}"))
        };
        match self.get("ipam") {
            None => Ok(()),
            Some(Value::Object(ipam)) => match json::get(ipam, "type") {
                None | Some(Value::String(_)) => Ok(()),
                Some(other) => Err(wrong("ipam.type", other, "a string")),
            },
            Some(other) => Err(wrong("ipam", other, "an object")),
        }
    }

    /// The whole object as one plugin's type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CniError> {
        json::decode_object(&self.document)
            .map_err(|e| CniError::new(Code::Decoding, format!("network configuration: {e}")))
    }

    /// The value of a top-level key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        json::get(&self.document, key)
    }

    /// `lockTimeout`: how long a call waits for a lock that another holds; in seconds, 10 by default.
    ///
    /// Errors: code 7 for what is no number of seconds.
    pub fn lock_timeout(&self) -> Result<Duration, CniError> {
        seconds("lockTimeout", self.get("lockTimeout"), 0).map(|it| it.unwrap_or(LOCK_TIMEOUT))
    }

    /// `delegateTimeout`: how long another plugin may take that is executed on this one's behalf, an IPAM; in seconds,
    /// 90 by default.
    ///
    /// Errors: code 7 for what is no number of seconds, or leaves no time at all.
    pub fn delegate_timeout(&self) -> Result<Duration, CniError> {
        let value = self.get("delegateTimeout");
        seconds("delegateTimeout", value, 1).map(|it| it.unwrap_or(DELEGATE_TIMEOUT))
    }

    /// `ipam.lockTimeout`: the same for the lock on the reservations; [`NetConf::lock_timeout`] by default.
    ///
    /// Errors: code 7 for what is no number of seconds.
    pub fn ipam_lock_timeout(&self) -> Result<Duration, CniError> {
        let value = self.get("ipam").and_then(Value::as_object).and_then(|it| json::get(it, "lockTimeout"));
        seconds("ipam.lockTimeout", value, 0)?.map_or_else(|| self.lock_timeout(), Ok)
    }

    /// `prevResult`: the result of the plugin before in the chain, or on CHECK and DEL the last one's.
    pub fn prev_result(&self) -> Result<Option<CniResult>, CniError> {
        self.get("prevResult")
            .map(|value| CniResult::of_family(value, self.version, "prevResult"))
            .transpose()
    }

    /// Whether there is a `prevResult`: the plugin does not come first in its chain.
    pub fn has_prev_result(&self) -> bool {
        self.get("prevResult").is_some()
    }

    /// The configuration of one plugin of a chain, out of one that has the keys of several: with these keys of the
    /// author's, with all that the runtime injects, and with the result of the plugin before.
    ///
    /// Errors: of a result that the version cannot express.
    pub fn part(&self, keys: &[&str], prev_result: Option<&CniResult>) -> Result<Self, CniError> {
        let is_wanted = |key: &str| keys.iter().any(|it| key.eq_ignore_ascii_case(it)) || !is_own(key);
        let mut document: Map<String, Value> = self
            .document
            .iter()
            .filter(|(key, _)| is_wanted(key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if let Some(result) = prev_result {
            document.retain(|key, _| !key.eq_ignore_ascii_case("prevResult"));
            document.insert("prevResult".to_owned(), result.to_value(self.version)?);
        }
        Ok(Self { document, name: self.name.clone(), ipam_type: self.ipam_type.clone(), ..*self })
    }

    /// Whether the author of the configuration has written any of these keys.
    pub fn has_any(&self, keys: &[&str]) -> bool {
        keys.iter().filter(|key| is_own(key)).any(|key| self.get(key).is_some())
    }

    /// What tells the `prevResult` from others.
    pub fn prev_result_digest(&self) -> Option<String> {
        self.get("prevResult").map(|value| sha512_hex(&[&value.to_string()], DIGEST_CHARS))
    }

    /// What tells what the author of the configuration has written from what else might stand there: a digest of all
    /// that runtimes do not inject, and that is no matter of the whole list.
    pub fn digest(&self) -> String {
        let own = self.document.iter().filter(|(key, _)| is_own(key));
        let text: String = own.map(|(key, value)| format!("{key:?}:{value},")).collect();
        sha512_hex(&[&text], DIGEST_CHARS)
    }

    /// What tells that which the runtime asks for by the configuration, and by these words, from other wishes.
    pub fn wishes_digest(&self, words: &str) -> String {
        let of = |path: &&[&str]| self.at(path).map(Value::to_string).unwrap_or_default();
        let wishes: Vec<String> = WISHES.iter().map(of).collect();
        sha512_hex(&[&wishes.join("\n"), "\n", words], DIGEST_CHARS)
    }

    /// What stands at the end of a path of keys.
    fn at(&self, path: &[&str]) -> Option<&Value> {
        let (last, parents) = path.split_last()?;
        let parent = parents
            .iter()
            .try_fold(&self.document, |object, key| json::get(object, key).and_then(Value::as_object))?;
        json::get(parent, last)
    }

    /// The attachments that a GC must leave alone. libcni sends the list under two keys, one of them a historic
    /// misspelling; a key that is `null` is an empty list (Go writes an empty slice so), unlike one that is absent.
    pub fn valid_attachments(&self) -> Result<ValidAttachments, CniError> {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            match json::get_or_null(&self.document, key) {
                None => {}
                Some(Value::Null) => return Ok(ValidAttachments::Only(Vec::new())),
                Some(value) => {
                    let failed = |why: String| CniError::new(Code::Decoding, format!("{key}: {why}"));
                    let list: Vec<ValidAttachment> =
                        json::decode(value).map_err(|e| failed(e.to_string()))?;
                    // Whatever is in no list is removed, so one that names nobody must be a mistake.
                    if list.iter().any(|it| it.container_id.is_empty() || it.ifname.is_empty()) {
                        return Err(failed("an entry without containerID or ifname".to_owned()));
                    }
                    return Ok(ValidAttachments::Only(list));
                }
            }
        }
        Ok(ValidAttachments::NotGiven)
    }

    /// What a mac address is asked for by `runtimeConfig.mac`, `args.cni.mac` or `MAC` of `CNI_ARGS`, in this order.
    pub fn requested_mac(&self, args: &Args) -> Option<(String, &'static str)> {
        let text = |path: &[&str]| {
            self.at(path).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        None.or_else(|| text(&["runtimeConfig", "mac"]).map(|mac| (mac, "runtimeConfig.mac")))
            .or_else(|| text(&["args", "cni", "mac"]).map(|mac| (mac, "args.cni.mac")))
            .or_else(|| args.get("MAC").map(|mac| (mac.to_owned(), "MAC in CNI_ARGS")))
    }
}

/// A number of seconds, at least as many, if there is a value.
fn seconds(key: &str, value: Option<&Value>, least: u64) -> Result<Option<Duration>, CniError> {
    let Some(value) = value else { return Ok(None) };
    match value.as_u64().filter(|seconds| (least..=TIMEOUT_MAX).contains(seconds)) {
        Some(seconds) => Ok(Some(Duration::from_secs(seconds))),
        None => Err(CniError::config(format!(
            "{key}: the value {value} is wrong; wanted is a number of seconds from {least} to {TIMEOUT_MAX}"
        ))),
    }
}

/// Whether a key is its author's; other keys are those that runtimes inject, and those of the whole list.
fn is_own(key: &str) -> bool {
    !INJECTED.iter().any(|it| key.eq_ignore_ascii_case(it)) && !key.starts_with("cni.dev/")
}

fn incompatible(version: &str, supported: &[Version]) -> CniError {
    let list: Vec<&str> = supported.iter().map(|v| v.as_str()).collect();
    CniError::new(Code::IncompatibleVersion, "incompatible CNI versions")
        .with_details(format!("config is {version:?}, plugin supports {list:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetConf, CniError> {
        NetConf::parse(text.as_bytes())
    }

    #[test]
    fn a_missing_version_is_the_oldest() {
        assert_eq!(parse(r#"{"name":"n"}"#).unwrap().version, Version::V0_1_0);
    }

    #[test]
    fn codes_tell_what_is_wrong() {
        for (text, code) in [
            ("", 6),
            ("[]", 6),
            (r#"{"name":1}"#, 6),
            (r#"{"cniVersion":"1.0.0"}"#, 7),
            (r#"{"name":"a/b"}"#, 7),
            (r#"{"name":"n","cniVersion":"9.0.0"}"#, 1),
        ] {
            assert_eq!(parse(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn absent_is_not_empty() {
        let valid = |text: &str| parse(text).unwrap().valid_attachments().unwrap();
        assert_eq!(valid(r#"{"name":"n"}"#), ValidAttachments::NotGiven);
        for empty in ["null", "[]"] {
            let text = format!(r#"{{"name":"n","cni.dev/valid-attachments":{empty}}}"#);
            assert_eq!(valid(&text), ValidAttachments::Only(vec![]));
        }
        let ValidAttachments::Only(list) =
            valid(r#"{"name":"n","cni.dev/attachments":[{"containerID":"c","ifname":"eth0"}]}"#)
        else {
            panic!("a list was given")
        };
        assert_eq!(list.len(), 1);
        for nobody in [r#"{"containerID":"","ifname":""}"#, r#"{"containerID":"c","ifname":""}"#] {
            let text = format!(r#"{{"name":"n","cni.dev/valid-attachments":[{nobody}]}}"#);
            assert_eq!(parse(&text).unwrap().valid_attachments().unwrap_err().code, 6);
        }
    }

    #[test]
    fn the_runtimes_mac_comes_first() {
        let conf = parse(r#"{"name":"n","RuntimeConfig":{"Mac":"a"},"args":{"cni":{"mac":"b"}}}"#).unwrap();
        let args = Args::parse("MAC=c").unwrap();
        assert_eq!(conf.requested_mac(&args).unwrap().0, "a");
        let conf = parse(r#"{"name":"n","args":{"cni":{"mac":"b"}}}"#).unwrap();
        assert_eq!(conf.requested_mac(&args).unwrap().0, "b");
        assert_eq!(parse(r#"{"name":"n"}"#).unwrap().requested_mac(&args).unwrap().0, "c");
    }

    #[test]
    fn the_wait_for_a_lock_is_configured_once_or_for_each() {
        let timeouts = |json: &str| {
            let conf = parse(json).unwrap();
            (conf.lock_timeout().map(|it| it.as_secs()), conf.ipam_lock_timeout().map(|it| it.as_secs()))
        };
        assert_eq!(timeouts(r#"{"name":"n"}"#), (Ok(10), Ok(10)));
        assert_eq!(timeouts(r#"{"name":"n","lockTimeout":3,"ipam":{}}"#), (Ok(3), Ok(3)));
        assert_eq!(timeouts(r#"{"name":"n","ipam":{"lockTimeout":0}}"#), (Ok(10), Ok(0)));
        for value in ["-1", "1.5", "\"1\"", "3601", "[]"] {
            let conf = parse(&format!(r#"{{"name":"n","ipam":{{"lockTimeout":{value}}}}}"#)).unwrap();
            let error = conf.ipam_lock_timeout().unwrap_err();
            assert!(error.code == 7 && error.msg.starts_with("ipam.lockTimeout: the value "), "{error}");
        }
    }
}
