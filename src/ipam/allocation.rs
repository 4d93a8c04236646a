//! Giving addresses to an attachment: one of each range set, all or none.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::directory::{errno_of, read_all};
use super::range::{RangeSet, to_address};
use super::reservation::{Draft, Found, Owner, look};
use super::store::LockedStore;
use super::survey::Usage;
use crate::spec::result::IpConfig;
use crate::spec::{CniError, Code, Prefix};

impl LockedStore {
    /// Reserves an address of each set for an owner: the requested one that lies in it, else the next free one.
    ///
    /// An owner that has an address of each set already, and all that are requested, gets those again; the caller may
    /// not have seen the first answer. Nothing stays reserved after an error, and nothing that was there is lost.
    ///
    /// Errors: code 101 if no address is free or a requested one cannot be had; code 102 if the owner has other
    /// addresses; code 105 for the files.
    pub fn allocate(
        &mut self,
        sets: &[RangeSet],
        requested: &[IpAddr],
        owner: &Owner,
    ) -> Result<Vec<IpConfig>, CniError> {
        let wanted = assign(sets, requested)?;
        let mut held = self.owned(owner)?;
        if !held.is_empty()
            && let Some(same) = match_held(sets, &wanted, &held)
        {
            return Ok(same);
        }
        held.extend(self.owned(&owner.without_ifname())?);
        if !held.is_empty() {
            let list: Vec<String> = held.iter().map(IpAddr::to_string).collect();
            let msg = format!(
                "{} has been allocated to {owner}, duplicate allocation is not allowed",
                list.join(", ")
            );
            return Err(CniError::new(Code::Conflict, msg)
                .with_details("what is asked for now differs; a DEL releases what is there"));
        }
        let mut reserved = Vec::with_capacity(sets.len());
        for (number, (set, wanted)) in sets.iter().zip(wanted).enumerate() {
            let result = match wanted {
                Some(address) => self.reserve_requested(set, number, address, owner),
                None => self.reserve_next(set, number, owner),
            };
            match result {
                Ok(config) => reserved.push(config),
                Err(error) => return Err(self.undo(&reserved, in_set(number, error))),
            }
        }
        let addresses: Vec<IpAddr> = reserved.iter().map(|config| config.address.address()).collect();
        self.index.insert(owner, &addresses);
        self.seal();
        Ok(reserved)
    }

    /// Removes what this call has reserved; the index does not know of it yet.
    fn undo(&mut self, reserved: &[IpConfig], mut error: CniError) -> CniError {
        let addresses: Vec<IpAddr> = reserved.iter().map(|config| config.address.address()).collect();
        let (_, failures) = self.unlink_all(&addresses);
        if failures.is_empty() {
            self.seal();
        }
        for failure in failures {
            let comma = if error.details.is_empty() { "" } else { "; " };
            error.details = format!("{}{comma}and then: {failure}", error.details);
        }
        error
    }

    fn reserve_requested(
        &mut self,
        set: &RangeSet,
        number: usize,
        address: IpAddr,
        owner: &Owner,
    ) -> Result<IpConfig, CniError> {
        let draft = Draft::write(&self.directory, &self.litter, owner, self.boot.as_ref())?;
        if !draft.publish(address)? {
            // The one place where another's reservation is read: to say whose it is.
            let why = match look(&self.directory, address, None) {
                Found::Owned(other, _) => format!("it is reserved for {other}"),
                _ => "something that is no reservation occupies its file".to_owned(),
            };
            let msg = format!("requested IP address {address} is not available in range set {set}");
            return Err(CniError::new(Code::Exhausted, msg).with_details(why));
        }
        drop(draft);
        LastReserved::open(self, number).write(self, address);
        config_of(set, address)
    }

    fn reserve_next(&mut self, set: &RangeSet, number: usize, owner: &Owner) -> Result<IpConfig, CniError> {
        let last = LastReserved::open(self, number);
        let mut address = self.try_all(set, last.address, owner)?;
        if address.is_none() && !self.index.is_fresh() {
            // The index may hold for taken what is free; before anybody is told that nothing is left, look.
            self.rebuild()?;
            address = self.try_all(set, last.address, owner)?;
        }
        let Some(address) = address else {
            let Usage { ranges, taken, total } = self.usage_of(set);
            let msg = format!("no IP addresses available in range set: {ranges}");
            let details =
                format!("{taken} of {total} addresses are taken in {}", self.directory.path().display());
            return Err(CniError::new(Code::Exhausted, msg).with_details(details));
        };
        last.write(self, address);
        config_of(set, address)
    }

