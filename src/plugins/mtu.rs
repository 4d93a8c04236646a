//! The key `mtu`, of plugins that make veth pairs and of others.

use serde_json::Value;

use crate::resource::World;
use crate::spec::CniError;
use crate::spec::result::IpConfig;

/// Smallest MTU that IPv4 allows (RFC 791).
pub(super) const MTU_MIN: u32 = 68;
/// That, and the largest that a veth has.
const MTU: std::ops::RangeInclusive<u32> = MTU_MIN..=65535;
/// Smallest MTU that IPv6 allows (RFC 8200).
const MTU_IPV6: u32 = 1280;
/// MTU of Ethernet: what the kernel gives a bridge, a veth and a dummy if nobody says.
pub(super) const MTU_DEFAULT: u32 = 1500;

/// Which MTU is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mtu {
    /// The kernel's choice.
    Default,
    /// That of the link by which the host's default route leaves.
    Auto,
    /// This one, in bytes.
    Fixed(u32),
}

impl Mtu {
    /// Reads the key: a number, `"auto"`, or nothing.
    pub(super) fn parse(value: &Value) -> Result<Self, CniError> {
        match value {
            Value::Null => Ok(Mtu::Default),
            Value::String(text) if text == "auto" => Ok(Mtu::Auto),
            Value::Number(number) if number.as_u64() == Some(0) => Ok(Mtu::Default),
            Value::Number(number) => number
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| MTU.contains(n))
                .map(Mtu::Fixed)
                .ok_or_else(|| wrong_mtu(value)),
            _ => Err(wrong_mtu(value)),
        }
    }

    /// The number of bytes, if it is not left to the kernel.
    pub(super) fn decide(self, world: &mut World<'_>) -> anyhow::Result<Option<u32>> {
        Ok(match self {
            Self::Default => None,
            Self::Fixed(mtu) => Some(mtu),
            Self::Auto => {
                let host = world.host()?;
                let uplink = match host.default_route_link()? {
                    Some(index) => host.link_by_index(index)?,
                    None => None,
                };
                uplink.map(|link| link.mtu)
            }
        })
    }

    /// What an interface must have of which the result says that it has `told`.
    pub(super) fn expected(self, told: Option<u32>) -> Option<u32> {
        match self {
            Self::Fixed(mtu) => Some(mtu),
            // What was chosen then is in the result, if its version can say so.
            Self::Auto | Self::Default => told,
        }
    }
}

/// The error for an MTU that is too small for the addresses that go with it.
pub(super) fn check_ipv6(mtu: Option<u32>, ips: &[IpConfig]) -> Result<(), CniError> {
    match mtu.filter(|mtu| *mtu < MTU_IPV6) {
        Some(mtu) if ips.iter().any(|ip| ip.address.is_ipv6()) => {
            Err(CniError::config(format!("mtu: {mtu} is too small for IPv6, which needs {MTU_IPV6}")))
        }
        _ => Ok(()),
    }
}

fn wrong_mtu(value: &Value) -> CniError {
    let (low, high) = (MTU.start(), MTU.end());
    CniError::config(format!(
        "mtu: the value {value} is wrong; wanted is a number from {low} to {high}, 0 for the kernel's choice, or \"auto\""
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mtu_is_a_number_or_auto() {
        assert_eq!(Mtu::parse(&json!(null)), Ok(Mtu::Default));
        assert_eq!(Mtu::parse(&json!(0)), Ok(Mtu::Default));
        assert_eq!(Mtu::parse(&json!("auto")), Ok(Mtu::Auto));
        assert_eq!(Mtu::parse(&json!(1400)), Ok(Mtu::Fixed(1400)));
        for bad in [json!(-1), json!(67), json!(65536), json!("1400"), json!(1.5), json!([])] {
            assert!(Mtu::parse(&bad).is_err(), "{bad}");
        }
    }
}
