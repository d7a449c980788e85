//! What a query has gathered from the tokens it has seen: online softmax.

use super::super::activation::sigmoid_gate_row;
use super::super::kv_cache::PAGE;
use super::super::lanes::{LANES, Op, Simd};
use super::super::math::{exp, zip_lanes};
use super::MAX_HEAD_DIM;

/// Vectors of 16 tokens in a page.
const VECTORS: usize = PAGE / LANES;

/// The largest score, the sum of e^(score - max), and the sum of values with these weights. Aligned as vectors like it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Partial {
    pub acc: [f32; MAX_HEAD_DIM],
    max: f32,
    sum: f32,
}

impl Partial {
    /// Before the first page.
    pub const EMPTY: Self = Self { acc: [0.0; MAX_HEAD_DIM], max: f32::NEG_INFINITY, sum: 0.0 };
}

/// Scores of a page's tokens, then their weights, for `T` queries.
#[repr(C, align(64))]
pub struct Weights<const T: usize>(pub [[f32; PAGE]; T]);

/// Turns scores of a page, of which `visible` tokens count, into weights e^(score - max), and moves max and sum of each
/// partial result on; returns the factors for what was before.
#[inline(always)]
pub fn softmax<S: Simd, const T: usize>(
    s: S,
    weights: &mut [[f32; PAGE]; T],
    visible: usize,
    partial: &mut [Partial],
) -> [f32; T] {
    let mut sums = [0.0; T];
    let mut factors = [0.0; LANES];
    for t in 0..T {
        weights[t][visible..].fill(f32::NEG_INFINITY);
        let vectors = weights[t].as_chunks_mut::<LANES>().0;
        let mut lanes = [s.splat(0.0); VECTORS];
        for v in 0..VECTORS {
            lanes[v] = s.load(&vectors[v]);
        }
        let page_max = s.max_lane(s.max(s.max(lanes[0], lanes[1]), s.max(lanes[2], lanes[3])));
        let max = if partial[t].max > page_max { partial[t].max } else { page_max };
        let shift = s.splat(max);
        for v in 0..VECTORS {
            lanes[v] = exp(s, s.sub(lanes[v], shift));
            s.store(lanes[v], &mut vectors[v]);
        }
        sums[t] = s.sum(s.add(s.add(lanes[0], lanes[1]), s.add(lanes[2], lanes[3])));
        factors[t] = partial[t].max - max;
        partial[t].max = max;
    }
    s.store(exp(s, s.load(&factors)), &mut factors);
    for t in 0..T {
        partial[t].sum = partial[t].sum * factors[t] + sums[t];
    }
    let (mut out, count) = ([0.0; T], T);
    out.copy_from_slice(&factors[..count]);
    out
}

/// total = total and part together, over the first `head_dim` channels.
#[inline(always)]
fn merge<S: Simd>(s: S, total: &mut Partial, part: &Partial, head_dim: usize) {
    let max = if total.max > part.max { total.max } else { part.max };
    let (old, new) = (exp_scalar(s, total.max - max), exp_scalar(s, part.max - max));
    total.max = max;
    total.sum = total.sum * old + part.sum * new;
    let (old, new) = (s.splat(old), s.splat(new));
    let (acc, part) = (&mut total.acc[..head_dim], &part.acc[..head_dim]);
    zip_lanes!(s, acc = [value in acc, part in part] => s.fma(part, new, s.mul(value, old)));
}

/// totals[i] = totals[i] and parts[i] together.
pub struct MergeAll<'a> {
    pub totals: &'a mut [Partial],
    pub parts: &'a [Partial],
    pub head_dim: usize,
}

impl Op for MergeAll<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (total, part) in self.totals.iter_mut().zip(self.parts) {
            merge(s, total, part, self.head_dim);
        }
    }
}

/// out = acc / sum, times sigmoid(gate) if there is one.
pub struct Finish<'a> {
    pub total: &'a Partial,
    /// As wide as `out`, or empty.
    pub gate: &'a [f32],
    pub out: &'a mut [f32],
}

impl Op for Finish<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inverse = 1.0 / self.total.sum;
        for (out, acc) in self.out.iter_mut().zip(&self.total.acc) {
            *out = acc * inverse;
        }
        if !self.gate.is_empty() {
            sigmoid_gate_row(s, self.out, self.gate);
        }
    }
}

/// The result of all parts together, in their order.
pub struct Combine<'a, P> {
    pub parts: P,
    pub gate: &'a [f32],
    pub out: &'a mut [f32],
}

impl<'a, P: Iterator<Item = &'a Partial>> Op for Combine<'_, P> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut total = Partial::EMPTY;
        for part in self.parts {
            merge(s, &mut total, part, self.out.len());
        }
        Finish { total: &total, gate: self.gate, out: self.out }.run(s);
    }
}

/// e^x of one number by the lanes' polynomial.
#[inline(always)]
fn exp_scalar<S: Simd>(s: S, x: f32) -> f32 {
    s.max_lane(exp(s, s.splat(x)))
}
