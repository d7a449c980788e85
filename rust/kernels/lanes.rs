//! The virtual vector: 16 lanes of f32 or i32, and a block of weights whose lanes are output rows.
//!
//! Every algorithm of this crate is written once, over [`Simd`]. A tier (portable, AVX2, AVX-VNNI, AVX-512, NEON) says how the
//! sixteen lanes are held; the algorithm fixes which operations happen to which lane in which order. All operations
//! below are exact or correctly rounded by IEEE 754, so **each tier computes the same bits**:
//!
//! - `fma` is one rounding on every tier (the portable tier calls `f32::mul_add`), and `mul` followed by `add` is two;
//! - `sum` reduces by one fixed tree: lane i with i+8, then i+4, i+2, i+1;
//! - `max(a, b)` is `if a > b { a } else { b }`, and `min` likewise, which settles what NaN and signed zeros do;
//! - there is no reciprocal or square-root estimate; `exp` is a polynomial in [`math`](super::math);
//! - integer dot products are exact, so their order is free.
//!
//! How code reaches a tier: a kernel is a struct of its arguments that implements [`Op`], and
//! [`Tier::run`](super::tier::Tier::run) calls `Op::run` inside one function that carries the tier's
//! `#[target_feature]`. Everything below that function is `#[inline(always)]`, so that the whole kernel is compiled
//! for the tier. What several kernels have in them, such as a panel x a tile of tokens, is an [`Op`] too, which they run by
//! [`Simd::apart`]: inlined, it would be compiled again for each of them, into functions so long that compiling them takes more than
//! twice as long in all, for nothing: a call costs a few nanoseconds.
//!
//! Closures are not compiled for the tier: they are functions of their own without the features, so no closure may hold lanes. A
//! value of a tier's type can exist only if the CPU has the features: that is the proof its intrinsics rest on.

use std::slice::from_mut;

use super::tiles::{Block, QuantizedTile, TileOut, by_blocks};

/// Lanes of the virtual vector.
pub const LANES: usize = 16;

/// Two bfloat16 numbers in the form in which a tier's [`Simd::dot_pair`] takes them: as f32, or both in the first word.
pub type Pair = [u32; 2];

/// A kernel: its arguments, and what to do with them on any tier.
pub trait Op {
    /// What the kernel returns.
    type Output;
    /// Whether it takes integer products of blocks. Where tiers differ in nothing else, other kernels are compiled for one.
    const BLOCKS: bool = true;
    /// Whether it takes products of pairs of bfloat16, for which a tier may have instructions of its own. Only such kernels
    /// understand each other's [`Pair`]s.
    const PAIRS: bool = false;
    /// Runs the kernel. Implementations carry `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// The operations of a tier on 16 lanes. See the module's text for what each one owes.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// 64 bytes: four int8 (or unsigned nibbles) for each of 16 lanes.
    type B: Copy;

    /// Tokens whose accumulators fit the registers beside one weight block, or of four rows beside those of a block; even from
    /// [`Self::PAIRS`] on.
    const TILE: usize;
    /// Tokens of a tile of two panels, which share what they load of the activations; 0 if registers do not hold so many sums.
    const DOUBLE_TILE: usize = 0;
    /// Tokens from which a tile of quantised weights reads its activations as pairs.
    const PAIRS: usize = usize::MAX;
    /// Whether registers hold more than 16 vectors of lanes: then attention computes twice as much side by side.
    const WIDE: bool;
    /// Whether INT8 weights are multiplied as unsigned bytes, 128 above what they are.
    const UNSIGNED: bool = false;

