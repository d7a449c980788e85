//! One page of 64 tokens, seen by a tile of queries that share the page's loads: scores, online softmax, weighted values.

use super::super::activation::sigmoid_gate_row;
use super::super::elements::Element;
use super::super::kv_cache::PAGE;
use super::super::lanes::{LANES, Simd};
use super::super::math::{exp, zip_lanes};
use super::MAX_HEAD_DIM;

/// Vectors of 16 tokens in a page.
const VECTORS: usize = PAGE / LANES;

/// What a query has gathered from the pages it has seen.
#[derive(Clone, Copy, Debug)]
pub struct Partial {
    max: f32,
    sum: f32,
    acc: [f32; MAX_HEAD_DIM],
}

impl Partial {
    /// Before the first page.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, acc: [0.0; MAX_HEAD_DIM] };
}

/// Moves the partial results of `T` queries `[head_dim]` on by the first `visible` tokens of a page.
///
/// `keys` is `[4][head_dim][16]` elements, `values` `[64][head_dim]`, `partial` holds `T` results.
#[inline(always)]
pub fn visit<S: Simd, E: Element, const T: usize>(
    s: S,
    queries: &[&[f32]; T],
    (keys, values): (&[u8], &[u8]),
    visible: usize,
    partial: &mut [Partial],
) {
    let head_dim = queries[0].len();
    assert!(queries.iter().all(|query| query.len() == head_dim));
    assert!(head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(LANES) && visible <= PAGE);
    assert!(keys.len() == PAGE * head_dim * E::SIZE && values.len() == keys.len());
    let partial = &mut partial[..T];
    let mut weights = [[0.0; PAGE]; T];
    // SAFETY: keys and values hold a whole page, of which no more than all is visible; queries hold head_dim numbers.
    unsafe { scores::<S, E, T>(s, queries, keys.as_ptr(), visible, &mut weights) };
    let mut factors = [0.0; T];
    for t in 0..T {
        factors[t] = softmax_step(s, &mut weights[t], visible, &mut partial[t]);
    }
    // SAFETY: as above.
    unsafe { weighted_values::<S, E, T>(s, &weights, &factors, values.as_ptr(), visible, head_dim, partial) };
}

/// total = total and part together, over the first `head_dim` channels.
#[inline(always)]
pub fn merge<S: Simd>(s: S, total: &mut Partial, part: &Partial, head_dim: usize) {
    let max = if total.max > part.max { total.max } else { part.max };
    let (old, new) = (exp_scalar(s, total.max - max), exp_scalar(s, part.max - max));
    total.max = max;
    total.sum = total.sum * old + part.sum * new;
    let (old, new) = (s.splat(old), s.splat(new));
    let (acc, part) = (&mut total.acc[..head_dim], &part.acc[..head_dim]);
    zip_lanes!(s, acc = [value in acc, part in part] => s.fma(part, new, s.mul(value, old)));
}

/// out = acc / sum, times sigmoid(gate) if there is one.
#[inline(always)]
pub fn finish<S: Simd>(s: S, total: &Partial, gate: &[f32], out: &mut [f32]) {
    let inverse = 1.0 / total.sum;
    for (out, acc) in out.iter_mut().zip(&total.acc) {
        *out = acc * inverse;
    }
    if !gate.is_empty() {
        sigmoid_gate_row(s, out, gate);
    }
}

/// e^x of one number by the lanes' polynomial.
#[inline(always)]
fn exp_scalar<S: Simd>(s: S, x: f32) -> f32 {
    s.max_lane(exp(s, s.splat(x)))
}

