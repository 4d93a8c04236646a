//! Host ports that lead to a pod.

mod claims;
mod foreign;
mod iptables;
mod nftables;
mod unclaimed;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::masquerade::Backend;
use super::{Ensured, Finding, Kept, World};
use crate::net::iptables::{Protocol, Transport};
use crate::net::nft::{Family, Nft};
use crate::net::{child, conntrack, sysctl};
use crate::spec::{Attachment, CniError, Prefix};
pub use claims::Taken;
use claims::{Claim, Claims};
pub use foreign::ForeignPortMappings;
use unclaimed::{Strangers, Tally};

/// How many UDP ports a call waits for while the kernel forgets their flows: it goes through its whole table for each.
const PORTS_TO_WAIT_FOR: usize = 8;

/// A host port that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The port of the host.
    pub host_port: u16,
    /// The port of the pod.
    pub container_port: u16,
    /// The transport protocol.
    pub protocol: Transport,
    /// The address of the host; unspecified, it is any of its family; none, any of both.
    pub host_address: Option<IpAddr>,
}

impl PortMapping {
    /// Whether it is for packets of the family of an address.
    fn is_of_family(&self, address: IpAddr) -> bool {
        self.host_address.is_none_or(|host| host.is_ipv4() == address.is_ipv4())
    }

    /// The only address of the host that it is for, if it is not for all.
    fn only_address(&self) -> Option<IpAddr> {
        self.host_address.filter(|address| !address.is_unspecified())
    }

    /// What it takes of the host for a pod's address.
    fn claim(&self, pod: IpAddr) -> Claim {
        let address = self.only_address().unwrap_or(any_of(pod));
        Claim { protocol: self.protocol, port: self.host_port, address }
    }
}

/// The unspecified address of the family of an address.
fn any_of(example: IpAddr) -> IpAddr {
    match example {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// For people: `tcp 192.0.2.1:8080 -> 80`.
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host_port, container_port, .. } = self;
        write!(f, "{} ", self.protocol.name())?;
        match self.only_address() {
            None => write!(f, "{host_port} -> {container_port}"),
            Some(IpAddr::V4(address)) => write!(f, "{address}:{host_port} -> {container_port}"),
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{host_port} -> {container_port}"),
        }
    }
}

/// Whose packets get the host's address on their way to the pod, so that its answers come back the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceNat {
    /// Nobody's (`snat: false`).
    None,
    /// Those that the pod's answers would not bring back by themselves: of the pod and its neighbours, and of the host
    /// when it talks to 127.0.0.1.
    Hairpin,
    /// Everybody's (`masqAll`).
    All,
}

/// How iptables marks what is to be masqueraded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Marking {
    /// By this bit of the mark (`markMasqBit`), with chains of our own.
    Bit(u32),
    /// By a chain that somebody else has made (`externalSetMarkChain`), who also masquerades.
    Chain(String),
}

/// The host ports that lead to a pod, with all that they need.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMappings {
    /// Whose they are.
    pub attachment: Attachment,
    /// Where the rules are.
    pub backend: Backend,
    /// The ports; at least one.
    pub mappings: Vec<PortMapping>,
    /// The pod's addresses, at most one of each family, with the prefix length of its subnet.
    pub addresses: Vec<Prefix>,
    /// The host's link by which the pod's IPv4 address is reached, where that matters.
    pub link: Option<String>,
    /// Whose packets are masqueraded.
    pub source_nat: SourceNat,
    /// For iptables: how.
    pub marking: Marking,
    /// For IPv4: further matches, in the language of the back end.
    pub conditions_v4: Vec<String>,
    /// The same for IPv6.
    pub conditions_v6: Vec<String>,
}

