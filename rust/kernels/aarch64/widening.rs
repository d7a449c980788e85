//! Integer products of ARMv8.0 (Cortex-A53, A72: Raspberry Pi 3 and 4), which has no dot product of bytes.
//!
//! `smlal` multiplies eight pairs of bytes and adds to i16. A register of weights holds four rows by four columns, so
//! the sums of a row stand in four i16 until the end:
//!
//! ```text
//! INT4   sums += w x a, eight times      at most 8 x 15 x 127 = 15,240, and with a neighbour 30,480: no overflow
//!        offset += pairs of pairs        addp, sadalp: once for a block
//! INT8   pairs = w x a + w' x a'         at most 2 x 128 x 127 = 32,512
//!        sums += pairs of pairs          sadalp: four times for a block
//! ```
#![allow(unsafe_code, reason = "loads of four activations into all lanes")]

use std::arch::aarch64::{
    int8x16_t, int16x8_t, int32x4_t, vdupq_n_s16, vdupq_n_s32, vget_low_s8, vld1q_dup_s32, vmlal_high_s8,
    vmlal_s8, vmull_high_s8, vmull_s8, vpadalq_s16, vpaddq_s16, vpaddq_s32, vreinterpretq_s8_s32,
};

use super::Products;
use super::intrinsics;
use super::neon::{Int4, Neon};
use super::weights::Weights;
use crate::kernels::lanes::Op;

/// `smlal`: every 64-bit ARM processor has it.
#[derive(Clone, Copy, Debug)]
pub struct Widening;

impl Products for Widening {
    const TILE: usize = 4;

    #[inline]
    fn run<O: Op>(tier: Neon<Self>, op: O) -> O::Output {
        op.run(tier)
    }

    #[inline(always)]
    fn dots_u4<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], offsets: [i32; T]) -> [Int4; T] {
        intrinsics! {
            let mut out = [[vdupq_n_s32(0); 4]; T];
            for t in 0..T {
                out[t] = [vdupq_n_s32(offsets[t]); 4];
            }
            // Sums of up to two tokens fit the registers for all rows at once.
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
    fn dots_i8<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T]) -> [Int4; T] {
        intrinsics! {
            let mut out = [[vdupq_n_s32(0); 4]; T];
            if T <= 2 {
                byte_rows::<W, T, 4>(w, a, 0, &mut out);
            } else {
                byte_rows::<W, T, 2>(w, a, 0, &mut out);
                byte_rows::<W, T, 2>(w, a, 2, &mut out);
            }
            out
        }
    }
}

/// Activations `4 j..4 j + 4`, four times.
#[inline(always)]
fn quad(a: &[i8; 32], j: usize) -> int8x16_t {
    intrinsics! {
        let quad = a[4 * j..].first_chunk::<4>().expect("four activations");
        vreinterpretq_s8_s32(vld1q_dup_s32(quad.as_ptr().cast()))
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
        let mut sums: [[[int16x8_t; 2]; Q]; T] = [[[vdupq_n_s16(0); 2]; Q]; T];
        for j in 0..4 {
            for q in 0..Q {
                let w = w.pair(j, first + q);
                for t in 0..T {
                    for half in 0..2 {
                        let a = quad(a[t], j + 4 * half);
                        let [low, high] = sums[t][q];
                        let low = vmlal_s8(low, vget_low_s8(w[half]), vget_low_s8(a));
                        sums[t][q] = [low, vmlal_high_s8(high, w[half], a)];
                    }
                }
            }
        }
        for t in 0..T {
            for q in 0..Q {
                let [low, high] = sums[t][q];
                out[t][first + q] = vpadalq_s16(out[t][first + q], vpaddq_s16(low, high));
            }
        }
    }
}

/// As [`nibble_rows`], for bytes.
#[inline(always)]
fn byte_rows<W: Weights, const T: usize, const Q: usize>(
    w: W,
    a: [&[i8; 32]; T],
    first: usize,
    out: &mut [Int4; T],
) {
    intrinsics! {
        let mut sums: [[[int32x4_t; 2]; Q]; T] = [[[vdupq_n_s32(0); 2]; Q]; T];
        for j in 0..4 {
            for q in 0..Q {
                let w = w.pair(j, first + q);
                for t in 0..T {
                    let a = [quad(a[t], j), quad(a[t], j + 4)];
                    let low = vmull_s8(vget_low_s8(w[0]), vget_low_s8(a[0]));
                    let low = vmlal_s8(low, vget_low_s8(w[1]), vget_low_s8(a[1]));
                    let high = vmlal_high_s8(vmull_high_s8(w[0], a[0]), w[1], a[1]);
                    sums[t][q] = [vpadalq_s16(sums[t][q][0], low), vpadalq_s16(sums[t][q][1], high)];
                }
            }
        }
        for t in 0..T {
            for q in 0..Q {
                out[t][first + q] = vpaddq_s32(sums[t][q][0], sums[t][q][1]);
            }
        }
    }
}