    /// Publishes a reservation of the first address that is free.
    fn try_all(
        &mut self,
        set: &RangeSet,
        last: Option<IpAddr>,
        owner: &Owner,
    ) -> Result<Option<IpAddr>, CniError> {
        let mut draft = None;
        for mut stretch in set.stretches_after(last) {
            while let Some(number) = self.index.first_free(&stretch) {
                let address = to_address(number, stretch.range.subnet().address());
                let draft = match &mut draft {
                    Some(draft) => draft,
                    none => {
                        none.insert(Draft::write(&self.directory, &self.litter, owner, self.boot.as_ref())?)
                    }
                };
                if draft.publish(address)? {
                    return Ok(Some(address));
                }
                self.index.set_taken(address);
                // The address after the very last one of IPv6 does not exist.
                let Some(next) = number.checked_add(1) else { break };
                stretch.first = next;
            }
        }
        Ok(None)
    }
}

/// Which requested address each set is to give. Order of the requests decides where two lie in one set.
fn assign(sets: &[RangeSet], requested: &[IpAddr]) -> Result<Vec<Option<IpAddr>>, CniError> {
    let refuse = |msg: String| Err(CniError::new(Code::Exhausted, msg));
    let mut left = requested.to_vec();
    left.sort_unstable();
    left.dedup();
    left.sort_by_key(|address| requested.iter().position(|it| it == address));
    let mut wanted = Vec::with_capacity(sets.len());
    for (number, set) in sets.iter().enumerate() {
        let place = left.iter().position(|address| set.range_of(*address).is_some());
        let address = place.map(|place| left.remove(place));
        if let Some(address) = address
            && set.range_of(address).is_some_and(|range| range.gateway() == address)
        {
            let msg =
                format!("requested IP address {address} is the gateway of its subnet in range set {set}");
            return Err(in_set(number, CniError::new(Code::Exhausted, msg)));
        }
        wanted.push(address);
    }
    if left.is_empty() {
        return Ok(wanted);
    }
    let list: Vec<String> = left.iter().map(IpAddr::to_string).collect();
    let sets: Vec<String> = sets.iter().map(RangeSet::to_string).collect();
    refuse(format!(
        "failed to allocate all requested IPs: {} cannot be given; an attachment gets one address of each of [{}]",
        list.join(", "),
        sets.join("] [")
    ))
}

/// What an owner has, if that is exactly one address of each set, requested ones among them.
fn match_held(sets: &[RangeSet], wanted: &[Option<IpAddr>], held: &[IpAddr]) -> Option<Vec<IpConfig>> {
    if held.len() != sets.len() {
        return None;
    }
    sets.iter()
        .zip(wanted)
        .map(|(set, wanted)| {
            let address = held.iter().find(|address| set.range_of(**address).is_some())?;
            let suits = wanted.is_none_or(|wanted| wanted == *address);
            suits.then(|| config_of(set, *address).ok())?
        })
        .collect()
}

fn config_of(set: &RangeSet, address: IpAddr) -> Result<IpConfig, CniError> {
    let range = set.range_of(address);
    range
        .and_then(|range| {
            let address = Prefix::new(address, range.subnet().prefix_len())?;
            Some(IpConfig { interface: None, address, gateway: Some(range.gateway()) })
        })
        .ok_or_else(|| CniError::new(Code::Internal, format!("{address} is not in range set {set}")))
}

fn in_set(number: usize, mut error: CniError) -> CniError {
    error.msg = format!("failed to allocate for range {number}: {}", error.msg);
    error
}

/// `last_reserved_ip.<number of the set>`: the address that the set gave last, from where it goes on.
///
/// Written in place: no call fails over it, and half of it only means that the set begins anew.
struct LastReserved {
    name: String,
    file: Option<File>,
    address: Option<IpAddr>,
    len: usize,
}

impl LastReserved {
    fn open(store: &LockedStore, number: usize) -> Self {
        let name = format!("last_reserved_ip.{number}");
        match store.directory.open_file(&name, OFlag::O_RDWR | OFlag::O_CREAT, 0o600) {
            Ok(mut file) => {
                let content = read_all(&mut file).unwrap_or_default();
                let address = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
                Self { name, file: Some(file), address, len: content.len() }
            }
            Err(errno) => {
                log::warn!("{}", store.directory.error("open", &name, errno));
                Self { name, file: None, address: None, len: 0 }
            }
        }
    }

    /// A failure is logged only: the address is reserved all the same.
    fn write(self, store: &LockedStore, address: IpAddr) {
        let Some(file) = self.file else { return };
        let text = address.to_string();
        let written: io::Result<()> = file.write_all_at(text.as_bytes(), 0).and_then(|()| {
            // Not O_TRUNC: ext4 flushes a file that was cut to nothing and written again.
            if text.len() < self.len { file.set_len(text.len() as u64) } else { Ok(()) }
        });
        if let Err(error) = written {
            let errno: Errno = errno_of(&error);
            log::warn!("{}", store.directory.error("write", &self.name, errno));
        }
    }
}
