//! Where kernels run: a tier of instructions and a pool of threads.

use super::disjoint::Disjoint;
use super::lanes::Op;
use super::prefetch;
use super::profile::Profile;
use super::recorder::Recorder;
use super::tier::Tier;
use crate::threads::Pool;

/// The tier and the threads every operation of a model runs on.
#[derive(Debug)]
pub struct Cpu {
    /// The vector instructions.
    pub tier: Tier,
    /// The threads.
    pub pool: Pool,
    /// Where the time goes, if somebody asks.
    pub profile: Profile,
    /// What matrices read, if somebody calibrates.
    pub recorder: Recorder,
}

impl Cpu {
    /// A tier and `threads` threads, the caller's among them.
    pub fn new(tier: Tier, threads: usize) -> Self {
        prefetch::choose_cache();
        Self { tier, pool: Pool::new(threads), profile: Profile::default(), recorder: Recorder::default() }
    }

    /// Runs `op` on this thread.
    #[inline]
    pub fn run<O: Op>(&self, op: O) -> O::Output {
        self.tier.run(op)
    }

    /// Calls `task(rows, part)` for pieces of about `grain` rows of `out` (`[rows, width]`), in parallel.
    #[allow(unsafe_code, reason = "pieces are disjoint by construction")]
    pub fn rows<T: Send>(
        &self,
        out: &mut [T],
        width: usize,
        grain: usize,
        task: impl Fn(std::ops::Range<usize>, &mut [T]) + Sync,
    ) {
        let rows = out.len() / width;
        let grain = grain.max(1);
        let parts = Disjoint::new(out);
        self.pool.run(rows.div_ceil(grain), &|item| {
            let range = item * grain..((item + 1) * grain).min(rows);
            // SAFETY: each item is run once and the items' row ranges do not overlap.
            let part = unsafe { parts.part(range.start * width..range.end * width) };
            task(range, part);
        });
    }
}