    /// Runs `op` as a function of its own, compiled once for all kernels that run it.
    fn apart<O: Op>(self, op: O) -> O::Output;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// Sixteen f32.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// Sixteen little-endian f32 at any alignment.
    fn load_f32_bytes(self, x: &[u8; 64]) -> Self::F;
    /// Sixteen little-endian halves, widened exactly.
    fn load_f16(self, x: &[u8; 32]) -> Self::F;
    /// Sixteen signed bytes, widened exactly.
    fn load_bytes(self, x: &[i8; LANES]) -> Self::F;
    /// Sixteen little-endian bfloat16, widened exactly.
    fn load_bf16(self, x: &[u8; 32]) -> Self::F;
    /// Writes sixteen f32.
    fn store(self, x: Self::F, out: &mut [f32; LANES]);
    /// Writes sixteen halves, rounded to nearest even.
    fn store_f16(self, x: Self::F, out: &mut [u8; 32]);
    /// Writes sixteen bfloat16, rounded to nearest even; NaN becomes a quiet one. No lane is subnormal.
    fn store_bf16(self, x: Self::F, out: &mut [u8; 32]);

    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// |a|
    fn abs(self, a: Self::F) -> Self::F;
    /// `if a < b { x } else { y }`
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;

    /// Rounds as [`Self::store_bf16`] and writes the pairs of neighbours in the form that suits [`Self::dot_pair`].
    #[inline(always)]
    fn store_pairs(self, x: Self::F, out: &mut [Pair; LANES / 2]) {
        let (mut halves, mut lanes) = ([0; 32], [0.0; LANES]);
        self.store_bf16(x, &mut halves);
        self.store(self.load_bf16(&halves), &mut lanes);
        for (pair, lanes) in out.iter_mut().zip(lanes.as_chunks().0) {
            let [even, odd]: &[f32; 2] = lanes;
            *pair = [even.to_bits(), odd.to_bits()];
        }
    }
    /// A pair of bfloat16 for each lane, little endian: number 2 i and 2 i + 1 belong to lane i.
    fn load_pairs(self, x: &[u8; 64]) -> Self::B;
    /// fma(w.even, a.even, fma(w.odd, a.odd, acc)). No number, product or sum is subnormal.
    fn dot_pair(self, acc: Self::F, w: Self::B, a: &Pair) -> Self::F;

    /// Rounds to the nearest integer, ties to even. Every lane must fit an i32.
    fn round(self, a: Self::F) -> Self::I;
    /// `x` in every lane.
    fn splat_i32(self, x: i32) -> Self::I;
    /// Converts to f32, rounded to nearest even.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// The numbers whose bits these are.
    fn reinterpret(self, a: Self::I) -> Self::F;
    /// Sums that started from the bits of `base`, in steps of [`Group`](super::activations::Group): exact below 2^22 of them.
    #[inline(always)]
    fn above(self, sums: Self::I, base: f32) -> Self::F {
        self.sub(self.reinterpret(sums), self.splat(base))
    }
    /// a * 2^n by adding n to the exponent field: a and the result must be normal numbers (NaN stays NaN for n = 0).
    fn scale_exponent(self, a: Self::F, n: Self::I) -> Self::F;
    /// Writes the low byte of each lane. Every lane must fit an i8.
    fn store_i8(self, a: Self::I, out: &mut [i8; LANES]);
    /// Writes the low halves of 32 lanes, by fours in turn: `a[0]`'s lanes 0..4, `a[1]`'s 0..4, `a[0]`'s 4..8 and so on.
    /// Every lane must fit an i16.
    fn store_i16(self, a: [Self::I; 2], out: &mut [i16; 2 * LANES]);

    /// The 16x32 nibbles of an INT4 block as eight byte vectors, vector j = columns 4j..4j+4 of each row, 0..=15.
    fn load_u4(self, block: &[u8; 256]) -> [Self::B; 8];
    /// The 16x32 bytes of an INT8 block as eight byte vectors, prepared for [`Self::dot_i8`].
    fn load_i8(self, block: &[u8; 512]) -> [Self::B; 8];
    /// For each row, `start` and the exact sum over 32 columns of nibble x a.
    fn dot_u4(self, w: &[Self::B; 8], a: &[i8; 32], start: i32) -> Self::I;
    /// For each row, `start` and the exact sum over 32 columns of w x a, w in -127..=127, or of (w + 128) x a on tiers that are
    /// [`Self::UNSIGNED`].
    fn dot_i8(self, w: &[Self::B; 8], a: &[i8; 32], start: i32) -> Self::I;

