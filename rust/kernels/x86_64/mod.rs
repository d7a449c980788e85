//! Tiers of x86-64 processors.

pub mod avx2;
pub mod avx512;

/// Calls intrinsics of the tier whose token the surrounding method received.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: `self` exists only after its constructor detected the features of every intrinsic in this file;
        // loads and stores go through references to arrays of exactly the width they touch, and are unaligned ones.
        unsafe { $($body)* }
    };
}
use intrinsics;

/// A cache line.
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "only its place matters")] [u8; 64]);

/// Makes the frame of the function that this is compiled into begin at a cache line.
///
/// Where nothing in a frame asks for that, the compiler puts vectors that registers cannot hold at multiples of 16 bytes. Then
/// some of them lie on two lines, one perhaps on two pages, and whether one does depends on how deep the stack of a thread is:
/// AVX2 read prompts with two threads up to 1.15 times as slowly after changes elsewhere in the library.
#[inline(always)]
fn align_frame() {
    let line = std::mem::MaybeUninit::<Line>::uninit();
    std::hint::black_box(&line);
}
