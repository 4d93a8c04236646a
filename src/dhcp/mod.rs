//! DHCP: a daemon that gets leases for pods and keeps them, and the client by which an ADD asks for one.
//!
//! ```text
//! ADD -> client -- unix socket, net/rpc of Go --> daemon -> exchange -- packets by the pod's link --> server
//!                                                   \-> keeper of each lease: renews, rebinds, gives up
//! ```
//!
//! The daemon has one thread, and holds no namespace but while it speaks: those of pods that are gone can go. What it
//! keeps is in files as well, so that it, or the next one, goes on where it was ended.

pub mod client;
pub mod conf;
pub mod daemon;
pub mod exchange;
pub mod flags;
pub mod gob;
pub mod keeper;
pub mod lease;
pub mod listener;
pub mod message;
pub mod options;
pub mod probe;
pub mod rpc;
pub mod store;

pub use client::Client;
pub use conf::DhcpConf;

/// The name of the plugin.
pub const NAME: &str = "dhcp";
