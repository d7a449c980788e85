//! The gated delta rule, advanced token by token.
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
//! **Lanes are value channels.** The state is held as tiles of 16 of them, `[v_dim / 16][k_dim][16]`: 8 KB for k_dim 128,
//! at home in L1. A work item loads a pair of tiles and walks them through all tokens of the call, so prefill reads the
//! state once. No sum crosses lanes; a sum over k_dim is four interleaved partial sums (k mod 4), which hides the latency
//! of the fma, folded as (0 + 1) + (2 + 3).
//!
//! **One sweep a token.** The sweep that updates S and reads it with q also takes the dot product with the *next*
//! token's k, so S is loaded and stored once for each token; only a call's first token needs a sweep of its own:
//!
//! ```text
//! memory = S^T k[0]
//! for t in tokens:
//!   delta = beta[t] * (v[t] - a[t] * memory)
//!   for i in k_dim:
//!     S[i]   = fma(k[t][i], delta, a[t] * S[i])
//!     out    = fma(S[i], q[t][i], out)
//!     memory = fma(S[i], k[t+1][i], memory)          if there is a next token
//! ```
//!
//! The last token's sweep finds its tiles in L1, so memory would have nothing to do: it asks for the tiles that come next.
//!
//! The same sums in the same order come out whether tokens arrive at once or one by one.
#![allow(unsafe_code, reason = "disjoint tiles of state and output; unchecked reads in the sweep")]

use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::lanes::{LANES, Op, Simd};
use super::math::{sigmoid, softplus, zip_lanes};
use super::norm::l2_norm_row;
use super::prefetch;
use crate::config::DeltaConfig;

/// Interleaved partial sums over k_dim.
pub(super) const PARTIAL: usize = 4;
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
    assert!(shape.value_dim.is_multiple_of(LANES) && shape.key_dim.is_multiple_of(PARTIAL));
    if tokens == 0 {
        return;
    }
    let tiles = shape.value_dim / LANES;
    let width = pair_width(shape);
    let (state, out) = (Disjoint::new(state), Disjoint::new(out));
    cpu.pool.run(shape.value_heads * tiles / width, &|item| {
        let (head, tile) = (item * width / tiles, item * width % tiles);
        let key_head = head / (shape.value_heads / shape.key_heads);
        let walk = Walk {
            tokens,
            key_dim: shape.key_dim,
            rows: input.qkv,
            row_stride: shape.conv_dim(),
            query: key_head * shape.key_dim,
            key: (shape.key_heads + key_head) * shape.key_dim,
            decay: &input.decay[head..],
            beta: &input.beta[head..],
            gate_stride: shape.value_heads,
            values: &out,
            value_stride: shape.value_heads * shape.value_dim,
            value: head * shape.value_dim + tile * LANES,
            next: 0,
        };
        for t in 0..tokens {
            let from = t * shape.conv_dim() + 2 * shape.key_heads * shape.key_dim + walk.value;
            let to = t * walk.value_stride + walk.value;
            // SAFETY: every item has its own channels of each token.
            let values = unsafe { out.part(to..to + width * LANES) };
            values.copy_from_slice(&input.qkv[from..from + width * LANES]);
        }
        let start = (head * tiles + tile) * shape.key_dim * LANES;
        // SAFETY: every item has its own tiles.
        let state = unsafe { state.part(start..start + width * shape.key_dim * LANES) };
        cpu.run(Tiles { walk, state });
    });
}

/// How many neighbouring tiles of a head are walked at once.
pub(super) fn pair_width(shape: &DeltaConfig) -> usize {
    if (shape.value_dim / LANES).is_multiple_of(2) { 2 } else { 1 }
}

/// What some tiles of one head read and write, token by token.
pub(super) struct Walk<'a> {
    pub(super) tokens: usize,
    pub(super) key_dim: usize,
    /// Holds queries and keys, `[tokens, row_stride]`.
    pub(super) rows: &'a [f32],
    pub(super) row_stride: usize,
    /// Where in a row the head's query begins.
    pub(super) query: usize,
    /// Where in a row its key begins.
    pub(super) key: usize,
    /// Of token t at `gate_stride * t`.
    pub(super) decay: &'a [f32],
    pub(super) beta: &'a [f32],
    pub(super) gate_stride: usize,
    /// Holds values, which results replace, `[tokens, value_stride]`.
    pub(super) values: &'a Disjoint<'a, f32>,
    pub(super) value_stride: usize,
    /// Where in a row the tiles' channels begin.
    pub(super) value: usize,
    /// From the tiles to those that are probably walked next, which are only asked for; 0 if there are none.
    pub(super) next: usize,
}

/// One or two neighbouring tiles of one head.
struct Tiles<'a> {
    walk: Walk<'a>,
    state: &'a mut [f32],
}

impl Op for Tiles<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: every item has its own channels.
        unsafe { walk_pair(s, &self.walk, self.state) }
    }
}

/// Advances the one or two tiles that `state` holds.
///
/// # Safety
/// As for [`walk_tiles`].
#[inline(always)]
pub(super) unsafe fn walk_pair<S: Simd>(s: S, walk: &Walk<'_>, state: &mut [f32]) {
    // SAFETY: passed on.
    unsafe {
        if state.len() == walk.key_dim * LANES {
            walk_tiles::<S, 1>(s, walk, state);
        } else {
            walk_tiles::<S, 2>(s, walk, state);
        }
    }
}

