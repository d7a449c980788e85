//! Pairs of bfloat16 whose products every tier adds to the same bits.
//!
//! ```text
//! acc = fma(w.even, a.even, fma(w.odd, a.odd, acc))          in each lane
//! ```
//!
//! That is what one `vdpbf16ps` does, twice the products of an instruction of f32; other tiers spend two fused steps. A product
//! of two bfloat16 has 16 bits and is exact in f32, so it does not matter whether a step is fused. What would matter: the
//! instruction takes subnormal numbers for zero. Therefore numbers are rounded here, where those below 2^-56 become zero.
//! Eight significant bits make the others multiples of 2^-63, their products multiples of 2^-126, and so every sum that
//! begins at zero: it is zero or a normal number.

use super::lanes::{LANES, Pair, Simd};

/// Magnitudes below become zero.
pub const FLOOR: f32 = f32::from_bits((127 - 56) << 23);

/// `x`, or 0 where its magnitude is below [`FLOOR`]. NaN stays.
#[inline(always)]
fn floor<S: Simd>(s: S, x: S::F) -> S::F {
    s.select_lt(s.abs(x), s.splat(FLOOR), s.splat(0.0), x)
}

/// Writes 16 numbers as little-endian bfloat16.
#[inline(always)]
pub fn narrow<S: Simd>(s: S, x: S::F, out: &mut [u8; 2 * LANES]) {
    s.store_bf16(floor(s, x), out);
}

/// Writes 16 numbers as the pairs that [`Simd::dot_pair`] takes.
#[inline(always)]
pub fn pairs<S: Simd>(s: S, x: S::F, out: &mut [Pair; LANES / 2]) {
    s.store_pairs(floor(s, x), out);
}
