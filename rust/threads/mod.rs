//! The thread pool, and how many threads it should have.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod affinity;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod cgroup;
mod count;
mod float_mode;
pub(crate) mod fork;
mod gate;
mod pool;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod topology;

pub use count::{ThreadReport, available_threads, cache_bytes, thread_report};
pub use float_mode::StandardFloat;
pub(crate) use gate::Line;
pub use pool::Pool;

/// Bytes of memory that control groups allow, looked up below `root`; none if there is no limit.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn memory_limit(root: &std::path::Path) -> Option<f64> {
    cgroup::memory(root)
}
