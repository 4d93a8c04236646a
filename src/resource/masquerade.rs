//! NAT of what a pod sends out of its network, so that answers find their way back to the host.

mod foreign;
mod iptables;
mod nftables;

use std::net::IpAddr;

use anyhow::Result;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::owner::Owner;
use super::{Ensured, Finding, Kept, World};
use crate::net::iptables::{Protocol, Variant, installed, legacy};
use crate::net::nft::{Extension, Family, Nft};
use crate::spec::{Attachment, CniError, Prefix};
pub use foreign::ForeignMasquerade;

/// Where the rules are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The `nat` tables of iptables, with chains named and commented as the reference plugins do.
    Iptables,
    /// A table of our own in nf_tables, in which a pod is an element of a set.
    Nftables,
}

impl Backend {
    /// The one that the key `ipMasqBackend` names, if it is not empty.
    ///
    /// # Errors
    ///
    /// Code 7 for any other text.
    pub fn configured(text: &str) -> std::result::Result<Option<Self>, CniError> {
        match text {
            "" => Ok(None),
            "iptables" => Ok(Some(Self::Iptables)),
            "nftables" => Ok(Some(Self::Nftables)),
            _ => Err(CniError::config(format!(
                "ipMasqBackend: unknown ipmasq backend {text:?}; wanted is \"iptables\" or \"nftables\""
            ))),
        }
    }

    /// The configured one; else iptables where an iptables command is there and the kernel can do what it asks for;
    /// else nftables (the reference's rule). Nothing is executed.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn choose(configured: Option<Self>, world: &mut World) -> Result<Self> {
        match configured {
            Some(backend) => Ok(backend),
            None => Self::detect(world.nft()?),
        }
    }

    fn detect(nft: &mut Nft) -> Result<Self> {
        let works = match installed(Protocol::Ipv4) {
            None => false,
            Some(Variant::Legacy) => legacy::is_supported(Protocol::Ipv4),
            Some(Variant::Nft) => {
                nft.has_extension(Family::Ip, Extension::Target, "MASQUERADE", 0)?
                    && nft.has_extension(Family::Ip, Extension::Match, "comment", 0)?
            }
        };
        Ok(if works { Self::Iptables } else { Self::Nftables })
    }
}

/// The pod's addresses whose packets get the host's address on their way out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// Whose addresses they are.
    pub attachment: Attachment,
    /// Where the rules are.
    pub backend: Backend,
    /// The pod's addresses, each with the prefix length of its subnet: what goes from `10.1.0.5/16` to an address
    /// outside 10.1.0.0/16 that is no multicast address is masqueraded.
    ///
    /// For [`remove`](Self::remove), none means that nobody knows them: everything of this attachment is looked for.
    /// iptables has it under a name that follows from the attachment; in nftables, our sets are searched for its
    /// owner, which is the only thing here whose cost grows with the pods of the host.
    pub sources: Vec<Prefix>,
}

impl Masquerade {
    /// Makes the rules, unless they are there.
    ///
    /// # Errors
    ///
    /// The kernel's, or those of the legacy command, with the object's name.
    pub fn ensure(&self, world: &mut World) -> Result<Ensured> {
        self.ensure_with(world.nft()?)
    }

    /// Tells what is missing or otherwise.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn observe(&self, world: &mut World) -> Result<Vec<Finding>> {
        self.observe_with(world.nft()?)
    }

    /// Removes the rules. Those of others stay: of another owner who has the address now, or of another interface of
    /// the same container on the same network, which shares the chain in iptables.
    ///
    /// # Errors
    ///
    /// As for [`ensure`](Self::ensure); what is not there is no error.
    pub fn remove(&self, world: &mut World) -> Result<()> {
        self.remove_with(world.nft()?)
    }

    /// Removes what the reference plugins would have left for an attachment, in either of their forms. Where there is
    /// nothing, that is a few point queries.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove).
    pub fn remove_foreign(attachment: &Attachment, world: &mut World) -> Result<()> {
        foreign::remove(world.nft()?, attachment)
    }

    /// Removes what is there for whole subnets, if nobody is in them any more: of networks that are gone.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove).
    pub fn remove_empty(networks: &[Prefix], world: &mut World) -> Result<()> {
        Ok(nftables::remove_empty(world.nft()?, networks)?)
    }

    fn ensure_with(&self, nft: &mut Nft) -> Result<Ensured> {
        match self.backend {
            Backend::Iptables => iptables::ensure(nft, &self.attachment, &self.sources),
            Backend::Nftables => Ok(nftables::ensure(nft, &Owner::new(&self.attachment), &self.sources)?),
        }
    }

    fn observe_with(&self, nft: &mut Nft) -> Result<Vec<Finding>> {
        match self.backend {
            Backend::Iptables => iptables::observe(nft, &self.attachment, &self.sources),
            Backend::Nftables => Ok(nftables::observe(nft, &Owner::new(&self.attachment), &self.sources)?),
        }
    }

    fn remove_with(&self, nft: &mut Nft) -> Result<()> {
        match self.backend {
            Backend::Iptables => iptables::remove(nft, &self.attachment, &self.sources),
            Backend::Nftables if self.sources.is_empty() => {
                Ok(nftables::remove_all_of(nft, &Owner::new(&self.attachment))?)
            }
            Backend::Nftables => Ok(nftables::remove(nft, &Owner::new(&self.attachment), &self.sources)?),
        }
    }
}

/// Removes what attachments to a network have left that are not kept, in every form: our nftables table, iptables, and
/// what the reference plugins have in nftables. Goes on past errors, and gives them all.
///
/// Unlike all else here it lists what there is, and so costs more with more pods.
pub(super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Vec<anyhow::Error> {
    match world.nft() {
        Ok(nft) => collect_with(nft, network, kept),
        Err(e) => vec![e.into()],
    }
}

fn collect_with(nft: &mut Nft, network: &str, kept: &Kept<'_>) -> Vec<anyhow::Error> {
    let outcomes = [
        nftables::collect(nft, network, kept),
        iptables::collect(nft, network, kept),
        foreign::collect(nft, network, kept),
    ];
    outcomes.into_iter().filter_map(Result::err).collect()
}

/// The network of a source as the kernel layer takes it.
fn network(source: Prefix) -> IpNetwork {
    let address = source.network().address();
    // The length of a prefix fits its family.
    IpNetwork::new(address, source.prefix_len()).unwrap_or_else(|_| address.into())
}

/// All multicast addresses of the family of an address: what goes there is never masqueraded.
fn multicast(address: IpAddr) -> Prefix {
    let (first, len) = match address {
        IpAddr::V4(_) => (IpAddr::from([224, 0, 0, 0]), 4),
        IpAddr::V6(_) => (IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    };
    Prefix::new(first, len).unwrap_or_else(|| Prefix::host(first))
}

#[cfg(test)]
mod tests;
