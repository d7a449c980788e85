//! The thread pool from outside: exactly once, panics, several callers, forks.

use edgewise::threads::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// How often each item was done in one run.
fn counts(pool: &Pool, items: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
    pool.run(items, &|item| {
        counts[item].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

/// Runs as many items as the pool has threads, each of which waits until all have begun: ends within the patience
/// only if every thread took one.
fn all_threads_help(pool: &Pool) -> bool {
    let begun = AtomicUsize::new(0);
    let start = Instant::now();
    pool.run(pool.threads(), &|_| {
        begun.fetch_add(1, Ordering::Relaxed);
        while begun.load(Ordering::Relaxed) < pool.threads() && start.elapsed() < PATIENCE {
            thread::yield_now();
        }
    });
    start.elapsed() < PATIENCE
}

fn busy(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn every_item_is_done_exactly_once() {
    for threads in [1, 2, 3, 5, 8] {
        let pool = Pool::new(threads);
        for items in [0, 1, 2, 3, 4, 7, 8, 9, 63, 64, 1000] {
            assert_eq!(counts(&pool, items), vec![1; items], "{threads} threads, {items} items");
        }
    }
}

#[test]
fn threads_counts_the_caller() {
    assert_eq!([0, 1, 2, 7].map(|threads| Pool::new(threads).threads()), [1, 1, 2, 7]);
}

#[test]
fn all_threads_take_part() {
    for threads in [2, 3, 4] {
        let pool = Pool::new(threads);
        for _ in 0..20 {
            assert!(all_threads_help(&pool), "{threads} threads");
        }
    }
}

#[test]
fn sleeping_threads_wake_up() {
    let pool = Pool::new(3);
    for _ in 0..5 {
        assert!(all_threads_help(&pool));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_thread_or_one_item_stays_on_the_caller() {
    let caller = thread::current().id();
    let stay = |_| assert_eq!(thread::current().id(), caller);
    Pool::new(1).run(100, &stay);
    let pool = Pool::new(4);
    pool.run(1, &stay);
    assert!(all_threads_help(&pool));
    pool.run(1, &stay);
}

#[test]
fn each_thread_claims_in_increasing_order() {
    thread_local!(static LAST: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
    let pool = Pool::new(3);
    let mut before = 0;
    for _ in 0..100 {
        // Items of later runs count on, so that the last item of a thread is below all of the next run.
        pool.run(200, &|item| assert!(LAST.replace(before + item + 1) < before + item + 1));
        before += 200;
    }
}

#[test]
fn a_hundred_thousand_tiny_runs() {
    for threads in [2, 3, 4] {
        let pool = Pool::new(threads);
        let mut expected = 0;
        let sum = AtomicUsize::new(0);
        for run in 0..100_000 {
            let items = 2 + run % 5;
            // A stale thread would add the wrong run's number, or write after the run has ended.
            pool.run(items, &|item| {
                sum.fetch_add(run * 8 + item, Ordering::Relaxed);
            });
            expected += items * run * 8 + items * (items - 1) / 2;
            assert_eq!(sum.load(Ordering::Relaxed), expected, "{threads} threads, run {run}");
        }
    }
}

#[test]
fn pauses_of_every_length_between_runs() {
    // So that runs begin while workers spin, yield, fall asleep and sleep.
    let pool = Pool::new(3);
    for run in 0..3000 {
        assert_eq!(counts(&pool, 6), vec![1; 6], "run {run}");
        busy(Duration::from_nanos(run * 7919 % 200_000));
    }
}

#[test]
fn a_run_waits_for_slow_items() {
    let pool = Pool::new(3);
    let done = AtomicUsize::new(0);
    for run in 1..=20 {
        // Long enough for the caller to fall asleep over it, whoever gets the slow item.
        pool.run(3, &|item| {
            thread::sleep(Duration::from_millis([0, 2, 4][item]));
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), run * 3);
    }
}

#[test]
fn results_written_by_workers_are_visible() {
    let pool = Pool::new(4);
    let mut cells: Vec<AtomicUsize> = (0..512).map(AtomicUsize::new).collect();
    for _ in 0..2000 {
        pool.run(cells.len(), &|item| {
            let value = cells[item].load(Ordering::Relaxed);
            cells[item].store(value + 1, Ordering::Relaxed);
        });
    }
    for (item, cell) in cells.iter_mut().enumerate() {
        assert_eq!(*cell.get_mut(), item + 2000);
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(3);
    for bad in [0, 1, 2, 50, 99] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|item| assert_ne!(item, bad, "item {item} is bad"));
        }));
        let message = result.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains(&format!("item {bad} is bad")), "{message}");
        assert_eq!(counts(&pool, 100), vec![1; 100]);
        assert!(all_threads_help(&pool));
    }
}

#[test]
fn panics_of_all_threads_at_once_become_one() {
    let pool = Pool::new(3);
    let begun = AtomicUsize::new(0);
    let result = catch_unwind(AssertUnwindSafe(|| {
        pool.run(1000, &|_| {
            begun.fetch_add(1, Ordering::Relaxed);
            panic!("all");
        });
    }));
    assert_eq!(*result.unwrap_err().downcast::<&str>().unwrap(), "all");
    assert!(begun.into_inner() <= 3, "the rest is skipped");
    assert_eq!(counts(&pool, 10), vec![1; 10]);
}

#[test]
fn a_panic_waits_for_the_others() {
    let pool = Pool::new(2);
    let finished = AtomicBool::new(false);
    let begun = AtomicBool::new(false);
    let result = catch_unwind(AssertUnwindSafe(|| {
        pool.run(2, &|item| {
            if item == 0 {
                begun.store(true, Ordering::Release);
                thread::sleep(Duration::from_millis(20));
                finished.store(true, Ordering::Release);
            } else {
                while !begun.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                panic!("early");
            }
        });
    }));
    assert!(result.is_err());
    assert!(finished.into_inner(), "the borrow ended while another thread used it");
}

#[test]
fn nested_runs_are_done_where_they_are() {
    let pool = Pool::new(3);
    let sum = AtomicUsize::new(0);
    pool.run(20, &|outer| {
        let thread = thread::current().id();
        pool.run(10, &|inner| {
            assert_eq!(thread::current().id(), thread);
            sum.fetch_add(outer * 10 + inner, Ordering::Relaxed);
        });
    });
    assert_eq!(sum.into_inner(), (0..200).sum::<usize>());
}

#[test]
fn pools_can_use_each_other() {
    let (one, two) = (Pool::new(2), Pool::new(3));
    let count = AtomicUsize::new(0);
    let add = |_| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    one.run(8, &|_| two.run(8, &|_| one.run(8, &add)));
    assert_eq!(count.into_inner(), 512);
}

#[test]
fn several_callers_share_one_pool() {
    let pool = Pool::new(3);
    thread::scope(|scope| {
        for caller in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                for run in 0..2000 {
                    let items = (caller + run) % 9;
                    assert_eq!(counts(pool, items), vec![1; items]);
                }
            });
        }
    });
    assert!(all_threads_help(&pool));
}

