//! Asking for memory before it is needed. It has no effect on results.
//!
//! What products and attention read from memory can be asked for into the first cache or into the second, and which is faster
//! depends on the processor. A core has few places for lines on their way to its first cache; on the way to the second there
//! are more, which its own prefetcher fills too while memory is read in order. Hints into the first cache wait for memory in
//! the few places: a core of a Zen 4 then reads weights at 17 to 23 GB/s, where it reads 24 to 29 without any hint. (That much is
//! measured; that places are the reason is likely.)
//!
//! ```text
//! Zen 5        each line into the first cache; what a token reads once is to be forgotten then
//! other x86    each line into the second cache; of weights, for so few tokens that they keep up with memory, only the first line
//!              of a block, which tells the processor's own prefetcher where to go on
//! ARM          each line into the first cache
//! ```
//!
//! Measured on a Zen 5, where hints into the second cache had no gain, and on a Zen 4 (`docs/design.md`); other processors
//! get what leaves most to their own prefetchers. States and small things are asked for into the first cache everywhere: the
//! second makes no difference to them.
#![allow(unsafe_code, reason = "intrinsics without effects that a program could see")]

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a cache line.
pub const LINE: usize = 64;
/// Bytes of the smallest page of memory.
const PAGE: usize = 4096;

/// How often what is asked for is read before other memory takes its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// Once. It need not stay in any cache, and other things can: a token reads all weights of a model once, and between them
    /// states of some megabytes, which a large last-level cache then holds from token to token. Told to a Zen 5.
    Once,
    /// More than once.
    #[default]
    Again,
}

/// Tokens at most whose products keep up with memory.
const FEW: usize = 2;

/// Whether memory is asked for into the second cache. A value handed down would take a register in loops that have none to spare:
/// prompts were up to 1.08 times as slow. So would a call, if the static were lazy.
#[cfg(target_arch = "x86_64")]
static SECOND_CACHE: AtomicBool = AtomicBool::new(false);

/// Chooses the cache that suits this processor, for the whole process.
pub fn choose_cache() {
    #[cfg(target_arch = "x86_64")]
    {
        #[allow(unused_unsafe, reason = "newer compilers know that the instruction is safe")]
        // SAFETY: every x86-64 processor has it, and these two of its leaves.
        let [vendor, version] = unsafe { [std::arch::x86_64::__cpuid(0), std::arch::x86_64::__cpuid(1)] };
        let amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
        SECOND_CACHE.store(!(amd && family(version.eax) == ZEN_5), Ordering::Relaxed);
    }
}

/// Of Zen 5. Later processors may share it.
#[cfg(target_arch = "x86_64")]
const ZEN_5: u32 = 0x1a;

/// The processor family that leaf 1 of `cpuid` tells.
///
/// Source: AMD64 Architecture Programmer's Manual, volume 3, appendix E.
#[cfg(target_arch = "x86_64")]
const fn family(eax: u32) -> u32 {
    let base = eax >> 8 & 15;
    if base == 15 { base + (eax >> 20 & 255) } else { base }
}

#[inline(always)]
fn second_cache() -> bool {
    #[cfg(target_arch = "x86_64")]
    return SECOND_CACHE.load(Ordering::Relaxed);
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// [`line`] into the second cache.
#[inline(always)]
fn far_line(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `line`.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    line(place, Reads::Again);
}

/// Asks for the cache line of the byte at `place`, on processors where we know how. It need not be one that may be read.
#[inline(always)]
fn line(place: *const u8, reads: Reads) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE belongs to every x86-64 processor, and the instruction does nothing where nothing can be read.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_NTA, _MM_HINT_T0, _mm_prefetch};
        match reads {
            Reads::Once => _mm_prefetch::<_MM_HINT_NTA>(place.cast()),
            Reads::Again => _mm_prefetch::<_MM_HINT_T0>(place.cast()),
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every 64-bit ARM processor has the instruction, and it does nothing where nothing can be read. It counts as
    // reading memory, so that it stays in its place.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) place, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (place, reads);
}

/// Asks for the cache lines of `bytes` bytes from `start`, into the first cache. None of them need be one that may be read.
#[inline(always)]
pub fn lines(start: *const u8, bytes: usize) {
    all_lines(start, bytes, Reads::Again);
}

#[inline(always)]
fn all_lines(start: *const u8, bytes: usize, reads: Reads) {
    for at in (0..bytes).step_by(LINE) {
        line(start.wrapping_add(at), reads);
    }
}

/// From bytes that are asked for to the page whose address is looked up.
const PAGES: usize = 8 * 1024;

/// Asks for `bytes` bytes from `start`, a piece of weights that are read in order by a tile of `T` tokens, and for a line of the
/// page 8 KB behind them, so that its address is known when its turn comes. Weights of a model are read so rarely that the
/// tables of addresses are in memory too; with this, a Zen 5 reads experts 1.1 times as fast. Into the second cache for few
/// tokens, only the beginning is asked for.
#[inline(always)]
pub fn stream<const T: usize>(start: *const u8, bytes: usize, reads: Reads) {
    let page = start.wrapping_add(PAGES).map_addr(|address| address | (PAGE - LINE));
    if !second_cache() {
        all_lines(start, bytes, reads);
        line(page, reads);
    } else if T <= FEW {
        far_line(start);
    } else {
        for at in (0..bytes).step_by(LINE) {
            far_line(start.wrapping_add(at));
        }
        far_line(page);
    }
}

/// Memory that is read from its beginning to its end, and what is read after it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream<'a> {
    /// Read now.
    pub this: &'a [u8],
    /// Read next.
    pub next: &'a [u8],
    /// How often.
    pub reads: Reads,
}

/// How far ahead of reading a stream is asked for: with 4 to 6 KB a token at depth 8192 reads its cache 2 % (in pages of 2 MB
/// 5 %) faster than with 12 KB, and with 2 KB as fast as with 12.
const DISTANCE: usize = 6 * 1024;

impl Stream<'_> {
    /// Asks for what stands [`DISTANCE`] behind bytes `from..from + count`, which are about to be read.
    #[inline(always)]
    pub fn ahead(&self, from: usize, count: usize) {
        for at in (from + DISTANCE..from + DISTANCE + count).step_by(LINE) {
            let place = self.this.get(at).or_else(|| self.next.get(at.wrapping_sub(self.this.len())));
            let Some(place) = place else { return };
            if second_cache() { far_line(place) } else { line(place, self.reads) }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::family;

    #[test]
    fn families() {
        // EPYC 9005, EPYC 9004, Ryzen 3000; Core of the twelfth generation; Athlon 64.
        let families = [0x00b0_0f21, 0x00a1_0f11, 0x0087_0f10, 0x0009_06a3, 0x0000_0f4a].map(family);
        assert_eq!(families, [0x1a, 0x19, 0x17, 6, 15]);
    }
}
