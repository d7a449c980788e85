//! Integer products of ARMv8.0 (Cortex-A53, A72: Raspberry Pi 3 and 4), which has no dot product of bytes.
//!
//! `smlal` multiplies eight pairs of bytes and adds to i16. A register of weights holds four rows by four columns, so
//! the sums of a row stand in four i16 until the end:
//!
//! ```text
//! INT4   sums += w x a, eight times      at most 8 x 15 x 127 = 15,240, and with a neighbour 30,480: no overflow
//!        start += pairs of pairs         addp, sadalp: once for a block
//! INT8   pairs = w x a + w' x a'         at most 2 x 128 x 127 = 32,512
//!        sums += pairs of pairs          sadalp: four times for a block
//! ```
#![allow(unsafe_code, reason = "loads of four activations into all lanes")]

use std::arch::aarch64::{
    int8x16_t, int16x8_t, int32x4_t, vdupq_n_s8, vdupq_n_s16, vdupq_n_s32, vdupq_n_s64, vget_low_s8,
    vld1q_dup_s32, vmull_s8, vpadalq_s16, vpaddq_s16, vpaddq_s32, vreinterpretq_s8_s32,
    vreinterpretq_s32_s64,
};
use std::arch::asm;

use super::Products;
use super::intrinsics;
use super::neon::{Int4, Neon};
use super::weights::Weights;
use crate::kernels::lanes::Op;

/// `smlal`: every 64-bit ARM processor has it.
#[derive(Clone, Copy, Debug)]
pub struct Widening;

impl Products for Widening {
    /// With four, sums were spilled: 210 instructions instead of 147 for a block of INT4 and a token.
    const TILE: usize = 2;
    const PAIRS: usize = usize::MAX;

    #[inline]
    fn run<O: Op>(tier: Neon<Self>, op: O) -> O::Output {
        #[inline(never)]
        fn with_features<O: Op>(tier: Neon<Widening>, op: O) -> O::Output {
            op.run(tier)
        }
        with_features(tier, op)
    }

    #[inline(always)]
    fn dots_u4<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        intrinsics! {
            let mut out = [[vdupq_n_s32(0); 4]; T];
            for t in 0..T {
                out[t] = [vdupq_n_s32(starts[t]); 4];
            }
            // Sums of up to two tokens fit the registers for all rows at once; attention has up to four.
            if T <= 2 {
                nibble_rows::<W, T, 4>(w, a, 0, &mut out);
            } else {
                nibble_rows::<W, T, 2>(w, a, 0, &mut out);
                nibble_rows::<W, T, 2>(w, a, 2, &mut out);
            }
            out
        }
    }

    #[inline(always)]
    fn dots_i8<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        intrinsics! {
            let mut out = [[vdupq_n_s32(0); 4]; T];
            if T <= 2 {
                byte_rows::<W, T, 4>(w, a, starts, 0, &mut out);
            } else {
                byte_rows::<W, T, 2>(w, a, starts, 0, &mut out);
                byte_rows::<W, T, 2>(w, a, starts, 2, &mut out);
            }
            out
        }
    }
}

