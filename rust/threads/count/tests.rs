//! Machines built out of small files.

use super::{ThreadReport, available_threads, report, thread_report};
use std::fs;
use tempfile::TempDir;

/// A file tree that stands for `/proc` and `/sys` of some machine.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn capacities(mut self, capacities: &[u32]) -> Self {
        for (cpu, capacity) in capacities.iter().enumerate() {
            let path = format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity");
            self = self.file(&path, &format!("{capacity}\n"));
        }
        self
    }

    /// A cache of `level` at place `index` of each of `cpus`.
    fn cache(mut self, cpus: &[usize], index: usize, level: usize, size: &str, shared: &str) -> Self {
        for cpu in cpus {
            let folder = format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}");
            for (name, text) in [("level", &*level.to_string()), ("size", size), ("shared_cpu_list", shared)]
            {
                self = self.file(&format!("{folder}/{name}"), &format!("{text}\n"));
            }
        }
        self
    }

    fn cache_bytes(&self, cpus: &[usize]) -> Option<usize> {
        crate::threads::topology::cache_bytes(self.0.path(), cpus)
    }

    fn siblings(mut self, lists: &[&str]) -> Self {
        for (cpu, list) in lists.iter().enumerate() {
            let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            self = self.file(&path, &format!("{list}\n"));
        }
        self
    }

    /// Control groups version 2, with the process in `group`.
    fn version_two(self, group: &str) -> Self {
        self.file("proc/self/cgroup", &format!("0::{group}\n")).file(
            "proc/self/mountinfo",
            "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
             31 22 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        )
    }

    /// Control groups version 1, with the process in `group` and the mount beginning at `top`.
    fn version_one(self, group: &str, top: &str) -> Self {
        let groups = format!("5:memory:/elsewhere\n4:cpu,cpuacct:{group}\n3:cpuset:/other\n");
        let mounts = format!(
            "40 31 0:36 {top} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
             41 31 0:37 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        );
        self.file("proc/self/cgroup", &groups).file("proc/self/mountinfo", &mounts)
    }

    fn version_one_limit(self, directory: &str, quota: &str, period: &str) -> Self {
        self.file(&format!("{directory}/cpu.cfs_quota_us"), quota)
            .file(&format!("{directory}/cpu.cfs_period_us"), period)
    }

    /// With CPUs `0..cpus` allowed.
    fn report(&self, cpus: usize) -> ThreadReport {
        self.report_on(&(0..cpus).collect::<Vec<_>>())
    }

    fn report_on(&self, cpus: &[usize]) -> ThreadReport {
        report(self.0.path(), cpus)
    }
}

#[test]
fn a_machine_that_says_nothing_uses_its_affinity_mask() {
    let expected = ThreadReport { affinity: 3, quota: None, performance_cores: 3, chosen: 3 };
    assert_eq!(Machine::new().report(3), expected);
}

#[test]
fn no_allowed_cpu_still_gives_one_thread() {
    assert_eq!(Machine::new().report(0).chosen, 1);
}

#[test]
fn raspberry_pi_5_uses_its_four_equal_cores() {
    let machine = Machine::new().capacities(&[1024; 4]).siblings(&["0", "1", "2", "3"]);
    assert_eq!(machine.report(4).chosen, 4);
}

#[test]
fn phone_leaves_its_small_cores_alone() {
    let machine = Machine::new().capacities(&[325, 325, 325, 325, 820, 820, 820, 1024]);
    assert_eq!(machine.report(8).performance_cores, 4);
    assert_eq!(machine.report(8).affinity, 8);
}

#[test]
fn capacity_is_judged_among_the_allowed_cores() {
    let machine = Machine::new().capacities(&[325, 325, 325, 325, 820, 820, 820, 1024]);
    assert_eq!(machine.report_on(&[0, 1, 2]).chosen, 3);
    assert_eq!(machine.report_on(&[0, 1, 2, 7]).chosen, 1);
}

#[test]
fn capacity_threshold_is_six_tenths() {
    assert_eq!(Machine::new().capacities(&[1000, 600, 599]).report(3).chosen, 2);
}

#[test]
fn hybrid_laptop_counts_performance_cores_once_per_two_threads() {
    let lists = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"];
    let machine = Machine::new().siblings(&lists).file("sys/devices/cpu_core/cpus", "0-3\n");
    assert_eq!(machine.report(8).performance_cores, 2);
    assert_eq!(machine.report_on(&[4, 5, 6]).chosen, 3, "only efficiency cores allowed");
    assert_eq!(machine.report_on(&[1, 2, 3, 6]).chosen, 2);
}

