//! Tiers of 64-bit ARM processors. All share the f32 arithmetic of [`neon`] and differ in their integer products.
//!
//! ```text
//! neon      ARMv8.0: Raspberry Pi 3 and 4     smlal, 8 products in i16          `widening`
//! dotprod   ARMv8.2: Raspberry Pi 5           sdot, 16 products in i32          `dotprod`
//! i8mm      ARMv8.6: phones, Graviton 3       smmla, 32 products in i32         `i8mm`
//! ```
//!
//! Rust's intrinsics for `sdot` and `smmla` are not stable, so they are written as `asm!`.

pub mod dotprod;
pub mod i8mm;
pub mod neon;
mod strips;
mod weights;
pub mod widening;

use std::slice::from_mut;

use self::weights::Weights;
use super::lanes::Op;
use super::tiles::{Block, QuantizedTile, TileOut, by_blocks};
use neon::{Int4, Neon};

/// Calls intrinsics of NEON.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: NEON belongs to every 64-bit ARM processor; loads and stores touch the arrays that references of the
        // surrounding function point to, and need no alignment; j and q of `Weights` are below 4.
        unsafe { $($body)* }
    };
}
use intrinsics;

/// The integer products of a tier, and the proof that this CPU has them.
pub trait Products: Copy + Send + Sync + 'static {
    /// Tokens whose sums fit the registers, as [`Simd::TILE`](super::lanes::Simd::TILE) has it.
    const TILE: usize;
    /// As [`Simd::PAIRS`](super::lanes::Simd::PAIRS) has it.
    const PAIRS: usize;

    /// Runs `op` compiled for the tier.
    fn run<O: Op>(tier: Neon<Self>, op: O) -> O::Output;

    /// For each row, where it starts and the exact sum over 32 columns of nibble x a, for `T` groups of activations.
    fn dots_u4<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T];

    /// The same of w x a.
    fn dots_i8<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], starts: [i32; T]) -> [Int4; T];

    /// As [`Simd::tile`](super::lanes::Simd::tile) has it.
    #[inline(always)]
    fn tile<B: Block, const T: usize>(tier: Neon<Self>, tile: QuantizedTile<'_, T>, out: &mut TileOut) {
        by_blocks::<_, B, 1, T>(tier, [tile.weights], &tile.rows, tile.fetch, from_mut(out));
    }
}