/// Advances `W` tiles `[W, k_dim, 16]` over the tokens of `walk`.
///
/// # Safety
/// While it runs, nobody else may use the tiles' channels of `walk.values`.
#[inline(always)]
unsafe fn walk_tiles<S: Simd, const W: usize>(s: S, walk: &Walk<'_>, state: &mut [f32]) {
    let row = |t: usize, start: usize| &walk.rows[t * walk.row_stride + start..][..walk.key_dim];
    let mut memory = read::<S, W>(s, state, row(0, walk.key));
    for t in 0..walk.tokens {
        let gate = t * walk.gate_stride;
        let (key, query) = (row(t, walk.key), row(t, walk.query));
        let step = Step { decay: walk.decay[gate], beta: walk.beta[gate], key, query };
        let start = t * walk.value_stride + walk.value;
        // SAFETY: passed on.
        let values = unsafe { walk.values.part(start..start + W * LANES) };
        let delta = step.delta::<S, W>(s, values, &memory);
        let result;
        if t + 1 < walk.tokens {
            (result, memory) = step.sweep::<S, W, true>(s, state, &delta, row(t + 1, walk.key), walk.next);
        } else {
            (result, _) = step.sweep::<S, W, false>(s, state, &delta, key, walk.next);
        }
        for (w, out) in values.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            s.store(result[w], out);
        }
    }
}

/// One token's share of the sweep.
struct Step<'a> {
    decay: f32,
    beta: f32,
    key: &'a [f32],
    query: &'a [f32],
}

impl Step<'_> {
    /// beta * (v - decay * memory)
    #[inline(always)]
    fn delta<S: Simd, const W: usize>(&self, s: S, value: &[f32], memory: &[S::F; W]) -> [S::F; W] {
        let (decay, beta) = (s.splat(self.decay), s.splat(self.beta));
        let mut out = *memory;
        for w in 0..W {
            let value = s.load(&value.as_chunks::<LANES>().0[w]);
            out[w] = s.mul(beta, s.sub(value, s.mul(decay, memory[w])));
        }
        out
    }

    /// Updates the tiles; returns S^T q, and if `NEXT` the product S^T k with the next token's k, else the tiles
    /// `next_tiles` behind these are asked for.
    #[inline(always)]
    fn sweep<S: Simd, const W: usize, const NEXT: bool>(
        &self,
        s: S,
        state: &mut [f32],
        delta: &[S::F; W],
        next_key: &[f32],
        next_tiles: usize,
    ) -> ([S::F; W], [S::F; W]) {
        let key_dim = self.key.len();
        assert!(
            state.len() == W * key_dim * LANES && self.query.len() == key_dim && next_key.len() == key_dim
        );
        let decay = s.splat(self.decay);
        let mut out = [[s.splat(0.0); PARTIAL]; W];
        let mut memory = [[s.splat(0.0); PARTIAL]; W];
        for i in (0..key_dim).step_by(PARTIAL) {
            if !NEXT && next_tiles > 0 {
                let rows = state.as_ptr().wrapping_add(next_tiles + i * W * LANES);
                prefetch::lines(rows.cast(), PARTIAL * W * LANES * size_of::<f32>());
            }
            for j in 0..PARTIAL {
                // SAFETY: i + j < key_dim, and the lengths were asserted above.
                let (key, query, next) = unsafe {
                    (
                        self.key.get_unchecked(i + j),
                        self.query.get_unchecked(i + j),
                        next_key.get_unchecked(i + j),
                    )
                };
                let (key, query, next) = (s.splat(*key), s.splat(*query), s.splat(*next));
                for w in 0..W {
                    // SAFETY: tile w of W, row i + j of key_dim, 16 lanes.
                    let cell = unsafe { row_of(state, w * key_dim + i + j) };
                    let value = s.fma(key, delta[w], s.mul(decay, s.load(cell)));
                    s.store(value, cell);
                    out[w][j] = s.fma(value, query, out[w][j]);
                    if NEXT {
                        memory[w][j] = s.fma(value, next, memory[w][j]);
                    }
                }
            }
        }
        (fold(s, &out), fold(s, &memory))
    }
}

/// S^T k of the tiles.
#[inline(always)]
fn read<S: Simd, const W: usize>(s: S, state: &mut [f32], key: &[f32]) -> [S::F; W] {
    let key_dim = key.len();
    assert_eq!(state.len(), W * key_dim * LANES);
    let mut memory = [[s.splat(0.0); PARTIAL]; W];
    for i in (0..key_dim).step_by(PARTIAL) {
        for j in 0..PARTIAL {
            let key = s.splat(key[i + j]);
            for w in 0..W {
                // SAFETY: tile w of W, row i + j of key_dim, 16 lanes.
                let cell = unsafe { row_of(state, w * key_dim + i + j) };
                memory[w][j] = s.fma(s.load(cell), key, memory[w][j]);
            }
        }
    }
    fold(s, &memory)
}

/// The 16 lanes at `row`.
///
/// # Safety
/// `state` holds more than `row` rows of 16.
#[inline(always)]
unsafe fn row_of(state: &mut [f32], row: usize) -> &mut [f32; LANES] {
    // SAFETY: by the contract.
    unsafe { &mut *state.as_mut_ptr().add(row * LANES).cast() }
}

/// (0 + 1) + (2 + 3)
#[inline(always)]
fn fold<S: Simd, const W: usize>(s: S, partial: &[[S::F; PARTIAL]; W]) -> [S::F; W] {
    let mut out = [s.splat(0.0); W];
    for w in 0..W {
        out[w] = s.add(s.add(partial[w][0], partial[w][1]), s.add(partial[w][2], partial[w][3]));
    }
    out
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
