//! Asking for memory before it is needed. It has no effect on results.
#![allow(unsafe_code, reason = "one intrinsic without effects that a program could see")]

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Asks for the cache line of `place`, on processors where we know how. The address need not be one that may be read.
#[inline(always)]
pub fn prefetch_line(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it does nothing where nothing can be read.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every 64-bit ARM processor has the instruction, and it does nothing where nothing can be read. It counts as
    // reading memory, so that it stays in its place.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) place, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
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
            prefetch_line(place);
        }
    }
}
