//! Which CPUs are worth a thread of their own, from Linux's description of the machine in `/sys/devices`.
//!
//! Two things make a CPU worth less. A slow core (the small ones of a phone, the efficiency cores of a laptop)
//! takes several times as long over an item as a fast one, and draws on the same memory. The second hardware thread of a
//! core shares its vector units with the first, which keeps them busy. Files that are missing or malformed
//! (servers and virtual machines have few of them) say nothing against a CPU.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A core counts as fast from this share of the largest capacity on. The small cores of ARM systems reach some 0.15 to
/// 0.5 of it; cores that differ from the largest mainly in clock lie above 0.7.
const FAST: f64 = 0.6;

/// How many of `cpus` are fast cores, hardware threads of one core counted once. At least 1 unless `cpus` is empty.
/// Paths are looked up below `root`, which is `/` except in tests.
pub(super) fn performance_cores(root: &Path, cpus: &[usize]) -> usize {
    let cpus = without_efficiency_cores(root, &without_small_cores(root, cpus));
    let cores: BTreeSet<usize> = cpus.iter().map(|&cpu| core(root, cpu)).collect();
    cores.len()
}

/// Bytes of the last-level caches of `cpus`, each counted once; none if the kernel does not tell.
pub(super) fn cache_bytes(root: &Path, cpus: &[usize]) -> Option<usize> {
    let caches: BTreeSet<(String, usize)> =
        cpus.iter().filter_map(|&cpu| last_cache(&cpu_file(root, cpu, "cache"))).collect();
    (!caches.is_empty()).then(|| caches.iter().map(|(_, bytes)| bytes).sum())
}

/// Which CPUs share the last-level cache described in `folder`, and its bytes.
fn last_cache(folder: &Path) -> Option<(String, usize)> {
    let cache = |i: usize| {
        let folder = folder.join(format!("index{i}"));
        let level: u32 = read(&folder.join("level"))?.trim().parse().ok()?;
        let kilobytes: usize = read(&folder.join("size"))?.trim().strip_suffix('K')?.parse().ok()?;
        let shared = read(&folder.join("shared_cpu_list"))?;
        Some((level, shared.trim().to_owned(), kilobytes.checked_mul(1024)?))
    };
    // One index after the other until a file is missing: there are no gaps.
    let last = (0..).map_while(cache).max_by_key(|(level, ..)| *level)?;
    Some((last.1, last.2))
}

/// Drops what is much slower than the fastest of `cpus`, where the kernel gives capacities (ARM).
fn without_small_cores(root: &Path, cpus: &[usize]) -> Vec<usize> {
    let capacity =
        |&cpu: &usize| -> Option<u32> { read(&cpu_file(root, cpu, "cpu_capacity"))?.trim().parse().ok() };
    let largest = f64::from(cpus.iter().filter_map(capacity).max().unwrap_or(0));
    let fast = |cpu: &usize| capacity(cpu).is_none_or(|capacity| f64::from(capacity) >= FAST * largest);
    cpus.iter().copied().filter(fast).collect()
}

/// Keeps the performance cores of a hybrid x86 processor, if it is one and `cpus` has any of them.
fn without_efficiency_cores(root: &Path, cpus: &[usize]) -> Vec<usize> {
    let performance = read(&root.join("sys/devices/cpu_core/cpus")).and_then(|list| parse_list(&list));
    let Some(performance) = performance else {
        return cpus.to_vec();
    };
    let kept: Vec<usize> = cpus.iter().copied().filter(|&cpu| contains(&performance, cpu)).collect();
    if kept.is_empty() { cpus.to_vec() } else { kept }
}

/// The core that `cpu` is a hardware thread of, named by the lowest number among its threads.
fn core(root: &Path, cpu: usize) -> usize {
    let siblings =
        read(&cpu_file(root, cpu, "topology/thread_siblings_list")).and_then(|list| parse_list(&list));
    match siblings {
        Some(siblings) if contains(&siblings, cpu) => {
            siblings.iter().map(|&(first, _)| first).min().unwrap_or(cpu)
        }
        _ => cpu,
    }
}

fn cpu_file(root: &Path, cpu: usize, name: &str) -> PathBuf {
    root.join(format!("sys/devices/system/cpu/cpu{cpu}")).join(name)
}

/// Inclusive ranges of a list such as `0-3,8`; none if it is malformed or empty.
fn parse_list(list: &str) -> Option<Vec<(usize, usize)>> {
    let range = |part: &str| -> Option<(usize, usize)> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some((first, last))
    };
    list.trim().split(',').map(range).collect()
}

fn contains(ranges: &[(usize, usize)], cpu: usize) -> bool {
    ranges.iter().any(|&(first, last)| (first..=last).contains(&cpu))
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
