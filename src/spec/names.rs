//! Which names are allowed (specification section 2 and libcni's `pkg/utils`).

use std::fmt;

/// Most bytes of an interface's name (`IFNAMSIZ` of linux/if.h less its NUL).
const MAX_IFNAME: usize = 15;

/// Most bytes of a file's name (`NAME_MAX` of linux/limits.h).
const MAX_FILE_NAME: usize = 255;

/// Why a name is refused; reads as the end of a sentence that begins with the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadName {
    /// It is empty.
    Empty,
    /// It is longer than this number of bytes.
    TooLong(usize),
    /// It is `.` or `..`, or one that stands for several interfaces below /proc/sys/net.
    Reserved,
    /// It has a character that does not belong there.
    Character(char),
    /// It does not begin with a letter or digit.
    Beginning(char),
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("is empty"),
            Self::TooLong(most) => write!(f, "is longer than the {most} bytes that Linux allows"),
            Self::Reserved => f.write_str("is a reserved name"),
            Self::Character(c) => write!(f, "has the character {c:?}, which is not allowed"),
            Self::Beginning(c) => write!(f, "begins with {c:?}; it must begin with a letter or digit"),
        }
    }
}

/// Container IDs and network names: a letter or digit, then letters, digits, `_`, `.` and `-`.
pub fn check_identifier(name: &str) -> Result<(), BadName> {
    let mut chars = name.chars();
    match chars.next() {
        None => return Err(BadName::Empty),
        Some(c) if !c.is_ascii_alphanumeric() => return Err(BadName::Beginning(c)),
        Some(_) => {}
    }
    match chars.find(|&c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))) {
        Some(c) => Err(BadName::Character(c)),
        None => Ok(()),
    }
}

/// Network names: those, as far as a directory can have them, since reservations, records and results are kept by them.
pub fn check_network(name: &str) -> Result<(), BadName> {
    if name.len() > MAX_FILE_NAME {
        return Err(BadName::TooLong(MAX_FILE_NAME));
    }
    check_identifier(name)
}

/// Interface names: what the kernel's `dev_valid_name` (net/core/dev.c) takes, but for a `%`, which begins a pattern
/// there, so that the interface gets another name or none; and for those that `sysctl_dev_name_is_allowed` (net/ip.h)
/// refuses.
pub fn check_ifname(name: &str) -> Result<(), BadName> {
    if name.is_empty() {
        return Err(BadName::Empty);
    }
    if name.len() > MAX_IFNAME {
        return Err(BadName::TooLong(MAX_IFNAME));
    }
    if matches!(name, "." | ".." | "all" | "default") {
        return Err(BadName::Reserved);
    }
    match name.chars().find(|&c| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace()) {
        Some(c) => Err(BadName::Character(c)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_networks_name_is_that_of_a_directory() {
        assert_eq!(check_network(&"n".repeat(255)), Ok(()));
        assert_eq!(check_network(&"n".repeat(256)), Err(BadName::TooLong(255)));
        assert_eq!(check_network(".."), Err(BadName::Beginning('.')));
    }

    #[test]
    fn identifiers() {
        for good in ["a", "0", "a.b_c-d", "cnitool-77383ca0a0715733ca6f", &"x".repeat(300)] {
            assert_eq!(check_identifier(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a/b", "a b", "ä", "a\n", "a:b"] {
            assert!(check_identifier(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ifnames() {
        for good in ["e", "eth0", "exactly15bytes.", "a-b_c.d", "ä"] {
            assert_eq!(check_ifname(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "a\u{a0}b",
            "sixteen.bytes..1",
            "a%d",
            "%",
            "all",
            "default",
        ] {
            assert!(check_ifname(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_identifier_never_leaves_its_directory(name in "\\PC*") {
            if check_identifier(&name).is_ok() {
                prop_assert!(!name.contains('/') && !name.starts_with('.'));
            }
        }
    }
}
