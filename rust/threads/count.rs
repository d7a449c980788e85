//! How many threads to use: the least of what the system allows and what the machine is good for.

use std::thread::available_parallelism;

/// What [`available_threads`] is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThreadReport {
    /// CPUs the calling thread may run on.
    pub affinity: usize,
    /// Processor time the control groups allow, in CPUs; none if unlimited or not Linux.
    pub quota: Option<f64>,
    /// Fast cores among the CPUs of `affinity`, hardware threads of one core counted once.
    pub performance_cores: usize,
    /// Threads to use, at least 1.
    pub chosen: usize,
}

impl ThreadReport {
    /// The choice: a thread for each fast core, but no more than whole CPUs of quota.
    ///
    /// A quota of 1.5 gives one thread. Two would use the time up before the end of each period (100 ms as a
    /// rule) and then all stand still until the next, some of them in the middle of an item that the others wait
    /// for; waiting itself, which spins, is charged too.
    fn choose(affinity: usize, quota: Option<f64>, performance_cores: usize) -> Self {
        let whole = quota.map_or(usize::MAX, |quota| quota as usize);
        let chosen = performance_cores.min(affinity).min(whole).max(1);
        Self { affinity, quota, performance_cores, chosen }
    }
}

/// Threads worth using on this machine: the least of control group quota, affinity mask and performance cores, and
/// at least 1.
pub fn available_threads() -> usize {
    thread_report().chosen
}

/// How [`available_threads`] comes about. Reads a few small files per CPU.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn thread_report() -> ThreadReport {
    report(std::path::Path::new("/"), &cpus())
}

/// CPUs the calling thread may run on.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn cpus() -> Vec<usize> {
    let cpus = super::affinity::cpus();
    if cpus.is_empty() { (0..available_parallelism().map_or(1, usize::from)).collect() } else { cpus }
}

/// Bytes of the last-level caches of the CPUs that may be used; none if the system does not tell.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn cache_bytes() -> Option<usize> {
    super::topology::cache_bytes(std::path::Path::new("/"), &cpus())
}

/// Bytes of the last-level caches of the CPUs that may be used; none, since this system is not asked.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn cache_bytes() -> Option<usize> {
    None
}

/// How [`available_threads`] comes about: from what the standard library says.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn thread_report() -> ThreadReport {
    let cpus = available_parallelism().map_or(1, usize::from);
    ThreadReport::choose(cpus, None, cpus)
}

/// The report for a machine described by the files below `root`, of which `cpus` may be used.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn report(root: &std::path::Path, cpus: &[usize]) -> ThreadReport {
    let performance_cores = super::topology::performance_cores(root, cpus);
    ThreadReport::choose(cpus.len(), super::cgroup::quota(root), performance_cores)
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests;
