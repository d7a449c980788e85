//! Integer products of processors with the dot product of bytes (ARMv8.2: Cortex-A55, A76 and later, Raspberry Pi 5).
//!
//! `sdot` adds four products to each 32-bit lane, and takes the four activations by their place in a register. So a
//! register of weights, four rows by four columns, is one instruction for each token:
//!
//! ```text
//! for each quad j of columns, for each 4 rows:   load 16 bytes, two expansions      shared by the tile
//!   for each token:  sums += low . a[j];  sums += high . a[j + 4]
//! ```
//!
//! From four tokens on a panel is multiplied by [`strips`]. There the four activations stand in a register of a
//! [`Pair`]: columns `8 e..` of its first token at places 0 and 1, of its second at 2 and 3.
#![allow(unsafe_code, reason = "sdot, argued by the token, and loads")]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, vdupq_laneq_f32, vdupq_laneq_s32, vdupq_n_f32, vdupq_n_s32, vfmaq_f32,
    vfmsq_laneq_f32, vld1q_f32, vld1q_s8, vld1q_s32, vreinterpretq_f32_s32, vst1q_f32,
};
use std::arch::asm;

use super::Products;
use super::intrinsics;
use super::neon::{Int4, Neon};
use super::strips::{self, FourRows, Strip, Strips, in_turn, unrolled};
use super::weights::{self, Weights};
use crate::kernels::activations::SPAN;
use crate::kernels::lanes::Op;
use crate::kernels::pairs::Pair;
use crate::kernels::tiles::{Block, QuantizedTile, TileOut};

/// Tokens of a strip whose sums grow in turn.
const GROUP: usize = 4;

/// Proof that this CPU has `sdot`.
#[derive(Clone, Copy, Debug)]
pub struct DotProd(());

impl DotProd {
    /// The instructions, if this CPU and operating system support them.
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }

    /// sum + four products in each lane: w's four bytes there x bytes `4 PLACE..` of `a`.
    #[inline(always)]
    fn sdot<const PLACE: u8>(self, sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        let out;
        // SAFETY: `self` proves the instruction, which works on registers only.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {a:v}.4b[{place}]",
                sum = inlateout(vreg) sum => out,
                w = in(vreg) w,
                a = in(vreg) a,
                place = const PLACE,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out
    }

    /// Adds the products with columns `4 J..4 J + 4` and, of the block's other half, `16 + 4 J..` to `sums`.
    #[inline(always)]
    fn columns<W: Weights, const T: usize, const J: u8>(
        self,
        w: W,
        a: &[[int8x16_t; 2]; T],
        sums: &mut [Int4; T],
    ) {
        for q in 0..4 {
            // SAFETY: J is below 4 in all calls, and so is q.
            let [low, high] = unsafe { w.pair(usize::from(J), q) };
            for t in 0..T {
                sums[t][q] = self.sdot::<J>(sums[t][q], low, a[t][0]);
            }
            for t in 0..T {
                sums[t][q] = self.sdot::<J>(sums[t][q], high, a[t][1]);
            }
        }
    }

    #[inline(always)]
    fn dots<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        let mut sums = [[splat(starts[0]); 4]; T];
        for t in 1..T {
            sums[t] = [splat(starts[t]); 4];
        }
        let mut halves = [[load_half(a[0], 0); 2]; T];
        for t in 0..T {
            halves[t] = [load_half(a[t], 0), load_half(a[t], 1)];
        }
        self.columns::<W, T, 0>(w, &halves, &mut sums);
        self.columns::<W, T, 1>(w, &halves, &mut sums);
        self.columns::<W, T, 2>(w, &halves, &mut sums);
        self.columns::<W, T, 3>(w, &halves, &mut sums);
        sums
    }
}

#[inline(always)]
fn splat(x: i32) -> int32x4_t {
    intrinsics! { vdupq_n_s32(x) }
}

/// Activations `16 half..`.
#[inline(always)]
fn load_half(a: &[i8; 32], half: usize) -> int8x16_t {
    intrinsics! {
        let values = a[16 * half..].first_chunk::<16>().expect("16 activations");
        vld1q_s8(values.as_ptr())
    }
}

impl Products for DotProd {
    const TILE: usize = 12;
    const PAIRS: usize = 4;

    #[inline]
    fn run<O: Op>(tier: Neon<Self>, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "dotprod")]
        fn with_features<O: Op>(tier: Neon<DotProd>, op: O) -> O::Output {
            op.run(tier)
        }
        if !O::BLOCKS {
            return Neon::baseline().run(op);
        }
        // SAFETY: the tier holds the proof.
        unsafe { with_features(tier, op) }
    }

    #[inline(always)]
    fn dots_u4<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        self.dots(w, a, starts)
    }

    #[inline(always)]
    fn dots_i8<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        self.dots(w, a, starts)
    }

    #[inline(always)]
    fn tile<B: Block, const T: usize>(tier: Neon<Self>, tile: QuantizedTile<'_, T>, out: &mut TileOut) {
        strips::tile::<_, B, T>(tier, tile, out);
    }
}

