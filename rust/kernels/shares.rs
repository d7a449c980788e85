//! How threads share out units of work that lie one behind the other in memory.
//!
//! ```text
//! each thread owns a segment of the units:
//!   while its segment has units left:   do half of them, from the front
//!   while another segment has some:     do half of those, from the back
//! ```
//!
//! A processor fetches memory ahead only while it reads on where it is: a jump costs it about a microsecond, judged by what products of
//! a few megabytes lose. So a thread reads its segment
//! in order, in pieces that follow each other, and jumps only to help. Pieces get smaller, so that threads end at about the
//! same time, also where one came late or is slow. Decode's products of 1 to 4 MB gain up to a seventh over pieces that
//! threads claim in turn from one row.
//!
//! Source: affinity scheduling of loops (Markatos and `LeBlanc` 1994), there with a k-th of the segment at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::threads::{Line, Pool};

/// Segments at most; more threads than these own one together.
const SEGMENTS: usize = 32;

/// How many units are taken at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// At least, except where fewer are left.
    pub(super) least: usize,
    /// At most, except where that is below `least`.
    pub(super) most: usize,
}

impl Piece {
    /// Half of `left`, within the bounds.
    fn of(self, left: u32) -> u32 {
        let bound = |units: usize| u32::try_from(units.max(1)).unwrap_or(u32::MAX);
        left.div_ceil(2).min(bound(self.most)).max(bound(self.least)).min(left)
    }
}

/// Calls `task` for pieces that together are `0..total`, each unit once, on all threads of `pool`.
///
/// # Panics
/// If a task does, or `total` is 2^32 or more.
pub(super) fn share_out(pool: &Pool, total: usize, piece: Piece, task: &(dyn Fn(Range<usize>) + Sync)) {
    share_out_numbered(pool, total, piece, &|_, units| task(units));
}

/// As [`share_out`], but calls `task(number, units)`, where `number` is below the pool's number of threads and no two calls have the
/// same at a time: so a task may have memory of its own.
///
/// # Panics
/// As [`share_out`].
pub(super) fn share_out_numbered(
    pool: &Pool,
    total: usize,
    piece: Piece,
    task: &(dyn Fn(usize, Range<usize>) + Sync),
) {
    let threads = pool.threads().min(total.div_ceil(piece.least.max(1)));
    let count = threads.clamp(1, SEGMENTS);
    let bound = |segment: usize| (total as u64 * segment.min(count) as u64 / count as u64) as usize;
    let segments: [Line<Segment>; SEGMENTS] =
        std::array::from_fn(|segment| Line(Segment::new(bound(segment)..bound(segment + 1))));
    pool.run(threads, &|thread| {
        let own = thread % count;
        while let Some(units) = segments[own].0.take_front(piece) {
            task(thread, units);
        }
        for other in (own + 1..count).chain(0..own) {
            while let Some(units) = segments[other].0.take_back(piece) {
                task(thread, units);
            }
        }
    });
}

/// Units that nobody has taken: the first in the upper half, the end in the lower.
#[derive(Debug)]
struct Segment(AtomicU64);

impl Segment {
    fn new(units: Range<usize>) -> Self {
        let place = |unit| u32::try_from(unit).expect("below 2^32 units");
        Self(AtomicU64::new(pack(place(units.start), place(units.end))))
    }

    fn take_front(&self, piece: Piece) -> Option<Range<usize>> {
        self.take(|start, end| {
            let middle = start + piece.of(end - start);
            (start..middle, pack(middle, end))
        })
    }

    fn take_back(&self, piece: Piece) -> Option<Range<usize>> {
        self.take(|start, end| {
            let middle = end - piece.of(end - start);
            (middle..end, pack(start, middle))
        })
    }

    /// `cut` tells from start and end what is taken and what stays. Only the counts matter to other threads, so nothing is ordered.
    fn take(&self, cut: impl Fn(u32, u32) -> (Range<u32>, u64)) -> Option<Range<usize>> {
        let mut units = self.0.load(Ordering::Relaxed);
        loop {
            let (start, end) = ((units >> 32) as u32, units as u32);
            if start == end {
                return None;
            }
            let (taken, left) = cut(start, end);
            match self.0.compare_exchange_weak(units, left, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(taken.start as usize..taken.end as usize),
                Err(now) => units = now,
            }
        }
    }
}

fn pack(start: u32, end: u32) -> u64 {
    u64::from(start) << 32 | u64::from(end)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    use super::*;

    fn pieces(threads: usize, total: usize, piece: Piece) -> Vec<Range<usize>> {
        let taken = Mutex::new(Vec::new());
        share_out(&Pool::new(threads), total, piece, &|units| taken.lock().unwrap().push(units));
        taken.into_inner().unwrap()
    }

    #[test]
    fn every_unit_once() {
        for total in [0, 1, 2, 7, 8, 9, 100, 1001] {
            for threads in [1, 2, 3, 16, 70] {
                for (least, most) in [(0, 0), (1, 1), (1, usize::MAX), (3, 5), (200, 300), (2, 1)] {
                    let mut pieces = pieces(threads, total, Piece { least, most });
                    assert!(
                        pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= most.max(least).max(1))
                    );
                    pieces.sort_by_key(|piece| piece.start);
                    assert_eq!(
                        pieces.into_iter().flatten().collect::<Vec<_>>(),
                        (0..total).collect::<Vec<_>>()
                    );
                }
            }
        }
    }

    /// Calls wait for each other until as many as there are threads are under way, if the system starts so many in time.
    #[test]
    fn numbers_are_of_one_call_at_a_time() {
        for threads in [1, 2, 3, SEGMENTS + 3] {
            let (pool, busy) = (Pool::new(threads), Mutex::new(vec![false; threads]));
            let set = |number: usize, to: bool| std::mem::replace(&mut busy.lock().unwrap()[number], to);
            let (begun, start) = (AtomicUsize::new(0), Instant::now());
            share_out_numbered(&pool, 300, Piece { least: 1, most: 2 }, &|number, _| {
                assert!(!set(number, true), "two calls have number {number}");
                begun.fetch_add(1, Ordering::Relaxed);
                while begun.load(Ordering::Relaxed) < threads && start.elapsed() < Duration::from_secs(10) {
                    std::thread::yield_now();
                }
                assert!(set(number, false));
            });
        }
    }

    #[test]
    fn one_thread_reads_on() {
        let all = pieces(1, 64, Piece { least: 4, most: 20 });
        assert_eq!(all, [0..20, 20..40, 40..52, 52..58, 58..62, 62..64]);
    }

    #[test]
    fn front_and_back_meet() {
        let (segment, piece) = (Segment::new(10..26), Piece { least: 3, most: usize::MAX });
        assert_eq!(segment.take_front(piece), Some(10..18));
        assert_eq!(segment.take_back(piece), Some(22..26));
        assert_eq!(segment.take_front(piece), Some(18..21));
        assert_eq!(segment.take_back(piece), Some(21..22));
        assert_eq!((segment.take_front(piece), segment.take_back(piece)), (None, None));
    }

    /// Threads that take from both ends of few segments at once.
    #[test]
    fn contended() {
        for _ in 0..200 {
            let segment = Segment::new(0..1000);
            let piece = Piece { least: 1, most: 3 };
            let sum: usize = std::thread::scope(|scope| {
                let work = |front: bool| {
                    let take = || if front { segment.take_front(piece) } else { segment.take_back(piece) };
                    std::iter::from_fn(take).flatten().sum::<usize>()
                };
                let threads: Vec<_> = (0..4).map(|i| scope.spawn(move || work(i % 2 == 0))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(sum, 999 * 500);
        }
    }
}
