//! NEON: four registers hold the sixteen lanes. All tiers of ARM do their f32 arithmetic here.
//!
//! Every 64-bit ARM processor has these instructions, so no token has to prove them. Conversions to and from halves are among
//! them; their intrinsics are not stable, so they are written as `asm!`. `fmax` and `fmin` order zeros and spread NaN, which
//! is not what lanes owe: a comparison and a selection do.
#![allow(
    unsafe_code,
    reason = "loads and stores through references to arrays of the same width, and conversions"
)]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int16x8_t, int32x4_t, uint16x8_t, uint32x4_t, vabsq_f32, vadd_f32, vaddq_f32,
    vaddq_s32, vaddq_u32, vandq_u32, vbsl_f32, vbslq_f32, vbslq_u32, vceqq_f32, vcgt_f32, vcgtq_f32,
    vcltq_f32, vcvtnq_s32_f32, vcvtq_f32_s32, vdivq_f32, vdupq_n_f32, vdupq_n_s8, vdupq_n_s32, vdupq_n_u16,
    vdupq_n_u32, vfmaq_f32, vget_high_f32, vget_high_s8, vget_high_s16, vget_lane_f32, vget_low_f32,
    vget_low_s8, vget_low_s16, vld1q_f32, vld1q_s8, vld1q_s16, vld1q_u8, vld1q_u16, vmlal_high_laneq_s16,
    vmlal_laneq_s16, vmovl_s8, vmovl_s16, vmulq_f32, vorrq_u32, vpadd_f32, vreinterpretq_f32_s32,
    vreinterpretq_f32_u8, vreinterpretq_f32_u16, vreinterpretq_f32_u32, vreinterpretq_s8_s16,
    vreinterpretq_s16_s32, vreinterpretq_s32_f32, vreinterpretq_u16_u32, vreinterpretq_u32_f32,
    vreinterpretq_u32_s8, vshlq_n_s32, vshlq_n_u32, vshrq_n_u32, vst1q_f32, vst1q_s8, vst1q_s16, vst1q_u16,
    vsubq_f32, vuzp1q_s8, vuzp1q_s16, vuzp1q_u16, vuzp2q_s8, vzip1q_u16, vzip2q_u16,
};
use std::arch::asm;

use super::Products;
use super::intrinsics;
use super::weights::{Levels, Loaded, Nibbles, Weights};
use super::{dotprod::DotProd, i8mm::I8mm, widening::Widening};
use crate::kernels::lanes::{LANES, Op, Pair, Simd};
use crate::kernels::tiles::{Block, QuantizedTile, TileOut};

/// Sixteen f32.
pub type Float4 = [float32x4_t; 4];
/// Sixteen i32.
pub type Int4 = [int32x4_t; 4];
/// 64 bytes.
pub type Bytes4 = [int8x16_t; 4];

/// The lanes in NEON registers, with integer products by `P`.
#[derive(Clone, Copy, Debug)]
pub struct Neon<P>(pub(super) P);

impl Neon<Widening> {
    /// The tier that every 64-bit ARM processor has.
    pub const fn baseline() -> Self {
        Self(Widening)
    }
}

impl Neon<DotProd> {
    /// The tier, if this CPU and operating system support it.
    pub fn detect() -> Option<Self> {
        DotProd::detect().map(Self)
    }
}

impl Neon<I8mm> {
    /// The tier, if this CPU and operating system support it.
    pub fn detect() -> Option<Self> {
        I8mm::detect().map(Self)
    }
}

impl<P: Products> Neon<P> {
    /// Runs `op` compiled for this tier.
    #[inline]
    pub fn run<O: Op>(self, op: O) -> O::Output {
        P::run(self, op)
    }
}

/// One operation on each register of one, two or three vectors.
macro_rules! each {
    ($op:ident, $a:expr) => {
        [$op($a[0]), $op($a[1]), $op($a[2]), $op($a[3])]
    };
    ($op:ident, $a:expr, $b:expr) => {
        [$op($a[0], $b[0]), $op($a[1], $b[1]), $op($a[2], $b[2]), $op($a[3], $b[3])]
    };
    ($op:ident, $a:expr, $b:expr, $c:expr) => {
        [
            $op($a[0], $b[0], $c[0]),
            $op($a[1], $b[1], $c[1]),
            $op($a[2], $b[2], $c[2]),
            $op($a[3], $b[3], $c[3]),
        ]
    };
}

/// `if a > b { a } else { b }`
#[inline(always)]
fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    intrinsics! { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// `if a < b { a } else { b }`
#[inline(always)]
fn smaller(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    intrinsics! { vbslq_f32(vcltq_f32(a, b), a, b) }
}

/// a + 2^23 n as integers.
#[inline(always)]
fn shifted(a: float32x4_t, n: int32x4_t) -> float32x4_t {
    intrinsics! { vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32::<23>(n))) }
}

