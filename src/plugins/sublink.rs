//! What `macvlan`, `ipvlan`, `vlan` and `dummy` have in common: an interface in the pod that shares a master with the host
//! or has none, addresses, routes. What such an attachment is made of is said in `Sublink::resources`.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::net::rtnl::sublink::{IpvlanMode, MacvlanMode, Settings};
use crate::net::{Link, Mac};
use crate::plan::{Plan, Plugin};
use crate::plugins::conf::DnsConf;
use crate::plugins::feature::LinkKind;
use crate::plugins::mtu::{MTU_DEFAULT, MTU_MIN, check_ipv6};
use crate::plugins::pod_interface::PodInterface;
use crate::resource::sublink::{Mtu, Place, Sandbox, mac_of};
use crate::resource::{self, Lease, Resource, World};
use crate::spec::names::check_ifname;
use crate::spec::{CniError, CniResult, Code, Request, json};

/// The keys that `macvlan`, `ipvlan` and `vlan` have alike, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SharedConf {
    mtu: i64,
    link_in_container: bool,
    enabledad: bool,
    dns: DnsConf,
}

/// The keys of a plugin that has these and its own.
pub(super) fn keys_with<Own: DeserializeOwned>() -> Vec<&'static str> {
    json::keys_of::<Own>().iter().chain(json::keys_of::<SharedConf>()).copied().collect()
}

/// What is wanted, decided.
#[derive(Clone, Debug)]
pub(super) struct Sublink {
    pod: PodInterface,
    settings: Settings,
    place: Place,
    master: Master,
    mtu: Option<u32>,
    mac: Option<Mac>,
    /// What there is instead of an IPAM's answer: the result of the plugin before in the chain.
    given: Option<CniResult>,
}

/// Which link is the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Master {
    /// None.
    Nobody,
    /// The one that the configuration names.
    Named(String),
    /// That of the default route, at the moment of the ADD.
    OfDefaultRoute,
    /// What the plugin before in the chain says, which is known on ADD only, and then by name.
    OfChain,
}

/// What the master has and what follows from it, or what the result says.
struct Facts {
    sandbox: Sandbox,
    master: Option<String>,
    mac: Option<Mac>,
    mtu: Mtu,
}

/// What an attachment without a record may have left.
pub(super) fn leftovers(request: &Request, kind: &str) -> Vec<Resource> {
    let foreign = resource::ForeignSublink { attachment: request.attachment.clone(), kind: kind.to_owned() };
    let lease = Lease::wanted_by(request).map(Resource::Lease);
    lease.into_iter().chain([Resource::ForeignSublink(foreign)]).collect()
}

impl Sublink {
    /// Decides on what a configuration says. `master` is decided already, as by [`Master::parse`].
    pub(super) fn new(
        request: &Request,
        settings: Settings,
        master: Master,
        shared: SharedConf,
    ) -> Result<Self, CniError> {
        let mut pod = PodInterface::parse(request, shared.dns)?;
        pod.detect_duplicates = shared.enabledad;
        Ok(Self {
            pod,
            settings,
            place: if shared.link_in_container { Place::Pod } else { Place::Host },
            master,
            mtu: parse_mtu(shared.mtu)?,
            mac: None,
            given: None,
        })
    }

    /// The same with a MAC address that somebody asks for.
    pub(super) fn with_mac(self, mac: Option<Mac>) -> Self {
        Self { mac, ..self }
    }

    /// The same with the addresses, routes and DNS settings of the plugin before in the chain.
    pub(super) fn with_addresses_of(self, before: CniResult) -> Self {
        Self { given: Some(before), ..self }
    }

    /// The error of code 50 if an ADD could not be served now.
    pub(super) fn status(&self, world: &mut World<'_>) -> anyhow::Result<()> {
        let what = format!("{} links ({})", self.settings.kind(), self.settings.option());
        let (kind, module) = (self.settings.kind(), self.settings.module());
        LinkKind { kind, module, what: &what }.is_at_work(world)?;
        // Nobody says of which pod.
        if self.place == Place::Host {
            self.look_at_master(world).map_err(|error| {
                let error = CniError::from_chain(&error, Code::Unavailable);
                CniError { code: Code::Unavailable as u32, ..error }
            })?;
        }
        self.pod.status(world)
    }

