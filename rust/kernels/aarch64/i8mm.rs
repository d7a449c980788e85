//! Integer products of processors with products of 8-bit matrices (ARMv8.6: Cortex-A510, X2 and later, Neoverse V1).
//!
//! `smmla` multiplies two rows by two tokens over eight columns, 32 products in one instruction. Two quads of columns
//! become eight by a zip, before nibbles are expanded:
//!
//! ```text
//! for each two quads j, j + 1, for each 4 rows:   load 2 x 16 bytes, 2 zips, 4 expansions     shared by the tile
//!   for each two tokens:  sums[rows 0, 1], sums[rows 2, 3] += low x a[j, j + 1];  the same with high, a[j + 4, j + 5]
//! for each two tokens:  one uzp for each token and 4 rows
//! ```
//!
//! A token by itself is left to `sdot`. From three tokens on a panel is multiplied by [`strips`]: results stay as `smmla` leaves
//! sums, two rows by two tokens, and are sorted when a span is done; scales of rows are doubled in place of that.
#![allow(unsafe_code, reason = "smmla, argued by the token, and loads")]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, vcombine_s8, vdupq_n_f32, vdupq_n_s32, vdupq_n_s64, vfmaq_f32,
    vfmaq_laneq_f32, vld1_s8, vld1q_f32, vld1q_s8, vld1q_s32, vreinterpretq_f32_s32, vreinterpretq_s32_s64,
    vst1q_f32, vsubq_f32, vuzp1q_f32, vuzp1q_s32, vuzp2q_f32, vuzp2q_s32, vzip1q_f32, vzip2q_f32,
};
use std::arch::asm;

use super::Products;
use super::dotprod::DotProd;
use super::intrinsics;
use super::neon::{Int4, Neon};
use super::strips::{self, FourRows, Strip, Strips, in_turn, unrolled};
use super::weights::{self, Weights};
use crate::kernels::activations::SPAN;
use crate::kernels::lanes::Op;
use crate::kernels::pairs::Pair;
use crate::kernels::tiles::{Block, QuantizedTile, TileOut};

/// Proof that this CPU has `smmla` and `sdot`.
#[derive(Clone, Copy, Debug)]
pub struct I8mm(DotProd);

/// Pairs of tokens of the largest tile: their sums take 16 of 32 registers. More would be spilled.
const PAIRS: usize = 2;
/// Pairs of tokens of the largest tile that goes by strips.
const STRIP_PAIRS: usize = 6;

impl I8mm {
    /// The instructions, if this CPU and operating system support them.
    pub fn detect() -> Option<Self> {
        let single = DotProd::detect()?;
        std::arch::is_aarch64_feature_detected!("i8mm").then_some(Self(single))
    }

