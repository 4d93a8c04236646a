//! One rule, in the words of the command.

use std::fmt;

use ipnetwork::IpNetwork;

/// Longest text of a comment in bytes (`XT_MAX_COMMENT_LEN` of linux/netfilter/xt_comment.h less its NUL).
pub(super) const COMMENT_MAX: usize = 255;

/// A test of an address: `-s 10.1.0.5/32`, `! -d 224.0.0.0/4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressMatch {
    /// The addresses; host bits do not matter.
    pub network: IpNetwork,
    /// Whether the address is in there, or is not.
    pub membership: Membership,
}

/// Whether an address belongs to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// `-d 10.1.0.0/16`
    In,
    /// `! -d 10.1.0.0/16`
    NotIn,
}

impl AddressMatch {
    /// An address in a network.
    pub fn within(network: IpNetwork) -> Self {
        Self { network, membership: Membership::In }
    }

    /// An address anywhere else.
    pub fn outside(network: IpNetwork) -> Self {
        Self { network, membership: Membership::NotIn }
    }
}

/// What a rule does with a packet: `-j`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `-j ACCEPT`
    Accept,
    /// `-j MASQUERADE`
    Masquerade,
    /// `-j <chain>`
    Chain(String),
}

/// A rule: `-s ... -d ... -m comment --comment ... -j ...`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `-s`
    pub source: Option<AddressMatch>,
    /// `-d`
    pub destination: Option<AddressMatch>,
    /// `-m comment --comment`; what is longer than 255 bytes is cut.
    pub comment: String,
    /// `-j`
    pub target: Target,
}

impl Rule {
    /// The comment, as long as it may be.
    pub(super) fn cut_comment(&self) -> &str {
        let mut end = self.comment.len().min(COMMENT_MAX);
        while !self.comment.is_char_boundary(end) {
            end -= 1;
        }
        &self.comment[..end]
    }
}

/// The rule as `iptables -S` prints it, and as `iptables-restore` reads it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (option, test) in [("-s", self.source), ("-d", self.destination)] {
            let Some(AddressMatch { network, membership }) = test else { continue };
            // The command leaves out what every address matches.
            if network.prefix() == 0 && membership == Membership::In {
                continue;
            }
            let not = if membership == Membership::NotIn { "! " } else { "" };
            write!(f, "{not}{option} {}/{} ", network.network(), network.prefix())?;
        }
        write!(f, "-m comment --comment \"")?;
        for letter in self.cut_comment().chars() {
            if matches!(letter, '"' | '\'' | '\\') {
                write!(f, "\\")?;
            }
            write!(f, "{letter}")?;
        }
        match &self.target {
            Target::Accept => write!(f, "\" -j ACCEPT"),
            Target::Masquerade => write!(f, "\" -j MASQUERADE"),
            Target::Chain(chain) => write!(f, "\" -j {chain}"),
        }
    }
}