    /// The master, if there is to be one, and it is fit for it.
    fn look_at_master(&self, world: &mut World<'_>) -> anyhow::Result<Option<Link>> {
        let whose = match self.place {
            Place::Host => "the host",
            Place::Pod => "the container (linkInContainer)",
        };
        let found = match &self.master {
            Master::Nobody | Master::OfChain => return Ok(None),
            Master::Named(name) => self
                .place
                .link(name, world)?
                .ok_or_else(|| CniError::config(format!("master: {whose} has no link {name:?}")))?,
            Master::OfDefaultRoute => {
                let rtnl = match self.place {
                    Place::Host => world.host()?,
                    Place::Pod => world.pod()?.rtnl()?,
                };
                let found = match rtnl.default_route_link()? {
                    Some(index) => rtnl.link_by_index(index)?,
                    None => None,
                };
                found.ok_or_else(|| {
                    let msg =
                        format!("master: not given, and {whose} has no default route whose link it could be");
                    CniError::config(msg)
                })?
            }
        };
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu > found.mtu) {
            let msg = format!("mtu: {mtu} is more than the {} of master {}", found.mtu, found.name);
            return Err(CniError::config(msg).into());
        }
        if matches!(self.settings, Settings::Vlan { .. }) && !found.up {
            let msg = format!("master: {} is down, so a VLAN of it cannot be up", found.name);
            return Err(CniError::new(Code::Conflict, msg).into());
        }
        Ok(Some(found))
    }

    fn look(&self, world: &mut World<'_>) -> anyhow::Result<Facts> {
        let master = self.look_at_master(world)?;
        let inherited = master.as_ref().and_then(|link| link.mac);
        let mac = match self.settings {
            Settings::Macvlan { mode: MacvlanMode::Passthru, .. } => self.mac.or(inherited),
            Settings::Macvlan { .. } | Settings::Dummy => {
                Some(self.mac.unwrap_or_else(|| mac_of(&self.pod.attachment)))
            }
            Settings::Ipvlan { .. } | Settings::Vlan { .. } => inherited,
        };
        let mtu = match self.mtu {
            Some(mtu) => Mtu::Fixed(mtu),
            None => Mtu::Inherited(Some(master.as_ref().map_or(MTU_DEFAULT, |link| link.mtu))),
        };
        Ok(Facts { sandbox: sandbox(world)?, master: master.map(|link| link.name), mac, mtu })
    }

    /// The interface itself.
    fn link(&self, facts: &Facts) -> Resource {
        Resource::Sublink(resource::Sublink {
            attachment: self.pod.attachment.clone(),
            sandbox: facts.sandbox.clone(),
            settings: self.settings,
            place: self.place,
            master: facts.master.clone(),
            mac: facts.mac,
            mtu: facts.mtu,
        })
    }

    /// What the attachment is made of. `ipam` has the addresses and the routes.
    fn resources(&self, ipam: &CniResult, facts: &Facts) -> Vec<Resource> {
        let mut resources = vec![self.link(facts)];
        // Nothing else of these passes the host's netfilter.
        if matches!(self.settings, Settings::Ipvlan { mode: IpvlanMode::L3s }) && !ipam.ips.is_empty() {
            let addresses = ipam.ips.iter().map(|ip| ip.address.address()).collect();
            resources.push(Resource::Connections(resource::Connections { addresses }));
        }
        resources.extend(self.pod.sysctls(ipam));
        resources.push(Resource::Addressing(self.pod.addressing(ipam)));
        // An interface that comes up with its addresses announces them by itself.
        if self.pod.is_before_addresses() {
            resources.extend(self.pod.announcement(facts.mac, ipam));
        }
        resources
    }
}

impl Plugin for Sublink {
    fn lease(&self) -> Option<Lease> {
        self.pod.lease.clone()
    }

    fn enters_pod(&self) -> bool {
        true
    }

    fn links(&self, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let link = self.link(&self.look(world)?);
        Ok(vec![link, self.pod.up()])
    }

    fn plan(&self, leased: CniResult, world: &mut World<'_>) -> anyhow::Result<Plan> {
        let ipam = self.pod.adopt(self.given.clone().unwrap_or(leased), 0)?;
        let facts = self.look(world)?;
        let mtu = match facts.mtu {
            Mtu::Fixed(mtu) => Some(mtu),
            Mtu::Inherited(mtu) => mtu,
        };
        check_ipv6(mtu, &ipam.ips)?;
        let resources = self.resources(&ipam, &facts);
        let result = CniResult { interfaces: vec![self.pod.in_result(facts.mac, mtu)], ..ipam };
        Ok(Plan { resources, result })
    }

