//! Has this process been forked since? A child of `fork` keeps its parent's memory but none of its threads.
//!
//! The C library calls [`count_child`] in every new child, so that the answer costs one load where comparing
//! `getpid()` would cost a system call.
#![allow(unsafe_code)] // One call of the C library's `pthread_atfork`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static FORKS: AtomicU64 = AtomicU64::new(0);

/// How many forks lie between this process and the one that called [`watch`] first.
pub(crate) fn generation() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Starts counting forks; false if the system has no memory left to remember it.
#[cfg(unix)]
pub(crate) fn watch() -> bool {
    static WATCHING: OnceLock<bool> = OnceLock::new();
    // SAFETY: the handler is a function of this library, which is never unloaded while its code may run (the C
    // library forgets handlers of an unloaded one), and does nothing but add to an atomic number, which is
    // allowed in the child of a process with many threads.
    *WATCHING.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(count_child)) } == 0)
}

/// Systems without `fork`.
#[cfg(not(unix))]
pub(crate) fn watch() -> bool {
    true
}

#[cfg(unix)]
extern "C" fn count_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
