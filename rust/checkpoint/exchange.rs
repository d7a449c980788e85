//! Exchanges pages of a mapped file for large ones with the same bytes, while they are read.
//!
//! Large pages for the mapping itself would need a system that was built for them, and few are. Reading the file into memory of
//! large pages when it is opened would keep the first token waiting. So the pages change under those who read them:
//!
//! ```text
//! a run: up to 8 MB of addresses, whole large pages, all inside the mapping
//!     stage = as much memory of our own, for which large pages are asked
//!     copy the run to stage, a large page an item       the first write to each gives it its large page
//!     stage becomes read-only
//!     mremap(stage -> run)                              moves entries of the page table; the old ones go
//! ```
//!
//! The last step is one call of the system, and for a thread that reads the run meanwhile there are two cases: it gets the old
//! pages, or it finds none, waits until the call is over and gets the new ones. The bytes are the same. Nobody holds more memory than
//! before but for one stage; what stands in the page cache besides is the system's to drop.
//!
//! Neighbouring runs stay mappings of their own, of which a process may have 65,530 by default. That is why a run is longer than one large page.
#![allow(unsafe_code)] // Maps memory and moves it; the arguments stand beside each call.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::mmap::Mapping;
use crate::large_pages;
use crate::tensor::Bytes;

/// Bytes of a run, but one large page at least.
const RUN: usize = 8 << 20;

/// Bytes of a mapped file to exchange at a time.
#[derive(Debug)]
pub(crate) struct Run {
    file: Arc<Mapping>,
    /// Whole large pages of addresses.
    range: Range<usize>,
}

/// The runs that cover what of `parts` stands in mapped files, in large pages of `page` bytes, a power of two: pages of which
/// at least half is of these parts.
pub(crate) fn runs<'a>(parts: impl IntoIterator<Item = &'a Bytes>, page: usize) -> Vec<Run> {
    let mut files: BTreeMap<*const Mapping, (&Arc<Mapping>, Vec<Range<usize>>)> = BTreeMap::new();
    for (file, range) in parts.into_iter().filter_map(Bytes::in_file) {
        files.entry(Arc::as_ptr(file)).or_insert_with(|| (file, Vec::new())).1.push(range);
    }
    let mut runs = Vec::new();
    for (file, ranges) in files.into_values() {
        let first = file.bytes().as_ptr().addr();
        let addresses = ranges.into_iter().map(|range| first + range.start..first + range.end);
        for address in large_pages::half_covered(addresses, page) {
            let range = address.wrapping_sub(first)..address.wrapping_sub(first).wrapping_add(page);
            // The first and the last one may reach outside.
            if address < first || range.end > file.bytes().len() {
                continue;
            }
            match runs.last_mut() {
                Some(Run { file: last, range: before })
                    if Arc::ptr_eq(last, file) && before.end == range.start && before.len() + page <= RUN =>
                {
                    before.end = range.end;
                }
                _ => runs.push(Run { file: Arc::clone(file), range }),
            }
        }
    }
    runs
}

impl Run {
    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Exchanges the pages of the run for large ones of `page` bytes. `copy(new, old)` fills the new ones, on as many threads as
    /// it likes.
    ///
    /// # Errors
    /// If the system has no memory or no room for another mapping. The run is then as it was.
    pub fn exchange(&self, page: usize, copy: impl FnOnce(&mut [u8], &[u8])) -> io::Result<()> {
        let old = &self.file.bytes()[self.range.clone()];
        let mut stage = Stage::new(old.len(), page)?;
        copy(stage.bytes(), old);
        // SAFETY: the run is whole pages inside a mapping, which `self.file` keeps alive and everybody only reads; the stage is as
        // long, and `copy` had no other task than to make it equal.
        unsafe { stage.put_in_place_of(old) }
    }
}

/// Memory of our own, aligned to large pages.
#[cfg(any(target_os = "linux", target_os = "android"))]
struct Stage {
    start: *mut u8,
    len: usize,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Stage {
    /// Zeros, `len` of them, for which large pages of `page` bytes are asked.
    fn new(len: usize, page: usize) -> io::Result<Self> {
        use libc::{MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE};
        let (protection, flags) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place that the system chooses.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), len + page, protection, flags, -1, 0) };
        if map == MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = map.addr().next_multiple_of(page) - map.addr();
        let start = map.wrapping_byte_add(before);
        for (start, len) in [(map, before), (start.wrapping_byte_add(len), page - before)] {
            if len > 0 {
                // SAFETY: whole small pages of the mapping just made, to which nothing points.
                let _done = unsafe { libc::munmap(start, len) };
            }
        }
        let start = start.cast();
        large_pages::advise(start, len);
        Ok(Self { start, len })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes from `start` on are mapped and ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Moves this memory to where `old` is.
    ///
    /// # Safety
    /// `old` must be whole pages of a mapping that is only read, as many, and with the same bytes.
    unsafe fn put_in_place_of(self, old: &[u8]) -> io::Result<()> {
        assert_eq!(old.len(), self.len);
        let (start, len) = (self.start.cast(), self.len);
        // SAFETY: this memory is ours alone.
        if unsafe { libc::mprotect(start, len, libc::PROT_READ) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let place = old.as_ptr().cast_mut().cast();
        // SAFETY: what stood there goes, and by the caller's promise equal bytes that can only be read take its place, in one step
        // for other threads. `self` is not dropped if they did.
        if unsafe { libc::mremap(start, len, len, how, place) } == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // What can be refused, such as one mapping too many, is refused before the old pages go. Should the system run out of
            // memory between both steps, weights are gone, and other memory may come to stand there: nothing may go on.
            // SAFETY: has no effect on a mapping that is not written, and fails if there is none.
            if unsafe { libc::msync(place, len, libc::MS_ASYNC) } != 0 {
                std::process::abort();
            }
            return Err(error);
        }
        std::mem::forget(self);
        Ok(())
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and what borrowed it is gone.
        let _done = unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// None: other systems are not known to move memory over a mapping.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
enum Stage {}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Stage {
    fn new(_len: usize, _page: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn bytes(&mut self) -> &mut [u8] {
        match *self {}
    }

    unsafe fn put_in_place_of(self, _old: &[u8]) -> io::Result<()> {
        match self {}
    }
}

#[cfg(test)]
mod tests;
