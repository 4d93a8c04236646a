//! Small files of state that are root's alone.
//!
//! Each is written aside and then put into place, so that it is there whole or not at all. What was written aside names
//! a pod, so it must not outlive the call: not one that fails, and where a call is killed, not the next that has to do
//! with the file. Whatever else stands in the place of either is replaced, and never followed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

/// Ending of the name under which a file is written aside.
pub const DRAFT: &str = ":new";

/// Where a file is written aside.
pub fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(DRAFT);
    name.into()
}

/// Writes a file, whole or not at all, in place of whatever is there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = draft_of(path);
    let written = create(&draft, bytes).and_then(|_| put_into_place(&draft, path));
    written.inspect_err(|_| {
        // It names a pod, and nobody would read it.
        let _ = remove_whatever(&draft);
    })
}

/// Writes a file that is not there yet, in place of whatever is. It may be incomplete if this fails.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = match options.open(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            remove_whatever(path)?;
            options.open(path)?
        }
        outcome => outcome?,
    };
    file.write_all(bytes)?;
    Ok(file)
}

/// Gives what was written aside its name, in place of whatever has it.
pub fn put_into_place(draft: &Path, path: &Path) -> io::Result<()> {
    match fs::rename(draft, path) {
        Err(e) if e.kind() == ErrorKind::IsADirectory => {
            remove_whatever(path)?;
            fs::rename(draft, path)
        }
        outcome => outcome,
    }
}

/// Opens a file to read it, never through a symbolic link (`ELOOP`) and never waiting for the other end of a FIFO.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path)
}

/// The names in a directory; none where it is not there, or something else is.
pub fn names_in(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = entries_of(directory)?.into_iter().flatten();
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

/// The entries of a directory, of which not all need to be read; `None` where it is not there, or something else is.
pub fn entries_of(directory: &Path) -> io::Result<Option<ReadDir>> {
    let open = || -> io::Result<Option<ReadDir>> {
        let is_directory = fs::symlink_metadata(directory)?.is_dir();
        if is_directory { fs::read_dir(directory).map(Some) } else { Ok(None) }
    };
    loop {
        match open() {
            // std makes open(2) again after an interruption, but not where a directory is opened.
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            outcome => return outcome,
        }
    }
}

/// Removes a file, a symbolic link itself, or a directory with all that is in it; nothing there is fine.
pub fn remove_whatever(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::IsADirectory => fs::remove_dir_all(path),
        outcome => outcome,
    };
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
