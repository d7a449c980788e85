//! Tiles of many tokens: a panel in strips of four rows.
//!
//! Thirty-two registers do not hold sums and results of 16 rows for more than three tokens. Those of four rows they hold for
//! twelve, beside the strip's weights of a whole block, which are loaded and expanded once for all of them:
//!
//! ```text
//! for each chunk of blocks:                                   weights and activations of it stay in the first cache
//!   for each four rows q:
//!     for each span of four blocks:
//!       acc[tokens] = 0                                       four rows each
//!       for each block:
//!         w = 4 rows x 32 columns, scale of 4 rows            eight registers, shared by the tile
//!         for each token:  dot = sum of w x a / 2^k
//!                          acc[token] = fma(dot, scale, acc[token])
//!       for each token:    out[token][4 q..] = fma(acc[token], scale of a, out[token][4 q..])
//! if scales are multiples of units of the rows: out[token] = out[token] x unit
//! ```
//!
//! Each result is made by the operations that `tiles` names, block after block in their order.
#![allow(
    unsafe_code,
    reason = "places of blocks, argued by the sizes that are asserted where a tile is entered"
)]

use std::arch::aarch64::{
    float32x4_t, vcvtq_f32_s32, vdup_n_s32, vdupq_n_f32, vget_low_s16, vld1_u16, vld1q_f32, vld1q_u8,
    vmovl_s8, vmovl_s16, vmulq_f32, vreinterpret_s8_s32, vreinterpretq_f32_u8, vst1q_f32, vsubq_f32,
};
use std::arch::asm;
use std::slice::from_mut;

use super::{Neon, Products};
use crate::kernels::activations::SPAN;
use crate::kernels::lanes::LANES;
use crate::kernels::prefetch;
use crate::kernels::tiles::{Block, Fetch, QuantizedTile, TileOut, by_blocks};

/// Blocks of a chunk: 16 of INT8 take 9 KB, and twelve tokens' activations for them 11 KB.
const CHUNK: usize = 4 * SPAN;
/// Strips of a panel.
const STRIPS: usize = 4;

/// Four rows of some blocks that follow each other.
#[derive(Clone, Copy)]
pub struct Strip {
    /// The first of the blocks in the panel, and how many there are.
    pub first: usize,
    pub count: usize,
    /// Rows `4 q..` of 16.
    pub q: usize,
}

/// Products of strips.
pub trait Strips: Products {
    /// Adds the products of a strip with the tokens of `tile` to `out`.
    ///
    /// # Safety
    /// `tile` holds the blocks of `strip`, and pairs for them; q is below 4.
    unsafe fn strip<B: Block, const T: usize>(
        self,
        tile: &QuantizedTile<'_, T>,
        strip: Strip,
        out: &mut TileOut,
    );
}

/// One panel x `T` tokens, as `tiles` defines it; in strips from [`Products::PAIRS`] tokens on.
#[inline(always)]
pub fn tile<S: Strips, B: Block, const T: usize>(
    tier: Neon<S>,
    tile: QuantizedTile<'_, T>,
    out: &mut TileOut,
) {
    if T >= S::PAIRS {
        in_strips::<S, B, T>(tier.0, tile, out);
    } else {
        by_blocks::<_, B, 1, T>(tier, [tile.weights], &tile.rows, tile.fetch, from_mut(out));
    }
}

#[inline(always)]
fn in_strips<S: Strips, B: Block, const T: usize>(
    products: S,
    tile: QuantizedTile<'_, T>,
    out: &mut TileOut,
) {
    let blocks = (tile.weights.len() - B::UNIT_BYTES) / B::BYTES;
    assert_eq!(tile.weights.len(), blocks * B::BYTES + B::UNIT_BYTES);
    assert_eq!(tile.pairs.len(), blocks * T.div_ceil(2));
    out[..T].fill([0.0; LANES]);
    for first in (0..blocks).step_by(CHUNK) {
        let count = CHUNK.min(blocks - first);
        for q in 0..STRIPS {
            fetch::<B, T>(&tile, blocks, first + count, q);
            // SAFETY: blocks and pairs are as many as asserted above, of which the chunk is a part; q is below 4.
            unsafe { products.strip::<B, T>(&tile, Strip { first, count, q }, out) };
        }
    }
    if B::UNITS {
        let units = &tile.weights[blocks * B::BYTES..];
        // SAFETY: units are of 16 rows, as asserted above.
        unsafe { multiply(units.as_ptr(), &mut out[..T]) };
    }
}