    /// sum + 2 rows x 2 tokens over eight columns.
    #[inline(always)]
    fn smmla(self, sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        let out;
        // SAFETY: `self` proves the instruction, which works on registers only.
        unsafe {
            asm!(
                "smmla {sum:v}.4s, {w:v}.16b, {a:v}.16b",
                sum = inlateout(vreg) sum => out,
                w = in(vreg) w,
                a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out
    }

    /// The products of all rows.
    #[inline(always)]
    fn dots<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        intrinsics! {
            let pairs = T.div_ceil(2);
            let mut sums = [[[vdupq_n_s32(0); 2]; 4]; PAIRS];
            for p in 0..pairs {
                let (even, odd) = tokens::<T>(p);
                let both = i64::from(starts[even]) & 0xffff_ffff | i64::from(starts[odd]) << 32;
                sums[p] = [[vreinterpretq_s32_s64(vdupq_n_s64(both)); 2]; 4];
            }
            self.columns::<W, T, 0>(w, a, &mut sums);
            self.columns::<W, T, 2>(w, a, &mut sums);
            let mut out = [[vdupq_n_s32(0); 4]; T];
            for p in 0..pairs {
                let (even, odd) = tokens::<T>(p);
                for q in 0..4 {
                    out[odd][q] = vuzp2q_s32(sums[p][q][0], sums[p][q][1]);
                    out[even][q] = vuzp1q_s32(sums[p][q][0], sums[p][q][1]);
                }
            }
            out
        }
    }

    /// Columns of vectors `J`, `J + 1`, `J + 4` and `J + 5`.
    #[inline(always)]
    fn columns<W: Weights, const T: usize, const J: usize>(
        self,
        w: W,
        a: [&[i8; 32]; T],
        sums: &mut [[[int32x4_t; 2]; 4]; PAIRS],
    ) {
        let pairs = T.div_ceil(2);
        let mut tokens = [[load_pair(a, 0, J); 2]; PAIRS];
        for p in 0..pairs {
            tokens[p] = [load_pair(a, p, J), load_pair(a, p, J + 4)];
        }
        for q in 0..4 {
            // SAFETY: J is 0 or 2 in all calls, and rows are below 4.
            let w = unsafe { w.zipped(J, q) };
            for half in 0..2 {
                for p in 0..pairs {
                    for rows in 0..2 {
                        sums[p][q][rows] = self.smmla(sums[p][q][rows], w[half][rows], tokens[p][half]);
                    }
                }
            }
        }
    }
}

/// The tokens of pair `p`: the last one of an odd number is paired with itself.
#[inline(always)]
fn tokens<const T: usize>(p: usize) -> (usize, usize) {
    (2 * p, (2 * p + 1).min(T - 1))
}

/// Activations `4 j..4 j + 8` of both tokens of pair `p`.
#[inline(always)]
fn load_pair<const T: usize>(a: [&[i8; 32]; T], p: usize, j: usize) -> int8x16_t {
    intrinsics! {
        let (even, odd) = tokens::<T>(p);
        let eight = |token: usize| a[token][4 * j..].first_chunk::<8>().expect("eight activations").as_ptr();
        vcombine_s8(vld1_s8(eight(even)), vld1_s8(eight(odd)))
    }
}

impl Products for I8mm {
    const TILE: usize = 12;
    const PAIRS: usize = 3;

    #[inline]
    fn run<O: Op>(tier: Neon<Self>, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "dotprod,i8mm")]
        fn with_features<O: Op>(tier: Neon<I8mm>, op: O) -> O::Output {
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
        if T == 1 { self.0.dots_u4(w, a, starts) } else { self.dots(w, a, starts) }
    }

    #[inline(always)]
    fn dots_i8<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        if T == 1 { self.0.dots_i8(w, a, starts) } else { self.dots(w, a, starts) }
    }

    #[inline(always)]
    fn tile<B: Block, const T: usize>(tier: Neon<Self>, tile: QuantizedTile<'_, T>, out: &mut TileOut) {
        strips::tile::<_, B, T>(tier, tile, out);
    }
}