impl PortMappings {
    /// Claims the ports, and makes the rules, unless they are there.
    ///
    /// # Errors
    ///
    /// Code 102 where somebody else has a port, with [`Taken`] beneath it; else the kernel's, or those of the commands
    /// of iptables, with the object's name.
    pub fn ensure(&self, world: &mut World) -> Result<Ensured> {
        let owner = &self.attachment;
        let claims = Claims::lock(world)?;
        let claiming = claims.plan(owner, &self.claims())?;
        let nft = world.nft()?;
        let mut is_known = claims.are_all(Tally::take(nft)?);
        if !claiming.fresh.is_empty() {
            let mut strangers = Strangers::default();
            if !is_known {
                strangers.look_into_entries(nft, owner, &claiming.fresh, &claims)?;
            }
            strangers.look_elsewhere(nft, owner, &claiming.fresh, &claims)?;
            if !strangers.found.is_empty() {
                return Err(claims::refusal_for(&strangers.found).into());
            }
            is_known |= !strangers.are_any;
        }
        let claimed = claims.carry_out(&claiming)?;
        let made = match self.backend {
            Backend::Iptables => {
                let made = iptables::ensure(nft, self)?;
                if is_known {
                    claims.set_tally(Tally::take(nft)?);
                }
                made
            }
            Backend::Nftables => {
                drop(claims);
                nftables::ensure(nft, self, claimed)?
            }
        };
        if made == Ensured::Created {
            // After the rules: until then, packets would be remembered as they go without.
            self.forget_flows(world);
        }
        if let Some(name) = self.local_routing()
            && sysctl::set(&name, "1")?
        {
            log::debug!("{}: {name} is 1 now", self.attachment);
        }
        Ok(if claimed == Ensured::Created { Ensured::Created } else { made })
    }

    /// Tells what is missing or otherwise.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn observe(&self, world: &mut World) -> Result<Vec<Finding>> {
        let mut findings = Claims::lock(world)?.missing(&self.attachment, &self.claims());
        if world.is_of_another_suite() {
            // Which claims nothing.
            findings.retain(Finding::is_taken);
        }
        let nft = world.nft()?;
        findings.extend(match self.backend {
            Backend::Iptables => iptables::observe(nft, self)?,
            Backend::Nftables => nftables::observe(nft, self)?,
        });
        if let Some(name) = self.local_routing() {
            match sysctl::read(&name) {
                Ok(value) if value == "1" => {}
                Ok(value) => findings.push(Finding::spoiled(format!("sysctl net/{name} ({value}, not 1)"))),
                Err(_) => findings.push(Finding::missing(format!("sysctl net/{name}"))),
            }
        }
        Ok(findings)
    }

    /// Removes the rules, and gives the ports back. Those of others stay.
    ///
    /// # Errors
    ///
    /// As for [`ensure`](Self::ensure); what is not there is no error.
    pub fn remove(&self, world: &mut World) -> Result<()> {
        // Nobody can have a port before its rules are gone.
        let claims = match self.backend {
            Backend::Iptables => {
                let claims = Claims::lock(world)?;
                let nft = world.nft()?;
                let is_known = claims.are_all(Tally::take(nft)?);
                iptables::remove(nft, &self.attachment, Some(self))?;
                if is_known {
                    claims.set_tally(Tally::take(nft)?);
                }
                claims
            }
            Backend::Nftables => {
                nftables::remove(world.nft()?, self)?;
                Claims::lock(world)?
            }
        };
        claims.release(&self.attachment, &self.claims())?;
        drop(claims);
        self.forget_flows(world);
        Ok(())
    }

    /// Removes what is there for whole subnets, if nobody in them has ports any more: of networks that are gone.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove).
    pub fn remove_empty(networks: &[Prefix], world: &mut World) -> Result<()> {
        Ok(nftables::remove_empty(world.nft()?, networks)?)
    }

    /// Other attachments of the same container that ask for some of these ports: they are to have them when these are given
    /// back.
    ///
    /// # Errors
    ///
    /// Code 11 or 105 where the claims cannot be locked.
    pub fn heirs(&self, world: &World) -> Result<Vec<Attachment>> {
        Ok(Claims::lock(world)?.of_same_container(&self.attachment, &self.claims()))
    }

    /// The further matches for ports that lead to an address of the pod.
    fn conditions_of(&self, pod: IpAddr) -> &[String] {
        if pod.is_ipv4() { &self.conditions_v4 } else { &self.conditions_v6 }
    }

    /// The mappings for a pod's address.
    fn mappings_of(&self, address: IpAddr) -> impl Iterator<Item = &PortMapping> {
        self.mappings.iter().filter(move |mapping| mapping.is_of_family(address))
    }

    fn claims(&self) -> Vec<Claim> {
        let pods = self.addresses.iter().map(|prefix| prefix.address());
        pods.flat_map(|pod| self.mappings_of(pod).map(move |mapping| mapping.claim(pod))).collect()
    }

    /// The sysctl that lets packets from 127.0.0.1 leave by the pod's link; IPv6 has none.
    fn local_routing(&self) -> Option<String> {
        let is_wanted =
            self.source_nat != SourceNat::None && self.addresses.iter().any(|prefix| prefix.is_ipv4());
        let link = self.link.as_ref().filter(|_| is_wanted)?;
        Some(format!("ipv4/conf/{link}/route_localnet"))
    }

    /// Has the kernel forget what it knows of UDP flows to these ports: it would go on to send them where they went
    /// before. For a connection of TCP that shows by itself. What cannot be done is no error, as for the reference.
    ///
    /// The kernel loads a module for it, where it has none at work: a stock Debian's has not, and without it the port
    /// would be dead to whoever goes on to send.
    fn forget_flows(&self, world: &mut World) {
        let mut ports = Vec::new();
        for prefix in &self.addresses {
            let family = if prefix.is_ipv4() { Family::Ip } else { Family::Ip6 };
            let udp = self.mappings_of(prefix.address()).filter(|it| it.protocol == Transport::Udp);
            ports.extend(udp.map(|mapping| (family, mapping.host_port)));
        }
        if ports.is_empty() || !conntrack::is_in_use() {
            return;
        }
        let udp = Transport::Udp.number();
        let outcome = if ports.len() <= PORTS_TO_WAIT_FOR {
            world.nft().and_then(|nft| conntrack::forget_ports(nft, udp, &ports))
        } else {
            // A child has the time that the caller has not.
            child::start(&[], || {
                let forgotten =
                    Nft::open().and_then(|mut nft| conntrack::forget_ports(&mut nft, udp, &ports));
                i32::from(forgotten.is_err())
            })
        };
        if let Err(e) = outcome {
            log::warn!("{e}");
        }
    }
}

