//! Ranges of addresses as `host-local` is configured with them: canonical form, and the order of allocation.
//!
//! Pure: what is taken is the business of [`super::store`]. The rules are those of the Go host-local
//! (plugins/ipam/host-local/backend/allocator), since both suites may serve the same configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;

use crate::spec::version::Family;
use crate::spec::{CniError, Prefix, Version, json};

/// A range as somebody wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RangeConf {
    /// The network that the addresses belong to; necessary.
    pub subnet: Option<Prefix>,
    /// First address to hand out; default the network's first.
    #[serde(deserialize_with = "json::address")]
    pub range_start: Option<IpAddr>,
    /// Last address to hand out; default the network's last, for IPv4 the one before the broadcast address.
    #[serde(deserialize_with = "json::address")]
    pub range_end: Option<IpAddr>,
    /// Never handed out; default the network's first address. May lie outside of the network.
    #[serde(deserialize_with = "json::address")]
    pub gateway: Option<IpAddr>,
}

/// A range in canonical form: `start` to `end`, both included, lie in `subnet` and in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: Prefix,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

/// Ranges of one family of which an attachment gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

/// A stretch of addresses to try, in order, without its gateway; ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First address, as a number.
    pub first: u128,
    /// Last address, as a number.
    pub last: u128,
    /// The range that it is a part of.
    pub range: Range,
}

impl Stretch {
    /// The number of the gateway of its range.
    pub fn gateway(&self) -> u128 {
        to_number(self.range.gateway)
    }

    /// Whether its addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.range.subnet.is_ipv4()
    }
}

/// The number of an address within its family.
pub fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The address of a number, in the family of `like`.
pub fn to_address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // Numbers come from addresses of the same family, so nothing is cut off.
        IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

impl Range {
    /// The canonical form of a range; `key` is where it stands in the configuration.
    ///
    /// Errors are of code 7 and name the key, its value, and what would be right.
    pub fn new(conf: &RangeConf, key: &str) -> Result<Self, CniError> {
        let wrong = |field: &str, why: String| CniError::config(format!("{key}.{field}: {why}"));
        let Some(subnet) = conf.subnet else {
            let why = "is missing; wanted is a network such as 10.1.0.0/16".to_owned();
            return Err(wrong("subnet", why));
        };
        let longest = if subnet.is_ipv4() { 30 } else { 126 };
        if subnet.prefix_len() > longest {
            let why = format!(
                "network {subnet} is too small to allocate from; wanted is a prefix length of at most {longest}"
            );
            return Err(wrong("subnet", why));
        }
        let network = subnet.network();
        if network != subnet {
            return Err(wrong("subnet", format!("{subnet} has host bits set; the network is {network}")));
        }
        let first = to_number(network.address());
        let host_bits = if subnet.is_ipv4() { 32 } else { 128 } - subnet.prefix_len();
        let all_ones = first | u128::MAX.checked_shr(128 - u32::from(host_bits)).unwrap_or(0);
        let broadcast = u128::from(subnet.is_ipv4());
        let defaults = (network.first_host(), to_address(all_ones - broadcast, network.address()));
        let start = conf.range_start.unwrap_or(defaults.0);
        let end = conf.range_end.unwrap_or(defaults.1);
        let gateway = conf.gateway.unwrap_or(defaults.0);
        for (field, address) in [("rangeStart", start), ("rangeEnd", end)] {
            if !subnet.contains(address) {
                let why = format!(
                    "{address} is not in network {subnet}; wanted is an address from {} to {}",
                    defaults.0, defaults.1
                );
                return Err(wrong(field, why));
            }
        }
        if to_number(start) > to_number(end) {
            let why = format!("{start} is not in network {subnet} before rangeEnd {end}");
            return Err(wrong("rangeStart", why));
        }
        if gateway.is_ipv4() != subnet.is_ipv4() {
            let why = format!("{gateway} and subnet {subnet} are of different families");
            return Err(wrong("gateway", why));
        }
        Ok(Self { subnet, start, end, gateway })
    }

    /// The network that its addresses belong to.
    pub fn subnet(&self) -> Prefix {
        self.subnet
    }

