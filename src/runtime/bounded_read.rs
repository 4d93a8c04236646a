//! Reading a file of which nobody knows what it is.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// The content of a regular file of at most so many bytes; symbolic links are followed.
///
/// A pipe or a device in its place is an error at once, where reading it might never end.
pub(super) fn bounded_read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    // One byte more tells a file that is too long from one that just fits.
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::scratch::Scratch;

    #[test]
    fn only_regular_files_of_bounded_length_are_read() {
        let scratch = Scratch::new();
        let file = scratch.file("a", "12345");
        assert_eq!(bounded_read(&file, 5).unwrap(), b"12345");
        assert_eq!(bounded_read(&file, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(bounded_read(&link, 5).unwrap(), b"12345");
        let pipe = scratch.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), scratch.path(), Path::new("/dev/zero")] {
            assert_eq!(bounded_read(path, 5).unwrap_err().kind(), ErrorKind::InvalidInput, "{path:?}");
        }
        assert_eq!(bounded_read(&scratch.path().join("none"), 5).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
