//! The configuration of `firewall`: its keys as they were written, and what they mean.

use serde::Deserialize;

use crate::net::firewalld::Firewalld;
use crate::net::iptables::{Protocol, installed};
use crate::resource::firewall::{Backend, Policy};
use crate::spec::{Attachment, CniError, CniResult, Code, Request};

/// The chain for the administrator's own rules, if the configuration does not name one.
pub(super) const ADMIN_CHAIN: &str = "CNI-ADMIN";

/// The zone of firewalld, if the configuration does not name one.
const ZONE: &str = "trusted";

/// Longest name of a zone.
const ZONE_MAX: usize = 64;

/// Longest name of a chain that `iptables` takes (`XT_EXTENSION_MAXNAMELEN` of linux/netfilter/x_tables.h less its NUL).
const CHAIN_MAX: usize = 28;

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Conf {
    backend: String,
    iptables_admin_chain_name: String,
    firewalld_zone: String,
    ingress_policy: String,
    internal: bool,
    open_forward: bool,
}

/// What is wanted, decided.
#[derive(Clone, Debug)]
pub(super) struct Firewall {
    pub(super) attachment: Attachment,
    pub(super) prev_result: Option<CniResult>,
    pub(super) backend: Option<Backend>,
    pub(super) admin_chain: String,
    pub(super) zone: String,
    pub(super) policy: Policy,
    pub(super) internal: bool,
    pub(super) opens_forward: bool,
}

impl Firewall {
    /// Decides on everything that the configuration says.
    pub(super) fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        request.config.lock_timeout()?;
        let backend = match conf.backend.as_str() {
            "iptables" => Some(Backend::Iptables),
            "nftables" => Some(Backend::Nftables),
            "firewalld" => Some(Backend::Firewalld),
            // Only there is such a thing.
            "" if conf.internal => Some(Backend::Nftables),
            // Whatever else it may be, the reference chooses itself.
            _ => None,
        };
        let policy = match conf.ingress_policy.as_str() {
            "" | "open" => Policy::Open,
            "same-bridge" => Policy::SameBridge,
            "isolated" => Policy::Isolated,
            text => {
                return Err(CniError::config(format!(
                    "ingressPolicy: unknown ingress policy {text:?}; wanted is \"open\", \"same-bridge\" or \"isolated\""
                )));
            }
        };
        if conf.internal && backend != Some(Backend::Nftables) {
            let msg = format!(
                "internal: back end {:?} does not have it; leave out backend, or set it to \"nftables\"",
                conf.backend
            );
            return Err(CniError::new(Code::UnsupportedField, msg));
        }
        Ok(Self {
            attachment: request.attachment.clone(),
            prev_result: request.config.prev_result()?,
            backend,
            admin_chain: admin_chain(conf.iptables_admin_chain_name)?,
            zone: zone(conf.firewalld_zone)?,
            policy,
            internal: conf.internal,
            opens_forward: conf.open_forward,
        })
    }

    /// The back end to use: the configured one, else firewalld if it runs, else iptables (the reference's rule) where it
    /// is installed.
    ///
    /// Errors: if the bus on which firewalld is looked for does not answer.
    pub(super) fn choose_backend(&self) -> anyhow::Result<Backend> {
        if let Some(backend) = self.backend {
            return Ok(backend);
        }
        if Firewalld::find()?.is_some() {
            return Ok(Backend::Firewalld);
        }
        Ok(match installed(Protocol::Ipv4) {
            Some(_) => Backend::Iptables,
            None => Backend::Nftables,
        })
    }
}

/// The zone that the configuration of a request names, as far as that can be read.
pub(super) fn zone_of(request: &Request) -> String {
    let conf: Conf = request.config.decode().unwrap_or_default();
    zone(conf.firewalld_zone).unwrap_or_else(|_| ZONE.to_owned())
}

fn zone(name: String) -> Result<String, CniError> {
    if name.is_empty() {
        return Ok(ZONE.to_owned());
    }
    // Those of firewalld have at most 17 (firewalld.zones(5)); what it takes, it says itself.
    let is_name =
        name.len() <= ZONE_MAX && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if !is_name {
        let msg = format!(
            "firewalldZone: {name:?} is no name of a zone: letters, digits, _ and -, at most {ZONE_MAX}"
        );
        return Err(CniError::config(msg));
    }
    Ok(name)
}

/// The name of the administrator's chain, which must be one that the command takes and that is nobody else's.
fn admin_chain(name: String) -> Result<String, CniError> {
    if name.is_empty() {
        return Ok(ADMIN_CHAIN.to_owned());
    }
    let wrong = |why: &str| Err(CniError::config(format!("iptablesAdminChainName: the name {name:?} {why}")));
    const TAKEN: [&str; 10] = [
        "ACCEPT",
        "DROP",
        "RETURN",
        "QUEUE",
        "INPUT",
        "FORWARD",
        "OUTPUT",
        "CNI-FORWARD",
        "CNI-ISOLATION-STAGE-1",
        "CNI-ISOLATION-STAGE-2",
    ];
    if name.len() > CHAIN_MAX {
        return wrong("is longer than 28 bytes");
    }
    if name.starts_with(['-', '!']) {
        return wrong("begins with - or !, which the command takes for an option");
    }
    if !name.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'\\".contains(&byte)) {
        return wrong("has a blank, a quote or a letter that is not ASCII");
    }
    if TAKEN.contains(&name.as_str()) {
        return wrong("is taken; wanted is a chain of the administrator's own");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_chain_is_one_that_iptables_takes() {
        assert_eq!(admin_chain(String::new()).unwrap(), "CNI-ADMIN");
        assert_eq!(admin_chain("MY-RULES_2".into()).unwrap(), "MY-RULES_2");
        for bad in ["a b", "-A", "!x", "a\"b", "FORWARD", "CNI-FORWARD", "ä", "\n", &"x".repeat(29)] {
            let error = admin_chain(bad.to_owned()).unwrap_err();
            assert!(error.code == 7 && error.msg.starts_with("iptablesAdminChainName: "), "{error}");
        }
    }
}
