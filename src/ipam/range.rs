//! Ranges of addresses as `host-local` is configured with them: canonical form, and the order of allocation.
//!
//! Pure: what is taken is the business of [`super::store`]. The rules are those of the Go host-local
//! (plugins/ipam/host-local/backend/allocator), since both suites may serve the same configuration.

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
            if let Some(other) = ranges.iter().find(|other| other.overlaps(&range)) {
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
    if version.family() == Family::Ip4Ip6 {
        let ipv4 = sets.iter().filter(|(_, set)| set.is_ipv4()).count();
        if ipv4 > 1 || sets.len() - ipv4 > 1 {
            return Err(too_many_addresses(version));
        }
    }
    for (i, (key, set)) in sets.iter().enumerate() {
        for (other_key, other) in sets.iter().take(i) {
            for range in &set.ranges {
                if let Some(same) = other.ranges.iter().find(|same| same.overlaps(range)) {
                    return Err(CniError::config(format!(
                        "{key}: range {range} overlaps with {same} of {other_key}"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// The error for more than one address per family where the version has no room for them.
pub(super) fn too_many_addresses(version: Version) -> CniError {
    CniError::config(format!("CNI version {version} does not support more than 1 address per family"))
        .with_details("cniVersion 0.3.0 and later do")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn conf(subnet: &str, start: &str, end: &str, gateway: &str) -> RangeConf {
        let address = |s: &str| (!s.is_empty()).then(|| s.parse().unwrap());
        RangeConf {
            subnet: Some(subnet.parse().unwrap()),
            range_start: address(start),
            range_end: address(end),
            gateway: address(gateway),
        }
    }

    fn set(confs: &[RangeConf]) -> RangeSet {
        RangeSet::new(confs, "ipam.ranges[0]").unwrap()
    }

    fn refused(confs: &[RangeConf]) -> String {
        let error = RangeSet::new(confs, "ipam.ranges[0]").unwrap_err();
        assert_eq!(error.code, 7);
        error.msg
    }

    /// The addresses in order of allocation, gateways left out, as the store walks them.
    fn order(set: &RangeSet, last: &str) -> Vec<String> {
        let like = set.ranges()[0].subnet().address();
        set.stretches_after(last.parse().ok())
            .iter()
            .flat_map(|s| (s.first..=s.last).filter(|&n| n != s.gateway()))
            .map(|n| to_address(n, like).to_string())
            .collect()
    }

    #[test]
    fn defaults() {
        for (subnet, text, gateway) in [
            ("192.0.2.0/24", "192.0.2.1-192.0.2.254", "192.0.2.1"),
            ("192.0.2.128/25", "192.0.2.129-192.0.2.254", "192.0.2.129"),
            ("2001:db8:1::/64", "2001:db8:1::1-2001:db8:1:0:ffff:ffff:ffff:ffff", "2001:db8:1::1"),
            ("0.0.0.0/0", "0.0.0.1-255.255.255.254", "0.0.0.1"),
            ("::/0", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1"),
        ] {
            let range = Range::new(&conf(subnet, "", "", ""), "k").unwrap();
            assert_eq!((range.to_string(), range.gateway().to_string()), (text.into(), gateway.into()));
        }
    }

    #[test]
    fn errors_name_key_value_and_remedy() {
        assert_eq!(
            refused(&[conf("192.0.2.12/24", "", "", "")]),
            "ipam.ranges[0][0].subnet: 192.0.2.12/24 has host bits set; the network is 192.0.2.0/24"
        );
        assert!(refused(&[conf("192.0.2.0/31", "", "", "")]).contains("too small"));
        assert!(refused(&[conf("2001:db8::/127", "", "", "")]).contains("at most 126"));
        assert!(
            refused(&[conf("192.0.2.0/24", "192.0.3.1", "", "")])
                .contains("rangeStart: 192.0.3.1 is not in network 192.0.2.0/24")
        );
        assert!(refused(&[conf("192.0.2.0/24", "", "192.0.3.1", "")]).contains("rangeEnd: 192.0.3.1"));
        assert!(refused(&[conf("192.0.2.0/24", "", "2001:db8::1", "")]).contains("rangeEnd: 2001:db8::1"));
        assert!(
            refused(&[conf("192.0.2.0/24", "192.0.2.50", "192.0.2.40", "")])
                .contains("rangeStart: 192.0.2.50")
        );
        assert!(refused(&[conf("192.0.2.0/24", "", "", "2001:db8::1")]).contains("different families"));
        assert!(refused(&[RangeConf::default()]).contains("subnet: is missing"));
        assert!(refused(&[]).contains("empty range set"));
        assert!(
            refused(&[conf("192.0.2.0/24", "", "", ""), conf("2001:db8::/64", "", "", "")])
                .contains("mixed address families")
        );
        assert!(
            refused(&[conf("192.0.2.0/24", "", "", ""), conf("192.0.2.128/25", "", "", "")])
                .contains("overlaps")
        );
    }

    #[test]
    fn a_gateway_may_lie_outside() {
        let range = Range::new(&conf("192.0.2.0/24", "192.0.2.9", "192.0.2.11", "192.0.9.1"), "k").unwrap();
        assert_eq!(range.size(), 3);
    }

    #[test]
    fn sets_are_checked_together() {
        let sets = |list: &[&str]| -> Vec<(String, RangeSet)> {
            list.iter()
                .enumerate()
                .map(|(i, s)| (format!("ipam.ranges[{i}]"), set(&[conf(s, "", "", "")])))
                .collect()
        };
        let old = Version::V0_2_0;
        assert_eq!(check_sets(&[], old).unwrap_err().msg, "no IP ranges specified");
        check_sets(&sets(&["192.0.2.0/24", "2001:db8::/64"]), old).unwrap();
        let two = sets(&["192.0.2.0/24", "198.51.100.0/24"]);
        assert_eq!(
            check_sets(&two, old).unwrap_err().msg,
            "CNI version 0.2.0 does not support more than 1 address per family"
        );
        check_sets(&two, Version::V0_3_0).unwrap();
        let error = check_sets(&sets(&["192.0.0.0/16", "192.0.2.0/24"]), Version::V1_0_0).unwrap_err();
        assert_eq!(
            error.msg,
            "ipam.ranges[1]: range 192.0.2.1-192.0.2.254 overlaps with 192.0.0.1-192.0.255.254 of ipam.ranges[0]"
        );
    }

    #[test]
    fn round_robin() {
        let one = set(&[conf("10.0.0.0/29", "", "", "")]);
        assert_eq!(order(&one, ""), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(order(&one, "10.0.0.4"), ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(order(&one, "10.0.0.6"), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(order(&one, "10.0.9.9"), order(&one, ""));
        assert_eq!(order(&one, "2001:db8::1"), order(&one, ""));
        let two = set(&[conf("10.0.0.0/30", "", "", ""), conf("10.0.1.0/29", "10.0.1.3", "10.0.1.5", "")]);
        assert_eq!(order(&two, "10.0.1.5"), ["10.0.0.2", "10.0.1.3", "10.0.1.4", "10.0.1.5"]);
        assert_eq!(order(&two, "10.0.1.3"), ["10.0.1.4", "10.0.1.5", "10.0.0.2", "10.0.1.3"]);
        assert_eq!(order(&two, "10.0.0.2"), ["10.0.1.3", "10.0.1.4", "10.0.1.5", "10.0.0.2"]);
    }

    proptest! {
        #[test]
        fn any_range_is_refused_or_in_order(bits: u128, len in 0u8..=128, start: u128, end: u128, v4: bool) {
            let like: IpAddr = if v4 { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
            let len = if v4 { len % 33 } else { len };
            let subnet = Prefix::new(to_address(bits, like), len).unwrap().network();
            let conf = RangeConf {
                subnet: Some(subnet),
                range_start: Some(to_address(start, like)).filter(|_| start % 2 == 0),
                range_end: Some(to_address(end, like)).filter(|_| end % 2 == 0),
                gateway: None,
            };
            if let Ok(range) = Range::new(&conf, "k") {
                prop_assert!(to_number(range.start) <= to_number(range.end));
                prop_assert!(subnet.contains(range.start) && subnet.contains(range.end));
            }
        }

        #[test]
        fn every_address_is_tried_once_and_the_last_one_last(
            offsets in proptest::collection::vec((0u32..40, 1u32..20), 1..4),
            last in 0u32..300,
        ) {
            let confs: Vec<RangeConf> = offsets
                .iter()
                .enumerate()
                .map(|(i, &(start, len))| {
                    let at = |n: u32| IpAddr::V4((0x0a00_0000 + 100 * i as u32 + n).into());
                    RangeConf {
                        subnet: Some("10.0.0.0/16".parse().unwrap()),
                        range_start: Some(at(start)),
                        range_end: Some(at(start + len)),
                        gateway: None,
                    }
                })
                .collect();
            let set = set(&confs);
            let last = IpAddr::V4((0x0a00_0000 + last).into());
            let tried: Vec<IpAddr> = set
                .stretches_after(Some(last))
                .iter()
                .flat_map(|s| s.first..=s.last)
                .map(|n| to_address(n, last))
                .collect();
            let mut sorted = tried.clone();
            sorted.sort();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), tried.len());
            let offered: u32 = offsets.iter().map(|&(_, len)| len + 1).sum();
            prop_assert_eq!(tried.len(), offered as usize);
            if set.range_of(last).is_some() {
                prop_assert_eq!(tried.last(), Some(&last));
            }
        }
    }
}