#[test]
fn dropping_a_pool_ends_its_threads() {
    for pause in [0, 5, 50, 500, 5000] {
        for _ in 0..20 {
            drop(Pool::new(3));
            let pool = Pool::new(3);
            assert_eq!(counts(&pool, 3), [1; 3]);
            thread::sleep(Duration::from_micros(pause));
            drop(pool);
        }
    }
}

#[cfg(unix)]
mod fork {
    use super::*;
    use std::sync::atomic::AtomicI32;

    /// Forks, lets the child do `work` and returns what it found, or an error if it hangs or dies.
    fn in_child(work: impl FnOnce() -> bool) -> Result<bool, String> {
        match fork() {
            0 => end_child(catch_unwind(AssertUnwindSafe(work)).ok()),
            child => wait_for(child),
        }
    }

    /// 0 in the child, the child's number in the parent.
    fn fork() -> libc::pid_t {
        // SAFETY: the children of these tests do pool work (atomics, locks of their own, memory and threads from a C
        // library that supports them after a fork) and end in `end_child`.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "{}", std::io::Error::last_os_error());
        child
    }

    fn end_child(outcome: Option<bool>) -> ! {
        let code = outcome.map_or(2, |good| i32::from(!good));
        // SAFETY: ends the process at once, without the parent's exit handlers.
        unsafe { libc::_exit(code) }
    }

