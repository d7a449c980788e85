//! The gated delta rule in chunks: the same function as the recurrent form, mostly as matrix products.
//!
//! Kept for comparison and research, in plain loops that are not tuned; the model runs
//! chunks of eight tokens, [`delta_chunks`](super::delta_chunks). Within a
//! chunk of C tokens, with S the state before it, every token's delta depends on the deltas before it:
//!
//! ```text
//! decay[i, j] = e^(g[j+1] + ... + g[i])               j <= i: what token i still sees of token j
//! e[i]        = e^(g[0] + ... + g[i])                 what it still sees of S
//! delta[i]    = beta[i] (v[i] - e[i] S^T k[i] - sum over j < i of decay[i, j] (k[i] . k[j]) delta[j])
//! ```
//!
//! These are C linear equations with a unit lower triangular matrix, solved by forward substitution:
//!
//! ```text
//! (I + A) delta = beta (v - e (k S))                  A[i, j] = beta[i] decay[i, j] (k[i] . k[j])   for j < i
//! out           = e (q S) + (decay * (q k^T)) delta   lower triangle with its diagonal
//! S             = e[C-1] S + sum over j of decay[C-1, j] k[j] delta[j]^T
//! ```
//!
//! The papers write the inverse T = (I + A)^-1 (the UT transform) and the products U = T (beta v), W = T (beta e k) of the WY
//! form apart, so that delta = U - W S: a GPU prepares U and W of all chunks at once. One thread that walks through the
//! chunks of a head has S at hand, and one solution instead of two is the same in fewer steps.
//!
//! Decays come from sums of g over the tokens between, in f64, not from differences of running sums: those lose
//! their digits when a strong decay stands before a weak one, and have none after a decay of zero.
//!
//! Source: Yang et al. 2024, Gated Delta Networks (arXiv 2412.06464); UT transform: Joffrain et al. 2006; the chunked form of
//! the model code.

use super::cpu::Cpu;
use super::delta_rule_arrays::{DeltaArrays, DeltaResult, DeltaShape};
use super::lanes::{Op, Simd};
use crate::error::{Error, Result};

/// The chunk of the papers and of the model code.
pub const CHUNK: usize = 64;

/// The chunked form, in chunks of `chunk_size` tokens. One item of parallel work for each value head.
///
/// Close to the recurrent form, not equal to its bits: sums have another order. Other chunk sizes, and the same tokens in
/// other pieces, also give other roundings.
///
/// # Errors
/// If an array does not have its shape, or `chunk_size` is 0.
pub fn gated_delta_rule_chunked(
    cpu: &Cpu,
    arrays: &DeltaArrays<'_>,
    chunk_size: usize,
) -> Result<DeltaResult> {
    arrays.check()?;
    if chunk_size == 0 {
        return Err(Error::argument("chunk_size", "must be at least 1"));
    }
    let DeltaShape { tokens, value_heads, key_dim, value_dim, .. } = arrays.shape;
    let chunk_size = chunk_size.min(tokens.max(1));
    let (q, k) = arrays.query_key(cpu);
    let arrays = DeltaArrays { q: &q, k: &k, ..*arrays };
    let initial = arrays.initial_state();
    // A head's outputs [tokens, v_dim] and its state [k_dim, v_dim] side by side: one piece to write for each item.
    let width = (tokens + key_dim) * value_dim;
    let mut heads = vec![0.0; value_heads * width];
    cpu.rows(&mut heads, width, 1, |rows, result| {
        let (out, state) = result.split_at_mut(tokens * value_dim);
        let index = rows.start;
        state.copy_from_slice(&initial[index * state.len()..][..state.len()]);
        cpu.run(Head { arrays: &arrays, index, chunk_size, out, state });
    });
    let mut result = DeltaResult { out: vec![0.0; arrays.v.len()], state: Vec::with_capacity(initial.len()) };
    for (head, rows) in heads.chunks_exact(width).enumerate() {
        let (out, state) = rows.split_at(tokens * value_dim);
        for (t, row) in out.chunks_exact(value_dim).enumerate() {
            result.out[(t * value_heads + head) * value_dim..][..value_dim].copy_from_slice(row);
        }
        result.state.extend_from_slice(state);
    }
    Ok(result)
}

/// One value head.
struct Head<'a> {
    arrays: &'a DeltaArrays<'a>,
    index: usize,
    chunk_size: usize,
    /// `[tokens, v_dim]`
    out: &'a mut [f32],
    /// `[k_dim, v_dim]`
    state: &'a mut [f32],
}

impl Op for Head<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    /// Plain loops, compiled for the tier; nothing in them depends on its width.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = self.arrays.shape;
        let key_head = self.index / (value_heads / key_heads);
        let mut start = 0;
        for out in self.out.chunks_mut(self.chunk_size * value_dim) {
            let tokens = start..start + out.len() / value_dim;
            let chunk = Chunk {
                q: gather(self.arrays.q, key_heads, key_head, key_dim, tokens.clone()),
                k: gather(self.arrays.k, key_heads, key_head, key_dim, tokens.clone()),
                v: gather(self.arrays.v, value_heads, self.index, value_dim, tokens.clone()),
                beta: gather(self.arrays.beta, value_heads, self.index, 1, tokens.clone()),
                decay: Decay::new(&gather(self.arrays.g, value_heads, self.index, 1, tokens.clone())),
                key_dim,
                value_dim,
            };
            chunk.advance(self.state, out);
            start = tokens.end;
        }
    }
}