/// An instruction that multiplies the lower or upper eight bytes of two registers. LLVM would take the upper ones of a
/// register with equal quarters for the lower ones, at the price of moving those of the other.
macro_rules! multiply_add {
    ($name:ident, $instruction:literal, $bytes:literal) => {
        #[inline(always)]
        fn $name(sum: int16x8_t, w: int8x16_t, a: int8x16_t) -> int16x8_t {
            let out;
            // SAFETY: an instruction of ARMv8.0 that works on registers only.
            unsafe {
                asm!(
                    concat!($instruction, " {sum:v}.8h, {w:v}.", $bytes, ", {a:v}.", $bytes),
                    sum = inlateout(vreg) sum => out,
                    w = in(vreg) w,
                    a = in(vreg) a,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            out
        }
    };
}
multiply_add!(add_low, "smlal", "8b");
multiply_add!(add_high, "smlal2", "16b");

/// Activations `4 j..4 j + 4`, four times.
///
/// # Safety
/// j < 8.
#[inline(always)]
unsafe fn quad(a: &[i8; 32], j: usize) -> int8x16_t {
    intrinsics! { vreinterpretq_s8_s32(vld1q_dup_s32(a.as_ptr().add(4 * j).cast())) }
}

/// Quads `J` and `J + 4` of each token.
#[inline(always)]
fn quads<const T: usize, const J: usize>(a: [&[i8; 32]; T]) -> [[int8x16_t; 2]; T] {
    intrinsics! {
        let mut out = [[vdupq_n_s8(0); 2]; T];
        for t in 0..T {
            out[t] = [quad(a[t], J), quad(a[t], J + 4)];
        }
        out
    }
}

/// Adds the products of `Q` registers of rows from `first` on to `out`.
#[inline(always)]
fn nibble_rows<W: Weights, const T: usize, const Q: usize>(
    w: W,
    a: [&[i8; 32]; T],
    first: usize,
    out: &mut [Int4; T],
) {
    intrinsics! {
        let mut sums = [[[vdupq_n_s16(0); 2]; Q]; T];
        nibble_columns::<W, T, Q, 0>(w, a, first, &mut sums);
        nibble_columns::<W, T, Q, 1>(w, a, first, &mut sums);
        nibble_columns::<W, T, Q, 2>(w, a, first, &mut sums);
        nibble_columns::<W, T, Q, 3>(w, a, first, &mut sums);
        for t in 0..T {
            for q in 0..Q {
                let [low, high] = sums[t][q];
                out[t][first + q] = vpadalq_s16(out[t][first + q], vpaddq_s16(low, high));
            }
        }
    }
}

/// The columns of vectors `J` and `J + 4`.
#[inline(always)]
fn nibble_columns<W: Weights, const T: usize, const Q: usize, const J: usize>(
    w: W,
    a: [&[i8; 32]; T],
    first: usize,
    sums: &mut [[[int16x8_t; 2]; Q]; T],
) {
    let a = quads::<T, J>(a);
    for q in 0..Q {
        // SAFETY: J is below 4 in all calls, and so are rows.
        let w = unsafe { w.pair(J, first + q) };
        for t in 0..T {
            let [low, high] = sums[t][q];
            let low = add_low(add_low(low, w[0], a[t][0]), w[1], a[t][1]);
            sums[t][q] = [low, add_high(add_high(high, w[0], a[t][0]), w[1], a[t][1])];
        }
    }
}

/// The sums of `Q` registers of rows of bytes from `first` on, each in two lanes until the end, of which one starts from `starts`.
#[inline(always)]
fn byte_rows<W: Weights, const T: usize, const Q: usize>(
    w: W,
    a: [&[i8; 32]; T],
    starts: [i32; T],
    first: usize,
    out: &mut [Int4; T],
) {
    intrinsics! {
        let mut sums = [[[vdupq_n_s32(0); 2]; Q]; T];
        for t in 0..T {
            let start = vreinterpretq_s32_s64(vdupq_n_s64(i64::from(starts[t].cast_unsigned())));
            sums[t] = [[start; 2]; Q];
        }
        byte_columns::<W, T, Q, 0>(w, a, first, &mut sums);
        byte_columns::<W, T, Q, 1>(w, a, first, &mut sums);
        byte_columns::<W, T, Q, 2>(w, a, first, &mut sums);
        byte_columns::<W, T, Q, 3>(w, a, first, &mut sums);
        for t in 0..T {
            for q in 0..Q {
                out[t][first + q] = vpaddq_s32(sums[t][q][0], sums[t][q][1]);
            }
        }
    }
}

/// The columns of vectors `J` and `J + 4`.
#[inline(always)]
fn byte_columns<W: Weights, const T: usize, const Q: usize, const J: usize>(
    w: W,
    a: [&[i8; 32]; T],
    first: usize,
    sums: &mut [[[int32x4_t; 2]; Q]; T],
) {
    let a = quads::<T, J>(a);
    intrinsics! {
        for q in 0..Q {
            let w = w.pair(J, first + q);
            for t in 0..T {
                let low = add_low(vmull_s8(vget_low_s8(w[0]), vget_low_s8(a[t][0])), w[1], a[t][1]);
                let high = add_high(multiply_high(w[0], a[t][0]), w[1], a[t][1]);
                sums[t][q] = [vpadalq_s16(sums[t][q][0], low), vpadalq_s16(sums[t][q][1], high)];
            }
        }
    }
}

/// The products of the upper eight bytes, see [`add_high`].
#[inline(always)]
fn multiply_high(w: int8x16_t, a: int8x16_t) -> int16x8_t {
    let out;
    // SAFETY: an instruction of ARMv8.0 that works on registers only.
    unsafe {
        asm!(
            "smull2 {out:v}.8h, {w:v}.16b, {a:v}.16b",
            out = lateout(vreg) out,
            w = in(vreg) w,
            a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}
