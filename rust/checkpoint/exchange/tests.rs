use std::sync::atomic::{AtomicBool, Ordering};

use super::super::mmap::map;
use super::*;

const PAGE: usize = 2 << 20;

/// A mapped file of `pages` large pages and a bit, no two of its words equal.
fn file(pages: usize) -> (tempfile::TempDir, Bytes, Vec<u8>) {
    let words = (pages * PAGE + 4096 + 12) as u32 / 4;
    let bytes: Vec<u8> = (0..words).flat_map(|i| i.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    std::fs::write(&path, &bytes).unwrap();
    let mapped = map(&path).unwrap();
    (folder, mapped, bytes)
}

/// Where the first large page begins in the file.
fn first(mapped: &Bytes) -> usize {
    mapped.as_ptr().align_offset(PAGE)
}

fn ranges(runs: &[Run]) -> Vec<Range<usize>> {
    runs.iter().map(|run| run.range.clone()).collect()
}

#[test]
fn runs_are_the_pages_at_least_half_covered() {
    let (_folder, mapped, _) = file(12);
    let first = first(&mapped);
    let at = |range: Range<usize>| mapped.slice(range).unwrap();
    let page = |i: usize| first + i * PAGE;
    let edges = vec![at(0..first), at(mapped.len() - 16..mapped.len())];
    for (parts, expected) in [
        (vec![], &[][..]),
        (vec![at(page(1)..page(2))], &[(1, 2)]),
        (vec![at(page(1)..page(1) + PAGE / 2)], &[(1, 2)]),
        (vec![at(page(1)..page(1) + PAGE / 2 - 1)], &[]),
        // Two parts of one page, of which neither covers half.
        (vec![at(page(2) - PAGE / 4..page(2)), at(page(1)..page(1) + PAGE / 4)], &[(1, 2)]),
        // A hole ends a run, and so does its length.
        (vec![at(page(0)..page(2)), at(page(3)..page(9))], &[(0, 2), (3, 7), (7, 9)]),
        // What no large page holds, and what is in no file.
        (edges, &[]),
        (vec![Bytes::new(vec![0; 2 * PAGE])], &[]),
    ] {
        let expected: Vec<_> = expected.iter().map(|&(from, to)| page(from)..page(to)).collect();
        assert_eq!(ranges(&runs(&parts, PAGE)), expected);
    }
}

#[test]
fn a_whole_file_but_for_its_ends() {
    let (_folder, mapped, _) = file(12);
    let (first, found) = (first(&mapped), ranges(&runs([&mapped], PAGE)));
    let pages = (mapped.len() - first) / PAGE;
    assert_eq!((found[0].start, found[found.len() - 1].end), (first, first + pages * PAGE));
    assert!(found.iter().all(|run| run.len() <= RUN && run.start % PAGE == first % PAGE));
    assert_eq!(found.iter().map(Range::len).sum::<usize>(), pages * PAGE);
}

#[test]
fn two_files_have_runs_of_their_own() {
    let (_a, a, _) = file(2);
    let (_b, b, _) = file(3);
    let of = |bytes: &Bytes| ranges(&runs([bytes], PAGE));
    let both = ranges(&runs([&b, &a, &b], PAGE));
    assert_eq!(both.len(), of(&a).len() + of(&b).len());
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn readers_always_find_the_bytes_of_the_file() {
    let (folder, mapped, expected) = file(24);
    let runs = runs([&mapped], PAGE);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(mapped[..] == expected[..]);
                }
            });
        }
        // The second time, what is exchanged is no file any more.
        for _ in 0..2 {
            for run in &runs {
                run.exchange(PAGE, |new, old| new.copy_from_slice(old)).unwrap();
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(mapped[..] == expected[..]);
    // What moved is memory, which a file that changes does not reach.
    std::fs::write(folder.path().join("f"), vec![7; expected.len()]).unwrap();
    let moved = runs[0].range.start..runs[runs.len() - 1].range.end;
    assert!(mapped[moved.clone()] == expected[moved]);
    drop((mapped, runs));
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn a_panic_while_copying_leaves_the_file() {
    let (_folder, mapped, expected) = file(2);
    let runs = runs([&mapped], PAGE);
    let copying = || runs[0].exchange(PAGE, |_, _| panic!("while copying"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(copying)).is_err());
    assert!(mapped[..] == expected[..]);
}
