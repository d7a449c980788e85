//! Which experts a token goes to: softmax over all, the largest of them.
//!
//! ```text
//! p = softmax(logits)                                    over all experts of a token, in f32
//! experts = those of the k largest p, falling            of equal ones the lowest index first
//! weights = p[experts], divided by their sum if asked for
//! ```
//!
//! Source: `Qwen3_5MoeTopKRouter` of Hugging Face transformers.
//!
//! The probabilities are computed twice rather than stored: sixteen at a time, once to add them up and once to choose.
#![allow(unsafe_code, reason = "two outputs, written in parallel at places that do not overlap")]

use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::lanes::{LANES, Op, Simd};
use super::math::exp;

/// Tokens of one work item.
const GRAIN: usize = 32;

/// Which experts each token goes to, and how much each of them counts.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    experts: Vec<u32>,
    weights: Vec<f32>,
    per_token: usize,
}

impl Routes {
    /// Room for `tokens` tokens with `per_token` experts each.
    pub fn with_capacity(tokens: usize, per_token: usize) -> Self {
        let routes = tokens * per_token;
        Self { experts: Vec::with_capacity(routes), weights: Vec::with_capacity(routes), per_token }
    }

    /// Given routes, both `[tokens, per_token]`.
    ///
    /// # Panics
    /// If the arrays differ in length or do not hold whole tokens.
    pub fn new(experts: Vec<u32>, weights: Vec<f32>, per_token: usize) -> Self {
        assert_eq!(experts.len(), weights.len());
        assert!(if per_token == 0 { experts.is_empty() } else { experts.len().is_multiple_of(per_token) });
        Self { experts, weights, per_token }
    }

    /// `[tokens, per_token]`, by falling probability where [`route_top_k`] chose them.
    pub fn experts(&self) -> &[u32] {
        &self.experts
    }

    /// `[tokens, per_token]`
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Experts of a token.
    pub fn per_token(&self) -> usize {
        self.per_token
    }
}

/// Chooses experts by `logits` `[tokens, experts]`. With `renormalise` the weights of a token sum to 1.
///
/// A token one of whose logits is NaN or infinity (or all -infinity) gets the first experts, with weights of NaN.
/// Allocates only if the capacity of `routes` does not suffice.
///
/// # Panics
/// If `logits` are not whole rows, or `per_token` is not in `1..=experts`.
pub fn route_top_k(
    cpu: &Cpu,
    logits: &[f32],
    experts: usize,
    per_token: usize,
    renormalise: bool,
    routes: &mut Routes,
) {
    assert!((1..=experts).contains(&per_token), "{per_token} of {experts} experts");
    assert!(logits.len().is_multiple_of(experts), "logits are [tokens, experts]");
    let tokens = logits.len() / experts;
    routes.per_token = per_token;
    routes.experts.resize(tokens * per_token, 0);
    routes.weights.resize(tokens * per_token, 0.0);
    let (chosen, weights) = (Disjoint::new(&mut routes.experts), Disjoint::new(&mut routes.weights));
    cpu.pool.run(tokens.div_ceil(GRAIN), &|item| {
        let tokens = item * GRAIN..((item + 1) * GRAIN).min(tokens);
        let part = tokens.start * per_token..tokens.end * per_token;
        let logits = &logits[tokens.start * experts..tokens.end * experts];
        // SAFETY: each item is run once, and the items' tokens do not overlap.
        let (chosen, weights) = unsafe { (chosen.part(part.clone()), weights.part(part)) };
        cpu.run(RouteTokens { logits, experts, per_token, renormalise, chosen, weights });
    });
}

struct RouteTokens<'a> {
    logits: &'a [f32],
    experts: usize,
    per_token: usize,
    renormalise: bool,
    chosen: &'a mut [u32],
    weights: &'a mut [f32],
}

impl Op for RouteTokens<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let chosen = self.chosen.chunks_exact_mut(self.per_token);
        let outputs = chosen.zip(self.weights.chunks_exact_mut(self.per_token));
        for (logits, (chosen, weights)) in self.logits.chunks_exact(self.experts).zip(outputs) {
            route_token(s, logits, chosen, weights);
            if self.renormalise {
                let sum: f32 = weights.iter().sum();
                for weight in weights {
                    *weight /= sum;
                }
            }
        }
    }
}

#[inline(always)]
fn route_token<S: Simd>(s: S, logits: &[f32], chosen: &mut [u32], weights: &mut [f32]) {
    let chunks = logits.len().div_ceil(LANES);
    // NaN is never larger, and so not the maximum; but its own e^(NaN - max) is NaN, and then the sum.
    let lowest = s.splat(f32::NEG_INFINITY);
    let mut max = lowest;
    for i in 0..chunks {
        max = s.max(load(s, logits, i), max);
    }
    let max = s.splat(s.max_lane(max));
    let mut sum = s.splat(0.0);
    for i in 0..chunks {
        sum = s.add(sum, exp(s, s.sub(load(s, logits, i), max)));
    }
    let sum = s.splat(s.sum(sum));
    for i in 0..chunks {
        let mut p = [0.0; LANES];
        s.store(s.div(exp(s, s.sub(load(s, logits, i), max)), sum), &mut p);
        let first = i * LANES;
        let width = LANES.min(logits.len() - first);
        for (expert, &p) in (first..).zip(&p[..width]) {
            insert(expert, p, chosen, weights);
        }
    }
}

/// Chunk `i` of the logits, filled up with what counts for nothing.
#[inline(always)]
fn load<S: Simd>(s: S, logits: &[f32], i: usize) -> S::F {
    let rest = &logits[i * LANES..];
    if let Some(chunk) = rest.first_chunk() {
        return s.load(chunk);
    }
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    s.load(&last)
}

/// Puts `expert`, the next after all that were seen, at its place among the best so far. Falling, equal ones as they came.
#[inline(always)]
fn insert(expert: usize, p: f32, chosen: &mut [u32], weights: &mut [f32]) {
    let k = chosen.len();
    // At first all get in; then those that are larger than the last, which then falls out. NaN is not.
    let mut at = match expert {
        _ if expert < k => expert,
        _ if p > weights[k - 1] => k - 1,
        _ => return,
    };
    while at > 0 && p > weights[at - 1] {
        (chosen[at], weights[at]) = (chosen[at - 1], weights[at - 1]);
        at -= 1;
    }
    (chosen[at], weights[at]) = (expert as u32, p);
}
