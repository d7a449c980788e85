//! Large pages of memory: which the system has, and how to ask for them.
//!
//! A processor looks up where each page of a program's memory lies. Its tables of recent answers hold a few thousand, in pages of
//! 4 KB a few megabytes, and weights are hundreds: every new page then waits for a walk through tables in memory, twice as deep
//! in a virtual machine. In pages of 2 MB the same tables hold gigabytes.
#![allow(unsafe_code, reason = "advice to the system about memory")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// What a large page is on most systems.
const USUAL: usize = 2 << 20;
/// The largest one used. Where small pages have 64 KB, large ones have 512 MB, too much to fill at a time.
const LARGEST: usize = 32 << 20;

/// Bytes of a large page, if this system gives programs such pages where they ask for them.
pub fn size() -> Option<usize> {
    below(Path::new("/"))
}

/// The same for a system whose files are found below `root`.
fn below(root: &Path) -> Option<usize> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        return None;
    }
    let read = |name| fs::read_to_string(root.join("sys/kernel/mm/transparent_hugepage").join(name));
    let given = read("enabled").is_ok_and(|text| text.contains("[always]") || text.contains("[madvise]"));
    let bytes = match read("hpage_pmd_size") {
        Ok(text) => text.trim().parse().ok()?,
        Err(_) => USUAL,
    };
    (given && bytes <= LARGEST && usize::is_power_of_two(bytes)).then_some(bytes)
}

/// Asks for large pages where `bytes` bytes from `start` on are whole ones. A hint, which older and other systems do not take.
///
/// The memory must be the caller's.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn advise(start: *mut u8, bytes: usize) {
    let skipped = start.align_offset(USUAL);
    let whole = bytes.saturating_sub(skipped) / USUAL * USUAL;
    if whole > 0 {
        // SAFETY: this advice changes neither contents nor mappings, whatever the range.
        let _hint = unsafe { libc::madvise(start.wrapping_add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

/// Asks for nothing: this system is not known to take such hints.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn advise(_start: *mut u8, _bytes: usize) {}

/// The addresses of large pages of `page` bytes, rising, of which at least half is in `ranges` of addresses.
pub fn half_covered(ranges: impl IntoIterator<Item = Range<usize>>, page: usize) -> Vec<usize> {
    let mut covered = BTreeMap::<usize, usize>::new();
    for range in ranges {
        let mut start = range.start / page * page;
        while start < range.end {
            *covered.entry(start).or_default() += range.end.min(start + page) - range.start.max(start);
            start += page;
        }
    }
    covered.into_iter().filter(|(_, bytes)| 2 * bytes >= page).map(|(start, _)| start).collect()
}

/// Asks for what stands at `start`, `page` bytes of the heap in small pages, to be moved into one large page now, at the same address.
/// A hint: older and other systems do not take it, nor do all parts of memory.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn collapse(start: usize, page: usize) {
    // Linux 6.1 and later.
    const MADV_COLLAPSE: libc::c_int = 25;
    // SAFETY: this advice changes neither contents nor mappings, whatever the range.
    let _hint = unsafe { libc::madvise(std::ptr::without_provenance_mut(start), page, MADV_COLLAPSE) };
}

/// Asks for nothing: this system is not known to take such hints.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn collapse(_start: usize, _page: usize) {}

/// So many zeros, in large pages where they fill some.
pub fn zeros(len: usize) -> Vec<u8> {
    // The allocator takes that much from the system, as zeros that nobody wrote yet.
    let mut zeros = vec![0; len];
    advise(zeros.as_mut_ptr(), len);
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(enabled: &str, page: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/kernel/mm/transparent_hugepage");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("enabled"), enabled).unwrap();
        if let Some(page) = page {
            fs::write(folder.join("hpage_pmd_size"), page).unwrap();
        }
        root
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn what_systems_say() {
        for (enabled, page, expected) in [
            ("always [madvise] never\n", Some("2097152\n"), Some(2 << 20)),
            ("[always] madvise never\n", Some("33554432\n"), Some(32 << 20)),
            ("always [madvise] never\n", None, Some(2 << 20)),
            ("always madvise [never]\n", Some("2097152\n"), None),
            ("always [madvise] never\n", Some("536870912\n"), None),
            ("always [madvise] never\n", Some("0\n"), None),
            ("always [madvise] never\n", Some("2 MB\n"), None),
            ("", Some("2097152\n"), None),
        ] {
            assert_eq!(below(machine(enabled, page).path()), expected, "{enabled} {page:?}");
        }
        assert_eq!(below(tempfile::tempdir().unwrap().path()), None);
    }

    #[test]
    fn half_of_a_page_is_enough() {
        for (ranges, expected) in [
            (&[(0, 0)][..], &[][..]),
            (&[(16, 32)], &[16]),
            (&[(24, 40)], &[16, 32]),
            (&[(25, 39)], &[]),
            (&[(16, 20), (60, 64), (28, 32), (33, 36)], &[16]),
            (&[(8, 48)], &[0, 16, 32]),
        ] {
            let ranges = ranges.iter().map(|&(start, end)| start..end);
            assert_eq!(half_covered(ranges, 16), expected);
        }
    }

    #[test]
    fn collapsing_keeps_what_is_there() {
        let bytes: Vec<u8> = (0..4 * USUAL).map(|i| (i * 7 + i / 251) as u8).collect();
        let range = bytes.as_ptr_range();
        let range = range.start.addr()..range.end.addr();
        for page in half_covered(std::iter::once(range), USUAL) {
            collapse(page, USUAL);
        }
        assert!(bytes.iter().enumerate().all(|(i, &byte)| byte == (i * 7 + i / 251) as u8));
        // Where there is nothing, nothing happens.
        collapse(USUAL, USUAL);
    }

    #[test]
    fn zeros_are_zeros() {
        for len in [0, 1, USUAL - 1, 3 * USUAL + 5] {
            let zeros = zeros(len);
            assert!(zeros.len() == len && zeros.iter().all(|&byte| byte == 0));
        }
    }
}