/// Rows `tokens` of one head of `x` `[tokens, heads, width]`.
#[inline(always)]
fn gather(x: &[f32], heads: usize, head: usize, width: usize, tokens: std::ops::Range<usize>) -> Vec<f32> {
    tokens.flat_map(|t| &x[(t * heads + head) * width..][..width]).copied().collect()
}

/// How much of the past each token of a chunk sees.
struct Decay {
    /// e\[i\], of the state before the chunk: `[n]`
    state: Vec<f32>,
    /// decay[i, j], of token j: `[n, n]`, zeros for j > i
    tokens: Vec<f32>,
}

impl Decay {
    /// From g `[n]`.
    #[inline(always)]
    fn new(g: &[f32]) -> Self {
        let n = g.len();
        let mut decay = Self { state: vec![0.0; n], tokens: vec![0.0; n * n] };
        for i in 0..n {
            let mut sum = 0.0;
            for j in (0..=i).rev() {
                decay.tokens[i * n + j] = libm::exp(sum) as f32;
                sum += f64::from(g[j]);
            }
            decay.state[i] = libm::exp(sum) as f32;
        }
        decay
    }
}

/// One chunk of `n` tokens of one head.
struct Chunk {
    /// `[n, k_dim]`
    q: Vec<f32>,
    /// `[n, k_dim]`
    k: Vec<f32>,
    /// `[n, v_dim]`
    v: Vec<f32>,
    /// `[n]`
    beta: Vec<f32>,
    decay: Decay,
    key_dim: usize,
    value_dim: usize,
}

impl Chunk {
    /// Writes `out` `[n, v_dim]` and moves `state` `[k_dim, v_dim]` on.
    #[inline(always)]
    fn advance(&self, state: &mut [f32], out: &mut [f32]) {
        let n = self.beta.len();
        let keys = transpose(&self.k, self.key_dim);
        let delta = self.deltas(state, &keys);

        add_product(out, &self.q, state, self.value_dim);
        scale_rows(out, &self.decay.state, self.value_dim);
        let mut scores = vec![0.0; n * n];
        add_product(&mut scores, &self.q, &keys, n);
        scores.iter_mut().zip(&self.decay.tokens).for_each(|(score, decay)| *score *= decay);
        add_product(out, &scores, &delta, self.value_dim);

        let last = &self.decay.tokens[(n - 1) * n..];
        let decayed: Vec<f32> =
            keys.chunks_exact(n).flat_map(|row| row.iter().zip(last).map(|(k, decay)| k * decay)).collect();
        scale(state, self.decay.state[n - 1]);
        add_product(state, &decayed, &delta, self.value_dim);
    }

    /// Solves (I + A) delta = beta (v - e (k S)) for delta `[n, v_dim]`; `keys` is `[k_dim, n]`.
    #[inline(always)]
    fn deltas(&self, state: &[f32], keys: &[f32]) -> Vec<f32> {
        let n = self.beta.len();
        let mut delta = vec![0.0; n * self.value_dim];
        add_product(&mut delta, &self.k, state, self.value_dim);
        scale_rows(&mut delta, &self.decay.state, self.value_dim);
        delta.iter_mut().zip(&self.v).for_each(|(x, v)| *x = v - *x);
        scale_rows(&mut delta, &self.beta, self.value_dim);

        let mut products = vec![0.0; n * n];
        add_product(&mut products, &self.k, keys, n);
        for i in 1..n {
            let (solved, rest) = delta.split_at_mut(i * self.value_dim);
            for (j, solved) in solved.chunks_exact(self.value_dim).enumerate() {
                let a = self.beta[i] * self.decay.tokens[i * n + j] * products[i * n + j];
                rest[..self.value_dim].iter_mut().zip(solved).for_each(|(x, y)| *x -= a * y);
            }
        }
        delta
    }
}

/// out `[m, n]` += a `[m, k]` x b `[k, n]`, where `columns` is n.
#[inline(always)]
fn add_product(out: &mut [f32], a: &[f32], b: &[f32], columns: usize) {
    let inner = b.len() / columns;
    for (out, a) in out.chunks_exact_mut(columns).zip(a.chunks_exact(inner)) {
        for (&a, b) in a.iter().zip(b.chunks_exact(columns)) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
}

/// x[i, :] *= factors\[i\]
#[inline(always)]
fn scale_rows(x: &mut [f32], factors: &[f32], width: usize) {
    for (row, factor) in x.chunks_exact_mut(width).zip(factors) {
        scale(row, *factor);
    }
}

/// x *= factor
#[inline(always)]
fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// `[rows, width]` -> `[width, rows]`
#[inline(always)]
fn transpose(x: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| x.iter().skip(column).step_by(width)).copied().collect()
}
