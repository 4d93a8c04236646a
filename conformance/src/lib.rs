//! Judges a directory of CNI plugin executables from outside.
//!
//! Nothing here knows how a plugin is made: it is executed as a container runtime would execute it, and then the
//! kernel, the address store and the answer on stdout are looked at. What is asserted is the CNI specification 1.1.0,
//! what the reference plugins (containernetworking/plugins) let their users rely on, and repairs of known faults.
//!
//! * [`sandbox`]: a host of one's own (namespaces and mounts), in which a case may do what it likes
//! * [`pod`]: a network namespace, as a runtime gives one to a plugin
//! * [`call`]: one execution of a plugin and its [`Answer`](call::Answer)
//! * [`apart`]: a process namespace of its own for a piece of work
//! * [`exec`]: running any program with a deadline
//! * [`expect`]: comparisons whose failure says what was wanted and what was found
//! * [`mutation`]: inputs that nearly make sense
//! * [`snapshot`]: everything a plugin may have changed, as lines that can be compared
//! * [`case`]: what a case is and what it needs
//! * [`cases`]: the cases, one file per topic
//! * [`runner`], [`report`]: running them side by side, and the account at the end

pub mod apart;
pub mod call;
pub mod case;
pub mod cases;
pub mod exec;
pub mod expect;
pub mod mutation;
pub mod pod;
pub mod report;
pub mod runner;
pub mod sandbox;
pub mod snapshot;
