//! The configuration of `bridge`: its keys as they were written, and what they mean.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use crate::net::Mac;
use crate::plugins::conf::{DnsConf, requested_mac};
use crate::plugins::mtu::Mtu;
use crate::plugins::pod_interface::PodInterface;
use crate::resource::masquerade::Backend;
use crate::resource::vlan_gateway;
use crate::spec::names::check_ifname;
use crate::spec::{CniError, Request};

/// Largest ID of a VLAN (IEEE 802.1Q; 4095 is reserved).
const VLAN_MAX: i64 = 4094;

/// The keys, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Conf {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: Value,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<TrunkConf>>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    spoof_guard: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    dns: DnsConf,
}

/// An element of `vlanTrunk`: a VLAN, a range of them, or both.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TrunkConf {
    min_id: Option<i64>,
    max_id: Option<i64>,
    id: Option<i64>,
}

/// What is wanted, decided.
#[derive(Clone, Debug)]
pub(super) struct Bridge {
    pub(super) pod: PodInterface,
    pub(super) name: String,
    pub(super) is_gateway: bool,
    pub(super) is_default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) masquerades: bool,
    pub(super) masquerade_backend: Option<Backend>,
    pub(super) mtu: Mtu,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    pub(super) vlans: Option<Vlans>,
    pub(super) guards_mac: bool,
    pub(super) guards_senders: bool,
    pub(super) leaves_interface_down: bool,
    pub(super) isolated: bool,
    pub(super) mac: Option<Mac>,
}

/// The VLANs of the pod's bridge port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vlans {
    /// `vlan`: VLAN of untagged packets.
    pub(super) access: Option<u16>,
    /// `vlanTrunk`: VLANs that are carried with tags.
    pub(super) trunk: Option<Vec<u16>>,
    /// `preserveDefaultVlan`.
    pub(super) keep_default: bool,
}

