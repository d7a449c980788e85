//! The gated delta rule, token by token.
//!
//! A head keeps a state S `[k_dim, v_dim]`. For each token, with decay a = e^g and rate beta:
//!
//! ```text
//! delta = beta * (v - a S^T k)            what the memory gets wrong about k
//! S     = a S + k delta^T
//! out   = S^T q
//! ```
//!
//! (Yang et al. 2024, arXiv 2412.06464; the recurrent form of the model code.)
//!
//! The model runs it in chunks of eight tokens, [`delta_chunks`](super::delta_chunks), whose state is more than S. This form
//! is for those who hold S themselves: the same bits come out whether tokens arrive at once or one by one, wherever they
//! are cut. Also here: what both forms need before, normalised queries and keys, and gates.
#![allow(unsafe_code, reason = "disjoint tiles of state and output")]

use super::cpu::Cpu;
use super::delta_chunks::{add, ask, load, store, tiles_width};
use super::disjoint::Disjoint;
use super::lanes::{LANES, Op, Simd};
use super::math::{sigmoid, softplus, zip_lanes};
use super::norm::l2_norm_row;
use crate::config::DeltaConfig;

/// Added inside the L2 norm of queries and keys.
pub(super) const L2_EPS: f32 = 1e-6;

/// What the delta rule of one call reads; all `[tokens, ...]`.
#[derive(Clone, Copy, Debug)]
pub struct DeltaInput<'a> {
    /// Queries, keys and values as the convolution leaves them: `[tokens, q | k | v]`; queries and keys normalised.
    pub qkv: &'a [f32],
    /// e^g: `[tokens, value_heads]`
    pub decay: &'a [f32],
    /// `[tokens, value_heads]`
    pub beta: &'a [f32],
}

/// Advances `state` `[value_heads, v_dim / 16, k_dim, 16]` over all tokens; `out` is `[tokens, value_heads, v_dim]`.
///
/// Value head h reads query and key head h / (value_heads / key_heads).
pub fn delta_rule(cpu: &Cpu, shape: &DeltaConfig, input: DeltaInput<'_>, state: &mut [f32], out: &mut [f32]) {
    let tokens = out.len() / (shape.value_heads * shape.value_dim);
    assert_eq!(input.qkv.len(), tokens * shape.conv_dim());
    assert_eq!(input.decay.len(), tokens * shape.value_heads);
    assert_eq!(input.beta.len(), tokens * shape.value_heads);
    assert_eq!(state.len(), shape.value_heads * shape.value_dim * shape.key_dim);
    assert!(shape.value_dim.is_multiple_of(LANES));
    let width = tiles_width(shape.value_dim);
    let (state, out) = (Disjoint::new(state), Disjoint::new(out));
    cpu.pool.run(shape.value_heads * shape.value_dim / width, &|item| {
        let channel = item * width;
        // SAFETY: every item has its own tiles.
        let state = unsafe { state.part(channel * shape.key_dim..(channel + width) * shape.key_dim) };
        cpu.run(Tiles { shape, tokens, input, channel, state, out: &out });
    });
}

/// One or two neighbouring tiles of one head.
struct Tiles<'a> {
    shape: &'a DeltaConfig,
    tokens: usize,
    input: DeltaInput<'a>,
    /// The first, of those of all heads.
    channel: usize,
    state: &'a mut [f32],
    out: &'a Disjoint<'a, f32>,
}

impl Op for Tiles<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if tiles_width(self.shape.value_dim) == LANES { self.walk::<S, 1>(s) } else { self.walk::<S, 2>(s) }
    }
}

impl Tiles<'_> {
    #[inline(always)]
    fn walk<S: Simd, const W: usize>(self, s: S) {
        let Self { shape, tokens, input, channel, state, out } = self;
        let DeltaConfig { key_heads, value_heads, key_dim, value_dim, .. } = *shape;
        let head = channel / value_dim;
        let key_head = head / (value_heads / key_heads);
        for t in 0..tokens {
            let row = &input.qkv[t * shape.conv_dim()..][..shape.conv_dim()];
            let (query, row) = (&row[key_head * key_dim..][..key_dim], &row[key_heads * key_dim..]);
            let (key, row) = (&row[key_head * key_dim..][..key_dim], &row[key_heads * key_dim..]);
            let gate = t * value_heads + head;
            let (decay, beta) = (s.splat(input.decay[gate]), s.splat(input.beta[gate]));
            let [mut delta] = ask::<S, 1, W>(s, state, &[key], false);
            let value = load::<S, W>(s, &row[channel..]);
            for w in 0..W {
                delta[w] = s.mul(beta, s.sub(value[w], s.mul(decay, delta[w])));
            }
            add::<S, 1, W, true>(s, state, decay, &[key], &[delta]);
            let [result] = ask::<S, 1, W>(s, state, &[query], false);
            let start = t * value_heads * value_dim + channel;
            // SAFETY: every item has its own channels of each token.
            store::<S, W>(s, result, unsafe { out.part(start..start + W * LANES) });
        }
    }
}

/// Normalises queries and keys of `qkv` `[tokens, q | k | v]` in place: x / |x|, and queries also `/ sqrt(k_dim)`.
pub fn normalize_query_key(cpu: &Cpu, shape: &DeltaConfig, qkv: &mut [f32]) {
    let width = shape.conv_dim();
    cpu.rows(qkv, width, super::norm::row_grain(width), |_, rows| cpu.run(NormalizeQueryKey { shape, rows }));
}

struct NormalizeQueryKey<'a> {
    shape: &'a DeltaConfig,
    rows: &'a mut [f32],
}

impl Op for NormalizeQueryKey<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let DeltaConfig { key_heads, key_dim, .. } = *self.shape;
        let scale = 1.0 / (key_dim as f32).sqrt();
        for row in self.rows.chunks_exact_mut(self.shape.conv_dim()) {
            for (head, x) in row[..2 * key_heads * key_dim].chunks_exact_mut(key_dim).enumerate() {
                l2_norm_row(s, x, L2_EPS, if head < key_heads { scale } else { 1.0 });
            }
        }
    }
}

/// Turns projections into gates in place, for `[tokens, value_heads]`:
/// a becomes the decay `e^(-e^A_log softplus(a + dt_bias))`, b becomes beta = sigmoid(b). `rate` is `e^A_log`.
pub fn gates(cpu: &Cpu, a: &mut [f32], b: &mut [f32], rate: &[f32], dt_bias: &[f32]) {
    let heads = rate.len();
    assert_eq!(a.len(), b.len());
    let grain = (256 / heads).max(1);
    cpu.rows(a, heads, grain, |_, a| {
        for row in a.chunks_exact_mut(heads) {
            for ((a, rate), bias) in row.iter_mut().zip(rate).zip(dt_bias) {
                *a = decay(*a, *rate, *bias);
            }
        }
    });
    cpu.rows(b, heads, 64 * grain, |_, b| cpu.run(Sigmoid(b)));
}

/// `e^(-rate softplus(a + bias))`
#[inline(always)]
pub(super) fn decay(a: f32, rate: f32, bias: f32) -> f32 {
    libm::expf(-rate * softplus(a + bias))
}

struct Sigmoid<'a>(&'a mut [f32]);

impl Op for Sigmoid<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = self.0;
        zip_lanes!(s, x = [value in x] => sigmoid(s, value));
    }
}
