//! Hardware addresses of Ethernet.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A hardware address of six bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address that ends in these five bytes.
    pub fn local(bytes: [u8; 5]) -> Self {
        let [a, b, c, d, e] = bytes;
        Self([0x0a, a, b, c, d, e])
    }

    /// Whether an interface may have it: neither multicast nor all zeros (`is_valid_ether_addr`,
    /// linux/etherdevice.h).
    pub fn is_valid(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is no hardware address of six bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidMac(pub String);

impl fmt::Display for InvalidMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid MAC address {:?}: want six bytes such as 02:00:5e:00:53:01", self.0)
    }
}

impl std::error::Error for InvalidMac {}

impl FromStr for Mac {
    type Err = InvalidMac;

    /// Takes the forms that Go's `net.ParseMAC` takes for six bytes: `:` or `-` between bytes, `.` between pairs.
    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let (separator, width) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let parts: Vec<&str> = text.split(separator).collect();
        if parts.len() * width != 12 || parts.iter().any(|p| p.len() != width || !p.is_ascii()) {
            return Err(invalid());
        }
        let digits: String = parts.concat();
        let mut bytes = [0; 6];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let pair = digits.get(2 * i..2 * i + 2).filter(|p| p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(pair.ok_or_else(invalid)?, 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_go_are_read() {
        for text in ["02:00:5e:00:53:AF", "02-00-5e-00-53-af", "0200.5e00.53af"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), "02:00:5e:00:53:af");
        }
    }

    #[test]
    fn other_text_is_not() {
        for text in [
            "",
            "02:00:5e:00:53",
            "02:00:5e:00:53:a",
            "02:00:5e:00:53:zz",
            "02:00:5e:00:53:01:02",
            "+2:00:5e:00:53:01",
            "é",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn interfaces_have_unicast_addresses() {
        assert!(Mac::local([1, 2, 3, 4, 5]).is_valid());
        assert!(!Mac([0; 6]).is_valid() && !Mac([1, 0, 0, 0, 0, 1]).is_valid());
    }
}
