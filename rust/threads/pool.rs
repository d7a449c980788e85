//! A serial stand-in while the real pool is being written.

/// A pool of threads.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
}

impl Pool {
    /// A pool in which `threads` threads, the caller among them, share the work.
    pub fn new(threads: usize) -> Self {
        Self { threads }
    }

    /// How many threads share the work.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task(i)` once for each `i` in `0..items`, on any thread, and returns when all calls have returned.
    pub fn run(&self, items: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..items).for_each(task);
    }
}
