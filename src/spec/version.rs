//! Versions of the CNI specification.

use std::fmt;
use std::str::FromStr;

/// A version of the CNI specification that this suite speaks.
///
/// The order of the variants is the order of the versions, so they compare as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: results with `ip4` and `ip6`.
    V0_1_0,
    /// 0.2.0: adds the VERSION verb.
    V0_2_0,
    /// 0.3.0: results with lists of interfaces, addresses and routes.
    V0_3_0,
    /// 0.3.1: conflists.
    V0_3_1,
    /// 0.4.0: CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: `ips` without `version`.
    V1_0_0,
    /// 1.1.0: GC, STATUS, interface MTU, route metrics.
    V1_1_0,
}

/// Versions whose results have the same shape; a `prevResult` must be of its configuration's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 0.1.0 and 0.2.0.
    Ip4Ip6,
    /// 0.3.0 to 0.4.0.
    Lists,
    /// 1.0.0 and later.
    V1,
}

/// All versions, oldest first: what VERSION answers for plugins without a limit of their own.
pub const ALL: [Version; 7] = [
    Version::V0_1_0,
    Version::V0_2_0,
    Version::V0_3_0,
    Version::V0_3_1,
    Version::V0_4_0,
    Version::V1_0_0,
    Version::V1_1_0,
];

/// The newest version; results are kept in its shape and converted when they are printed.
pub const CURRENT: Version = Version::V1_1_0;

impl Version {
    /// The text that stands in `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The shape of this version's results.
    pub const fn family(self) -> Family {
        match self {
            Self::V0_1_0 | Self::V0_2_0 => Family::Ip4Ip6,
            Self::V0_3_0 | Self::V0_3_1 | Self::V0_4_0 => Family::Lists,
            Self::V1_0_0 | Self::V1_1_0 => Family::V1,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is none of the versions in [`ALL`]. Versions match exactly as text, as in the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVersion(pub String);

impl fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown CNI version {:?}", self.0)
    }
}

impl std::error::Error for UnknownVersion {}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| UnknownVersion(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_back() {
        for version in ALL {
            assert_eq!(version.as_str().parse(), Ok(version));
        }
    }

    #[test]
    fn only_exact_text_is_a_version() {
        for text in ["", "1.1", "v1.1.0", "1.1.0 ", "1.2.0", "01.1.0"] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn versions_are_ordered_by_age() {
        assert!(ALL.is_sorted());
        assert_eq!(ALL.last(), Some(&CURRENT));
    }
}
