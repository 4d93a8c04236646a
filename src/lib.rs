//! bridgehead: a CNI plugin suite in one static program.
//!
//! One call, from top to bottom:
//!
//! ```text
//! environment + stdin -> spec::Request -> plugins/<type> plans -> plan: apply | check | remove -> resource/* -> net -> kernel
//!                                              \-> result, computed from the same plan, printed in the config's version
//! ```
//!
//! * [`spec`]: the CNI protocol as types; pure.
//! * [`net`]: namespaces, netlink, nf_tables, sysctl; knows nothing of CNI.
//! * [`ipam`]: ranges of addresses, and the store that says which are taken.
//! * [`dhcp`]: leases of a DHCP server, the daemon that keeps them, and its client.
//! * [`resource`]: what an attachment is made of, one file per resource.
//! * [`private_file`]: files of state, whole or not at all.
//! * [`plan`]: the three loops over resources, the journal, the records.
//! * [`plugins`]: one file per kind of plugin; [`registry`] lists them, [`dispatch`] serves a call.
//! * [`runtime`]: the caller's half of the protocol: conflists, chains, the result cache, executing plugins.
//! * [`netavark`]: podman's other protocol, translated into this one.
//! * [`tool`]: what `bridgehead` does for people.

pub mod dhcp;
pub mod dispatch;
pub mod ipam;
pub mod logger;
pub mod net;
pub mod netavark;
pub mod plan;
pub mod plugins;
pub mod private_file;
pub mod registry;
pub mod resource;
pub mod runtime;
pub mod spec;
pub mod tool;
