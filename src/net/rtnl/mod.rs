//! rtnetlink of one network namespace: links, addresses, routes, queueing disciplines.
//!
//! Requests are built by `rtnetlink`'s builders; answers are read attribute by attribute, in place: a link's answer
//! has a hundred attributes of which six matter, and one that is unknown or odd must not make a link vanish.

pub mod address;
pub mod feature;
pub mod filter;
pub mod link;
pub mod neighbour;
pub mod port;
pub mod qdisc;
pub mod raw_route;
pub mod relocation;
pub mod removal;
pub mod route;
pub mod rule;
pub mod sublink;
pub mod veth_pair;
pub mod vlan;

use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NlasIterator;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::Result;
use super::netlink::{Answer, Message, Socket};

pub use address::Address;
pub use link::Link;
pub use route::Route;

/// A connection to rtnetlink of one network namespace.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
}

impl Rtnl {
    /// Opens a connection in the thread's namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(NETLINK_ROUTE)? })
    }

    /// Sends requests together; see [`Socket::execute`].
    pub fn execute(&mut self, batch: Vec<Message>) -> Result<Vec<Answer>> {
        self.socket.execute(batch)
    }

    /// Sends one request.
    pub fn execute_one(&mut self, message: Message) -> Result<()> {
        self.socket.execute_one(message)
    }

    fn get(&mut self, deed: String, payload: RouteNetlinkMessage) -> Result<Option<Vec<u8>>> {
        self.socket.get(Message::new(deed, 0, payload))
    }

    fn dump(&mut self, deed: &str, payload: RouteNetlinkMessage) -> Result<Vec<Vec<u8>>> {
        self.socket.dump(deed, payload)
    }
}

impl AsFd for Rtnl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The attributes behind a header of `header` bytes, as (type without flags, value). Ends at the first broken one.
fn attributes(body: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    nested(body.get(header..).unwrap_or_default())
}

/// The attributes in the value of another.
pub(super) fn nested(value: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    // The buffers borrow from `value`; asking them for their value would tie it to the buffer's own life.
    NlasIterator::new(value).map_while(std::result::Result::ok).map(|attribute| {
        let (kind, len) = (attribute.kind(), usize::from(attribute.value_length() as u16));
        let whole = attribute.into_inner();
        (kind, whole.get(4..4 + len).unwrap_or_default())
    })
}

pub(super) fn u32_of(value: &[u8]) -> Option<u32> {
    value.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
}

fn text_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}

fn ip_of(value: &[u8]) -> Option<std::net::IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(value).ok().map(Into::into),
        _ => None,
    }
}
