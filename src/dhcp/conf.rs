//! What a configuration says of DHCP, under `ipam`.
//!
//! ```json
//! {"type": "dhcp", "request": [{"option": "121"}], "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}]}
//! ```

use std::path::PathBuf;

use serde::Deserialize;

use super::message::LONGEST;
use super::options::{Options, code, code_of, names};
use super::rpc;
use crate::spec::{CniError, Code, NetConf, json};

/// What is wanted of a server, and of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpConf {
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// The options that the server is asked for.
    pub requested: Vec<u8>,
    /// The options that the server is told.
    pub provided: Options,
    /// The metric of the routes.
    pub priority: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conf {
    ipam: Option<IpamConf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IpamConf {
    daemon_socket_path: String,
    request: Vec<Request>,
    provide: Vec<Provide>,
    priority: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Request {
    skip_default: bool,
    option: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Provide {
    option: String,
    value: String,
    from_arg: String,
}

/// What a server is asked for unless the configuration says otherwise. The last two are not in the reference, which
/// does not tell of name servers.
const REQUESTED: [u8; 4] = [code::SUBNET_MASK, code::ROUTERS, code::DNS_SERVERS, code::DOMAIN_NAME];

impl DhcpConf {
    /// The keys of `ipam`.
    pub fn keys() -> &'static [&'static str] {
        json::keys_of::<IpamConf>()
    }

    /// Reads a configuration, and what `CNI_ARGS` has of the options that come from there.
    ///
    /// Errors: code 6 for JSON of the wrong shape; code 7 if there is no `ipam`, for an option that does not exist, or
    /// one that is too long.
    pub fn parse(conf: &NetConf, args: &str) -> Result<Self, CniError> {
        let Some(ipam) = conf.decode::<Conf>()?.ipam else {
            return Err(CniError::config("IPAM config missing 'ipam' key"));
        };
        let code = |key: &str, at: usize, name: &str| {
            code_of(name).ok_or_else(|| {
                CniError::config(format!(
                    "ipam.{key}[{at}].option: there is no option {name:?}; wanted is a code from 1 to 254, or one of {}",
                    names()
                ))
            })
        };
        let mut requested =
            if ipam.request.iter().any(|it| it.skip_default) { vec![] } else { REQUESTED.to_vec() };
        for (at, wanted) in ipam.request.iter().enumerate() {
            if !(wanted.option.is_empty() && wanted.skip_default) {
                requested.push(code("request", at, &wanted.option)?);
            }
        }
        requested.sort_unstable();
        requested.dedup();
        let mut provided = Options::default();
        for (at, told) in ipam.provide.iter().enumerate() {
            let code = code("provide", at, &told.option)?;
            if RESERVED.contains(&code) {
                let msg = format!("ipam.provide[{at}].option: option {code} is the protocol's own");
                return Err(CniError::config(msg));
            }
            for value in [told.value.as_str(), arg(args, &told.from_arg)] {
                if value.len() > usize::from(u8::MAX) {
                    let msg = format!(
                        "ipam.provide[{at}]: the value of option {} has {} bytes; an option has at most 255",
                        told.option,
                        value.len()
                    );
                    return Err(CniError::config(msg));
                }
                if !value.is_empty() {
                    provided.set(code, value);
                }
            }
        }
        let mut bytes = Vec::new();
        provided.write(&mut bytes);
        // Beside it there is room for what the client says by itself.
        if bytes.len() > LONGEST - 700 {
            let msg =
                format!("ipam.provide: all options together have {} bytes, which is too long", bytes.len());
            return Err(CniError::config(msg));
        }
        let socket = match ipam.daemon_socket_path.as_str() {
            "" => rpc::SOCKET,
            path => path,
        };
        let priority = Some(ipam.priority).filter(|priority| *priority != 0);
        Ok(Self { socket: socket.into(), requested, provided, priority })
    }

    /// Where the daemon listens, by a configuration of which the rest may be wrong.
    pub fn socket_of(conf: &NetConf) -> PathBuf {
        let ipam = conf.get("ipam").and_then(serde_json::Value::as_object);
        let path = ipam.and_then(|it| json::get(it, "daemonSocketPath")).and_then(serde_json::Value::as_str);
        path.filter(|path| !path.is_empty()).unwrap_or(rpc::SOCKET).into()
    }
}

/// The options by which client and server agree; whoever sets them otherwise gets no lease.
const RESERVED: [u8; 5] =
    [code::REQUESTED_ADDRESS, code::OVERLOAD, code::MESSAGE_TYPE, code::SERVER, code::REQUESTED_OPTIONS];

/// The value of a key in `CNI_ARGS`, of which the rest may be wrong; empty where it is not there.
fn arg<'a>(args: &'a str, key: &str) -> &'a str {
    if key.is_empty() {
        return "";
    }
    let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name == key).map(|(_, value)| value).next_back().unwrap_or_default()
}

/// An error of the daemon or of the network, which may pass.
pub(super) fn passing(msg: String) -> CniError {
    CniError::new(Code::TryAgainLater, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(ipam: &str, args: &str) -> Result<DhcpConf, CniError> {
        let text = format!(r#"{{"name": "n", "ipam": {ipam}}}"#);
        DhcpConf::parse(&NetConf::parse(text.as_bytes()).unwrap(), args)
    }

    #[test]
    fn the_defaults() {
        let conf = parse("{}", "").unwrap();
        assert_eq!((conf.socket.to_str(), conf.priority), (Some("/run/cni/dhcp.sock"), None));
        assert_eq!(conf.requested, [1, 3, 6, 15]);
        assert_eq!(conf.provided, Options::default());
    }

    #[test]
    fn options_are_asked_for_and_told() {
        let conf = parse(
            r#"{"priority": 7, "daemonSocketPath": "/s",
                "request": [{"skipDefault": true}, {"option": "121"}, {"option": "routers"}],
                "provide": [{"option": "host-name", "value": "x", "fromArg": "K8S_POD_NAME"},
                            {"option": "60", "value": "cni"}, {"option": "12", "fromArg": "ABSENT"}]}"#,
            "odd;IgnoreUnknown=1;K8S_POD_NAME=web-0",
        )
        .unwrap();
        assert_eq!((conf.socket.to_str(), conf.priority), (Some("/s"), Some(7)));
        assert_eq!(conf.requested, [3, 121]);
        assert_eq!(conf.provided.get(12), Some(&b"web-0"[..]));
        assert_eq!(conf.provided.get(60), Some(&b"cni"[..]));
    }

    #[test]
    fn errors_name_key_and_value() {
        let refused = |ipam: &str, args: &str| parse(ipam, args).unwrap_err();
        let error = refused(r#"{"request": [{}, {"option": "hostname"}]}"#, "");
        assert!(error.code == 7 && error.msg.starts_with("ipam.request[0].option: there is no option \"\""));
        let error = refused(r#"{"provide": [{"option": "hostname"}]}"#, "");
        assert!(error.msg.contains("\"hostname\"") && error.msg.contains("host-name"), "{error}");
        let long = format!("A={}", "x".repeat(256));
        let error = refused(r#"{"provide": [{"option": "host-name", "fromArg": "A"}]}"#, &long);
        assert!(error.msg.contains("256 bytes"), "{error}");
        assert!(
            refused(r#"{"provide": [{"option": "53", "value": "1"}]}"#, "").msg.contains("protocol's own")
        );
        assert_eq!(refused(r#"{"priority": -1}"#, "").code, 6);
    }
}
