//! The kernel: namespaces, netlink, nf_tables, iptables, sysctl. Knows nothing of CNI.

pub mod arp_listener;
#[cfg(test)]
mod bad_input_tests;
pub mod checksum;
pub mod child;
pub mod conntrack;
pub mod dbus;
pub mod error;
pub mod firewalld;
pub mod frame;
pub mod iptables;
mod kernel_file;
pub mod mac;
pub mod module;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod packet;
pub mod rtnl;
pub mod selinux;
pub mod sysctl;
pub mod tun;
pub mod udp_listener;

pub use arp_listener::ArpListener;
pub use error::{Error, Result};
pub use frame::Frame;
pub use mac::Mac;
pub use netns::Netns;
pub use packet::PacketSocket;
pub use rtnl::{Link, Rtnl};
pub use udp_listener::UdpListener;
