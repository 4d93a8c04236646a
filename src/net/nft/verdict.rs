//! Verdicts: what becomes of a packet, or which chain looks at it next.

use std::fmt;

use netlink_packet_netfilter::nftables::{Verdict as Code, VerdictAttribute};

/// `NF_DROP`, `NF_ACCEPT` (linux/netfilter.h).
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// A verdict, as a statement or as the data of a verdict map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `return`: back to the chain that jumped here.
    Return,
    /// `jump <chain>`: and back here afterwards.
    Jump(String),
    /// `goto <chain>`: and not back here.
    Goto(String),
}

impl Verdict {
    pub(super) fn attributes(&self) -> Vec<VerdictAttribute> {
        let (code, chain) = match self {
            Self::Accept => (Code::Other(ACCEPT), None),
            Self::Drop => (Code::Other(DROP), None),
            Self::Return => (Code::Return, None),
            Self::Jump(chain) => (Code::Jump, Some(chain)),
            Self::Goto(chain) => (Code::Goto, Some(chain)),
        };
        let mut attributes = vec![VerdictAttribute::Code(code)];
        attributes.extend(chain.map(|c| VerdictAttribute::Chain(c.clone())));
        attributes
    }

    /// `None` for verdicts that this program never writes (`queue`, `continue`).
    pub(super) fn parse(attributes: &[VerdictAttribute]) -> Option<Self> {
        let chain = || {
            attributes.iter().find_map(|a| match a {
                VerdictAttribute::Chain(chain) => Some(chain.clone()),
                _ => None,
            })
        };
        attributes.iter().find_map(|attribute| match attribute {
            VerdictAttribute::Code(Code::Other(ACCEPT)) => Some(Self::Accept),
            VerdictAttribute::Code(Code::Other(DROP)) => Some(Self::Drop),
            VerdictAttribute::Code(Code::Return) => Some(Self::Return),
            VerdictAttribute::Code(Code::Jump) => chain().map(Self::Jump),
            VerdictAttribute::Code(Code::Goto) => chain().map(Self::Goto),
            _ => None,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}
