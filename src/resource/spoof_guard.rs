//! The guard against false senders (`spoofGuard`): a pod may only send what is from itself.
//!
//! | what a pod sends | what of it passes |
//! |---|---|
//! | any frame | from its own MAC address; only IPv4, IPv6 and ARP |
//! | IPv4 | from its own addresses; from 0.0.0.0 what a DHCP client and IGMP send |
//! | ARP | whose sender is its own MAC address, and an address of its own or 0.0.0.0 (a probe) |
//! | IPv6 | from its own addresses and its link-local one; from `::` what DAD, MLD and a router's solicitation need |
//! | neighbour advertisement, DAD | whose target is its own |
//! | router advertisement, redirect, what a DHCP or DHCPv6 server says to a client | none |
//!
//! The rules are in [`rules`]; they are the same however many pods there are. A pod is an element for its port and one
//! for each address, so neither a packet nor an ADD or DEL costs more with more pods.
//!
//! The link-local address is the one that the kernel makes from the MAC address. The link-layer address that
//! neighbour discovery may carry as an option is not looked at: it is about an address of the pod's own, so that it
//! could misdirect only what is sent to the pod itself.

mod rules;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::owner::{Owner, strays};
use super::{Drift, Ensured, Finding, Kept, World, owned};
use crate::net::nft::{Element, Nft, Set, Transaction, repeat_if_overtaken, set};
use crate::net::{self, Mac};
use crate::spec::{Attachment, CniError, Code};
use rules::{IPV4, IPV6, PORTS, SETS, TARGETS};

/// What keeps a pod from sending as somebody else.
///
/// It is made before the pod's link and removed after it: nothing that the pod sends gets by.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SpoofGuard {
    /// Whose it is.
    pub attachment: Attachment,
    /// The port of the bridge that the pod's frames come from.
    pub host_ifname: String,
    /// The MAC address that the pod may send with. For [`remove`](Self::remove), none means that nobody knows it, nor
    /// the addresses: everything of this attachment is looked for.
    pub mac: Option<Mac>,
    /// The addresses that the pod may send from, beside those that follow from its MAC address.
    pub addresses: Vec<IpAddr>,
}

impl SpoofGuard {
    /// The guard of an attachment of which nothing else is known, for removing it.
    pub fn of(attachment: &Attachment, host_ifname: String) -> Self {
        Self { attachment: attachment.clone(), host_ifname, mac: None, addresses: Vec::new() }
    }

    /// Sets up the guard, unless it is there. Rules that somebody took away are put back, and what a link of the same
    /// name left is replaced.
    ///
    /// # Errors
    ///
    /// Code 104 where the kernel has no nf_tables for bridges; else the kernel's, with the object's name.
    pub fn ensure(&self, world: &mut World) -> Result<Ensured> {
        let outcome = world.nft().and_then(|nft| self.ensure_with(nft));
        outcome.map_err(|e| if is_unsupported(&e) { lacks_bridges(&e).into() } else { e.into() })
    }

