//! The scratch memory of an engine, lent to one pass at a time: also after a panic, and after a fork.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::Scratch;
use crate::config::TextConfig;
use crate::threads::fork;

/// Scratch memory behind a lock.
#[derive(Debug)]
pub struct Workspace {
    scratch: Mutex<Scratch>,
    /// [`fork::generation`] of the process that last took the lock.
    holder: AtomicU64,
}

impl Workspace {
    /// Scratch memory for chunks of up to `tokens` tokens.
    pub fn new(config: &TextConfig, tokens: usize) -> Self {
        // Where forks cannot be counted, the thread pool hires no workers and a fork is as in any other library.
        fork::watch();
        Self { scratch: Mutex::new(Scratch::new(config, tokens)), holder: AtomicU64::new(fork::generation()) }
    }

    /// Waits for its turn.
    ///
    /// Scratch memory holds nothing between passes, so a panic in another thread left nothing bad in it but perhaps a
    /// taken buffer: it is then rebuilt. A thread that held the lock while the process was forked does not exist in the
    /// child: there each pass works in memory of its own.
    pub fn take(&self, config: &TextConfig, tokens: usize) -> Taken<'_> {
        let scratch = match self.scratch.try_lock() {
            Err(TryLockError::WouldBlock) if self.holder.load(Ordering::Relaxed) != fork::generation() => {
                return Taken::Own(Box::new(Scratch::new(config, tokens)));
            }
            Err(TryLockError::WouldBlock) => self.scratch.lock(),
            Err(TryLockError::Poisoned(poisoned)) => Err(poisoned),
            Ok(scratch) => Ok(scratch),
        };
        self.holder.store(fork::generation(), Ordering::Relaxed);
        let mut scratch = scratch.unwrap_or_else(PoisonError::into_inner);
        if self.scratch.is_poisoned() {
            *scratch = Scratch::new(config, tokens);
            self.scratch.clear_poison();
        }
        Taken::Shared(scratch)
    }
}

/// Scratch memory for one pass.
pub enum Taken<'a> {
    /// The engine's.
    Shared(MutexGuard<'a, Scratch>),
    /// A fresh one, in a child whose parent was computing when it forked.
    Own(Box<Scratch>),
}

impl Deref for Taken<'_> {
    type Target = Scratch;

    fn deref(&self) -> &Scratch {
        match self {
            Self::Shared(scratch) => scratch,
            Self::Own(scratch) => scratch,
        }
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Scratch {
        match self {
            Self::Shared(scratch) => scratch,
            Self::Own(scratch) => scratch,
        }
    }
}
