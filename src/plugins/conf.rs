//! What the configurations of several plugins have in common.

use serde::Deserialize;

use crate::net::Mac;
use crate::spec::result::Dns;
use crate::spec::{CniError, Request};

/// `dns`: whether a key is there decides if it replaces the IPAM's settings, even with an empty list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DnsConf {
    nameservers: Option<Vec<String>>,
    domain: String,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

impl DnsConf {
    /// The settings, if any key was there.
    pub(super) fn into_override(self) -> Option<Dns> {
        let is_set = self.nameservers.is_some()
            || !self.domain.is_empty()
            || self.search.is_some()
            || self.options.is_some();
        is_set.then(|| Dns {
            nameservers: self.nameservers.unwrap_or_default(),
            domain: self.domain,
            search: self.search.unwrap_or_default(),
            options: self.options.unwrap_or_default(),
        })
    }
}

/// The error of an ADD that has no result to go on with; `deed` is what the plugin before it in the chain does.
pub(super) fn not_chained(plugin: &str, deed: &str) -> CniError {
    CniError::config(format!(
        "prevResult: missing; {plugin} must be called as a chained plugin, after the one that {deed}"
    ))
}

/// The MAC address that is asked for: by the runtime or in `CNI_ARGS`, else by the configuration's own key `mac`, which
/// is empty where the plugin has none.
///
/// Errors: code 4 for wrong `CNI_ARGS`; code 7 for what is no address that an interface can have.
pub(super) fn requested_mac(request: &Request, own: &str) -> Result<Option<Mac>, CniError> {
    let asked = request.config.requested_mac(&request.args()?);
    let own = Some(own).filter(|own| !own.is_empty()).map(|own| (own.to_owned(), "mac"));
    let Some((text, key)) = asked.or(own) else { return Ok(None) };
    let mac: Mac = text.parse().map_err(|e| CniError::config(format!("{key}: {e}")))?;
    if !mac.is_valid() {
        return Err(CniError::config(format!(
            "{key}: {mac} is no unicast address, so no interface can have it"
        )));
    }
    Ok(Some(mac))
}