    fn expect(&self, prev: &CniResult, world: &mut World<'_>) -> anyhow::Result<Vec<Resource>> {
        let (interface, ipam) = prev.interface_of(&self.pod.attachment.ifname, &self.pod.sandbox)?;
        let facts = Facts {
            // What the default route was at the time of the ADD is not known any more.
            master: match &self.master {
                Master::Named(name) => Some(name.clone()),
                Master::Nobody | Master::OfDefaultRoute | Master::OfChain => None,
            },
            mac: interface.mac.parse().ok(),
            mtu: self.mtu.map_or(Mtu::Inherited(interface.mtu), Mtu::Fixed),
            sandbox: sandbox(world)?,
        };
        Ok(self.pod.leased(&ipam).into_iter().chain(self.resources(&ipam, &facts)).collect())
    }
}

impl Master {
    /// The master that the key asks for: that of the default route where it is empty.
    pub(super) fn parse(name: &str) -> Result<Self, CniError> {
        if name.is_empty() {
            return Ok(Self::OfDefaultRoute);
        }
        check_ifname(name).map_err(|why| CniError::config(format!("master: the name {name:?} {why}")))?;
        Ok(Self::Named(name.to_owned()))
    }
}

/// `mode`: one of a kind of links, by its name; the first where none is given.
pub(super) fn parse_mode<M: Copy>(
    kind: &str,
    name: &str,
    modes: &[M],
    as_str: fn(M) -> &'static str,
) -> Result<M, CniError> {
    modes.iter().copied().find(|mode| name.is_empty() || as_str(*mode) == name).ok_or_else(|| {
        let known: Vec<&str> = modes.iter().copied().map(as_str).collect();
        CniError::config(format!("mode: unknown {kind} mode {name:?}; known are {}", known.join(", ")))
    })
}

/// The pod's namespace.
pub(super) fn sandbox(world: &mut World<'_>) -> anyhow::Result<Sandbox> {
    let netns = world.pod()?.netns();
    Ok(Sandbox { path: netns.path().to_owned(), identity: netns.identity() })
}

/// `mtu`; 0 is the master's.
fn parse_mtu(mtu: i64) -> Result<Option<u32>, CniError> {
    match u32::try_from(mtu) {
        Ok(0) => Ok(None),
        Ok(mtu) if mtu >= MTU_MIN => Ok(Some(mtu)),
        _ => Err(CniError::config(format!(
            "mtu: the value {mtu} is wrong; wanted is a number from {MTU_MIN} to the MTU of the master, or 0 for that"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_is_none_or_large_enough() {
        assert_eq!((parse_mtu(0), parse_mtu(68), parse_mtu(9000)), (Ok(None), Ok(Some(68)), Ok(Some(9000))));
        for bad in [-1, 67, i64::MIN, i64::MAX] {
            let error = parse_mtu(bad).unwrap_err();
            assert!(error.code == 7 && error.msg.contains(&bad.to_string()), "{error}");
        }
    }

    #[test]
    fn modes_are_known_by_name() {
        let macvlan = |name| parse_mode("macvlan", name, &MacvlanMode::ALL, MacvlanMode::as_str);
        let ipvlan = |name| parse_mode("ipvlan", name, &IpvlanMode::ALL, IpvlanMode::as_str);
        assert_eq!((macvlan(""), ipvlan("")), (Ok(MacvlanMode::Bridge), Ok(IpvlanMode::L2)));
        for mode in MacvlanMode::ALL {
            assert_eq!(macvlan(mode.as_str()), Ok(mode));
        }
        for mode in IpvlanMode::ALL {
            assert_eq!(ipvlan(mode.as_str()), Ok(mode));
        }
        let error = ipvlan("source").unwrap_err();
        assert!(error.code == 7 && error.msg.contains("\"source\"") && error.msg.contains("l3s"), "{error}");
    }

    #[test]
    fn a_master_is_named_or_that_of_the_default_route() {
        assert_eq!(Master::parse(""), Ok(Master::OfDefaultRoute));
        assert_eq!(Master::parse("eth0"), Ok(Master::Named("eth0".to_owned())));
        assert_eq!(Master::parse("a/b").unwrap_err().code, 7);
    }
}
