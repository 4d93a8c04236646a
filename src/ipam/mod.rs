//! Ranges of addresses, allocation, and the store that says which are taken.
//!
//! * [`range`]: which addresses a configuration offers, and in what order; pure.
//! * [`host_local`]: the `host-local` IPAM: its configuration, and what can be asked of it.
//! * [`fixed`]: the `static` IPAM.
//! * [`store`]: the directory of reservations that this suite shares with the Go plugins, behind its lock.
//!
//! Beneath the store: [`reservation`] is one file of it, [`lock`] its lock, [`index`] what is remembered of it so that
//! no call need list it, [`bitmap`] which addresses of a block are taken, [`boot`] which boot wrote a reservation.

pub mod range;