    fn wait_for(child: libc::pid_t) -> Result<bool, String> {
        let start = Instant::now();
        let mut status = 0;
        // SAFETY: `status` outlives the call; `child` is our own, not yet waited for.
        while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
            if start.elapsed() > 2 * PATIENCE {
                // SAFETY: `child` is our own, not yet waited for.
                unsafe { libc::kill(child, libc::SIGKILL) };
                // SAFETY: as above.
                unsafe { libc::waitpid(child, &raw mut status, 0) };
                return Err("the child hangs".to_owned());
            }
            thread::sleep(Duration::from_millis(1));
        }
        match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
            (true, 0) => Ok(true),
            (true, 1) => Ok(false),
            _ => Err(format!("the child ended with status {status:#x}")),
        }
    }

    #[test]
    fn before_the_first_run() {
        let pool = Pool::new(3);
        assert_eq!(in_child(|| all_threads_help(&pool)), Ok(true));
        assert!(all_threads_help(&pool));
    }

    #[test]
    fn the_child_hires_its_own_threads_and_the_parent_keeps_its() {
        let pool = Pool::new(3);
        for pause in [0, 20, 200, 5000] {
            assert!(all_threads_help(&pool));
            busy(Duration::from_micros(pause));
            let work = || counts(&pool, 100) == vec![1; 100] && all_threads_help(&pool);
            assert_eq!(in_child(work), Ok(true), "after {pause} us");
        }
        assert!(all_threads_help(&pool));
    }

    #[test]
    fn a_grandchild_too() {
        let pool = Pool::new(2);
        assert!(all_threads_help(&pool));
        let grandchild = || in_child(|| all_threads_help(&pool)) == Ok(true);
        assert_eq!(in_child(|| all_threads_help(&pool) && grandchild()), Ok(true));
    }

    #[test]
    fn the_child_can_drop_the_pool() {
        for run_first in [false, true] {
            let mut pool = Some(Pool::new(3));
            assert!(all_threads_help(pool.as_ref().unwrap()));
            let work = || {
                let pool = pool.take().unwrap();
                !run_first || counts(&pool, 10) == vec![1; 10]
            };
            assert_eq!(in_child(work), Ok(true));
        }
    }

    #[test]
    fn while_another_thread_runs() {
        let pool = Pool::new(2);
        let (begun, forked) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                pool.run(2, &|_| {
                    begun.store(true, Ordering::Relaxed);
                    while !forked.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                });
            });
            while !begun.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            let result = in_child(|| counts(&pool, 100) == vec![1; 100]);
            forked.store(true, Ordering::Relaxed);
            assert_eq!(result, Ok(true));
        });
        assert!(all_threads_help(&pool));
    }

    #[test]
    fn inside_a_task_ends_in_a_panic_and_not_in_a_hang() {
        let pool = Pool::new(2);
        let caller = thread::current().id();
        let (begun, child) = (AtomicUsize::new(0), AtomicI32::new(-1));
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, &|_| {
                begun.fetch_add(1, Ordering::Relaxed);
                // Both threads are inside the run when one of them forks.
                while begun.load(Ordering::Relaxed) < 2 {
                    thread::yield_now();
                }
                if thread::current().id() == caller {
                    child.store(fork(), Ordering::Relaxed);
                }
                while child.load(Ordering::Relaxed) == -1 {
                    thread::yield_now();
                }
            });
        }));
        match child.into_inner() {
            0 => end_child(Some(result.is_err() && all_threads_help(&pool))),
            child => {
                assert_eq!(wait_for(child), Ok(true));
                assert!(result.is_ok(), "the parent goes on");
            }
        }
        assert!(all_threads_help(&pool));
    }
}

/// Not a check but a report: `cargo test --release -- --ignored --nocapture cost_of_a_run`.
#[test]
#[ignore = "prints times, takes seconds"]
fn cost_of_a_run() {
    report("alone", 2);
    report("alone", 3);
    for neighbours in [1, 2] {
        let mut children: Vec<_> = (0..neighbours)
            .map(|_| std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap())
            .collect();
        thread::sleep(Duration::from_millis(200));
        report(&format!("beside {neighbours} busy processes"), 2);
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn report(title: &str, threads: usize) {
    let pool = Pool::new(threads);
    assert!(all_threads_help(&pool));
    let entry = times(20_000, Duration::ZERO, || pool.run(2, &|_| ()));
    let gap = times(5000, Duration::from_micros(10), || pool.run(2, &|_| ()));
    let asleep = times(200, Duration::from_millis(1), || pool.run(2, &|_| ()));
    let unit = Duration::from_micros(2);
    let shared = times(5000, Duration::from_micros(10), || pool.run(32, &|_| busy(unit)));
    let serial = times(1000, Duration::from_micros(10), || (0..32).for_each(|_| busy(unit)));
    eprintln!("{title}, {threads} threads; median, mean and 99th percentile in ns");
    eprintln!("  empty run, back to back         {entry:?}");
    eprintln!("  empty run, 10 us apart          {gap:?}");
    eprintln!("  empty run, workers asleep       {asleep:?}");
    eprintln!("  32 items of 2 us, 10 us apart   {shared:?}, on one thread {serial:?}");
}

/// Median, mean and 99th percentile of the time of `run` in ns, with a pause before each.
fn times(runs: usize, pause: Duration, run: impl Fn()) -> [u128; 3] {
    let time = |_| {
        busy(pause);
        let start = Instant::now();
        run();
        start.elapsed().as_nanos()
    };
    let mut times: Vec<u128> = (0..runs).map(time).collect();
    times.sort_unstable();
    [times[runs / 2], times.iter().sum::<u128>() / runs as u128, times[runs * 99 / 100]]
}
