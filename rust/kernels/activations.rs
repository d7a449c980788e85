//! Activations as INT8: what quantised weights are multiplied with.
//!
//! Symmetric, one scale for each token and span of 128 channels: scale = absmax / 127, value = x / scale rounded to nearest even.
//! A group of 32 channels all of which are small beside the span's largest has a finer step, scale / 2^k with the largest k up to
//! 15 for which its largest is at most the span's. So an outlier takes no bits away from other groups, and powers of two cost a
//! product nothing:
//!
//! ```text
//! base = 1.5 x 2^23 / 2^k                          a float whose last bit stands for one step, in units of the scale
//! bits of base, plus a sum of products in i32      adds that many steps to it, exactly, while they are below 2^22
//! float of these bits - base = sum / 2^k           one subtraction in place of a conversion
//! ```
//!
//! Sums of a block are below 2^20. With a scale of its own for each group a product would take 10 multiplications in place of 9.25
//! on AVX-512, for a sixth of what activations lose, which is a small part of what INT4 weights do (`docs/quantisation.md`).
//!
//! What sums start from holds a multiple of the group's sum too, for tiers that multiply unsigned weights. A span that holds NaN or an
//! infinity has NaN for its scale, so that the fault reaches the logits instead of vanishing in a cast.

#![allow(unsafe_code, reason = "rows, written in parallel in two forms")]

use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::lanes::{LANES, Op, Simd};
use super::math::padded;
use super::norm::row_grain;
use crate::weights::matrix::BLOCK_COLS;

/// Groups that share a scale.
pub const SPAN: usize = 4;
/// Channels of these.
pub const SPAN_COLS: usize = SPAN * BLOCK_COLS;
/// Steps of a group are a scale over 2^k, k at most this.
const FINEST: i32 = 15;

/// 32 channels of one token.
///
/// With one field more, 48 bytes in place of 44, two threads read prompts at 0.87 to 0.93 of the speed (256 tokens, Zen 4, in turns);
/// perhaps because rows then stand multiples of 512 bytes apart and meet in the caches, perhaps because of what
/// frames at no cache line cost then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Group {
    /// What 1 stands for, of all groups of a span.
    pub scale: f32,
    /// 1.5 x 2^23 steps, of which 2^k are 1. Its bits are what sums of signed weights start from.
    pub base: f32,
    /// The same bits - 8 x the sum of `values`: nibbles are 8 above their weights.
    pub start_u4: i32,
    /// Steps, -127..=127.
    pub values: [i8; BLOCK_COLS],
}

impl Group {
    /// Sets all that belongs to a scale, steps of it over 2^k, and values that sum up to `sum`.
    ///
    /// # Panics
    /// In debug builds, if k is not in 0..=15.
    #[inline(always)]
    pub(super) fn set(&mut self, scale: f32, k: i32, sum: i32) {
        debug_assert!((0..=FINEST).contains(&k));
        let bits = (127 + 23 - k) << 23 | 1 << 22;
        self.scale = scale;
        self.base = f32::from_bits(bits.cast_unsigned());
        self.start_u4 = bits.wrapping_sub(sum.wrapping_mul(8));
    }

    /// What sums of INT8 weights start from on tier `S`: on those that multiply bytes 128 above their weights, 128 x the sum of
    /// `values` below the bits of `base`.
    #[inline(always)]
    pub(super) fn start_i8<S: Simd>(&self) -> i32 {
        let bits = self.base.to_bits().cast_signed();
        if S::UNSIGNED { bits.wrapping_add(self.start_u4.wrapping_sub(bits).wrapping_mul(16)) } else { bits }
    }

    /// A step.
    pub fn step(&self) -> f32 {
        self.scale * (self.base / (3 << 22) as f32)
    }
}

/// Quantised rows `[tokens, groups]`; the last group is filled up with zeros.
#[derive(Debug, Default)]
pub struct QuantizedRows {
    groups: Vec<Group>,
    per_row: usize,
}

impl QuantizedRows {
    /// Room for `tokens` rows of `cols` channels.
    pub fn with_capacity(tokens: usize, cols: usize) -> Self {
        Self { groups: Vec::with_capacity(tokens * cols.div_ceil(BLOCK_COLS)), per_row: 0 }
    }

    /// Quantises `x` `[tokens, cols]`. Allocates only if the capacity does not suffice.
    pub fn fill(&mut self, cpu: &Cpu, x: &[f32], cols: usize) {
        let groups = self.prepare(x.len() / cols, cols);
        cpu.rows(groups, cols.div_ceil(BLOCK_COLS), row_grain(cols), |rows, out| {
            let x = &x[rows.start * cols..rows.end * cols];
            cpu.run(QuantizeRows { x, cols, out });
        });
    }

    /// Room for rows of `cols` channels, whatever they hold: `[tokens, groups]`.
    fn prepare(&mut self, tokens: usize, cols: usize) -> &mut [Group] {
        self.per_row = cols.div_ceil(BLOCK_COLS);
        self.groups.resize(tokens * self.per_row, Group::default());
        &mut self.groups
    }

    /// All groups, `[tokens, groups]`.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Groups of one token.
    pub fn groups_per_row(&self) -> usize {
        self.per_row
    }
}