impl Strips for DotProd {
    #[inline(always)]
    unsafe fn strip<B: Block, const T: usize>(
        self,
        tile: &QuantizedTile<'_, T>,
        strip: Strip,
        out: &mut TileOut,
    ) {
        let Strip { first, count, q } = strip;
        // SAFETY: by the contract, all blocks and pairs below are there.
        unsafe {
            let mut block = tile.weights.as_ptr().add(first * B::BYTES + 16 * q);
            let scales = B::WEIGHTS + 4 * B::SCALE_BYTES * q - 16 * q;
            let pairs = T.div_ceil(2);
            let one = in_turn(vdupq_n_f32(1.0));
            let mut a = tile.pairs.as_ptr().add(first * pairs);
            for span in (0..count).step_by(SPAN) {
                let scaled = a;
                let mut acc = [vdupq_n_f32(0.0); T];
                for _ in span..count.min(span + SPAN) {
                    let w = FourRows::new::<B>(weights::strip::<B>(block), block.add(scales));
                    unrolled!(i < T / GROUP, {
                        self.strip_tokens::<B, GROUP>(&w, one, a.add(GROUP / 2 * i), &mut acc[GROUP * i..]);
                    });
                    let (a_rest, rest) = (a.add(GROUP / 2 * (T / GROUP)), &mut acc[T / GROUP * GROUP..]);
                    match T % GROUP {
                        0 => {}
                        1 => self.strip_tokens::<B, 1>(&w, one, a_rest, rest),
                        2 => self.strip_tokens::<B, 2>(&w, one, a_rest, rest),
                        _ => self.strip_tokens::<B, 3>(&w, one, a_rest, rest),
                    }
                    a = a.add(pairs);
                    block = block.wrapping_add(B::BYTES);
                }
                for t in 0..T {
                    let scales = vld1q_f32((*scaled.add(t / 2)).scales.as_ptr());
                    let out = out[t].as_mut_ptr().add(4 * q);
                    vst1q_f32(out, vfmaq_f32(vld1q_f32(out), acc[t], pick_f32(scales, t)));
                }
            }
        }
    }
}

impl DotProd {
    /// Adds the products of four rows of a block and `N` tokens, the first of some pairs, to the first of `acc`. Their sums grow
    /// in turn, so that no product waits for the one before.
    ///
    /// # Safety
    /// `a` points to the pairs.
    #[inline(always)]
    unsafe fn strip_tokens<B: Block, const N: usize>(
        self,
        rows: &FourRows<[int8x16_t; 8]>,
        one: float32x4_t,
        a: *const Pair,
        acc: &mut [float32x4_t],
    ) {
        // SAFETY: by the contract.
        unsafe {
            let mut pairs = [&*a; N];
            for t in 0..N {
                pairs[t] = &*a.add(t / 2);
            }
            let mut sums = [vdupq_n_s32(0); N];
            for t in 0..N {
                let starts = if B::NIBBLES && !B::OFFSETS {
                    pairs[t].starts.as_ptr().cast()
                } else {
                    pairs[t].bases.as_ptr().cast()
                };
                sums[t] = pick_s32(vld1q_s32(starts), t);
            }
            for eight in 0..4 {
                let mut values = [rows.w[0]; N];
                for t in 0..N {
                    values[t] = vld1q_s8(pairs[t].values[eight].as_ptr().cast());
                }
                for t in 0..N {
                    sums[t] = self.four_columns::<0>(sums[t], rows.w[2 * eight], values[t], t);
                }
                for t in 0..N {
                    sums[t] = self.four_columns::<1>(sums[t], rows.w[2 * eight + 1], values[t], t);
                }
            }
            for t in 0..N {
                let mut dot = less(sums[t], one, vld1q_f32(pairs[t].bases.as_ptr()), t);
                if B::OFFSETS {
                    let sums = vld1q_f32(pairs[t].starts.as_ptr().cast());
                    dot = vfmaq_f32(dot, rows.offset, pick_f32(sums, t));
                }
                acc[t] = vfmaq_f32(acc[t], dot, rows.scale);
            }
            for t in 0..N {
                acc[t] = in_turn(acc[t]);
            }
        }
    }

    /// [`Self::sdot`] with columns `4 PLACE..` of token `t` of eight columns of a pair.
    #[inline(always)]
    fn four_columns<const PLACE: usize>(
        self,
        sum: int32x4_t,
        w: int8x16_t,
        pair: int8x16_t,
        t: usize,
    ) -> int32x4_t {
        match (t % 2, PLACE) {
            (0, 0) => self.sdot::<0>(sum, w, pair),
            (0, _) => self.sdot::<1>(sum, w, pair),
            (_, 0) => self.sdot::<2>(sum, w, pair),
            (_, _) => self.sdot::<3>(sum, w, pair),
        }
    }
}

/// A pair's number of token `t` in all lanes.
#[inline(always)]
fn pick_s32(pair: int32x4_t, t: usize) -> int32x4_t {
    intrinsics! { if t.is_multiple_of(2) { vdupq_laneq_s32::<0>(pair) } else { vdupq_laneq_s32::<1>(pair) } }
}

/// The float whose bits `sum` is, less the pair's `bases` of token `t`: as a product with `one`, which the compiler must not know
/// to be 1, for which no lane need be copied first.
#[inline(always)]
fn less(sum: int32x4_t, one: float32x4_t, bases: float32x4_t, t: usize) -> float32x4_t {
    intrinsics! {
        let sum = vreinterpretq_f32_s32(sum);
        if t.is_multiple_of(2) {
            vfmsq_laneq_f32::<0>(sum, one, bases)
        } else {
            vfmsq_laneq_f32::<1>(sum, one, bases)
        }
    }
}

/// As [`pick_s32`]. Multiplied with, it takes no instruction.
#[inline(always)]
fn pick_f32(pair: float32x4_t, t: usize) -> float32x4_t {
    intrinsics! { if t.is_multiple_of(2) { vdupq_laneq_f32::<0>(pair) } else { vdupq_laneq_f32::<1>(pair) } }
}