/// weights[t][i] = queries[t] . key i, for the first `visible` tokens rounded up to whole vectors.
///
/// # Safety
/// `keys` points to `[4][head_dim][16]` elements, `head_dim` the length of each query; `visible` is at most 64.
#[inline(always)]
unsafe fn scores<S: Simd, E: Element, const T: usize>(
    s: S,
    queries: &[&[f32]; T],
    keys: *const u8,
    visible: usize,
    weights: &mut [[f32; PAGE]; T],
) {
    let head_dim = queries[0].len();
    for pair in 0..visible.div_ceil(2 * LANES) {
        let mut acc = [[s.splat(0.0); 2]; T];
        for d in 0..head_dim {
            // SAFETY: vectors 2 pair and 2 pair + 1 of 4, channel d of head_dim, inside the page; d < head_dim.
            let (low, high) = unsafe {
                let place = |v: usize| keys.add(((2 * pair + v) * head_dim + d) * LANES * E::SIZE);
                (E::load(s, place(0)), E::load(s, place(1)))
            };
            for t in 0..T {
                // SAFETY: as above.
                let query = s.splat(unsafe { *queries[t].get_unchecked(d) });
                acc[t][0] = s.fma(low, query, acc[t][0]);
                acc[t][1] = s.fma(high, query, acc[t][1]);
            }
        }
        for t in 0..T {
            let out = weights[t].as_chunks_mut::<LANES>().0;
            s.store(acc[t][0], &mut out[2 * pair]);
            s.store(acc[t][1], &mut out[2 * pair + 1]);
        }
    }
}

/// Turns scores into weights e^(score - max), moves `partial`'s max and sum on; returns the factor for what was before.
#[inline(always)]
fn softmax_step<S: Simd>(s: S, weights: &mut [f32; PAGE], visible: usize, partial: &mut Partial) -> f32 {
    weights[visible..].fill(f32::NEG_INFINITY);
    let vectors = weights.as_chunks_mut::<LANES>().0;
    let mut lanes = [s.splat(0.0); VECTORS];
    for (lanes, vector) in lanes.iter_mut().zip(&*vectors) {
        *lanes = s.load(vector);
    }
    let page_max = s.max_lane(s.max(s.max(lanes[0], lanes[1]), s.max(lanes[2], lanes[3])));
    let max = if partial.max > page_max { partial.max } else { page_max };
    let shift = s.splat(max);
    for (lanes, vector) in lanes.iter_mut().zip(vectors) {
        *lanes = exp(s, s.sub(*lanes, shift));
        s.store(*lanes, vector);
    }
    let sum = s.sum(s.add(s.add(lanes[0], lanes[1]), s.add(lanes[2], lanes[3])));
    let factor = exp_scalar(s, partial.max - max);
    partial.sum = partial.sum * factor + sum;
    partial.max = max;
    factor
}

/// partial[t].acc = acc * factors[t] + sum over visible tokens of weights[t][i] * value i, token by token.
///
/// # Safety
/// `values` points to `[64][head_dim]` elements, `head_dim` a multiple of 16; `visible` is at most 64.
#[inline(always)]
unsafe fn weighted_values<S: Simd, E: Element, const T: usize>(
    s: S,
    weights: &[[f32; PAGE]; T],
    factors: &[f32; T],
    values: *const u8,
    visible: usize,
    head_dim: usize,
    partial: &mut [Partial],
) {
    for d in (0..head_dim).step_by(LANES) {
        let mut acc = [s.splat(0.0); T];
        for t in 0..T {
            acc[t] = s.mul(s.load(&partial[t].acc.as_chunks::<LANES>().0[d / LANES]), s.splat(factors[t]));
        }
        for i in 0..visible {
            // SAFETY: i < visible <= 64, d + 16 <= head_dim.
            let value = unsafe { E::load(s, values.add((i * head_dim + d) * E::SIZE)) };
            for t in 0..T {
                // SAFETY: i < 64.
                acc[t] = s.fma(value, s.splat(unsafe { *weights[t].get_unchecked(i) }), acc[t]);
            }
        }
        for t in 0..T {
            s.store(acc[t], &mut partial[t].acc.as_chunks_mut::<LANES>().0[d / LANES]);
        }
    }
}
