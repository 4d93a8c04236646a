//! firewalld by its D-Bus interface (firewalld.dbus(5)): addresses as sources of a zone, in what it has at run time.

use nix::errno::Errno;

use super::dbus::{Answer, Bus, Method};
use super::{Error, Result};

/// Its name on the bus, and its object.
const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONE: &str = "org.fedoraproject.FirewallD1.zone";

/// What its errors begin with if what is to be done is done already: an address is in the zone, or in none.
const ALREADY_IN: &str = "ZONE_ALREADY_SET";
const NOT_IN: [&str; 3] = ["UNKNOWN_SOURCE", "ZONE_CONFLICT", "INVALID_ZONE"];

/// A firewalld that runs.
#[derive(Debug)]
pub struct Firewalld(Bus);

impl Firewalld {
    /// The one that runs; `None` if none does. Where there is no bus, that is one system call.
    ///
    /// # Errors
    ///
    /// If the bus does not answer.
    pub fn find() -> Result<Option<Self>> {
        let Some(mut bus) = Bus::open()? else { return Ok(None) };
        Ok(bus.has_owner(NAME)?.then_some(Self(bus)))
    }

    /// Whether an address is a source of a zone. Addresses are as firewalld has them: with a prefix length.
    ///
    /// # Errors
    ///
    /// If there is no such zone, or firewalld does not answer.
    pub fn has_source(&mut self, zone: &str, address: &str) -> Result<bool> {
        match self.0.call(method("querySource"), &[zone, address])? {
            Answer::Done(answer) => Ok(answer == Some(true)),
            Answer::Refused(_, text) => Err(refused(format!("look for {address} in zone {zone}"), text)),
        }
    }

    /// Makes an address a source of a zone.
    ///
    /// # Errors
    ///
    /// If there is no such zone, if the address is another zone's, or if firewalld does not answer.
    pub fn add_source(&mut self, zone: &str, address: &str) -> Result<()> {
        match self.0.call(method("addSource"), &[zone, address])? {
            Answer::Refused(_, text) if !text.starts_with(ALREADY_IN) => {
                Err(refused(format!("add {address} to zone {zone}"), text))
            }
            _ => Ok(()),
        }
    }

    /// Takes an address out of a zone. That it is not in there is fine.
    ///
    /// # Errors
    ///
    /// If firewalld does not answer, or refuses.
    pub fn remove_source(&mut self, zone: &str, address: &str) -> Result<()> {
        match self.0.call(method("removeSource"), &[zone, address])? {
            Answer::Refused(_, text) if !NOT_IN.iter().any(|start| text.starts_with(start)) => {
                Err(refused(format!("take {address} out of zone {zone}"), text))
            }
            _ => Ok(()),
        }
    }
}

fn method(member: &str) -> Method<'_> {
    Method { destination: NAME, path: PATH, interface: ZONE, member }
}

fn refused(deed: String, text: String) -> Error {
    Error { text, ..Error::new(format!("{deed} of firewalld"), Errno::EIO) }
}