    /// The network's gateway.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Whether an address is from `start` to `end`; the gateway may be.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.subnet.is_ipv4()
            && (to_number(self.start)..=to_number(self.end)).contains(&to_number(address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4()
            && to_number(self.start) <= to_number(other.end)
            && to_number(other.start) <= to_number(self.end)
    }

    /// How many addresses it can hand out.
    pub fn size(&self) -> u128 {
        let all = (to_number(self.end) - to_number(self.start)).saturating_add(1);
        all - u128::from(self.contains(self.gateway))
    }

    fn stretch(&self, first: u128, last: u128) -> Stretch {
        Stretch { first, last, range: *self }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl RangeSet {
    /// The set of some ranges; `key` is where it stands in the configuration.
    ///
    /// Errors: no range at all, ranges of both families, ranges that share addresses, and those of [`Range::new`].
    pub fn new(confs: &[RangeConf], key: &str) -> Result<Self, CniError> {
        Self::of_keys(confs.iter().enumerate().map(|(i, conf)| (conf, format!("{key}[{i}]"))), key)
    }

    /// The set of a single range that stands at `key` itself, as in the oldest configurations.
    pub fn single(conf: &RangeConf, key: &str) -> Result<Self, CniError> {
        Self::of_keys([(conf, key.to_owned())], key)
    }

    fn of_keys<'a>(
        confs: impl IntoIterator<Item = (&'a RangeConf, String)>,
        key: &str,
    ) -> Result<Self, CniError> {
        let mut ranges: Vec<Range> = Vec::new();
        let mut apart = Apart::default();
        for (conf, own_key) in confs {
            let range = Range::new(conf, &own_key)?;
            if let Some(first) = ranges.first()
                && first.subnet.is_ipv4() != range.subnet.is_ipv4()
            {
                return Err(CniError::config(format!(
                    "{own_key}.subnet: mixed address families: {} cannot be in one range set with {}; \
                     each family needs a set of its own",
                    range.subnet, first.subnet
                )));
            }
            if let Err(Overlap { other, .. }) = apart.insert(range, key) {
                let msg = format!("{own_key}: range {range} overlaps with {other} of the same range set");
                return Err(CniError::config(msg));
            }
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(CniError::config(format!("{key}: empty range set; wanted is at least one range")));
        }
        Ok(Self { ranges })
    }

    /// Its ranges; at least one.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Whether its addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.ranges.iter().any(|range| range.subnet.is_ipv4())
    }

    /// The range that an address is in.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// How many addresses it can hand out.
    pub fn size(&self) -> u128 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.size()))
    }

    /// All its addresses as stretches, in the order in which they are tried after `last` was handed out.
    ///
    /// Round robin: from the address after `last` to the end of its range, the other ranges, then the beginning of
    /// its range; `last` itself comes at the very end. If `last` is in no range, they are tried as they stand.
    pub fn stretches_after(&self, last: Option<IpAddr>) -> Vec<Stretch> {
        let whole = |range: &Range| range.stretch(to_number(range.start), to_number(range.end));
        let found =
            last.and_then(|last| Some((last, self.ranges.iter().position(|range| range.contains(last))?)));
        let Some((last, index)) = found else {
            return self.ranges.iter().map(whole).collect();
        };
        let (before, from) = self.ranges.split_at(index);
        let mut stretches = Vec::with_capacity(self.ranges.len() + 1);
        if let Some((own, after)) = from.split_first() {
            let (last, end) = (to_number(last), to_number(own.end));
            if last < end {
                stretches.push(own.stretch(last + 1, end));
            }
            stretches.extend(after.iter().chain(before).map(whole));
            stretches.push(own.stretch(to_number(own.start), last));
        }
        stretches
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            fmt::Display::fmt(range, f)?;
        }
        Ok(())
    }
}

/// Checks what concerns several sets: that there are some, that they share no address, and that a version whose
/// results have room for one address of each family is not asked for more. Each set comes with its key.
pub fn check_sets(sets: &[(String, RangeSet)], version: Version) -> Result<(), CniError> {
    if sets.is_empty() {
        return Err(CniError::config("no IP ranges specified").with_details(
            "the ipam configuration needs \"ranges\", such as [[{\"subnet\": \"10.1.0.0/16\"}]], or \"subnet\"",
        ));
    }
    let ipv4 = sets.iter().filter(|(_, set)| set.is_ipv4()).count();
    check_room(version, ipv4, sets.len() - ipv4)?;
    let mut apart = Apart::default();
    for (key, set) in sets {
        for range in &set.ranges {
            if let Err(Overlap { other, key: other_key }) = apart.insert(*range, key) {
                let msg = format!("{key}: range {range} overlaps with {other} of {other_key}");
                return Err(CniError::config(msg));
            }
        }
    }
    Ok(())
}

/// Ranges that share no address, by family and first address, each with the key that it is known by. To compare each
/// with each would take seconds for as many as a configuration has room for.
#[derive(Default)]
struct Apart<'a>(BTreeMap<(bool, u128), (Range, &'a str)>);

/// A range that is in the way of another.
struct Overlap<'a> {
    other: Range,
    key: &'a str,
}

impl<'a> Apart<'a> {
    fn insert(&mut self, range: Range, key: &'a str) -> Result<(), Overlap<'a>> {
        let place = |address| (range.subnet.is_ipv4(), to_number(address));
        // Since they share no address, the last that begins before this one's end is the only one that can reach it.
        match self.0.range(..=place(range.end)).next_back() {
            Some((_, (other, key))) if other.overlaps(&range) => Err(Overlap { other: *other, key }),
            _ => {
                self.0.insert(place(range.start), (range, key));
                Ok(())
            }
        }
    }
}

/// Checks that results of a version have room for that many addresses.
pub(super) fn check_room(version: Version, ipv4: usize, ipv6: usize) -> Result<(), CniError> {
    if version.family() != Family::Ip4Ip6 || (ipv4 <= 1 && ipv6 <= 1) {
        return Ok(());
    }
    let msg = format!("CNI version {version} does not support more than 1 address per family");
    Err(CniError::config(msg).with_details("cniVersion 0.3.0 and later do"))
}

#[cfg(test)]
mod tests;
