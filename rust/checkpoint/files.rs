//! Opening files whose names, kinds and sizes are not trusted.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path};

use crate::error::{Error, Result};

/// Opens a regular file for reading; gives its size in bytes too.
///
/// Directories, pipes, sockets and devices are refused before they are opened: opening a pipe would wait for
/// a writer.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |source| Error::io(path, source);
    check_regular(path, &fs::metadata(path).map_err(io)?)?;
    let file = File::open(path).map_err(io)?;
    let opened = file.metadata().map_err(io)?;
    check_regular(path, &opened)?;
    Ok((file, opened.len()))
}

fn check_regular(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind = if metadata.is_dir() { "a folder" } else { "a pipe, socket or device" };
    Err(Error::file(path, format!("is {kind}, not a regular file")))
}

/// The first `len` bytes of a regular file, or all of a shorter one.
pub(super) fn beginning(path: &Path, len: usize) -> Result<Vec<u8>> {
    let (file, _) = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(len as u64).read_to_end(&mut bytes).map_err(|source| Error::io(path, source))?;
    Ok(bytes)
}

/// The whole of a regular file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, size) = open_regular(path)?;
    let mut bytes = Vec::new();
    if size <= limit {
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| Error::io(path, source))?;
    }
    let size = size.max(bytes.len() as u64);
    if size > limit {
        return Err(Error::file(path, format!("has {size} bytes, more than the {limit} allowed here")));
    }
    Ok(bytes)
}

/// Whether anything stands at `path`, a dangling symbolic link included: opening that gives the better
/// message.
pub(super) fn exists(path: &Path) -> bool {
    !matches!(fs::symlink_metadata(path), Err(error) if error.kind() == ErrorKind::NotFound)
}

/// Whether `name` is the name of a file in the very folder it is joined to: no separator, no `..`, no drive.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    one && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names() {
        for name in ["config.json", "a b", "..a", "a..", ".hidden", "é"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "/a", "a/", "./a", "../a", "a\\b", "a\0", "\\\\host\\share"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
    }

    #[test]
    fn reads_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read(&path, 10).unwrap(), [7; 10]);
        let message = read(&path, 9).unwrap_err().to_string();
        assert!(message.ends_with("f: has 10 bytes, more than the 9 allowed here"), "{message}");
    }

    #[test]
    fn refuses_folders_and_missing_files() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            read(folder.path(), 10).unwrap_err().to_string().ends_with("is a folder, not a regular file")
        );
        assert!(matches!(read(&folder.path().join("none"), 10), Err(Error::Io { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn refuses_devices() {
        let message = read(Path::new("/dev/null"), 10).unwrap_err().to_string();
        assert_eq!(message, "/dev/null: is a pipe, socket or device, not a regular file");
    }
}
