//! A page of INT8 keys and values: both are INT8 matrices that grow with the text.
//!
//! A token's channels are quantised in groups of 32 when it is appended, once and for all: scale = absmax / 127 as an f16,
//! level = channel / scale rounded to nearest even. So the bytes depend on nothing but the token.
//!
//! | part | shape |
//! |---|---|
//! | scales of keys | `[64 / 32][groups][32 tokens]` |
//! | levels of keys | `[64 / 32][groups][2][512]`: blocks of 16 tokens x 32 channels |
//! | scales of values | `[groups][64 tokens]` |
//! | levels of values | `[groups][64 / 32][2][512]`: blocks of 16 channels x 32 tokens |
//!
//! In a block of keys, four channels of a token stand together (byte `64 j + 4 r + c`: token `r`, channel `4 j + c`), as in
//! the weights of [`int8`](crate::weights::int8): queries meet them as activations meet weights, 8 bits by 8. In a block of
//! values, two tokens of a channel stand together (byte `32 j + 2 r + c`: channel `r`, [`column`] `2 j + c`), the operand of
//! a product of 16 bits by 8: weights of attention fall off steeply inside a group of tokens, and all have one sign, so
//! rounding them to 8 bits would lose a part of the sum and not only disturb it.
//!
//! Where 16 channels are left for the last group, its keys are filled up with zeros, and its values have one block less.
//!
//! A group that holds NaN or an infinity, or numbers beyond 127 x 65504, gets a NaN scale: the fault reaches the logits.

use half::f16;

use super::{LANES, PAGE, load};
use crate::kernels::lanes::Simd;

/// Channels, and in values tokens, of a block.
pub const GROUP: usize = 32;
/// Bytes of a block.
pub const BLOCK: usize = GROUP * LANES;
/// Blocks that stand together: 32 tokens x 32 channels.
pub const PAIR: usize = GROUP / LANES;

/// Groups of tokens in a page.
pub const HALVES: usize = PAGE / GROUP;

/// Groups of a head.
pub const fn groups(head_dim: usize) -> usize {
    head_dim.div_ceil(GROUP)
}

/// Bytes of the scales of a head's keys in a page, and of its values, which stand before the levels.
pub const fn scale_bytes(head_dim: usize) -> usize {
    2 * PAGE * groups(head_dim)
}

/// Bytes of a head's keys in a page.
pub const fn key_bytes(head_dim: usize) -> usize {
    scale_bytes(head_dim) + PAGE * GROUP * groups(head_dim)
}

/// Bytes of a head's values in a page.
pub const fn value_bytes(head_dim: usize) -> usize {
    scale_bytes(head_dim) + PAGE * head_dim
}

/// Where the level of channel `d` of the key in slot `slot` stands; three more channels follow.
const fn key_level(slot: usize, d: usize, head_dim: usize) -> usize {
    let block = (slot / GROUP * groups(head_dim) + d / GROUP) * PAIR + slot % GROUP / LANES;
    scale_bytes(head_dim) + block * BLOCK + d % GROUP / 4 * 64 + slot % LANES * 4 + d % 4
}

/// Where its scale stands.
const fn key_scale(slot: usize, d: usize, head_dim: usize) -> usize {
    2 * ((slot / GROUP * groups(head_dim) + d / GROUP) * GROUP + slot % GROUP)
}

/// Where the level of channel `d` of the value in slot `slot` stands.
const fn value_level(slot: usize, d: usize, head_dim: usize) -> usize {
    let (group, half) = (d / GROUP, slot / GROUP);
    let width = if head_dim - group * GROUP < GROUP { 1 } else { PAIR };
    let block = group * HALVES * PAIR + half * width + d % GROUP / LANES;
    let column = column(slot % GROUP);
    scale_bytes(head_dim) + block * BLOCK + column / 2 * 32 + d % LANES * 2 + column % 2
}

/// The place of one of 32 tokens in a block: fours of the first and of the last 16 in turn, as
/// [`store_i16`](Simd::store_i16) writes their weights.
const fn column(token: usize) -> usize {
    token % LANES / 4 * 8 + token / LANES * 4 + token % 4
}

/// Where its scale stands.
const fn value_scale(slot: usize, d: usize) -> usize {
    2 * (d / GROUP * PAGE + slot)
}

/// Channel `d` of the key in slot `slot`.
pub fn read_key(keys: &[u8], slot: usize, d: usize, head_dim: usize) -> f32 {
    level(keys, key_level(slot, d, head_dim)) * super::read_f16(keys, key_scale(slot, d, head_dim) / 2)
}

/// Channel `d` of the value in slot `slot`.
pub fn read_value(values: &[u8], slot: usize, d: usize, head_dim: usize) -> f32 {
    level(values, value_level(slot, d, head_dim)) * super::read_f16(values, value_scale(slot, d) / 2)
}

fn level(bytes: &[u8], at: usize) -> f32 {
    f32::from(bytes[at].cast_signed())
}

/// Writes one head's key and value `[head_dim]` to slot `slot` of its page.
#[inline(always)]
pub fn write<S: Simd>(s: S, key: &[f32], value: &[f32], keys: &mut [u8], values: &mut [u8], slot: usize) {
    let head_dim = key.len();
    for d in (0..head_dim).step_by(GROUP) {
        let (scale, levels) = quantize(s, key, d);
        put_scale(keys, key_scale(slot, d, head_dim), scale);
        for (c, quad) in levels.as_chunks::<4>().0.iter().enumerate() {
            let at = key_level(slot, d + 4 * c, head_dim);
            keys[at..at + 4].copy_from_slice(quad);
        }
        let (scale, levels) = quantize(s, value, d);
        put_scale(values, value_scale(slot, d), scale);
        for c in 0..GROUP.min(head_dim - d) {
            values[value_level(slot, d + c, head_dim)] = levels[c];
        }
    }
}

fn put_scale(bytes: &mut [u8], at: usize, scale: f16) {
    bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
}

/// Scale and levels of channels `d..d + 32`; where only 16 are left, the others are zeros.
#[inline(always)]
fn quantize<S: Simd>(s: S, x: &[f32], d: usize) -> (f16, [u8; GROUP]) {
    let zero = s.splat(0.0);
    let low = load(s, x, d);
    let high = if d + LANES < x.len() { load(s, x, d + LANES) } else { zero };
    let absmax = s.max_lane(s.max(s.abs(low), s.abs(high)));
    // 0 x inf and 0 x NaN are NaN; all else stays 0.
    let poison = s.sum(s.fma(low, zero, s.mul(high, zero)));
    let scale = scale(absmax + poison);
    let mut levels = [0; GROUP];
    if scale.is_nan() || scale == f16::ZERO {
        return (scale, levels);
    }
    let inverse = s.splat(1.0 / scale.to_f32());
    let mut halves = [[0; LANES]; 2];
    s.store_i8(s.round(s.mul(low, inverse)), &mut halves[0]);
    s.store_i8(s.round(s.mul(high, inverse)), &mut halves[1]);
    for i in 0..GROUP {
        levels[i] = halves[i / LANES][i % LANES].cast_unsigned();
    }
    (scale, levels)
}

/// The f16 nearest to absmax / 127, or the next one if with that the largest level would be 128; NaN if there is none.
fn scale(absmax: f32) -> f16 {
    let near = f16::from_f32(absmax / 127.0);
    // Only subnormal halves are so far apart.
    let up = if near.to_f32() * 127.25 < absmax { f16::from_bits(near.to_bits() + 1) } else { near };
    if up.is_finite() && !absmax.is_nan() { up } else { f16::NAN }
}
