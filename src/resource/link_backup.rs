//! What a pod's link was before it was tuned, in the file that the reference's `tuning` writes and reads:
//! `<directory>/<container>_<interface>.json`.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::net::netns::Identity;
use crate::net::{Link, Mac};
use crate::private_file;
use crate::spec::json::get;
use crate::spec::{Attachment, CniError, Code};

/// Most bytes that are read of a file; it has a hundred.
const MAX_BYTES: u64 = 64 << 10;

/// Attributes of a link that can be tuned, those that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// Its hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Whether it is asked to receive all packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promisc: Option<bool>,
    /// Its MTU in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether it is asked to receive all multicast packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allmulti: Option<bool>,
    /// The length of its transmit queue in packets.
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    pub tx_queue_len: Option<u32>,
}

impl Attributes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Of a link, those that this has too.
    pub fn of_link(&self, link: &Link) -> Self {
        Self {
            mac: self.mac.and(link.mac),
            promisc: self.promisc.and(Some(link.promiscuous)),
            mtu: self.mtu.and(Some(link.mtu)),
            allmulti: self.allmulti.and(Some(link.all_multicast)),
            tx_queue_len: self.tx_queue_len.and(link.tx_queue_len),
        }
    }

    /// These, and of others those that are not among them.
    fn or(&self, other: &Self) -> Self {
        Self {
            mac: self.mac.or(other.mac),
            promisc: self.promisc.or(other.promisc),
            mtu: self.mtu.or(other.mtu),
            allmulti: self.allmulti.or(other.allmulti),
            tx_queue_len: self.tx_queue_len.or(other.tx_queue_len),
        }
    }

    /// These without those that others have alike.
    fn without(&self, other: &Self) -> Self {
        fn differing<T: PartialEq + Copy>(own: Option<T>, other: Option<T>) -> Option<T> {
            own.filter(|_| own != other)
        }
        Self {
            mac: differing(self.mac, other.mac),
            promisc: differing(self.promisc, other.promisc),
            mtu: differing(self.mtu, other.mtu),
            allmulti: differing(self.allmulti, other.allmulti),
            tx_queue_len: differing(self.tx_queue_len, other.tx_queue_len),
        }
    }

    fn from_json(object: &Map<String, Value>) -> Self {
        let number = |key: &str| get(object, key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        Self {
            mac: get(object, "mac").and_then(Value::as_str).and_then(|text| text.parse().ok()),
            promisc: get(object, "promisc").and_then(Value::as_bool),
            mtu: number("mtu").filter(|mtu| *mtu > 0),
            allmulti: get(object, "allmulti").and_then(Value::as_bool),
            tx_queue_len: number("txQLen"),
        }
    }
}

/// The file of an attachment.
#[derive(Clone, Debug)]
pub(super) struct LinkBackup {
    path: PathBuf,
}

impl LinkBackup {
    /// The file of an attachment's link in a directory; it need not be there.
    pub(super) fn of(attachment: &Attachment, directory: &Path) -> Self {
        let Attachment { container_id, ifname, .. } = attachment;
        Self { path: directory.join(format!("{container_id}_{ifname}.json")) }
    }

    /// What it says of a link of this namespace, or does not say of which; nothing where it is not there, or is no such
    /// file.
    pub(super) fn read(&self, netns: Identity) -> Attributes {
        let document = self.document().filter(|it| !it.contains_key("netns") || is_of(it, netns));
        document.map(|document| Attributes::from_json(&document)).unwrap_or_default()
    }

    /// Adds what a link has been. What is there of the same namespace has been so before, and counts.
    pub(super) fn add(&self, had: &Attributes, netns: Identity) -> Result<(), CniError> {
        let kept = self.document().filter(|document| is_of(document, netns));
        let before = kept.map(|document| Attributes::from_json(&document)).unwrap_or_default();
        self.write(&before.or(had), netns)
    }

    /// Takes out what a link has been, and is again.
    pub(super) fn subtract(&self, had: &Attributes, netns: Identity) -> Result<(), CniError> {
        let left = self.document().filter(|document| is_of(document, netns));
        let left = left.map(|document| Attributes::from_json(&document).without(had)).unwrap_or_default();
        if left.is_empty() { self.delete() } else { self.write(&left, netns) }
    }

    /// Deletes it; that it is not there is fine.
    pub(super) fn delete(&self) -> Result<(), CniError> {
        for path in [&private_file::draft_of(&self.path), &self.path] {
            match private_file::remove_whatever(path) {
                Err(e) if e.kind() != ErrorKind::NotADirectory => return Err(failed("delete", path, &e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn document(&self) -> Option<Map<String, Value>> {
        let file = private_file::open(&self.path).ok()?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES), &mut bytes).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(document)) => Some(document),
            _ => {
                log::warn!("{} does not say what a link was, and is passed over", self.path.display());
                None
            }
        }
    }

    /// Writes it, whole or not at all. The reference passes over the key `netns`.
    fn write(&self, attributes: &Attributes, netns: Identity) -> Result<(), CniError> {
        let mut document = json!(attributes);
        document["netns"] = json!(netns);
        let write = || -> io::Result<()> {
            if let Some(directory) = self.path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            }
            private_file::replace(&self.path, format!("{document:#}").as_bytes())
        };
        write().map_err(|e| failed("write", &self.path, &e))
    }
}

fn is_of(document: &Map<String, Value>, netns: Identity) -> bool {
    document.get("netns") == Some(&json!(netns))
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> CniError {
    CniError::new(Code::State, format!("cannot {verb} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_reference_is_read() {
        let text = r#"{
 "mac": "c2:11:22:33:44:55",
 "promisc": false,
 "mtu": 1454,
 "allmulti": true,
 "txQLen": 0
}"#;
        let Ok(Value::Object(document)) = serde_json::from_str(text) else { panic!() };
        let read = Attributes::from_json(&document);
        let wanted = Attributes {
            mac: "c2:11:22:33:44:55".parse().ok(),
            promisc: Some(false),
            mtu: Some(1454),
            allmulti: Some(true),
            tx_queue_len: Some(0),
        };
        assert_eq!(read, wanted);
        assert_eq!(json!(read), Value::Object(document));
        let Value::Object(odd) = json!({"mac": "80:00:00:01", "mtu": -1, "promisc": "yes"}) else { panic!() };
        assert!(Attributes::from_json(&odd).is_empty());
    }

    #[test]
    fn the_first_entry_of_a_chain_has_the_say() {
        let first = Attributes { mtu: Some(1500), ..Attributes::default() };
        let second = Attributes { mtu: Some(1400), promisc: Some(false), ..Attributes::default() };
        let both = first.or(&second);
        assert_eq!((both.mtu, both.promisc), (Some(1500), Some(false)));
        assert_eq!(both.without(&second), first);
        assert!(first.without(&first).is_empty());
    }
}
