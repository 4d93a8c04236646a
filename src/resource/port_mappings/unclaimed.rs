//! Host ports that others have without a claim: pods that the reference plugins have attached. Only their rules tell.
//!
//! A rule is not to be found by its port, so chains are read. The one of iptables has rules of our pods, too, and is
//! longer with each; but the kernel counts them, and if it counts what it did after our last change a moment ago, nobody
//! else has come ([`Tally`]). Our nftables are elsewhere than the reference's, whose chain is mostly not there at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::claims::{Claim, Claims};
use super::foreign;
use super::iptables::entry::{self, Entry};
use crate::net;
use crate::net::iptables::{Protocol, Transport};
use crate::net::nft::Nft;
use crate::spec::Attachment;

/// How much the chain that leads to all containers' ports is used, of each protocol; 0 where it is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally(pub(super) [u32; 2]);

impl Tally {
    pub(super) fn take(nft: &mut Nft) -> net::Result<Self> {
        let mut uses = [0; 2];
        for (uses, protocol) in uses.iter_mut().zip(Protocol::ALL) {
            *uses = nft.chain_state(entry::chain(protocol))?.map_or(0, |state| state.uses);
        }
        Ok(Self(uses))
    }
}

/// A host port that a rule leads to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    pub(super) transport: Transport,
    pub(super) port: u16,
    /// The only address of the host that it is for, if it is not for all.
    pub(super) address: Option<IpAddr>,
}

impl Translation {
    fn claim(&self, protocol: Protocol) -> Claim {
        let any: IpAddr = match protocol {
            Protocol::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Protocol::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        Claim { protocol: self.transport, port: self.port, address: self.address.unwrap_or(any) }
    }
}

/// Who has a port that stands against what an owner wants, and has not claimed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stranger {
    pub(super) claim: Claim,
    /// In words: the container, and where its rule is.
    pub(super) holder: String,
}

/// What a search has found.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    pub(super) found: Vec<Stranger>,
    /// Whether any entry of iptables is one without a claim, whatever its ports.
    pub(super) are_any: bool,
}

impl Strangers {
    /// Looks into the chain that leads to all containers, in the nf_tables variant of iptables.
    pub(super) fn look_into_entries(
        &mut self,
        nft: &mut Nft,
        owner: &Attachment,
        wanted: &[Claim],
        claims: &Claims,
    ) -> Result<()> {
        for (protocol, wanted) in by_protocol(wanted) {
            let unclaimed = claims.without_claim(entry::native(nft, protocol)?);
            self.are_any |= !unclaimed.is_empty();
            for entry in unclaimed.iter().filter(|entry| is_against(entry, owner, &wanted)) {
                let found = entry::native_translations(nft, protocol, &entry.chain)?;
                self.add(protocol, &wanted, found, || format!("{} in table nat", entry.holder()));
            }
        }
        Ok(())
    }

    /// Looks into all else: the legacy variant of iptables, and the reference's nftables.
    pub(super) fn look_elsewhere(
        &mut self,
        nft: &mut Nft,
        owner: &Attachment,
        wanted: &[Claim],
        claims: &Claims,
    ) -> Result<()> {
        for (protocol, wanted) in by_protocol(wanted) {
            if wanted.is_empty() {
                continue;
            }
            let ports: Vec<u16> = wanted.iter().map(|claim| claim.port).collect();
            let unclaimed = claims.without_claim(entry::legacy(protocol, &ports)?);
            for entry in unclaimed.iter().filter(|entry| is_against(entry, owner, &wanted)) {
                let found = entry::legacy_translations(protocol, &entry.chain)?;
                self.add(protocol, &wanted, found, || format!("{} in the legacy table nat", entry.holder()));
            }
            for (container, found) in foreign::translations(nft, protocol)? {
                if container != owner.container_id {
                    let holder = || format!("container {container} in {}", foreign::table(protocol));
                    self.add(protocol, &wanted, vec![found], holder);
                }
            }
        }
        Ok(())
    }
    fn add(
        &mut self,
        protocol: Protocol,
        wanted: &[Claim],
        found: Vec<Translation>,
        holder: impl Fn() -> String,
    ) {
        for claim in found.iter().map(|translation| translation.claim(protocol)) {
            if wanted.iter().any(|wanted| wanted.excludes(&claim)) {
                let stranger = Stranger { claim, holder: holder() };
                if !self.found.contains(&stranger) {
                    self.found.push(stranger);
                }
            }
        }
    }
}

/// The claims of each protocol.
fn by_protocol(claims: &[Claim]) -> impl Iterator<Item = (Protocol, Vec<Claim>)> {
    Protocol::ALL.into_iter().map(|protocol| {
        let is_of = |claim: &&Claim| claim.address.is_ipv4() == (protocol == Protocol::Ipv4);
        (protocol, claims.iter().filter(is_of).copied().collect())
    })
}

fn is_against(entry: &Entry, owner: &Attachment, wanted: &[Claim]) -> bool {
    let is_named = |claim: &Claim| claim.protocol == entry.transport && entry.ports.contains(&claim.port);
    wanted.iter().any(is_named) && !entry.is_of_container(owner)
}
