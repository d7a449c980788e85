//! Weights settle into large pages, a little after each token.
//!
//! A file that was just opened is read where the page cache has it, in pages of 4 KB: nothing is faster to the first token.
//! Pages of 2 MB are read faster, but to copy the weights there costs as much time as some tokens. So it is done behind
//! the tokens that are written, and takes at most one part in 32 of their time, less than it gains: short answers lose little, and
//! long ones end where all is read fastest. What a copy costs differs far more between systems than what it gains: one has its
//! memory, another, a virtual machine, is given each page when it is first written, and took ten times as long. So time is what is
//! counted. Prompts, which read weights once for many tokens, gain little and do not settle.
//!
//! The KV caches of the texts that are written follow, once they have grown by some pages. They are memory already, and of small
//! pages, since they grow little by little and are shared; where Linux knows how, it moves what stands there into large ones.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::State;
use crate::checkpoint::exchange::{Run, runs};
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::kv_cache::PAGE;
use crate::large_pages;
use crate::memory::available_bytes;
use crate::tensor::Bytes;

/// Settling takes at most one part in so many of the time of passes.
const TIME_SHARE: f64 = 32.0;
/// Whether there still is room is asked once for so many bytes: the answer takes a quarter of a millisecond.
const ASKED: usize = 64 << 20;

/// Pages of a layer's KV cache that are taken up at a time: 1024 tokens, 12 MB of the 0.8B.
const CACHE_PAGES: usize = 16;
/// Large pages of caches that wait at most; more are left as they are. Where the system is slow to find room, texts come and go faster.
const WAITING: usize = 4096;

/// Which weights are yet to move.
#[derive(Debug)]
pub(super) struct Settling {
    /// Bytes of a large page.
    page: usize,
    /// Bytes of all runs.
    all: usize,
    /// Whether only where the system has memory for the weights twice, so that it need not give up the page cache's copy, from
    /// which the next process opens the file.
    careful: bool,
    /// Bytes that moved.
    moved: AtomicUsize,
    left: Mutex<Left>,
}

#[derive(Debug, Default)]
struct Left {
    /// The next one last.
    runs: Vec<Run>,
    /// Addresses of large pages of which KV caches have at least half. They may have been freed meanwhile: to ask for them changes
    /// nothing that anybody sees.
    caches: Vec<usize>,
    /// Bytes that may move before the next question whether there is room.
    granted: usize,
    /// Seconds earned by passes and not yet taken; below 0 if the last run took longer.
    seconds: f64,
}

impl Settling {
    /// For `parts`, in large pages of `page` bytes.
    pub fn new<'a>(parts: impl IntoIterator<Item = &'a Bytes>, page: usize, careful: bool) -> Self {
        let mut runs = runs(parts, page);
        runs.reverse();
        let all = runs.iter().map(Run::len).sum();
        Self {
            page,
            all,
            careful,
            moved: AtomicUsize::new(0),
            left: Mutex::new(Left { runs, ..Left::default() }),
        }
    }

    /// Takes up what the caches of `state` grew by since the last time, if it is enough.
    pub fn take_up(&self, state: &mut State) {
        let (done, full) = (state.settled_pages, state.len / PAGE);
        if full < done + CACHE_PAGES {
            // Fewer than were done are left of a text that was cut.
            state.settled_pages = done.min(full);
        } else if let Ok(mut left) = self.left.try_lock() {
            let pages = state.kv_caches().flat_map(|cache| cache.pages().take(full).skip(done));
            let ranges = pages.map(|page| page.as_ptr().addr()..page.as_ptr().addr() + page.len());
            let room = WAITING - left.caches.len();
            left.caches.extend(large_pages::half_covered(ranges, self.page).into_iter().take(room));
            state.settled_pages = full;
        }
    }

    /// What is due behind a pass that took so many seconds. Nothing if another thread is at it.
    pub fn step(&self, cpu: &Cpu, seconds: f64) {
        let Ok(mut left) = self.left.try_lock() else { return };
        left.seconds = (left.seconds + seconds / TIME_SHARE).min(seconds);
        while left.seconds > 0.0 && !(left.runs.is_empty() && left.caches.is_empty()) {
            let start = Instant::now();
            if let Some(address) = left.caches.pop() {
                large_pages::collapse(address, self.page);
            } else if self.advance(&mut left, cpu).is_err() {
                // The system refused. What did not move stays where it is, as good as it was.
                left.runs.clear();
            }
            left.seconds -= start.elapsed().as_secs_f64();
        }
    }

    /// Moves all that is left, as far as there is room for it. `proceed` is asked before each run and stops the work with an error.
    pub fn finish(&self, cpu: &Cpu, proceed: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        for address in left.caches.drain(..) {
            large_pages::collapse(address, self.page);
        }
        while !left.runs.is_empty() {
            proceed()?;
            self.advance(&mut left, cpu).map_err(|error| no_large_pages(&error.to_string()))?;
        }
        Ok(())
    }

    /// Bytes that moved.
    pub fn moved(&self) -> usize {
        self.moved.load(Relaxed)
    }

    /// Moves the next run, or gives up all that is left where there is no room.
    fn advance(&self, left: &mut Left, cpu: &Cpu) -> io::Result<()> {
        if self.careful && left.granted == 0 {
            // The page cache's copies count as available, and what moved already does not.
            let needed = (2 * self.all - self.moved()) as u64;
            if available_bytes().is_none_or(|bytes| bytes < needed) {
                left.runs.clear();
                return Ok(());
            }
            left.granted = ASKED;
        }
        if let Some(run) = left.runs.last() {
            run.exchange(self.page, |new, old| copy(cpu, self.page, new, old))?;
            self.moved.fetch_add(run.len(), Relaxed);
            left.granted = left.granted.saturating_sub(run.len());
            left.runs.pop();
        }
        Ok(())
    }
}

/// The error of who wants large pages at once and cannot have them.
pub(super) fn no_large_pages(reason: &str) -> Error {
    Error::argument("large_pages", format!("the weights cannot be moved into large pages: {reason}"))
}

/// Copies a large page at a time on each thread, so that the thread that copies into one also makes it.
fn copy(cpu: &Cpu, page: usize, new: &mut [u8], old: &[u8]) {
    cpu.rows(new, page, 1, |pages, new| {
        new.copy_from_slice(&old[pages.start * page..pages.end * page]);
    });
}
