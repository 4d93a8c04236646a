//! One rule, in the words of the command.

use std::fmt;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Longest text of a comment in bytes (`XT_MAX_COMMENT_LEN` of linux/netfilter/xt_comment.h less its NUL).
pub(super) const COMMENT_MAX: usize = 255;

/// How many ports one rule can name (`XT_MULTI_PORTS` of linux/netfilter/xt_multiport.h).
pub const PORTS_MAX: usize = 15;

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

/// A test of the link that a packet came by, or goes by: `-i cni0`, `! -o cni0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkMatch {
    /// The link's name; the whole name, without a `+` for others that begin like it.
    pub name: String,
    /// Whether it is that link, or is another.
    pub membership: Membership,
}

impl LinkMatch {
    /// That link.
    pub fn is(name: &str) -> Self {
        Self { name: name.to_owned(), membership: Membership::In }
    }

    /// Any other link.
    pub fn is_not(name: &str) -> Self {
        Self { name: name.to_owned(), membership: Membership::NotIn }
    }
}

/// A transport protocol: `-p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// `-p sctp`
    Sctp,
    /// `-p tcp`
    Tcp,
    /// `-p udp`
    Udp,
}

impl Transport {
    /// All, in the order of their names.
    pub const ALL: [Self; 3] = [Self::Sctp, Self::Tcp, Self::Udp];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The one that has a [number](Self::number).
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|transport| transport.number() == number)
    }

    /// Its number in a packet (`IPPROTO_*`, linux/in.h).
    pub fn number(self) -> u8 {
        match self {
            Self::Sctp => 132,
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A test by an extension: `-m`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `-m addrtype --dst-type LOCAL`: packets to an address of this host.
    LocalDestination,
    /// `-m tcp --dport <port>`, of whichever transport protocol the rule is for.
    Port(u16),
    /// `-m multiport --dports <port>,<port>,...`, at most [`PORTS_MAX`].
    Ports(Vec<u16>),
    /// `-m mark --mark <bits>/<bits>`: these bits are set.
    Mark(u32),
    /// `-m conntrack --ctstate RELATED,ESTABLISHED`: packets of connections that somebody else has begun.
    Established,
}

/// What a rule does with a packet: `-j`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `-j ACCEPT`
    Accept,
    /// `-j DROP`
    Drop,
    /// `-j RETURN`
    Return,
    /// `-j MASQUERADE`
    Masquerade,
    /// `-j DNAT --to-destination <address>:<port>`
    Dnat(SocketAddr),
    /// `-j MARK --set-xmark <bits>/<bits>`: sets these bits.
    Mark(u32),
    /// `-j <chain>`
    Chain(String),
}

/// A rule: `-s ... -d ... -p ... -m comment --comment ... -m ... -j ...`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `-s`
    pub source: Option<AddressMatch>,
    /// `-d`
    pub destination: Option<AddressMatch>,
    /// `-i`
    pub inbound: Option<LinkMatch>,
    /// `-o`
    pub outbound: Option<LinkMatch>,
    /// `-p`
    pub transport: Option<Transport>,
    /// `-m comment --comment`; what is longer than 255 bytes is cut.
    pub comment: Option<String>,
    /// The other matches.
    pub matches: Vec<Match>,
    /// Matches in words that only the command understands. [`expressions`](Self::expressions) leaves them out.
    pub conditions: Vec<String>,
    /// `-j`
    pub target: Target,
}

impl Rule {
    /// A rule for all packets.
    pub fn to(target: Target) -> Self {
        Self {
            source: None,
            destination: None,
            inbound: None,
            outbound: None,
            transport: None,
            comment: None,
            matches: Vec::new(),
            conditions: Vec::new(),
            target,
        }
    }
}

/// A comment, as long as it may be.
pub(super) fn cut(comment: &str) -> &str {
    let mut end = comment.len().min(COMMENT_MAX);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    &comment[..end]
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
        for (option, test) in [("-i", &self.inbound), ("-o", &self.outbound)] {
            let Some(LinkMatch { name, membership }) = test else { continue };
            let not = if *membership == Membership::NotIn { "! " } else { "" };
            write!(f, "{not}{option} {name} ")?;
        }
        if let Some(transport) = self.transport {
            write!(f, "-p {} ", transport.name())?;
        }
        if let Some(comment) = &self.comment {
            write!(f, "-m comment --comment ")?;
            quote(cut(comment), f)?;
            write!(f, " ")?;
        }
        for test in &self.matches {
            match test {
                Match::LocalDestination => write!(f, "-m addrtype --dst-type LOCAL ")?,
                Match::Port(port) => {
                    let transport = self.transport.map_or("tcp", Transport::name);
                    write!(f, "-m {transport} --dport {port} ")?;
                }
                Match::Ports(ports) => {
                    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                    write!(f, "-m multiport --dports {} ", ports.join(","))?;
                }
                Match::Mark(bits) => write!(f, "-m mark --mark {bits:#x}/{bits:#x} ")?,
                Match::Established => write!(f, "-m conntrack --ctstate RELATED,ESTABLISHED ")?,
            }
        }
        for word in &self.conditions {
            if word.is_empty() || word.contains([' ', '"', '\'', '\\']) {
                quote(word, f)?;
                write!(f, " ")?;
            } else {
                write!(f, "{word} ")?;
            }
        }
        write!(f, "{}", self.target)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => write!(f, "-j ACCEPT"),
            Self::Drop => write!(f, "-j DROP"),
            Self::Return => write!(f, "-j RETURN"),
            Self::Masquerade => write!(f, "-j MASQUERADE"),
            Self::Dnat(to) => write!(f, "-j DNAT --to-destination {to}"),
            Self::Mark(bits) => write!(f, "-j MARK --set-xmark {bits:#x}/{bits:#x}"),
            Self::Chain(chain) => write!(f, "-j {chain}"),
        }
    }
}

fn quote(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "\"")?;
    for letter in text.chars() {
        if matches!(letter, '"' | '\'' | '\\') {
            write!(f, "\\")?;
        }
        write!(f, "{letter}")?;
    }
    write!(f, "\"")
}
