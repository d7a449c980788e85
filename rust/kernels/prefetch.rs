//! Asking for memory before it is needed. It has no effect on results.
#![allow(unsafe_code, reason = "one intrinsic without effects that a program could see")]

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Asks for the cache line of `place`, on processors where we know how.
#[inline(always)]
pub fn prefetch(place: &u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE belongs to every x86-64 processor, and the address is that of a reference.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Memory that is read from its beginning to its end, and what is read after it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream<'a> {
    /// Read now.
    pub this: &'a [u8],
    /// Read next.
    pub next: &'a [u8],
}

/// How far ahead of reading a stream is asked for.
const DISTANCE: usize = 12 * 1024;

impl Stream<'_> {
    /// Asks for what stands [`DISTANCE`] behind bytes `from..from + count`, which are about to be read.
    #[inline(always)]
    pub fn ahead(&self, from: usize, count: usize) {
        for at in (from + DISTANCE..from + DISTANCE + count).step_by(LINE) {
            let place = self.this.get(at).or_else(|| self.next.get(at.wrapping_sub(self.this.len())));
            let Some(place) = place else { return };
            prefetch(place);
        }
    }
}
