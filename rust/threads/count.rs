//! How many threads to use.

/// Threads worth using on this machine.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
