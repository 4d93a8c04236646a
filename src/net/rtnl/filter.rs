//! Filters: what becomes of the packets that a link receives.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterMatchAllOption, TcFilterU32Option, TcHandle, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::link::Link;
use super::qdisc::{HEADER, INGRESS, TCA_KIND, TCA_OPTIONS, about};
use super::{Rtnl, attributes, nested, text_of, u32_of};
use crate::net::Result;
use crate::net::netlink::Message;

/// `ETH_P_ALL` of linux/if_ether.h, and the priority of the filter: the first.
const EVERY_PROTOCOL: u16 = 0x0003;
const PRIORITY: u32 = 1;

/// The attributes of classifiers that hold their actions (linux/pkt_cls.h).
const TCA_U32_ACT: u16 = 7;
const TCA_MATCHALL_ACT: u16 = 2;

/// The part of a handle that tells the filters in a hash table from one another (`TC_U32_NODE`).
const U32_NODE: u32 = 0xfff;

/// Attributes of an action (linux/pkt_cls.h, linux/tc_act/tc_mirred.h).
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// Where struct tc_mirred says what is done, and with which link; and the number of sending packets elsewhere.
const MIRRED_EACTION: usize = 20;
const MIRRED_IFINDEX: usize = 24;
const TCA_EGRESS_REDIR: u32 = 1;

/// A part of the kernel that can tell that a packet is a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classifier {
    /// `cls_matchall`
    Matchall,
    /// `cls_u32` with a key that has no bits
    U32,
}

impl Classifier {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Matchall => Self::U32,
            Self::U32 => Self::Matchall,
        }
    }
}

/// The request that has all that a link receives sent by another, to which the kernel then pretends that it was given.
/// The link must have the discipline of [`create_ingress`](super::qdisc::create_ingress).
pub fn redirect_all(link: &Link, to: &Link, classifier: Classifier) -> Message {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    (mirror.generic, mirror.eaction, mirror.ifindex) = (generic, TcMirrorActionType::EgressRedir, to.index);
    let mut action = TcAction::default();
    action.tab = 1;
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let class = TcHandle { major: 1, minor: 1 };
    let (kind, options) = match classifier {
        Classifier::Matchall => {
            let option = TcOption::MatchAll;
            (
                "matchall",
                vec![
                    option(TcFilterMatchAllOption::ClassId(class)),
                    option(TcFilterMatchAllOption::Action(vec![action])),
                ],
            )
        }
        Classifier::U32 => {
            let mut selector = TcU32Selector::default();
            (selector.flags, selector.nkeys) = (TcU32SelectorFlags::Terminal, 1);
            selector.keys = vec![TcU32Key::default()];
            let option = TcOption::U32;
            (
                "u32",
                vec![
                    option(TcFilterU32Option::Selector(selector)),
                    option(TcFilterU32Option::ClassId(class)),
                    option(TcFilterU32Option::Action(vec![action])),
                ],
            )
        }
    };
    let mut message = about(link, TcHandle::UNSPEC, INGRESS);
    message.header.info = PRIORITY << 16 | u32::from(EVERY_PROTOCOL.to_be());
    message.attributes = vec![TcAttribute::Kind(kind.to_owned()), TcAttribute::Options(options)];
    let deed = format!("redirect what link {} receives to {} ({kind})", link.name, to.name);
    Message::new(deed, NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewTrafficFilter(message))
}

/// What a filter of received packets does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It has them sent by the link of this index, first of all; 0 if that link is gone.
    Redirect(u32),
    /// Anything else.
    Other,
}

impl Deed {
    /// `None` for a message that is about no filter, but about a table that one stands in.
    fn parse(body: &[u8]) -> Option<Self> {
        let handle = body.get(8..).and_then(u32_of)?;
        let mut classifier = None;
        let mut actions = None;
        for (kind, value) in attributes(body, HEADER) {
            match (kind, classifier) {
                (TCA_KIND, _) => {
                    classifier = match text_of(value).as_str() {
                        "u32" => Some(TCA_U32_ACT),
                        "matchall" => Some(TCA_MATCHALL_ACT),
                        _ => return (handle != 0).then_some(Self::Other),
                    };
                }
                (TCA_OPTIONS, Some(holder)) => {
                    actions = nested(value).find(|(kind, _)| *kind == holder).map(|(_, actions)| actions);
                }
                _ => {}
            }
        }
        // The list begins with its priority, whose handle is 0; and u32's hash tables have no node.
        if handle == 0 || classifier == Some(TCA_U32_ACT) && handle & U32_NODE == 0 {
            return None;
        }
        let Some((_, action)) = actions.and_then(|actions| nested(actions).next()) else {
            return Some(Self::Other);
        };
        let of = |wanted: u16| nested(action).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        if of(TCA_ACT_KIND).map(text_of).as_deref() != Some("mirred") {
            return Some(Self::Other);
        }
        let parms = nested(of(TCA_ACT_OPTIONS)?).find(|(kind, _)| *kind == TCA_MIRRED_PARMS)?.1;
        let number = |at: usize| parms.get(at..).and_then(u32_of);
        match number(MIRRED_EACTION) {
            Some(TCA_EGRESS_REDIR) => number(MIRRED_IFINDEX).map(Self::Redirect),
            _ => Some(Self::Other),
        }
    }
}

impl Rtnl {
    /// What the filters of all that a link receives do. The link must have an ingress discipline.
    pub fn deeds(&mut self, link: &Link) -> Result<Vec<Deed>> {
        let message = about(link, TcHandle::UNSPEC, INGRESS);
        let deed = format!("list the filters of what link {} receives", link.name);
        let found = self.dump(&deed, RouteNetlinkMessage::GetTrafficFilter(message))?;
        Ok(found.iter().filter_map(|body| Deed::parse(body)).collect())
    }
}