#[test]
fn hardware_threads_far_apart_are_one_core() {
    let machine = Machine::new().siblings(&["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]);
    assert_eq!(machine.report(8).chosen, 4);
    assert_eq!(machine.report_on(&[4, 5]).chosen, 2, "the second threads of two cores");
    assert_eq!(machine.report_on(&[1, 5]).chosen, 1);
}

#[test]
fn malformed_topology_is_ignored() {
    for text in ["", "x", "3-1", "0-", "-", "1,,2", "99999999999999999999", "\u{fffd}"] {
        let machine = Machine::new().siblings(&[text; 4]).file("sys/devices/cpu_core/cpus", text);
        let machine = machine.file("sys/devices/system/cpu/cpu1/cpu_capacity", text);
        assert_eq!(machine.report(4).chosen, 4, "{text:?}");
    }
    let someone_elses = Machine::new().siblings(&["2-3", "2-3"]);
    assert_eq!(someone_elses.report(2).chosen, 2);
}

#[test]
fn quota_of_one_and_a_half_gives_one_thread() {
    let machine = Machine::new().version_two("/job").file("sys/fs/cgroup/job/cpu.max", "150000 100000\n");
    let expected = ThreadReport { affinity: 4, quota: Some(1.5), performance_cores: 4, chosen: 1 };
    assert_eq!(machine.report(4), expected);
}

#[test]
fn quota_below_one_and_above_the_machine() {
    let with = |max| Machine::new().version_two("/").file("sys/fs/cgroup/cpu.max", max).report(4).chosen;
    assert_eq!(with("50000 100000"), 1);
    assert_eq!(with("300000 100000"), 3);
    assert_eq!(with("6400000 100000"), 4);
    assert_eq!(with("max 100000"), 4);
}

#[test]
fn the_least_limit_of_nested_groups_counts() {
    let machine = Machine::new()
        .version_two("/a/b/c")
        .file("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n")
        .file("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n")
        .file("sys/fs/cgroup/a/cpu.max", "100000 50000\n")
        .file("sys/fs/cgroup/other/cpu.max", "1000 100000\n")
        // Above the mount: not a control group.
        .file("sys/fs/cpu.max", "1000 100000\n");
    assert_eq!(machine.report(8).quota, Some(2.0));
}

#[test]
fn a_group_out_of_sight_falls_back_to_the_mount_point() {
    let machine = Machine::new().version_two("/../../host").file("sys/fs/cgroup/cpu.max", "200000 100000");
    let machine = machine.file("sys/fs/host/cpu.max", "100000 100000").file("host/cpu.max", "100000 100000");
    assert_eq!(machine.report(8).quota, Some(2.0));
}

#[test]
fn version_one_limits_count_up_to_the_mount_point() {
    let cpu = "sys/fs/cgroup/cpu,cpuacct";
    let machine = Machine::new()
        .version_one("/user/job", "/")
        .version_one_limit(cpu, "-1\n", "100000\n")
        .version_one_limit(&format!("{cpu}/user"), "250000\n", "100000\n")
        .version_one_limit(&format!("{cpu}/user/job"), "-1\n", "100000\n");
    assert_eq!(machine.report(8).quota, Some(2.5));
    assert_eq!(machine.report(8).chosen, 2);
}

#[test]
fn version_one_container_mounts_its_own_group() {
    let machine = Machine::new().version_one("/docker/abc/inner", "/docker/abc").version_one_limit(
        "sys/fs/cgroup/cpu,cpuacct/inner",
        "300000",
        "100000",
    );
    assert_eq!(machine.report(8).quota, Some(3.0));
}

#[test]
fn both_versions_at_once_give_the_lesser() {
    let machine = Machine::new()
        .file("proc/self/cgroup", "1:cpu:/one\n0::/two\n")
        .file(
            "proc/self/mountinfo",
            "1 0 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             2 0 0:2 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 cgroup2 rw\n",
        )
        .version_one_limit("sys/fs/cgroup/cpu/one", "500000", "100000")
        .file("sys/fs/cgroup/unified/two/cpu.max", "300000 100000");
    assert_eq!(machine.report(8).quota, Some(3.0));
}

#[test]
fn malformed_quotas_are_ignored() {
    for text in
        ["", "max", "150000", "x y", "100000 0", "0 100000", "-5 100000", "1e99 1", "100000 -1", "nan 1"]
    {
        let machine = Machine::new().version_two("/").file("sys/fs/cgroup/cpu.max", text);
        assert_eq!(machine.report(4).quota, None, "{text:?}");
    }
    for text in ["", "\n", "0::", "0:/", "::", "garbage", "0::/\0"] {
        let machine = Machine::new().version_two("/").file("proc/self/cgroup", text);
        assert_eq!(machine.report(4).quota, None, "{text:?}");
    }
    for text in ["", " - ", "1 2 3 - cgroup2 a b", "1 2 3 / /sys/fs/cgroup rw - cgroup2", "a b c d e f"] {
        let machine = Machine::new().version_two("/").file("proc/self/mountinfo", text);
        assert_eq!(machine.report(4).quota, None, "{text:?}");
    }
}

#[test]
fn caches_are_counted_once() {
    let machine = Machine::new()
        .cache(&[0, 1, 2, 3], 0, 1, "32K", "0")
        .cache(&[0, 1], 1, 3, "16384K", "0-1")
        .cache(&[2, 3], 1, 3, "16384K", "2-3");
    assert_eq!(machine.cache_bytes(&[0, 1]), Some(16 << 20));
    assert_eq!(machine.cache_bytes(&[0, 1, 3]), Some(32 << 20));
    assert_eq!(machine.cache_bytes(&[7]), None);
}

#[test]
fn malformed_caches_are_ignored() {
    for size in ["", "K", "-1K", "32M", "99999999999999999999K"] {
        let machine = Machine::new().cache(&[0], 0, 3, size, "0");
        assert_eq!(machine.cache_bytes(&[0]), None, "{size:?}");
    }
}

#[test]
fn this_machine_has_a_plausible_count() {
    let report = thread_report();
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!((1..=report.affinity).contains(&report.chosen), "{report:?}");
    assert!(report.performance_cores <= report.affinity, "{report:?}");
    assert!(cpus <= report.affinity, "{report:?}: the standard library takes the quota off the mask, too");
    assert_eq!(available_threads(), report.chosen);
}