    /// [`Self::dot_u4`] of `T` groups of activations: tiers may interleave them.
    #[inline(always)]
    fn dots_u4<const T: usize>(self, w: &[Self::B; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Self::I; T] {
        let mut out = [self.dot_u4(w, a[0], starts[0]); T];
        for t in 1..T {
            out[t] = self.dot_u4(w, a[t], starts[t]);
        }
        out
    }
    /// [`Self::dot_i8`] of `T` groups of activations: tiers may interleave them.
    #[inline(always)]
    fn dots_i8<const T: usize>(self, w: &[Self::B; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Self::I; T] {
        let mut out = [self.dot_i8(w, a[0], starts[0]); T];
        for t in 1..T {
            out[t] = self.dot_i8(w, a[t], starts[t]);
        }
        out
    }

    /// [`Self::dots_u4`] of a block that is used once: tiers with few registers expand it where they need it.
    #[inline(always)]
    fn block_u4<const T: usize>(
        self,
        block: &[u8; 256],
        a: [&[i8; 32]; T],
        starts: [i32; T],
    ) -> [Self::I; T] {
        self.dots_u4(&self.load_u4(block), a, starts)
    }
    /// [`Self::dots_i8`] of a block that is used once.
    #[inline(always)]
    fn block_i8<const T: usize>(
        self,
        block: &[u8; 512],
        a: [&[i8; 32]; T],
        starts: [i32; T],
    ) -> [Self::I; T] {
        self.dots_i8(&self.load_i8(block), a, starts)
    }

    /// [`Self::block_u4`] of `N` blocks: tiers with many registers may interleave them, so that they share what they load of `a`.
    #[inline(always)]
    fn blocks_u4<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 256]; N],
        a: [&[i8; 32]; T],
        starts: [i32; T],
    ) -> [[Self::I; T]; N] {
        let mut out = [self.block_u4(blocks[0], a, starts); N];
        for n in 1..N {
            out[n] = self.block_u4(blocks[n], a, starts);
        }
        out
    }
    /// [`Self::dots_i8`] of `N` blocks: tiers with many registers may interleave them, so that they share what they load of `a`.
    #[inline(always)]
    fn blocks_i8<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 512]; N],
        a: [&[i8; 32]; T],
        starts: [i32; T],
    ) -> [[Self::I; T]; N] {
        let mut out = [self.block_i8(blocks[0], a, starts); N];
        for n in 1..N {
            out[n] = self.block_i8(blocks[n], a, starts);
        }
        out
    }
    /// For each row of `N` blocks, the exact sum over 32 columns of w x a, for `T` groups of a in 0..=32767. Byte
    /// `32 j + 2 r + c` of a block is row r and column `2 j + c`, where columns are counted as [`Self::store_i16`] writes them.
    fn blocks_i16<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 512]; N],
        a: [&[i16; 32]; T],
    ) -> [[Self::I; T]; N];

    /// One panel of quantised weights x `T` tokens, each result by the operations that `tiles` names. Tiers with
    /// few registers go over a panel in strips of a few rows, with more tokens than there would be room for otherwise.
    #[inline(always)]
    fn tile<B: Block, const T: usize>(self, tile: QuantizedTile<'_, T>, out: &mut TileOut) {
        by_blocks::<Self, B, 1, T>(self, [tile.weights], &tile.rows, tile.fetch, from_mut(out));
    }

    /// The sum of all lanes by the fixed tree.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane by the fixed tree, without NaN.
    fn max_lane(self, a: Self::F) -> f32;
}
