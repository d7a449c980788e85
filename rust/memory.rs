//! How much memory this process may fill.

use std::fs;
use std::path::Path;

/// Bytes that can be filled without swapping or being stopped: the least of what the system has left, the page cache counted
/// as left, and what control groups allow. None if neither is known.
pub fn available_bytes() -> Option<u64> {
    below(Path::new("/"))
}

/// The same for a system whose files are found below `root`.
fn below(root: &Path) -> Option<u64> {
    let left = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| meminfo(&text));
    let allowed = allowed(root);
    left.into_iter().chain(allowed).min()
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn allowed(root: &Path) -> Option<u64> {
    crate::threads::memory_limit(root).map(|bytes| bytes as u64)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn allowed(_root: &Path) -> Option<u64> {
    None
}

/// `MemAvailable` in bytes.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 8000 kB\nMemAvailable:    4000 kB\n");
    const GROUPS: [(&str, &str); 2] = [
        ("proc/self/cgroup", "4:memory:/box\n0::/unified\n"),
        (
            "proc/self/mountinfo",
            "31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             32 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        ),
    ];

    #[test]
    fn the_system_alone() {
        assert_eq!(below(machine(&[MEMINFO]).path()), Some(4_096_000));
        assert_eq!(below(machine(&[]).path()), None);
        assert_eq!(below(machine(&[("proc/meminfo", "MemAvailable: many kB\n")]).path()), None);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn the_least_group_of_either_version() {
        for (file, text, expected) in [
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1000000\n", 1_000_000),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n", 2_000_000),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9223372036854771712\n", 4_096_000),
            ("sys/fs/cgroup/unified/unified/memory.max", "3000000\n", 3_000_000),
            ("sys/fs/cgroup/unified/unified/memory.max", "max\n", 4_096_000),
            ("sys/fs/cgroup/unified/unified/memory.max", "-1\n", 4_096_000),
        ] {
            let root = machine(&[MEMINFO, GROUPS[0], GROUPS[1], (file, text)]);
            assert_eq!(below(root.path()), Some(expected), "{file} {text}");
        }
    }

    #[test]
    fn this_machine_has_some() {
        if Path::new("/proc/meminfo").exists() {
            assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