/// What makes a row of activations.
pub(super) trait MakeRow: Sync {
    /// Makes row `row` in `out`.
    fn make<S: Simd>(&self, s: S, row: usize, out: &mut [f32]);
}

/// Makes all rows of `out` `[tokens, cols]`, and where `quantized` is given, their INT8 form while each is still at hand.
pub(super) fn make_rows(
    cpu: &Cpu,
    out: &mut [f32],
    cols: usize,
    quantized: Option<&mut QuantizedRows>,
    maker: &impl MakeRow,
) {
    let Some(quantized) = quantized else {
        return cpu.rows(out, cols, row_grain(cols), |rows, out| {
            cpu.run(MakeRows { first: rows.start, out, cols, groups: &mut [], maker });
        });
    };
    let per_row = cols.div_ceil(BLOCK_COLS);
    let groups = Disjoint::new(quantized.prepare(out.len() / cols, cols));
    cpu.rows(out, cols, row_grain(cols), |rows, out| {
        // SAFETY: pieces of rows do not overlap.
        let groups = unsafe { groups.part(rows.start * per_row..rows.end * per_row) };
        cpu.run(MakeRows { first: rows.start, out, cols, groups, maker });
    });
}

struct MakeRows<'a, M> {
    first: usize,
    /// `[rows, cols]`
    out: &'a mut [f32],
    cols: usize,
    /// `[rows, groups]`, or none.
    groups: &'a mut [Group],
    maker: &'a M,
}

impl<M: MakeRow> Op for MakeRows<'_, M> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut groups = self.groups.chunks_exact_mut(self.cols.div_ceil(BLOCK_COLS));
        for (i, out) in self.out.chunks_exact_mut(self.cols).enumerate() {
            self.maker.make(s, self.first + i, out);
            if let Some(groups) = groups.next() {
                quantize_row(s, out, groups);
            }
        }
    }
}

struct QuantizeRows<'a> {
    x: &'a [f32],
    cols: usize,
    out: &'a mut [Group],
}

impl Op for QuantizeRows<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let per_row = self.cols.div_ceil(BLOCK_COLS);
        for (x, out) in self.x.chunks_exact(self.cols).zip(self.out.chunks_exact_mut(per_row)) {
            quantize_row(s, x, out);
        }
    }
}

/// Quantises one row.
#[inline(always)]
pub(super) fn quantize_row<S: Simd>(s: S, x: &[f32], out: &mut [Group]) {
    for (x, out) in x.chunks(SPAN_COLS).zip(out.chunks_mut(SPAN)) {
        quantize_span(s, x, out);
    }
}

/// Quantises up to 128 channels of one token.
#[inline(always)]
pub(super) fn quantize_span<S: Simd>(s: S, x: &[f32], out: &mut [Group]) {
    let zero = s.splat(0.0);
    let (mut largest, mut most, mut poison) = ([0.0; SPAN], 0.0, zero);
    for (x, largest) in x.chunks(BLOCK_COLS).zip(&mut largest) {
        let [low, high] = halves(s, x);
        // 0 x inf and 0 x NaN are NaN; all else stays 0.
        poison = s.fma(low, zero, s.fma(high, zero, poison));
        *largest = s.max_lane(s.max(s.abs(low), s.abs(high)));
        most = if *largest > most { *largest } else { most };
    }
    let scale = most / 127.0 + s.sum(poison);
    // Spans of zeros, or almost, become zeros, and so do those whose scale is NaN.
    let inverse = if most > SMALLEST && scale.is_finite() { 127.0 / most } else { 0.0 };
    for ((x, out), largest) in x.chunks(BLOCK_COLS).zip(out).zip(largest) {
        let k = halvings(most, largest);
        let inverse = s.splat(inverse * (1_u32 << k) as f32);
        let [low, high] = halves(s, x);
        let (low, high) = (s.round(s.mul(low, inverse)), s.round(s.mul(high, inverse)));
        let values = out.values.as_chunks_mut::<LANES>().0;
        s.store_i8(low, &mut values[0]);
        s.store_i8(high, &mut values[1]);
        // Exact: whole numbers below 2^24, or, where the scale is NaN, of no importance.
        let sum = s.sum(s.add(s.to_f32(low), s.to_f32(high))) as i32;
        out.set(scale, k, sum);
    }
}

/// Spans of which no number is larger become zeros: below 127 x 2^15 / `f32::MAX`, 1.3e-32, inverses of steps need not be finite.
const SMALLEST: f32 = 1e-31;

/// The largest k up to 15 with `part` x 2^k <= `whole`, both at least 0; any where that is 0.
#[inline(always)]
fn halvings(whole: f32, part: f32) -> i32 {
    // The quotient is never rounded up to a power of two: below one, floats are as close as their fractions allow.
    let exponent = ((whole / part).to_bits() >> 23).cast_signed() - 127;
    exponent.clamp(0, FINEST)
}

/// Channels 0..16 and 16..32 of a group, zeros where there are fewer.
#[inline(always)]
fn halves<S: Simd>(s: S, x: &[f32]) -> [S::F; 2] {
    if x.len() == BLOCK_COLS {
        let chunks = x.as_chunks::<LANES>().0;
        [s.load(&chunks[0]), s.load(&chunks[1])]
    } else {
        let split = x.len().min(LANES);
        [s.load(&padded(&x[..split])), s.load(&padded(&x[split..]))]
    }
}
