//! The processor time and the memory that Linux control groups allow this process.
//!
//! Each group from the process's own up to the root of the mount can carry a limit, and the least one counts:
//!
//! ```text
//! version 2   cpu.max                 "150000 100000" (quota and period in us) or "max 100000"
//!             memory.max              "1073741824" or "max"
//! version 1   cpu.cfs_quota_us        "150000" or "-1" for none; cpu.cfs_period_us "100000"
//!             memory.limit_in_bytes   "1073741824", near 2^63 for none
//! ```
//!
//! Where the groups are: `/proc/self/cgroup` names the process's group in each hierarchy, `/proc/self/mountinfo`
//! says where each hierarchy is mounted. In a container the mount may begin below the hierarchy's root. A file that
//! is missing or malformed sets no limit.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The least limit in CPUs (1.5 is one and a half CPUs' time), or none. Paths are looked up below `root`, which is
/// `/` except in tests.
pub(crate) fn quota(root: &Path) -> Option<f64> {
    least_limit(root, Controller::Cpu)
}

/// The least limit of memory in bytes, or none.
pub(crate) fn memory(root: &Path) -> Option<f64> {
    least_limit(root, Controller::Memory)
}

fn least_limit(root: &Path, controller: Controller) -> Option<f64> {
    let groups = read(&root.join("proc/self/cgroup"))?;
    let mounts = read(&root.join("proc/self/mountinfo"))?;
    let mounts = mounts.lines().filter_map(|line| Mount::parse(line, controller));
    let limits = mounts.filter_map(|mount| {
        let group = groups.lines().find_map(|line| mount.group(line))?;
        mount.least_limit(root, group)
    });
    limits.min_by(f64::total_cmp)
}

/// What a hierarchy limits.
#[derive(Clone, Copy)]
enum Controller {
    Cpu,
    Memory,
}

impl Controller {
    /// Whether it is in a list such as `cpu,cpuacct`.
    fn is_in(self, list: &str) -> bool {
        let own = match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        };
        list.split(',').any(|name| name == own)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    One,
    Two,
}

/// One line of `mountinfo` that mounts a hierarchy which can limit what is asked for.
struct Mount<'a> {
    controller: Controller,
    version: Version,
    /// The group at which the mount begins.
    top: &'a Path,
    /// Where it is mounted.
    point: &'a Path,
}

impl<'a> Mount<'a> {
    /// From `31 23 0:28 TOP POINT rw,... [tags] - TYPE SOURCE OPTIONS`; none if it is another kind of mount.
    fn parse(line: &'a str, controller: Controller) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (top, point) = (Path::new(place.next()?), Path::new(place.next()?));
        let mut kind = kind.split(' ');
        let version = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if controller.is_in(options) => Version::One,
            _ => return None,
        };
        Some(Self { controller, version, top, point })
    }

    /// The process's group in this hierarchy, if `line` of `/proc/self/cgroup`, `ID:CONTROLLERS:GROUP`, is about
    /// this hierarchy.
    fn group<'b>(&self, line: &'b str) -> Option<&'b Path> {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        let matches = match self.version {
            Version::One => self.controller.is_in(controllers),
            Version::Two => id == "0" && controllers.is_empty(),
        };
        matches.then_some(Path::new(group))
    }

    /// The least limit from `group` up to the mount point.
    fn least_limit(&self, root: &Path, group: &Path) -> Option<f64> {
        let point = below(root, self.point);
        let directory = point.join(self.relative(group));
        let up_to_point = directory.ancestors().take_while(|path| path.starts_with(&point));
        up_to_point.filter_map(|path| self.limit(path)).min_by(f64::total_cmp)
    }

    /// Where `group` lies below the mount point. A group that is not below the mount's top is out of sight, as in
    /// a container that shows only itself: then the mount point is the process's own group.
    fn relative<'b>(&self, group: &'b Path) -> &'b Path {
        let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        group.strip_prefix(self.top).ok().filter(|path| plain(path)).unwrap_or(Path::new(""))
    }

    fn limit(&self, directory: &Path) -> Option<f64> {
        match (self.controller, self.version) {
            (Controller::Cpu, Version::One) => {
                let quota = read(&directory.join("cpu.cfs_quota_us"))?;
                let period = read(&directory.join("cpu.cfs_period_us"))?;
                ratio(&quota, &period)
            }
            (Controller::Cpu, Version::Two) => {
                let max = read(&directory.join("cpu.max"))?;
                let (quota, period) = max.trim().split_once(' ')?;
                ratio(quota, period)
            }
            (Controller::Memory, Version::One) => bytes(&directory.join("memory.limit_in_bytes")),
            (Controller::Memory, Version::Two) => bytes(&directory.join("memory.max")),
        }
    }
}

/// Quota over period; none where the quota is not a number ("max") or not positive (-1).
fn ratio(quota: &str, period: &str) -> Option<f64> {
    let quota: i64 = quota.trim().parse().ok().filter(|&quota| quota > 0)?;
    let period: i64 = period.trim().parse().ok().filter(|&period| period > 0)?;
    Some(quota as f64 / period as f64)
}

/// A limit in bytes; none where it is not a number ("max").
fn bytes(path: &Path) -> Option<f64> {
    let bytes: u64 = read(path)?.trim().parse().ok()?;
    Some(bytes as f64)
}

/// An absolute path as it is found below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