/// Multiplies each token's results with the units of their rows.
///
/// # Safety
/// `units` points to 16 numbers.
#[inline(always)]
unsafe fn multiply(units: *const u8, out: &mut [[f32; LANES]]) {
    for q in 0..STRIPS {
        // SAFETY: by the contract, and because four strips are 16 lanes.
        unsafe {
            let units = vreinterpretq_f32_u8(vld1q_u8(units.add(16 * q)));
            for out in &mut *out {
                let out = out.as_mut_ptr().add(4 * q);
                vst1q_f32(out, vmulq_f32(vld1q_f32(out), units));
            }
        }
    }
}

/// Asks for a quarter of the next chunk, which begins with block `next` of `blocks`, or of what is read behind the panel.
#[inline(always)]
fn fetch<B: Block, const T: usize>(tile: &QuantizedTile<'_, T>, blocks: usize, next: usize, quarter: usize) {
    if let Fetch::Then([then], reads) = tile.fetch {
        let rest = if next == blocks { then } else { &tile.weights[next * B::BYTES..] };
        let size = rest.len().min(CHUNK * B::BYTES).div_ceil(STRIPS);
        prefetch::stream::<T>(rest.as_ptr().wrapping_add(quarter * size), size, reads);
    }
}

/// Four rows of a block.
pub struct FourRows<W> {
    /// The weights of all columns.
    pub w: W,
    /// Scales.
    pub scale: float32x4_t,
    /// What the sum of activations, times -8 / 2^k as it is kept, is multiplied with, of asymmetric blocks.
    pub offset: float32x4_t,
}

impl<W> FourRows<W> {
    /// Weights, and what stands for their rows at `scales` and where offsets are.
    ///
    /// # Safety
    /// `scales` points to the rows' scales in a block of format `B`.
    #[inline(always)]
    pub unsafe fn new<B: Block>(w: W, scales: *const u8) -> Self {
        // SAFETY: by the contract, offsets stand behind the scales of 16 rows.
        unsafe {
            let scale = if B::UNITS { four_bytes(scales) } else { four_halves(scales) };
            let mut offset = vdupq_n_f32(0.0);
            if B::OFFSETS {
                let stored = four_halves(scales.add(2 * LANES));
                offset = vmulq_f32(vsubq_f32(stored, vdupq_n_f32(8.0)), vdupq_n_f32(-0.125));
            }
            Self { w, scale, offset }
        }
    }
}

/// Four halves, widened.
///
/// # Safety
/// `place` points to four of them.
#[inline(always)]
unsafe fn four_halves(place: *const u8) -> float32x4_t {
    // SAFETY: by the contract; an instruction of ARMv8.0 that works on registers only.
    unsafe {
        let halves = vld1_u16(place.cast());
        let wide;
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
        wide
    }
}

/// Four signed bytes, widened.
///
/// # Safety
/// `place` points to four of them.
#[inline(always)]
unsafe fn four_bytes(place: *const u8) -> float32x4_t {
    // SAFETY: by the contract.
    unsafe {
        let bytes = vreinterpret_s8_s32(vdup_n_s32(place.cast::<i32>().read_unaligned()));
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
    }
}

/// `acc`, whose value the compiler cannot see through, and after it nothing is read that was to be read later: so it multiplies
/// tokens one after the other, as is written. Left to itself it loads those of many first, and keeps results in memory.
#[inline(always)]
pub fn in_turn(mut acc: float32x4_t) -> float32x4_t {
    // SAFETY: no instruction at all.
    unsafe {
        asm!("/* {acc:v} */", acc = inout(vreg) acc, options(nostack, preserves_flags));
    }
    acc
}

/// `body` for i = 0, 1, ... below `count`, at most 6, written out.
macro_rules! unrolled {
    ($i:ident < $count:expr, $body:block) => {
        unrolled!(@ $i, $count, $body, 0 1 2 3 4 5)
    };
    (@ $i:ident, $count:expr, $body:block, $($n:literal)*) => {
        $(if $n < $count {
            let $i = $n;
            $body
        })*
    };
}
pub(super) use unrolled;
