//! The persistent pool of threads that shares out the items of one operation.
//!
//! ```text
//! run(items, task), on the caller                     worker, for as long as the pool lives
//!   if another run holds the crew: do all items here    while gate.enter():
//!   next = 0; publish (task, items)                         read (task, items)
//!   gate.open()                                             work()
//!   work()                                                  gate.leave()
//!   gate.close(); wait until the last worker left
//!   resume a panic, if a task had one                 work: while (i = next++) < items: task(i)
//! ```
//!
//! Items are claimed one by one in increasing order, so fast and slow cores finish together. The [`Gate`] is what
//! makes lending `task` to other threads sound: its description has the argument.
//!
//! **Several callers.** One has the crew; the others, and runs inside a task, do their items on their own thread
//! rather than wait. So nothing here can deadlock, and results do not depend on who got the crew.
//!
//! **Panics.** The first one of a run is kept, the items not yet claimed are skipped, and the panic goes on in the
//! caller when all threads have left the task.
//!
//! **Fork.** Workers do not exist in a forked child. Its first run finds a crew of another fork generation, forgets
//! it and hires a new one. If the fork happened while another thread was inside `run`, the crew stays locked
//! for ever in the child, which then works on one thread. A fork from within a task loses the items that workers
//! had claimed: that run ends with a panic in the child.
#![allow(unsafe_code)] // Lends a borrowed task to threads that live longer than the borrow.

use super::float_mode::StandardFloat;
use super::fork;
use super::gate::{Gate, Line, MAX_WORKERS};
use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};

/// Called with the number of the item.
type Task<'a> = &'a (dyn Fn(usize) + Sync);
type Panic = Box<dyn Any + Send>;

/// A pool of threads. Workers start with the first run that can use them and end with the pool.
pub struct Pool {
    threads: usize,
    /// Held for the length of a run.
    crew: Mutex<Option<Crew>>,
}

impl Pool {
    /// A pool in which `threads` threads, the caller among them, share the work. Zero counts as one.
    pub fn new(threads: usize) -> Self {
        Self { threads: threads.clamp(1, MAX_WORKERS + 1), crew: Mutex::new(None) }
    }

    /// How many threads share the work. If the system refuses to start some, the others do their share.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task(i)` once for each `i` in `0..items`, on any thread, and returns when all calls have returned.
    ///
    /// Floating-point arithmetic in tasks rounds to nearest even and keeps subnormal numbers, whatever the caller's mode.
    /// Items are claimed in increasing order. Allocates nothing, except on the first run of a process that has
    /// work for two threads. May be called from several threads at once and from within a task.
    ///
    /// # Panics
    ///
    /// If a task panics, with the same panic; items not yet begun are skipped, and the pool stays usable.
    pub fn run(&self, items: usize, task: &(dyn Fn(usize) + Sync)) {
        let _standard = StandardFloat::enter();
        if items <= 1 || self.threads == 1 {
            return (0..items).for_each(task);
        }
        let Some(mut crew) = self.try_crew() else {
            return (0..items).for_each(task);
        };
        let outcome = crew.get_or_insert_with(|| Crew::hire(self.threads - 1)).run(items, task);
        drop(crew);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }

    /// The crew, or none if a run holds it already. A crew left over from before a fork is not handed out.
    fn try_crew(&self) -> Option<MutexGuard<'_, Option<Crew>>> {
        let mut crew = match self.crew.try_lock() {
            Ok(crew) => crew,
            // The lock is let go before a panic goes on, so nothing was left half done.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        crew.take_if(|crew| crew.is_of_another_process());
        Some(crew)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// The workers of one process, and what they share with the caller.
struct Crew {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// [`fork::generation`] of the process that the workers live in.
    forks: u64,
}

impl Crew {
    /// Starts `count` workers, or as many as the system allows.
    fn hire(count: usize) -> Self {
        let shared = Arc::new(Shared::default());
        // Workers that a fork could take away unnoticed would be waited for without end.
        let count = if fork::watch() { count } else { 0 };
        let hire = |index: usize| {
            let shared = Arc::clone(&shared);
            let name = format!("edgewise-{index}");
            thread::Builder::new()
                .name(name)
                .spawn(move || {
                    let _standard = StandardFloat::enter();
                    shared.serve();
                })
                .ok()
        };
        let workers = (1..=count).map_while(hire).collect();
        Self { shared, workers, forks: fork::generation() }
    }

    fn is_of_another_process(&self) -> bool {
        self.forks != fork::generation()
    }

    /// Does all items, and returns when no thread is inside `task` any more.
    fn run(&mut self, items: usize, task: Task<'_>) -> Result<(), Panic> {
        let shared = &*self.shared;
        shared.next.0.store(0, Ordering::Relaxed);
        // SAFETY: the type changes in its lifetime only. Workers use the pointer between `enter` and `leave`, and
        // this function does not return (nor unwind: `work` catches panics) before `wait_until_empty` has seen
        // all workers leave, unless they ceased to exist with a fork.
        let task: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let job = Job { task, items: items as u64 };
        // SAFETY: no run is open and the last one waited for its workers, so none is between `enter` and `leave`;
        // `&mut self` excludes other owners.
        unsafe { *shared.job.0.get() = Some(job) };
        shared.gate.open(self.workers.len().min(items - 1));
        shared.work(job);
        if !shared.gate.close() {
            if self.is_of_another_process() {
                // Not `panic!`: its hook takes locks that a thread of the parent may hold for ever.
                return Err(Box::new(
                    "the process was forked inside a parallel operation, which cannot go on",
                ));
            }
            shared.gate.wait_until_empty();
        }
        shared.panic().take().map_or(Ok(()), Err)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        if self.is_of_another_process() {
            // The threads do not exist here: they can be neither joined nor detached.
            return std::mem::forget(workers);
        }
        self.shared.gate.stop();
        for worker in workers {
            // Workers catch the panics of tasks, so there is none to report.
            let _ = worker.join();
        }
    }
}

/// One run, as the workers see it.
#[derive(Clone, Copy)]
struct Job {
    /// Valid while the run is open or a worker is inside it.
    task: *const (dyn Fn(usize) + Sync),
    items: u64,
}

/// The owner of the gate writes while no worker is inside, workers read while they are.
#[derive(Default)]
struct JobCell(UnsafeCell<Option<Job>>);

// SAFETY: the gate separates the owner's writes from the workers' reads, and orders them (release on open and
// leave, acquire on enter and close). The task behind the pointer is `Sync`, so any thread may call it.
unsafe impl Sync for JobCell {}
// SAFETY: as above; the cell holds nothing that belongs to one thread.
unsafe impl Send for JobCell {}

#[derive(Default)]
struct Shared {
    gate: Gate,
    job: JobCell,
    /// The next item to claim. 64 bits, so that claims beyond the last item cannot wrap around.
    next: Line<AtomicU64>,
    /// The first panic of the run.
    panic: Mutex<Option<Panic>>,
}

impl Shared {
    /// The life of a worker.
    fn serve(&self) {
        let mut seen = 0;
        while self.gate.enter(&mut seen) {
            // SAFETY: between `enter` and `leave` the owner does not write to the cell.
            let job = unsafe { *self.job.0.get() };
            if let Some(job) = job {
                self.work(job);
            }
            self.gate.leave();
        }
    }

    /// Claims and does items of the open run until none is left.
    fn work(&self, job: Job) {
        // SAFETY: the caller is inside an open run, or is its owner, so the borrow behind the pointer is alive.
        let task = unsafe { &*job.task };
        let claim = || Some(self.next.0.fetch_add(1, Ordering::Relaxed)).filter(|&item| item < job.items);
        let share = || std::iter::from_fn(claim).for_each(|item| task(item as usize));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(share)) {
            self.next.0.store(job.items, Ordering::Relaxed);
            self.keep_first(panic);
        }
    }

    fn keep_first(&self, panic: Panic) {
        let mut first = self.panic();
        if first.is_none() {
            *first = Some(panic);
        } else {
            // Dropping it would run code of the task, which could panic where nothing may.
            std::mem::forget(panic);
        }
    }

    fn panic(&self) -> MutexGuard<'_, Option<Panic>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
