//! Where the rules of pods are in a chain that has those of all pods, so that nobody has to read it.
//!
//! nf_tables finds a rule by its handle, and tells that only when the rule is made. So an attachment has a file with the
//! handles of its rules. It is there before them and goes after them; who has none has no rules. What a file says is
//! not believed, but looked at: where it is not so any more, the chain is read after all.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::super::owner::Owner;
use crate::net::iptables::Protocol;
use crate::private_file;
use crate::spec::digest::sha512_hex;
use crate::spec::{CniError, Code};

/// Where the files are, below the state directory.
const DIRECTORY: &str = "admitted";

/// The files about an attachment's rules of a protocol.
#[derive(Debug)]
pub(super) struct Places {
    directory: PathBuf,
    start: &'static str,
    own: PathBuf,
    admin: PathBuf,
}

/// What they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The handles of the attachment's own rules; none where nobody was told, and nothing where it has no rules.
    pub(super) own: Option<Vec<u64>>,
    /// That of the rule which leads to the administrator's chain. Where this is known, all others have files.
    pub(super) admin: Option<u64>,
}

impl Places {
    /// The files of an owner, where the administrator's chain has this name.
    pub(super) fn new(state: &Path, protocol: Protocol, owner: &Owner, admin_chain: &str) -> Self {
        let directory = state.join(DIRECTORY);
        let start = match protocol {
            Protocol::Ipv4 => "ip",
            Protocol::Ipv6 => "ip6",
        };
        let own = directory.join(file_name(start, owner));
        let admin = directory.join(format!("{start}_{}", sha512_hex(&[admin_chain], 32)));
        Self { directory, start, own, admin }
    }

    /// What is known. What cannot be read is as if nobody had been told.
    pub(super) fn read(&self) -> Known {
        let own = match private_file::open(&self.own).and_then(io::read_to_string) {
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            outcome => Some(outcome.ok().and_then(|text| parse(&text)).unwrap_or_default()),
        };
        let admin = private_file::open(&self.admin).and_then(io::read_to_string).ok();
        let admin = admin.and_then(|text| parse(&text)).and_then(|handles| handles.first().copied());
        Known { own, admin }
    }

    /// Whether an owner has a file.
    pub(super) fn has(&self, owner: &Owner) -> bool {
        self.directory.join(file_name(self.start, owner)).exists()
    }

    /// Makes the file of the attachment's own rules, which are about to be made.
    ///
    /// Errors: code 105 for the file.
    pub(super) fn begin(&self) -> Result<File, CniError> {
        let made = match private_file::create(&self.own, b"") {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
                made.and_then(|()| private_file::create(&self.own, b""))
            }
            outcome => outcome,
        };
        made.map_err(|e| failed("create", &self.own, &e))
    }

    /// Keeps the handles of the attachment's own rules, in the file that was begun if it is new.
    ///
    /// Errors: code 105 for the file.
    pub(super) fn keep_own(&self, begun: Option<File>, handles: &[u64]) -> Result<(), CniError> {
        let kept = match begun {
            Some(mut file) => file.write_all(written(handles).as_bytes()),
            None => private_file::replace(&self.own, written(handles).as_bytes()),
        };
        kept.map_err(|e| failed("write", &self.own, &e))
    }

    /// Keeps the handle of the rule that leads to the administrator's chain.
    ///
    /// Errors: code 105 for the file.
    pub(super) fn keep_admin(&self, handle: u64) -> Result<(), CniError> {
        let kept = private_file::replace(&self.admin, written(&[handle]).as_bytes());
        kept.map_err(|e| failed("write", &self.admin, &e))
    }

    /// Removes what is kept of the attachment's rules, which are gone.
    ///
    /// Errors: code 105 for the file.
    pub(super) fn forget(&self) -> Result<(), CniError> {
        private_file::remove_whatever(&self.own).map_err(|e| failed("remove", &self.own, &e))
    }
}

fn file_name(start: &str, owner: &Owner) -> String {
    format!("{start}-{}", sha512_hex(&[owner.as_str()], 32))
}

/// Ends with a dot, so that one that is cut off is seen to be.
fn written(handles: &[u64]) -> String {
    let words: Vec<String> = handles.iter().map(u64::to_string).collect();
    format!("{}.\n", words.join(" "))
}

fn parse(text: &str) -> Option<Vec<u64>> {
    text.strip_suffix(".\n")?.split_whitespace().map(|word| word.parse().ok()).collect()
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> CniError {
    CniError::new(Code::State, format!("cannot {verb} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn handles_are_read_as_they_were_written() {
        for handles in [&[][..], &[7], &[7, u64::MAX]] {
            assert_eq!(parse(&written(handles)).as_deref(), Some(handles));
        }
        for text in ["", "7 8", "7 8\n", "7 x.\n", "7 8.", "-1.\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_there_or_damaged_is_told_apart() {
        let state = std::env::temp_dir().join(format!("bridgehead-places-{}", std::process::id()));
        let owner = Owner::from_comment("net/a/eth0".to_owned());
        let places = Places::new(&state, Protocol::Ipv4, &owner, "CNI-ADMIN");
        assert_eq!(places.read(), Known::default());
        let begun = places.begin().unwrap();
        assert_eq!(places.read(), Known { own: Some(vec![]), admin: None });
        places.keep_own(Some(begun), &[3]).unwrap();
        places.keep_own(None, &[3, 4]).unwrap();
        places.keep_admin(2).unwrap();
        assert_eq!(places.read(), Known { own: Some(vec![3, 4]), admin: Some(2) });
        assert!(places.has(&owner) && !places.has(&Owner::from_comment("net/b/eth0".to_owned())));
        fs::write(&places.own, "3 ").unwrap();
        fs::write(&places.admin, "x").unwrap();
        assert_eq!(places.read(), Known { own: Some(vec![]), admin: None });
        places.forget().unwrap();
        assert_eq!(places.read().own, None);
        fs::remove_dir_all(state).unwrap();
    }
}