    /// Tells what is missing or otherwise.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn observe(&self, world: &mut World) -> Result<Vec<Finding>> {
        Ok(self.observe_with(world.nft()?)?)
    }

    /// Removes the guard of the port. One that is another attachment's by now stays.
    ///
    /// # Errors
    ///
    /// The kernel's; what is not there, and could not be, is no error.
    pub fn remove(&self, world: &mut World) -> Result<()> {
        match world.nft().and_then(|nft| self.remove_with(nft)) {
            Err(e) if is_unsupported(&e) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn port_key(&self) -> Vec<u8> {
        set::key(&[&set::ifname_key(&self.host_ifname)])
    }

    /// What the pod has in the sets.
    fn elements(&self) -> Vec<(Set<'static>, Element)> {
        let owner = Owner::new(&self.attachment);
        let element = |key| owned::element(&owner, key);
        let mut elements = vec![(PORTS, element(self.port_key()))];
        let Some(mac) = self.mac else { return elements };
        let port = set::ifname_key(&self.host_ifname);
        let mut own =
            vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into(), link_local(mac).into()];
        own.extend(self.addresses.iter().filter(|address| !address.is_unspecified()));
        own.sort();
        own.dedup();
        for address in own {
            let key = set::key(&[&port, &mac.0, &set::address_key(address)]);
            elements.push((if address.is_ipv4() { IPV4 } else { IPV6 }, element(key.clone())));
            if address.is_ipv6() && !address.is_unspecified() {
                elements.push((TARGETS, element(key)));
            }
        }
        elements
    }

    fn ensure_with(&self, nft: &mut Nft) -> net::Result<Ensured> {
        repeat_if_overtaken(|| {
            let mut transaction = Transaction::new();
            let drift = drifted(nft)?;
            if !drift.is_empty() {
                rules::add_skeleton(&mut transaction, rules::parts());
            }
            if drift.len() == rules::parts().len() && drift.iter().all(|it| it.drift == Drift::Missing) {
                transaction.begin_anew();
            }
            let wanted = self.elements();
            // A pod's elements come and go together, so without this one there is none.
            if nft.element(PORTS, &self.port_key())?.is_some() {
                self.replace(nft, wanted, &mut transaction)?;
            } else {
                for (set, element) in &wanted {
                    transaction.add_element(*set, element);
                }
            }
            let ensured = if transaction.is_empty() { Ensured::Present } else { Ensured::Created };
            nft.commit(transaction)?;
            Ok(ensured)
        })
    }

    /// Makes the elements of the port those that are wanted, whatever they are. Only here are the sets listed: in the
    /// usual case, nothing of the port is there.
    fn replace(
        &self,
        nft: &mut Nft,
        mut wanted: Vec<(Set<'static>, Element)>,
        transaction: &mut Transaction,
    ) -> net::Result<()> {
        let port = self.port_key();
        for set in SETS {
            for found in nft.elements(set)?.into_iter().filter(|found| found.key.starts_with(&port)) {
                match wanted.iter().position(|(of, element)| *of == set && *element == found) {
                    Some(position) => drop(wanted.swap_remove(position)),
                    None => transaction.delete_element(set, &found.key),
                }
            }
        }
        for (set, element) in &wanted {
            transaction.add_element(*set, element);
        }
        Ok(())
    }

    fn observe_with(&self, nft: &mut Nft) -> net::Result<Vec<Finding>> {
        let mut findings = drifted(nft)?;
        findings.extend(owned::observe(nft, &self.elements(), |element| self.name(&element.key))?);
        Ok(findings)
    }

    /// The key of an element for people: the port, and its address if it has one.
    fn name(&self, key: &[u8]) -> String {
        const ADDRESS: usize = 24;
        let address = key.get(ADDRESS..).and_then(|bytes| match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        });
        match (self.mac, address) {
            (Some(mac), Some(address)) => format!("{} . {mac} . {address}", self.host_ifname),
            _ => self.host_ifname.clone(),
        }
    }

    fn remove_with(&self, nft: &mut Nft) -> net::Result<()> {
        let owner = Owner::new(&self.attachment);
        if self.mac.is_some() {
            return owned::remove(nft, &owner, &self.elements());
        }
        match nft.element(PORTS, &self.port_key())? {
            Some(found) if !owned::is_of_another(&found, &owner) => owned::remove_all_of(nft, &SETS, &owner),
            _ => Ok(()),
        }
    }
}

/// Removes the elements of a network's attachments that are not kept.
pub(super) fn collect(network: &str, kept: &Kept<'_>, world: &mut World<'_>) -> Result<()> {
    match world.nft().and_then(|nft| owned::owners(nft, &SETS, network)) {
        Err(e) if is_unsupported(&e) => Ok(()),
        found => {
            for owner in strays(found?, kept)? {
                owned::remove_all_of(world.nft()?, &SETS, &owner)?;
            }
            Ok(())
        }
    }
}

/// How the chains are otherwise than they should be.
///
/// All rules are read, although counting them would be enough to see that somebody flushed a chain: `nft` makes other
/// rules of its own listing than it lists (it knows the type of a frame behind a VLAN tag for that of the frame), and
/// what CHECK finds, ADD must repair. Their number does not grow with pods.
fn drifted(nft: &mut Nft) -> net::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for part in rules::parts() {
        let found = nft.rules(part.chain)?;
        if found.is_empty() {
            findings.push(Finding::missing(format!("content of {}", part.chain)));
        } else if found.len() != part.rules.len()
            || found.iter().zip(&part.rules).any(|(found, wanted)| !found.consists_of(wanted))
        {
            findings.push(Finding::spoiled(part.chain.to_string()));
        }
    }
    Ok(findings)
}

/// The address that the kernel gives a link by itself: the prefix fe80::/64, and its MAC address as an identifier of 64
/// bits (RFC 4291, appendix A; `addrconf_ifid_eui48` of net/addrconf.h).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Whether the kernel means that it does not have what was asked of it: no netfilter by netlink
/// (`EPROTONOSUPPORT`), no nf_tables in it (`EINVAL`, for a batch `EOPNOTSUPP`), none for bridges (`EAFNOSUPPORT`, or
/// `ENOENT` for the chain that is to hang on their hook).
fn is_unsupported(error: &net::Error) -> bool {
    match error.errno {
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP => true,
        Errno::EINVAL => error.deed.starts_with("look"),
        Errno::ENOENT => error.deed.starts_with("add chain"),
        _ => false,
    }
}

fn lacks_bridges(error: &net::Error) -> CniError {
    let msg =
        "spoofGuard: this kernel has no nf_tables for bridges (CONFIG_NF_TABLES, CONFIG_NF_TABLES_BRIDGE)";
    CniError::new(Code::MissingFeature, msg).with_details(error.to_string())
}

#[cfg(test)]
mod tests;