impl Bridge {
    /// Decides on everything that the configuration says.
    pub(super) fn parse(request: &Request) -> Result<Self, CniError> {
        let conf: Conf = request.config.decode()?;
        let vlans = conf.vlans()?;
        let mut pod = PodInterface::parse(request, conf.dns)?;
        pod.detect_duplicates = conf.enabledad;
        let name = if conf.bridge.is_empty() { "cni0".to_owned() } else { conf.bridge };
        check_ifname(&name).map_err(|why| CniError::config(format!("bridge: the name {name:?} {why}")))?;
        if conf.hairpin_mode && conf.promisc_mode {
            return Err(CniError::config(
                "hairpinMode, promiscMode: cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        if conf.disable_container_interface && pod.lease.is_some() {
            return Err(CniError::config(
                "disableContainerInterface: cannot use IPAM when the container interface is disabled; leave out \
                 ipam or disableContainerInterface",
            ));
        }
        if conf.spoof_guard && pod.lease.is_none() {
            return Err(CniError::config(
                "spoofGuard: cannot be without ipam, which says what addresses the pod may send from",
            ));
        }
        if let Some(vid) = vlans.as_ref().and_then(|v| v.access) {
            let link = vlan_gateway::link_name(&name, vid);
            if conf.is_gateway || conf.is_default_gateway {
                check_ifname(&link).map_err(|why| {
                    CniError::config(format!(
                        "bridge, vlan: the gateway's link {link:?} {why}; shorten the bridge's"
                    ))
                })?;
            }
        }
        Ok(Self {
            pod,
            name,
            is_gateway: conf.is_gateway || conf.is_default_gateway,
            is_default_gateway: conf.is_default_gateway,
            force_address: conf.force_address,
            masquerades: conf.ip_masq,
            masquerade_backend: Backend::configured(&conf.ip_masq_backend)?,
            mtu: Mtu::parse(&conf.mtu)?,
            hairpin: conf.hairpin_mode,
            promiscuous: conf.promisc_mode,
            vlans,
            guards_mac: conf.macspoofchk,
            guards_senders: conf.spoof_guard,
            leaves_interface_down: conf.disable_container_interface,
            isolated: conf.port_isolation,
            mac: requested_mac(request, "")?,
        })
    }
}

impl Conf {
    /// What `vlan`, `vlanTrunk` and `preserveDefaultVlan` say; `None` without either of the first two.
    fn vlans(&self) -> Result<Option<Vlans>, CniError> {
        if !(0..=VLAN_MAX).contains(&self.vlan) {
            let msg = format!("vlan: invalid VLAN ID {} (must be between 0 and {VLAN_MAX})", self.vlan);
            return Err(CniError::config(msg));
        }
        let access = u16::try_from(self.vlan).ok().filter(|vid| *vid != 0);
        let trunk = self.vlan_trunk.as_deref().map(trunk_ids).transpose()?;
        if access.is_none() && trunk.is_none() {
            return Ok(None);
        }
        Ok(Some(Vlans { access, trunk, keep_default: self.preserve_default_vlan }))
    }
}

/// All VLANs of a trunk, ascending, each once.
fn trunk_ids(trunk: &[TrunkConf]) -> Result<Vec<u16>, CniError> {
    let mut ids = BTreeSet::new();
    for (i, element) in trunk.iter().enumerate() {
        let vid = |key: &str, value: i64| {
            u16::try_from(value).ok().filter(|vid| (1..=VLAN_MAX).contains(&i64::from(*vid))).ok_or_else(
                || {
                    CniError::config(format!(
                        "vlanTrunk[{i}].{key}: {value} is no VLAN ID (from 1 to {VLAN_MAX})"
                    ))
                },
            )
        };
        match (element.min_id, element.max_id) {
            (Some(min), Some(max)) => {
                let (min, max) = (vid("minID", min)?, vid("maxID", max)?);
                if max < min {
                    let msg = format!("vlanTrunk[{i}]: minID {min} is greater than maxID {max}");
                    return Err(CniError::config(msg));
                }
                ids.extend(min..=max);
            }
            (None, None) => {}
            (Some(_), None) => return Err(CniError::config(format!("vlanTrunk[{i}]: minID without maxID"))),
            (None, Some(_)) => return Err(CniError::config(format!("vlanTrunk[{i}]: maxID without minID"))),
        }
        if let Some(id) = element.id {
            ids.insert(vid("id", id)?);
        }
    }
    Ok(ids.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn trunk(value: Value) -> Result<Vec<u16>, CniError> {
        let conf: Vec<TrunkConf> = crate::spec::json::decode(&value).unwrap();
        trunk_ids(&conf)
    }

    #[test]
    fn trunks_are_sets_of_ids_and_ranges() {
        assert_eq!(trunk(json!([])).unwrap(), [] as [u16; 0]);
        assert_eq!(
            trunk(json!([{"minID": 10, "maxID": 12}, {"id": 11}, {"id": 5}, {}])).unwrap(),
            [5, 10, 11, 12]
        );
        assert_eq!(trunk(json!([{"minID": 1, "maxID": 2, "id": 4094}])).unwrap(), [1, 2, 4094]);
    }

    #[test]
    fn wrong_trunks_are_refused_by_their_key() {
        for (value, key) in [
            (json!([{"minID": 10}]), "maxID"),
            (json!([{"maxID": 10}]), "minID"),
            (json!([{"minID": -1, "maxID": 10}]), "minID"),
            (json!([{"minID": 1, "maxID": 4095}]), "maxID"),
            (json!([{"minID": 12, "maxID": 10}]), "greater"),
            (json!([{"id": 0}]), "id"),
            (json!([{"id": 4095}]), "id"),
        ] {
            let error = trunk(value.clone()).unwrap_err();
            assert!(error.code == 7 && error.msg.contains(key), "{value}: {error}");
        }
    }
}
