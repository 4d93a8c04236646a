//! Ranges of addresses, allocation, and the store that says which are taken.
//!
//! * [`host_local`]: the `host-local` IPAM: its configuration, and what can be asked of it.
//! * [`fixed`]: the `static` IPAM.
//! * [`range`]: which addresses a configuration offers, and in what order; pure.
//! * [`flock`]: locks on files, with a limit to waiting.
//! * [`store`]: the directory of reservations that this suite shares with the Go plugins, behind its lock; what the
//!   locked store does is in `allocation` (ADD), `store` (DEL) and `survey` (CHECK, GC, STATUS).
//!
//! Beneath: `reservation` is one file of the store, `lock` its lock, `index` what is remembered of it so that no call
//! need list it, `bitmap` which addresses of a block are taken, `boot` which boot made a reservation,
//! `state_directory` where that is kept which is lost with a boot.

mod allocation;
#[cfg(test)]
mod bad_input_tests;
mod bitmap;
mod boot;
#[cfg(test)]
mod damage_tests;
mod directory;
pub mod fixed;
pub mod flock;
pub mod host_local;
mod index;
mod lock;
pub mod range;
mod reservation;
mod resolv_conf;
mod state_directory;
pub mod store;
#[cfg(test)]
mod store_tests;
mod survey;

pub use fixed::Static;
pub use host_local::HostLocal;
pub use reservation::Owner;
pub use state_directory::StateDirectory;
pub use store::{LockedStore, Store};
pub use survey::{Collected, Usage};
