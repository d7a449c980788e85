//! The gate between one owner, who opens and closes runs, and the workers who enter to help.
//!
//! A worker is never needed: it helps if it arrives while a run is open, and a run waits only for those who did
//! enter. So a worker without a core (a busy neighbour, a small quota) delays nobody. All state is one atomic
//! word, whose fields change together:
//!
//! ```text
//! generation: 32 | stop: 1 | waiting: 1 | open: 1 | sleepers: 13 | active: 16
//!
//! owner                                          worker
//!   open:  generation += 1, open = 1               enter: spin, then sleep, until generation != seen or stop
//!          if sleepers > 0: wake them                     if stop: end
//!          ... its own share of the run ...               seen = generation
//!   close: open = 0                                       if open: active += 1   (one compare and swap)
//!          spin until active = 0, else                    else start again
//!          waiting = 1, sleep until active = 0     ... its share of the run ...
//!          waiting = 0                             leave: active -= 1
//!                                                         if waiting and active is now 0: wake the owner
//! ```
//!
//! - No run ends under a worker: `active` rises only while `open` is set, and `close` clears `open` before it
//!   waits for `active = 0`. Whatever the owner published before `open` stays valid between `enter` and `leave`.
//! - No worker enters an ended run: it enters whichever run is open at its compare and swap, and reads what was
//!   published for that one. The generation only tells a finished run from a new one; if it came round to the same
//!   32 bits while a worker looked away, that worker would miss one run and harm nothing.
//! - No wake-up is lost: a sleeper counts itself in `sleepers` and then looks at the generation again, under the
//!   lock. In the order of changes of the word, either its count comes before the owner's `open`, which then takes
//!   the lock and wakes it, or it comes after and the sleeper sees the new generation. `waiting` and `active` do
//!   the same for the owner.
//! - A worker that wakes up to find the run over spins anew, because the next one follows shortly.
//!
//! Nothing here allocates.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most workers that can be counted as asleep at once.
pub(super) const MAX_WORKERS: usize = (1 << 13) - 1;

const ACTIVE: u64 = 1;
const ACTIVE_MASK: u64 = (1 << 16) - 1;
const SLEEPER: u64 = 1 << 16;
const SLEEPERS_MASK: u64 = (MAX_WORKERS as u64) << 16;
const OPEN: u64 = 1 << 29;
const WAITING: u64 = 1 << 30;
const STOP: u64 = 1 << 31;
const GENERATION: u64 = 1 << 32;

/// Looks at the word with a pause between them, before the first offer of the core to others: some 10 us.
const PAUSES: usize = 400;
/// How long to look with an offer of the core between before sleeping.
const YIELDING: Duration = Duration::from_micros(60);

/// A value with its cache lines to itself (128 bytes: some CPUs fetch lines in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Gate {
    word: Line<AtomicU64>,
    lock: Mutex<()>,
    /// Sleeping workers wait here for the next run.
    opened: Condvar,
    /// A sleeping owner waits here for the last worker to leave.
    emptied: Condvar,
}

impl Gate {
    /// Owner: starts a run that at most `helpers` workers are woken for.
    pub(super) fn open(&self, helpers: usize) {
        let before = self.word.0.fetch_add(GENERATION | OPEN, Ordering::AcqRel);
        let sleepers = ((before & SLEEPERS_MASK) / SLEEPER) as usize;
        if sleepers == 0 {
            return;
        }
        // A sleeper holds the lock from its last look at the word until it waits for a notice.
        drop(self.lock());
        if sleepers <= helpers {
            self.opened.notify_all();
        } else {
            (0..helpers).for_each(|_| self.opened.notify_one());
        }
    }

    /// Owner: ends the run for workers that have not entered. True if nobody is left inside.
    pub(super) fn close(&self) -> bool {
        active(self.word.0.fetch_and(!OPEN, Ordering::AcqRel)) == 0
    }

    /// Owner, after [`Gate::close`]: returns when the last worker has left.
    pub(super) fn wait_until_empty(&self) {
        let empty = || active(self.word.0.load(Ordering::Acquire)) == 0;
        if spin_until(empty) {
            return;
        }
        let mut guard = self.lock();
        self.word.0.fetch_or(WAITING, Ordering::AcqRel);
        while !empty() {
            guard = self.emptied.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.word.0.fetch_and(!WAITING, Ordering::AcqRel);
    }

    /// Worker: waits for a run later than generation `seen`, enters it and notes its generation; false when the
    /// worker should end.
    pub(super) fn enter(&self, seen: &mut u32) -> bool {
        loop {
            if !spin_until(|| self.has_news(*seen)) {
                self.sleep(*seen);
            }
            let word = self.word.0.load(Ordering::Acquire);
            if word & STOP != 0 {
                return false;
            }
            *seen = generation(word);
            let join = |word: u64| (word & OPEN != 0).then_some(word + ACTIVE);
            if let Ok(word) = self.word.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, join) {
                *seen = generation(word);
                return true;
            }
        }
    }

    /// Worker: leaves the run it entered.
    pub(super) fn leave(&self) {
        let before = self.word.0.fetch_sub(ACTIVE, Ordering::AcqRel);
        if before & WAITING != 0 && active(before) == 1 {
            // The owner holds the lock from its last look at the word until it waits for a notice.
            drop(self.lock());
            self.emptied.notify_one();
        }
    }

    /// Owner: sends the workers home.
    pub(super) fn stop(&self) {
        self.word.0.fetch_or(STOP, Ordering::AcqRel);
        drop(self.lock());
        self.opened.notify_all();
    }

    fn has_news(&self, seen: u32) -> bool {
        let word = self.word.0.load(Ordering::Acquire);
        generation(word) != seen || word & STOP != 0
    }

    fn sleep(&self, seen: u32) {
        let mut guard = self.lock();
        self.word.0.fetch_add(SLEEPER, Ordering::AcqRel);
        while !self.has_news(seen) {
            guard = self.opened.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.word.0.fetch_sub(SLEEPER, Ordering::AcqRel);
    }

    /// No code panics while it holds this lock, and it guards no data.
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn active(word: u64) -> u64 {
    word & ACTIVE_MASK
}

fn generation(word: u64) -> u32 {
    (word / GENERATION) as u32
}

/// Waits a short while for `ready`, in two steps: pauses, which see a change within nanoseconds, then offers of
/// the core to other threads, among which may be the one waited for. False if it did not come true.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    for _ in 0..PAUSES {
        if ready() {
            return true;
        }
        std::hint::spin_loop();
    }
    let start = Instant::now();
    while start.elapsed() < YIELDING {
        std::thread::yield_now();
        if ready() {
            return true;
        }
    }
    ready()
}