/// Eight halves, widened.
#[inline(always)]
fn widen(halves: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high);
    // SAFETY: instructions of ARMv8.0 that work on registers only.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            low = out(vreg) low,
            high = lateout(vreg) high,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

/// Four bfloat16 in the low halves of four words: the upper halves of `x`, rounded to nearest even.
#[inline(always)]
fn upper_halves(x: float32x4_t) -> uint32x4_t {
    intrinsics! {
        let bits = vreinterpretq_u32_f32(x);
        let upper = vshrq_n_u32::<16>(bits);
        let odd = vandq_u32(upper, vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        vbslq_u32(vceqq_f32(x, x), vshrq_n_u32::<16>(rounded), vorrq_u32(upper, vdupq_n_u32(0x40)))
    }
}

/// Eight f32 as halves, rounded to nearest even.
#[inline(always)]
fn narrow(low: float32x4_t, high: float32x4_t) -> int16x8_t {
    let halves;
    // SAFETY: instructions of ARMv8.0 that work on registers only.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {low:v}.4s",
            "fcvtn2 {halves:v}.8h, {high:v}.4s",
            halves = out(vreg) halves,
            low = in(vreg) low,
            high = in(vreg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

/// sums + w x a in i32, for one column of 16 rows and activation `PLACE` of `a`.
#[inline(always)]
fn add_column<const PLACE: i32>(sums: &mut Int4, w: [int16x8_t; 2], a: int16x8_t) {
    intrinsics! {
        for half in 0..2 {
            sums[2 * half] = vmlal_laneq_s16::<PLACE>(sums[2 * half], vget_low_s16(w[half]), a);
            sums[2 * half + 1] = vmlal_high_laneq_s16::<PLACE>(sums[2 * half + 1], w[half], a);
        }
    }
}

/// Sixteen bytes, widened.
#[inline(always)]
fn widen_bytes(bytes: int8x16_t) -> [int16x8_t; 2] {
    intrinsics! { [vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))] }
}

impl<P: Products> Simd for Neon<P> {
    type F = Float4;
    type I = Int4;
    type B = Bytes4;
    const TILE: usize = P::TILE;
    const PAIRS: usize = P::PAIRS;
    const WIDE: bool = false;

    #[inline]
    fn apart<O: Op>(self, op: O) -> O::Output {
        self.run(op)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Float4 {
        intrinsics! { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Float4 {
        intrinsics! {
            let p = x.as_ptr();
            [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))]
        }
    }
    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 64]) -> Float4 {
        intrinsics! {
            let p = x.as_ptr();
            let bytes = [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))];
            each!(vreinterpretq_f32_u8, bytes)
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Float4 {
        intrinsics! {
            let p = x.as_ptr().cast();
            let halves = [vld1q_u16(p), vld1q_u16(p.add(8))];
            let (low, high) = (widen(halves[0]), widen(halves[1]));
            [low[0], low[1], high[0], high[1]]
        }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[i8; LANES]) -> Float4 {
        intrinsics! {
            let bytes = vld1q_s8(x.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            let (a, b) = (vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)));
            let (c, d) = (vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high)));
            each!(vcvtq_f32_s32, [a, b, c, d])
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Float4 {
        intrinsics! {
            let p = x.as_ptr().cast();
            let (low, high) = (vld1q_u16(p), vld1q_u16(p.add(8)));
            let zero = vdupq_n_u16(0);
            let (a, b) = (vzip1q_u16(zero, low), vzip2q_u16(zero, low));
            let (c, d) = (vzip1q_u16(zero, high), vzip2q_u16(zero, high));
            each!(vreinterpretq_f32_u16, [a, b, c, d])
        }
    }
    #[inline(always)]
    fn store(self, x: Float4, out: &mut [f32; LANES]) {
        intrinsics! {
            let p = out.as_mut_ptr();
            for q in 0..4 {
                vst1q_f32(p.add(4 * q), x[q]);
            }
        }
    }
    #[inline(always)]
    fn store_f16(self, x: Float4, out: &mut [u8; 32]) {
        intrinsics! {
            let p = out.as_mut_ptr().cast();
            vst1q_s16(p, narrow(x[0], x[1]));
            vst1q_s16(p.add(8), narrow(x[2], x[3]));
        }
    }
    #[inline(always)]
    fn store_bf16(self, x: Float4, out: &mut [u8; 32]) {
        intrinsics! {
            let p = out.as_mut_ptr().cast();
            let [a, b, c, d] = each!(vreinterpretq_u16_u32, each!(upper_halves, x));
            vst1q_u16(p, vuzp1q_u16(a, b));
            vst1q_u16(p.add(8), vuzp1q_u16(c, d));
        }
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u8; 64]) -> Bytes4 {
        intrinsics! {
            let p = x.as_ptr().cast();
            [vld1q_s8(p), vld1q_s8(p.add(16)), vld1q_s8(p.add(32)), vld1q_s8(p.add(48))]
        }
    }
    #[inline(always)]
    fn dot_pair(self, acc: Float4, w: Bytes4, a: &Pair) -> Float4 {
        let mut out = acc;
        intrinsics! {
            let [a_even, a_odd] = [vdupq_n_f32(f32::from_bits(a[0])), vdupq_n_f32(f32::from_bits(a[1]))];
            for q in 0..4 {
                let w = vreinterpretq_u32_s8(w[q]);
                let even = vreinterpretq_f32_u32(vshlq_n_u32::<16>(w));
                let odd = vreinterpretq_f32_u32(vandq_u32(w, vdupq_n_u32(0xffff_0000)));
                out[q] = vfmaq_f32(vfmaq_f32(out[q], odd, a_odd), even, a_even);
            }
        }
        out
    }

    #[inline(always)]
    fn add(self, a: Float4, b: Float4) -> Float4 {
        intrinsics! { each!(vaddq_f32, a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Float4, b: Float4) -> Float4 {
        intrinsics! { each!(vsubq_f32, a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Float4, b: Float4) -> Float4 {
        intrinsics! { each!(vmulq_f32, a, b) }
    }
    #[inline(always)]
    fn div(self, a: Float4, b: Float4) -> Float4 {
        intrinsics! { each!(vdivq_f32, a, b) }
    }
    #[inline(always)]
    fn fma(self, a: Float4, b: Float4, c: Float4) -> Float4 {
        intrinsics! { each!(vfmaq_f32, c, a, b) }
    }
    #[inline(always)]
    fn max(self, a: Float4, b: Float4) -> Float4 {
        each!(larger, a, b)
    }
    #[inline(always)]
    fn min(self, a: Float4, b: Float4) -> Float4 {
        each!(smaller, a, b)
    }
    #[inline(always)]
    fn abs(self, a: Float4) -> Float4 {
        intrinsics! { each!(vabsq_f32, a) }
    }
    #[inline(always)]
    fn select_lt(self, a: Float4, b: Float4, x: Float4, y: Float4) -> Float4 {
        intrinsics! {
            let mask = each!(vcltq_f32, a, b);
            each!(vbslq_f32, mask, x, y)
        }
    }

    #[inline(always)]
    fn round(self, a: Float4) -> Int4 {
        intrinsics! { each!(vcvtnq_s32_f32, a) }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Int4 {
        intrinsics! { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    fn to_f32(self, a: Int4) -> Float4 {
        intrinsics! { each!(vcvtq_f32_s32, a) }
    }
    #[inline(always)]
    fn reinterpret(self, a: Int4) -> Float4 {
        intrinsics! { each!(vreinterpretq_f32_s32, a) }
    }
    #[inline(always)]
    fn scale_exponent(self, a: Float4, n: Int4) -> Float4 {
        each!(shifted, a, n)
    }
    #[inline(always)]
    fn store_i8(self, a: Int4, out: &mut [i8; LANES]) {
        intrinsics! {
            let a = each!(vreinterpretq_s16_s32, a);
            let low = vreinterpretq_s8_s16(vuzp1q_s16(a[0], a[1]));
            let high = vreinterpretq_s8_s16(vuzp1q_s16(a[2], a[3]));
            vst1q_s8(out.as_mut_ptr(), vuzp1q_s8(low, high));
        }
    }

    #[inline(always)]
    fn store_i16(self, a: [Int4; 2], out: &mut [i16; 2 * LANES]) {
        intrinsics! {
            let (low, high) = (each!(vreinterpretq_s16_s32, a[0]), each!(vreinterpretq_s16_s32, a[1]));
            let p = out.as_mut_ptr();
            for q in 0..4 {
                vst1q_s16(p.add(8 * q), vuzp1q_s16(low[q], high[q]));
            }
        }
    }

    #[inline(always)]
    fn load_u4(self, block: &[u8; 256]) -> [Bytes4; 8] {
        load(Nibbles(block))
    }
    #[inline(always)]
    fn load_i8(self, block: &[u8; 512]) -> [Bytes4; 8] {
        load(Levels(block))
    }
    #[inline(always)]
    fn dot_u4(self, w: &[Bytes4; 8], a: &[i8; 32], start: i32) -> Int4 {
        self.0.dots_u4(Loaded(w), [a], [start])[0]
    }
    #[inline(always)]
    fn dot_i8(self, w: &[Bytes4; 8], a: &[i8; 32], start: i32) -> Int4 {
        self.0.dots_i8(Loaded(w), [a], [start])[0]
    }

    #[inline(always)]
    fn dots_u4<const T: usize>(self, w: &[Bytes4; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        self.0.dots_u4(Loaded(w), a, starts)
    }
    #[inline(always)]
    fn dots_i8<const T: usize>(self, w: &[Bytes4; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        self.0.dots_i8(Loaded(w), a, starts)
    }
    #[inline(always)]
    fn block_u4<const T: usize>(self, block: &[u8; 256], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        self.0.dots_u4(Nibbles(block), a, starts)
    }
    #[inline(always)]
    fn block_i8<const T: usize>(self, block: &[u8; 512], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T] {
        self.0.dots_i8(Levels(block), a, starts)
    }

    #[inline(always)]
    fn blocks_i16<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 512]; N],
        a: [&[i16; 32]; T],
    ) -> [[Int4; T]; N] {
        intrinsics! {
            let mut sums = [[[vdupq_n_s32(0); 4]; T]; N];
            for n in 0..N {
                for j in 0..4 {
                    eight_columns(&mut sums[n], blocks[n], a, j);
                }
            }
            sums
        }
    }

    #[inline(always)]
    fn tile<B: Block, const T: usize>(self, tile: QuantizedTile<'_, T>, out: &mut TileOut) {
        P::tile::<B, T>(self, tile, out);
    }

    #[inline(always)]
    fn sum(self, a: Float4) -> f32 {
        intrinsics! {
            let four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            // Lanes 0 and 2, 1 and 3; then what is left.
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(vpadd_f32(two, two))
        }
    }
    #[inline(always)]
    fn max_lane(self, a: Float4) -> f32 {
        intrinsics! {
            let four = larger(larger(a[0], a[2]), larger(a[1], a[3]));
            let (low, high) = (vget_low_f32(four), vget_high_f32(four));
            let two = vbsl_f32(vcgt_f32(low, high), low, high);
            let (a, b) = (vget_lane_f32::<0>(two), vget_lane_f32::<1>(two));
            if a > b { a } else { b }
        }
    }
}

/// All vectors of a block.
#[inline(always)]
fn load<W: Weights>(w: W) -> [Bytes4; 8] {
    intrinsics! {
        let mut out = [[vdupq_n_s8(0); 4]; 8];
        for j in 0..4 {
            for q in 0..4 {
                [out[j][q], out[j + 4][q]] = w.pair(j, q);
            }
        }
        out
    }
}

/// Adds the products with columns `8 j..` of a block as [`Simd::blocks_i16`] has it.
#[inline(always)]
fn eight_columns<const T: usize>(sums: &mut [Int4; T], block: &[u8; 512], a: [&[i16; 32]; T], j: usize) {
    let pairs = &block.as_chunks::<32>().0[4 * j..];
    let mut eight = [load_i16(a[0], j); T];
    for t in 1..T {
        eight[t] = load_i16(a[t], j);
    }
    two_columns::<T, 0, 1>(sums, &pairs[0], &eight);
    two_columns::<T, 2, 3>(sums, &pairs[1], &eight);
    two_columns::<T, 4, 5>(sums, &pairs[2], &eight);
    two_columns::<T, 6, 7>(sums, &pairs[3], &eight);
}

/// Activations `8 j..`.
#[inline(always)]
fn load_i16(a: &[i16; 32], j: usize) -> int16x8_t {
    intrinsics! {
        let values = a[8 * j..].first_chunk::<8>().expect("eight activations");
        vld1q_s16(values.as_ptr())
    }
}

/// Adds the products of two columns, whose activations stand at `FIRST` and `SECOND`.
#[inline(always)]
fn two_columns<const T: usize, const FIRST: i32, const SECOND: i32>(
    sums: &mut [Int4; T],
    bytes: &[u8; 32],
    a: &[int16x8_t; T],
) {
    intrinsics! {
        let p = bytes.as_ptr().cast();
        let (low, high) = (vld1q_s8(p), vld1q_s8(p.add(16)));
        let (first, second) = (widen_bytes(vuzp1q_s8(low, high)), widen_bytes(vuzp2q_s8(low, high)));
        for t in 0..T {
            add_column::<FIRST>(&mut sums[t], first, a[t]);
            add_column::<SECOND>(&mut sums[t], second, a[t]);
        }
    }
}
