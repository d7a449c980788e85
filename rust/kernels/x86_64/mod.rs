//! Tiers of x86-64 processors.
//!
//! ```text
//! avx2          Haswell, Zen                vpmaddubsw, 32 products in i16       `maddubs`
//! avxvnni       Alder Lake, N100            vpdpbusd, 32 products in i32         `vnni`
//! avx512vnni    Ice Lake, Zen 4             vpdpbusd, 64 products in i32         `avx512`
//! avx512bf16    Cooper Lake, Zen 4          the same, and vdpbf16ps
//! ```
//!
//! The first two share the f32 arithmetic of [`avx2`] and differ in their integer products.

pub mod avx2;
pub mod avx512;
pub mod maddubs;
pub mod vnni;

use std::arch::x86_64::__m256i;

use self::avx2::{Avx2, Int2};
use super::lanes::Op;

/// Calls intrinsics of the tier whose token the surrounding method received.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: `self` exists only after its constructor detected the features of every intrinsic called here;
        // loads and stores go through references to arrays of exactly the width they touch, and are unaligned ones.
        unsafe { $($body)* }
    };
}
use intrinsics;

/// The integer products of a tier with registers of 256 bits. A value is the proof that this CPU has them, and AVX2, FMA and F16C,
/// on which all that [`Avx2`] does rests. Methods owe what those of [`Simd`](super::lanes::Simd) do that have the same names.
pub trait Products: Copy + Send + Sync + 'static {
    /// As [`Simd::UNSIGNED`](super::lanes::Simd::UNSIGNED) has it.
    const UNSIGNED: bool;
    /// As [`Simd::TILE`](super::lanes::Simd::TILE) has it.
    const TILE: usize;

    /// Runs `op` compiled for the tier.
    fn run<O: Op>(tier: Avx2<Self>, op: O) -> O::Output;

    /// Of a block's nibbles in eight vectors.
    fn dots_u4<const T: usize>(self, w: &[Int2; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T];

    /// Column by column with all tokens, so that a vector of weights is expanded into a register, used and forgotten: sixteen
    /// registers do not hold a block.
    fn block_u4<const T: usize>(self, block: &[u8; 256], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T];

    /// Of a block's bytes, as they are stored, in eight vectors.
    fn dots_i8<const T: usize>(self, w: &[Int2; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T];

    /// `sum` and two products of 16 bits in each lane.
    fn add_words(self, sum: __m256i, w: __m256i, a: __m256i) -> __m256i;
}

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
