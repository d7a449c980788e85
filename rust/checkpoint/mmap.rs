//! The only file mapping: whole files, read-only.
#![allow(unsafe_code)] // Mapping a file is unsafe by nature; see the argument in `map`.

use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::files::open_regular;
use crate::error::{Error, Result};
use crate::tensor::Bytes;

/// A mapped file.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: Mmap,
}

impl Mapping {
    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// All bytes of the regular file at `path`, read from disk as they are touched.
///
/// The file must not be changed in place while it is in use: another program that shortens it makes the
/// operating system stop this one (SIGBUS). Replacing it by rename, as [`super::writer`] does, is safe.
pub(crate) fn map(path: &Path) -> Result<Bytes> {
    let (file, size) = open_regular(path)?;
    if size == 0 {
        return Err(Error::file(path, "is empty"));
    }
    // SAFETY: the mapping is read-only and private to this process, and `Mmap` keeps it alive as long as the
    // `Bytes` that own it. What remains is that another process may change the file meanwhile. No code relies
    // on mapped bytes staying equal: headers are parsed once into owned values, offsets are checked against
    // the mapped length, and tensor bytes are read as plain numbers, for which every bit pattern is valid.
    let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
    Ok(Bytes::of_file(Arc::new(Mapping { map })))
}

/// Asks the system to begin reading `bytes` from disk, where they are part of a mapped file and not in memory yet. A hint:
/// it returns before they are there, and may do nothing.
#[cfg(unix)]
pub(crate) fn will_need(bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    // SAFETY: asks for a constant of the system.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1);
    let before = bytes.as_ptr().addr() % page;
    let start = bytes.as_ptr().wrapping_sub(before).cast_mut().cast();
    // SAFETY: this advice changes neither contents nor mappings, whatever the range. The call wants whole pages; the first
    // one is mapped, since the first byte is.
    let _hint = unsafe { libc::madvise(start, bytes.len() + before, libc::MADV_WILLNEED) };
}

/// Asks for nothing: this system is not known to take such hints.
#[cfg(not(unix))]
pub(crate) fn will_need(_bytes: &[u8]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"edgewise").unwrap();
        assert_eq!(&map(&path).unwrap()[..], b"edgewise");
    }

    #[test]
    fn refuses_an_empty_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"").unwrap();
        assert!(map(&path).unwrap_err().to_string().ends_with("f: is empty"));
    }

    #[test]
    fn the_mapping_survives_replacing_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("f"), folder.path().join("g"));
        std::fs::write(&path, b"old").unwrap();
        std::fs::write(&other, b"n").unwrap();
        let bytes = map(&path).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(&bytes[..], b"old");
    }
}