impl Strips for I8mm {
    #[inline(always)]
    unsafe fn strip<B: Block, const T: usize>(
        self,
        tile: &QuantizedTile<'_, T>,
        strip: Strip,
        out: &mut TileOut,
    ) {
        let Strip { first, count, q } = strip;
        let pairs = T.div_ceil(2);
        // SAFETY: by the contract, all blocks and pairs below are there.
        unsafe {
            let mut block = tile.weights.as_ptr().add(first * B::BYTES + 16 * q);
            let scales = B::WEIGHTS + 4 * B::SCALE_BYTES * q - 16 * q;
            let mut a = tile.pairs.as_ptr().add(first * pairs);
            for span in (0..count).step_by(SPAN) {
                let scaled = a;
                let mut acc = [[vdupq_n_f32(0.0); 2]; STRIP_PAIRS];
                for _ in span..count.min(span + SPAN) {
                    let w = FourRows::new::<B>(weights::zipped_strip::<B>(block), block.add(scales)).twice();
                    // Offsets leave no registers for the sums of two pairs.
                    if B::OFFSETS {
                        unrolled!(p < pairs, { self.strip_pairs::<B, 1>(&w, a.add(p), &mut acc[p..]) });
                    } else {
                        unrolled!(i < pairs / 2, {
                            self.strip_pairs::<B, 2>(&w, a.add(2 * i), &mut acc[2 * i..]);
                        });
                        if pairs % 2 == 1 {
                            self.strip_pairs::<B, 1>(&w, a.add(pairs - 1), &mut acc[pairs - 1..]);
                        }
                    }
                    a = a.add(pairs);
                    block = block.wrapping_add(B::BYTES);
                }
                for t in 0..T {
                    let [low, high] = acc[t / 2];
                    let scales = vld1q_f32((*scaled.add(t / 2)).scales.as_ptr());
                    let out = out[t].as_mut_ptr().add(4 * q);
                    let sum = if t.is_multiple_of(2) {
                        vfmaq_laneq_f32::<0>(vld1q_f32(out), vuzp1q_f32(low, high), scales)
                    } else {
                        vfmaq_laneq_f32::<1>(vld1q_f32(out), vuzp2q_f32(low, high), scales)
                    };
                    vst1q_f32(out, sum);
                }
            }
        }
    }
}

impl I8mm {
    /// Adds the products of four rows of a block and `N` pairs of tokens to the first of `acc`. Their sums grow in turn, so that
    /// no product waits for the one before.
    ///
    /// # Safety
    /// `a` points to the pairs.
    #[inline(always)]
    unsafe fn strip_pairs<B: Block, const N: usize>(
        self,
        rows: &TwiceFourRows,
        a: *const Pair,
        acc: &mut [[float32x4_t; 2]],
    ) {
        // SAFETY: by the contract.
        unsafe {
            let mut pairs = [&*a; N];
            for p in 0..N {
                pairs[p] = &*a.add(p);
            }
            let mut sums = [[vdupq_n_s32(0); 2]; N];
            for p in 0..N {
                let starts = if B::NIBBLES && !B::OFFSETS {
                    pairs[p].starts.as_ptr().cast()
                } else {
                    pairs[p].bases.as_ptr().cast()
                };
                sums[p] = [vld1q_s32(starts); 2];
            }
            for eight in 0..4 {
                for p in 0..N {
                    let a = vld1q_s8(pairs[p].values[eight].as_ptr().cast());
                    for two in 0..2 {
                        sums[p][two] = self.smmla(sums[p][two], rows.w[eight][two], a);
                    }
                }
            }
            for p in 0..N {
                let base = vld1q_f32(pairs[p].bases.as_ptr());
                for two in 0..2 {
                    let mut dot = vsubq_f32(vreinterpretq_f32_s32(sums[p][two]), base);
                    if B::OFFSETS {
                        dot = vfmaq_f32(dot, rows.offset[two], vld1q_f32(pairs[p].starts.as_ptr().cast()));
                    }
                    acc[p][two] = vfmaq_f32(acc[p][two], dot, rows.scale[two]);
                }
            }
            for p in 0..N {
                acc[p] = [in_turn(acc[p][0]), in_turn(acc[p][1])];
            }
        }
    }
}

/// Four rows of a block as `smmla` takes them: numbers of a row stand twice, for two tokens, those of two rows in a register.
struct TwiceFourRows {
    /// `[column / 8][row / 2]`
    w: [[int8x16_t; 2]; 4],
    scale: [float32x4_t; 2],
    offset: [float32x4_t; 2],
}

impl FourRows<[[int8x16_t; 2]; 4]> {
    #[inline(always)]
    fn twice(self) -> TwiceFourRows {
        let Self { w, scale, offset } = self;
        intrinsics! {
            TwiceFourRows {
                w,
                scale: [vzip1q_f32(scale, scale), vzip2q_f32(scale, scale)],
                offset: [vzip1q_f32(offset, offset), vzip2q_f32(offset, offset)],
            }
        }
    }
}
