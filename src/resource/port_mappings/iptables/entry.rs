//! Reading whose ports the rules of iptables are: of pods of whichever suite.

use std::net::IpAddr;

use super::super::unclaimed::Translation;
use super::rules::{DNAT, chain_name};
use crate::net;
use crate::net::iptables::commands::words;
use crate::net::iptables::native_ports;
use crate::net::iptables::{Commands, Protocol, Transport, Variant, comment_of, legacy, native_destination};
use crate::net::nft::{Chain, Nft, Verdict};
use crate::spec::Attachment;

/// The chain that leads to those of all containers.
pub(in super::super) fn chain(protocol: Protocol) -> Chain<'static> {
    protocol.nat().chain(DNAT)
}

/// An entry of iptables: which container it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Entry {
    pub(in super::super) transport: Transport,
    pub(in super::super) ports: Vec<u16>,
    /// The container's chain.
    pub(in super::super) chain: String,
    /// As it is written; what is too long is cut.
    pub(in super::super) comment: String,
}

impl Entry {
    /// `container a on network net` from `dnat name: "net" id: "a"`.
    pub(in super::super) fn holder(&self) -> String {
        let parts = self.comment.strip_prefix("dnat name: \"").and_then(|rest| rest.split_once("\" id: \""));
        match parts {
            Some((network, id)) => {
                format!("container {} on network {network}", id.strip_suffix('"').unwrap_or(id))
            }
            None => format!("{:?}", self.comment),
        }
    }

    pub(in super::super) fn is_of_container(&self, owner: &Attachment) -> bool {
        self.chain == chain_name(owner) || self.comment.ends_with(&format!(" id: {:?}", owner.container_id))
    }
}

/// The entries of the nf_tables variant. One that cannot be understood is none.
pub(in super::super) fn native(nft: &mut Nft, protocol: Protocol) -> net::Result<Vec<Entry>> {
    let read = |rule: &net::nft::Rule| {
        Some(Entry {
            transport: Transport::of_number(native_destination(rule).transport?)?,
            ports: native_ports(rule)?,
            chain: rule.verdicts().find_map(|verdict| match verdict {
                Verdict::Jump(chain) => Some(chain),
                _ => None,
            })?,
            comment: comment_of(rule).unwrap_or_default(),
        })
    };
    Ok(nft.rules(chain(protocol))?.iter().filter_map(read).collect())
}

/// The ports that the nf_tables variant leads to a container by its chain.
pub(in super::super) fn native_translations(
    nft: &mut Nft,
    protocol: Protocol,
    chain: &str,
) -> net::Result<Vec<Translation>> {
    Ok(nft.rules(protocol.nat().chain(chain))?.iter().filter_map(translation_of).collect())
}

/// What a rule of nf_tables leads somewhere else.
pub(in super::super) fn translation_of(rule: &net::nft::Rule) -> Option<Translation> {
    let destination = native_destination(rule);
    Some(Translation {
        transport: Transport::of_number(destination.transport?)?,
        port: destination.port?,
        address: destination.address,
    })
}

/// The entries of the legacy variant, if any may name one of some ports. Only then is the command executed.
pub(in super::super) fn legacy(protocol: Protocol, ports: &[u16]) -> net::Result<Vec<Entry>> {
    if legacy::nat_may_name(protocol, DNAT, ports)? { all_legacy(protocol) } else { Ok(Vec::new()) }
}

/// The entries of the legacy variant. The command is executed.
pub(in super::super) fn all_legacy(protocol: Protocol) -> net::Result<Vec<Entry>> {
    let read = |line: &String| {
        let words = words(line);
        Some(Entry {
            transport: transport_in(&words)?,
            ports: behind("--dports", &words)?.split(',').filter_map(|port| port.parse().ok()).collect(),
            chain: behind("-j", &words)?.to_owned(),
            comment: behind("--comment", &words).unwrap_or_default().to_owned(),
        })
    };
    Ok(legacy_lines(protocol, DNAT)?.iter().filter_map(read).collect())
}

/// The ports that the legacy variant leads to a container by its chain.
pub(in super::super) fn legacy_translations(
    protocol: Protocol,
    chain: &str,
) -> net::Result<Vec<Translation>> {
    let read = |line: &String| {
        let words = words(line);
        let address = behind("-d", &words).and_then(|word| word.split('/').next()?.parse::<IpAddr>().ok());
        Some(Translation {
            transport: transport_in(&words)?,
            port: behind("--dport", &words)?.parse().ok()?,
            address,
        })
    };
    Ok(legacy_lines(protocol, chain)?.iter().filter_map(read).collect())
}

fn legacy_lines(protocol: Protocol, chain: &str) -> net::Result<Vec<String>> {
    Ok(Commands::find(protocol, Variant::Legacy)?.nat_rules(chain)?.unwrap_or_default())
}

fn transport_in(words: &[String]) -> Option<Transport> {
    let name = behind("-p", words)?;
    Transport::ALL.into_iter().find(|transport| transport.name() == name)
}

/// The word behind an option.
fn behind<'w>(option: &str, words: &'w [String]) -> Option<&'w str> {
    let at = words.iter().position(|word| word == option)?;
    words.get(at + 1).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_read_from_the_comment() {
        let entry = |comment: &str| Entry {
            transport: Transport::Tcp,
            ports: vec![80],
            chain: "CNI-DN-x".to_owned(),
            comment: comment.to_owned(),
        };
        assert_eq!(entry("dnat name: \"n\" id: \"a\"").holder(), "container a on network n");
        assert_eq!(entry("dnat name: \"n\" id: \"cut off").holder(), "container cut off on network n");
        assert_eq!(entry("nonsense").holder(), "\"nonsense\"");
        let owner = Attachment { network: "m".into(), container_id: "a".into(), ifname: "eth0".into() };
        assert!(entry("dnat name: \"n\" id: \"a\"").is_of_container(&owner));
        assert!(!entry("dnat name: \"n\" id: \"b\"").is_of_container(&owner));
    }
}