/// Removes what attachments to a network have left that are not kept, in every form that tells whose it is: claims, our
/// nftables table, iptables. Goes on past errors, and gives them all.
///
/// Unlike all else here it lists what there is, and so costs more with more pods.
pub(super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Vec<anyhow::Error> {
    let outcomes = [
        world.nft().map_err(Into::into).and_then(|nft| nftables::collect(nft, network, kept)),
        world.nft().map_err(Into::into).and_then(|nft| iptables::collect(nft, network, kept)),
        collect_claims(network, kept, world),
    ];
    outcomes.into_iter().filter_map(Result::err).collect()
}

fn collect_claims(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Result<()> {
    let owners = {
        let claims = Claims::lock(world)?;
        claims.remove_drafts()?;
        claims.owners()?
    };
    let mut found: Vec<Attachment> = owners.into_iter().filter(|owner| owner.network == network).collect();
    if !found.is_empty() {
        let kept = kept()?;
        found.retain(|owner| !kept.contains(owner));
    }
    for owner in found {
        Claims::lock(world)?.release_all_of(&owner)?;
    }
    Ok(())
}

/// The subnet of an address as the kernel layer takes it.
fn network(prefix: Prefix) -> IpNetwork {
    let address = prefix.network().address();
    // The length of a prefix fits its family.
    IpNetwork::new(address, prefix.prefix_len()).unwrap_or_else(|_| address.into())
}

/// The error where a chain is not there that somebody else must make.
fn foreign_chain_missing(name: &str, protocol: Protocol) -> CniError {
    let of = match protocol {
        Protocol::Ipv4 => "IPv4",
        Protocol::Ipv6 => "IPv6",
    };
    let msg = format!(
        "externalSetMarkChain: there is no chain {name:?} in table nat of {of}; who marks must make it"
    );
    CniError::config(msg)
}
