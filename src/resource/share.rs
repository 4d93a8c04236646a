//! What attachments share and what is to go with the last of them: who it is that shares it.
//!
//! Each has a file in a directory of the thing's own, so that nobody has to be counted: the directory can be removed
//! when it is empty. That state lives as long as the boot, as do the kernel's tables.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Ensured, World};
use crate::ipam::flock::{Held, Mode};
use crate::private_file;
use crate::spec::digest::sha512_hex;
use crate::spec::{Attachment, CniError, Code};

/// Where shares are, below the state directory.
const DIRECTORY: &str = "shared";

/// A turn to look at something that is shared and to change it, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    root: PathBuf,
    _lock: Held,
}

impl Turn {
    /// Waits for the turn, as long as `lockTimeout` says.
    ///
    /// Errors: code 11 naming who has it; code 105 for the file.
    pub(super) fn take(world: &World<'_>) -> Result<Self, CniError> {
        let patience = world.request.config.lock_timeout().unwrap_or(Duration::from_secs(10));
        let root = world.state.join(DIRECTORY);
        let path = root.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        let file = match options.open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make_directory(&root)?;
                options.open(&path).map_err(|e| failed("open", &path, &e))?
            }
            outcome => outcome.map_err(|e| failed("open", &path, &e))?,
        };
        let lock = Held::take(file, &path, Mode::Exclusive, Instant::now() + patience)?;
        Ok(Self { root, _lock: lock })
    }

    /// Says that an attachment shares a thing from now on. `thing` is a file name.
    ///
    /// Errors: code 105 for the file.
    pub(super) fn join(&self, thing: &str, attachment: &Attachment) -> Result<Ensured, CniError> {
        let directory = self.root.join(thing);
        make_directory(&directory)?;
        let path = directory.join(file_name(attachment));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        match options.open(&path) {
            Ok(mut file) => {
                let Attachment { network, container_id, ifname } = attachment;
                let text = format!("{network}\n{container_id}\n{ifname}\n");
                file.write_all(text.as_bytes()).map_err(|e| failed("write", &path, &e))?;
                Ok(Ensured::Created)
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(Ensured::Present),
            Err(e) => Err(failed("write", &path, &e)),
        }
    }

    /// Says that an attachment does not share a thing any more. Whether nobody does now.
    ///
    /// Errors: code 105 for the file.
    pub(super) fn leave(&self, thing: &str, attachment: &Attachment) -> Result<bool, CniError> {
        let directory = self.root.join(thing);
        let path = directory.join(file_name(attachment));
        match fs::remove_file(&path) {
            Err(e) if !is_absent(&e) => return Err(failed("remove", &path, &e)),
            _ => {}
        }
        match fs::remove_dir(&directory) {
            Ok(()) => Ok(true),
            Err(e) if is_absent(&e) => Ok(true),
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(e) => Err(failed("remove", &directory, &e)),
        }
    }
}

/// The attachments to a network that share something, each with the name of the thing. For a GC.
///
/// Errors: code 105 where the directory cannot be read.
pub(super) fn sharers(network: &str, state: &Path) -> Result<Vec<(String, Attachment)>, CniError> {
    let root = state.join(DIRECTORY);
    let mut found = Vec::new();
    for thing in names(&root)? {
        for name in names(&root.join(&thing))? {
            let Ok(text) = fs::read_to_string(root.join(&thing).join(&name)) else { continue };
            let [of, container_id, ifname] = text.lines().collect::<Vec<_>>()[..] else { continue };
            if of == network {
                let attachment = Attachment {
                    network: of.to_owned(),
                    container_id: container_id.to_owned(),
                    ifname: ifname.to_owned(),
                };
                found.push((thing.clone(), attachment));
            }
        }
    }
    Ok(found)
}

fn names(directory: &Path) -> Result<Vec<String>, CniError> {
    let names = private_file::names_in(directory).map_err(|e| failed("list", directory, &e))?;
    Ok(names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect())
}

fn make_directory(path: &Path) -> Result<(), CniError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| failed("create", path, &e))
}

fn file_name(attachment: &Attachment) -> String {
    let Attachment { network, container_id, ifname } = attachment;
    sha512_hex(&[network, "/", container_id, "/", ifname], 32)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> CniError {
    CniError::new(Code::State, format!("cannot {verb} {}: {error}", path.display()))
}
