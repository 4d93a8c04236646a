//! Whose an object in nf_tables is: a line of text in its user data.

use std::collections::BTreeSet;
use std::fmt;

use super::Kept;
use crate::net::nft::userdata::COMMENT_MAX;
use crate::spec::Attachment;
use crate::spec::digest::sha512_hex;

/// An attachment in a line: `<network>/<container>/<ifname>`.
///
/// Where that is longer than a comment may be, network and container are cut and end with `~` and a hash, so that
/// two owners are never the same text. Neither `/` nor `~` can stand in a network's name or a container's id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(String);

/// How long network and container may be where they are cut. With an interface's name of 15 bytes, and the two
/// slashes, that is as long as a comment.
const NETWORK_MAX: usize = 40;
const CONTAINER_MAX: usize = COMMENT_MAX - NETWORK_MAX - 15 - 2;

/// Digits of the hash that stands for what was cut.
const DIGITS: usize = 16;

impl Owner {
    /// The line for an attachment.
    pub fn new(attachment: &Attachment) -> Self {
        let Attachment { network, container_id, ifname } = attachment;
        // nft prints a comment between quotes, and does not escape any in it.
        let ifname = ifname.replace('"', "'");
        let whole = format!("{network}/{container_id}/{ifname}");
        if whole.len() <= COMMENT_MAX {
            return Self(whole);
        }
        Self(format!("{}/{}/{ifname}", cut(network, NETWORK_MAX), cut(container_id, CONTAINER_MAX)))
    }

    /// The line as the kernel has it.
    pub fn from_comment(comment: String) -> Self {
        Self(comment)
    }

    /// The line.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both are interfaces of the same container.
    pub fn shares_container_with(&self, other: &Self) -> bool {
        self.0.split('/').nth(1) == other.0.split('/').nth(1)
    }

    /// Whether the attachment is to this network.
    pub fn is_on(&self, network: &str) -> bool {
        let first = self.0.split('/').next().unwrap_or_default();
        first == network || first == cut(network, NETWORK_MAX)
    }
}

/// Those of some owners that are not kept. Who is kept is asked for only if there is anybody.
pub(super) fn strays(mut owners: Vec<Owner>, kept: &Kept<'_>) -> anyhow::Result<Vec<Owner>> {
    if !owners.is_empty() {
        let kept: BTreeSet<Owner> = kept()?.iter().map(Owner::new).collect();
        owners.retain(|owner| !kept.contains(owner));
    }
    Ok(owners)
}

fn cut(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let mut end = max - DIGITS - 1;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}~{}", &name[..end], sha512_hex(&[name], DIGITS))
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner(network: &str, container_id: &str, ifname: &str) -> Owner {
        Owner::new(&Attachment {
            network: network.into(),
            container_id: container_id.into(),
            ifname: ifname.into(),
        })
    }

    #[test]
    fn usual_names_stand_as_they_are() {
        assert_eq!(
            owner("podman", &"f".repeat(64), "eth0").as_str(),
            format!("podman/{}/eth0", "f".repeat(64))
        );
    }

    proptest! {
        #[test]
        fn different_attachments_are_different_lines(
            a in "[a-c]{1,60}", b in "[a-c]{60,140}", c in "[a-c]{1,60}", d in "[a-c]{60,140}",
        ) {
            let (one, other) = (owner(&a, &b, "exactly15bytes."), owner(&c, &d, "exactly15bytes."));
            prop_assert!(one.as_str().len() <= COMMENT_MAX);
            prop_assert_eq!(one == other, a == c && b == d);
            prop_assert!(one.is_on(&a));
            prop_assert_eq!(one.is_on(&c), a == c);
        }
    }
}
