//! Activations as INT8: what quantised weights are multiplied with.
//!
//! Symmetric, one scale for each token and group of 32 channels: scale = absmax / 127, value = x / scale rounded to
//! nearest even. Multiples of the group's sum are kept for tiers that multiply unsigned weights, see `offset_u4`, which asymmetric
//! weights need too. A group that holds NaN or an infinity gets a NaN scale, so that the fault reaches the logits instead of
//! vanishing in a cast.

#![allow(unsafe_code, reason = "rows, written in parallel in two forms")]

use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::lanes::{LANES, Op, Simd};
use super::math::padded;
use super::norm::row_grain;
use crate::weights::matrix::BLOCK_COLS;

/// 32 channels of one token.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Group {
    /// Value of one step.
    pub scale: f32,
    /// -8 x the sum of `values`: what a nibble, 8 above its weight, adds too much.
    pub offset_u4: i32,
    /// -128 x the sum of `values`: the same for bytes stored 128 above their weight.
    pub offset_i8: i32,
    /// Steps, -127..=127.
    pub values: [i8; BLOCK_COLS],
}

impl Group {
    /// Computes the offsets from the values.
    #[inline(always)]
    pub(super) fn set_offsets(&mut self) {
        let sum: i32 = self.values.iter().map(|&value| i32::from(value)).sum();
        (self.offset_u4, self.offset_i8) = (-8 * sum, -128 * sum);
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
    for (x, out) in x.chunks(BLOCK_COLS).zip(out) {
        quantize_group(s, x, out);
    }
}

/// Quantises up to 32 channels of one token.
#[inline(always)]
pub(super) fn quantize_group<S: Simd>(s: S, x: &[f32], out: &mut Group) {
    let (low, high) = if x.len() == BLOCK_COLS {
        let chunks = x.as_chunks::<LANES>().0;
        (s.load(&chunks[0]), s.load(&chunks[1]))
    } else {
        let split = x.len().min(LANES);
        (s.load(&padded(&x[..split])), s.load(&padded(&x[split..])))
    };
    quantize_lanes(s, low, high, out);
}

/// Channels 0..16 and 16..32 of a group.
#[inline(always)]
pub(super) fn quantize_lanes<S: Simd>(s: S, low: S::F, high: S::F, out: &mut Group) {
    let absmax = s.max_lane(s.max(s.abs(low), s.abs(high)));
    // 0 x inf and 0 x NaN are NaN; all else stays 0.
    let zero = s.splat(0.0);
    let poison = s.sum(s.fma(low, zero, s.mul(high, zero)));
    let inverse = if absmax > 0.0 { 127.0 / absmax } else { 0.0 };
    out.scale = absmax / 127.0 + poison;
    let inverse = if out.scale.is_finite() && inverse.is_finite() { inverse } else { 0.0 };
    let inverse = s.splat(inverse);
    let (low, high) = (s.round(s.mul(low, inverse)), s.round(s.mul(high, inverse)));
    let values = out.values.as_chunks_mut::<LANES>().0;
    s.store_i8(low, &mut values[0]);
    s.store_i8(high, &mut values[1]);
    // Exact: whole numbers below 2^24, or, where the scale is NaN, of no importance.
    let sum = s.sum(s.add(s.to_f32(low), s.to_f32(high))) as i32;
    (out.offset_u4, out.offset_i8) = (sum.wrapping_mul(-8), sum.wrapping_mul(-128));
}
