//! Moving a link from one network namespace to another.

use std::os::fd::AsRawFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::{Link, Rtnl};
use crate::net::netlink::Message;
use crate::net::{Netns, Result};

/// Where a link goes, and what it is called there.
#[derive(Clone, Debug)]
pub struct Relocation<'a> {
    /// The link, in the namespace of the socket.
    pub link: &'a Link,
    /// The namespace that it goes to.
    pub netns: &'a Netns,
    /// Its name there.
    pub name: &'a str,
    /// Its alias there.
    pub alias: &'a str,
}

/// The request that moves a link. It arrives down, without addresses, routes and master.
///
/// The kernel moves the link before it renames it (`do_setlink`, net/core/rtnetlink.c): if the name is taken there, the
/// link has moved all the same, and has its old name and alias.
pub fn relocate(to: &Relocation<'_>) -> Message {
    let message = LinkUnspec::new_with_index(to.link.index)
        .setns_by_fd(to.netns.as_raw_fd())
        .name(to.name)
        .alias(to.alias)
        .build();
    let deed = format!("move link {} to {} as {}", to.link.name, to.netns.path().display(), to.name);
    Message::new(deed, 0, RouteNetlinkMessage::NewLink(message))
}

impl Rtnl {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let found = self.dump("list the links", RouteNetlinkMessage::GetLink(message))?;
        Ok(found.iter().map(|body| Link::parse(body)).collect())
    }
}
