//! One page of bfloat16, seen by a tile of queries that share its loads. Products are of pairs, see [`bf16`](super::super::bf16).
//!
//! ```text
//! scores = 0;  for each 2 channels:           scores += keys . queries, both as bfloat16      lanes are tokens
//! weights of the page by the online softmax, then as bfloat16
//! sums = 0;    for each 2 visible tokens:     sums += values . weights                        lanes are channels
//! acc = fma(acc, factor, sums)
//! ```
//!
//! Both loops wait for sums: a tile of up to 4 queries therefore meets a whole row of 4 vectors at a time where there are
//! registers for it, one of 8 two vectors, which are 16 sums either way.
//!
//! Of an odd number of visible tokens the last meets zeros, whatever stands beside it. Sums begin at zero and not at `acc`,
//! because `acc x factor` may be subnormal. The sum of weights takes them before they are rounded.

use super::super::bf16::pairs;
use super::super::kv_cache::{PAGE, ROW};
use super::super::lanes::{LANES, Pair, Simd};
use super::super::prefetch::Stream;
use super::MAX_HEAD_DIM;
use super::partial::{Partial, Weights, softmax};

/// Vectors of a row: of two channels of all keys, and of two tokens' values.
const WIDTH: usize = ROW / LANES;
/// Bytes of a vector: 16 pairs.
const VECTOR: usize = 4 * LANES;
/// Rows of keys whose vectors are visited one by one while they are in the first cache.
const STRETCH: usize = 32;

/// A query `[head_dim / 2]`.
pub type PairedQuery = [Pair; MAX_HEAD_DIM / 2];

/// Moves the partial results of `T` queries of heads of `head_dim` on by the first `visible` tokens of a page.
///
/// `keys` is `[head_dim / 2][64][2]` numbers, `values` `[head_dim / 64][32][64][2]`, the last 64 fewer where `head_dim` ends;
/// `partial` holds `T` results.
#[inline(always)]
pub fn visit<S: Simd, const T: usize>(
    s: S,
    queries: &[PairedQuery; T],
    head_dim: usize,
    (keys, values): (&[u8], &[u8]),
    stream: Stream<'_>,
    visible: usize,
    partial: &mut [Partial],
) {
    assert!(head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(LANES) && visible <= PAGE);
    assert!(keys.len() == 2 * PAGE * head_dim && values.len() == keys.len());
    let partial = &mut partial[..T];
    let mut weights = Weights([[0.0; PAGE]; T]);
    let rows = keys.as_chunks().0.as_chunks().0;
    if S::WIDE && T <= 4 {
        scores::<S, T, WIDTH>(s, queries, &Keys { rows, first: 0, stream }, 0, &mut weights.0);
    } else if S::WIDE {
        for v in (0..visible.div_ceil(LANES)).step_by(2) {
            scores::<S, T, 2>(s, queries, &Keys { rows, first: 0, stream }, v, &mut weights.0);
        }
    } else {
        for (i, rows) in rows.chunks(STRETCH).enumerate() {
            for v in 0..visible.div_ceil(LANES) {
                scores::<S, T, 1>(s, queries, &Keys { rows, first: i * STRETCH, stream }, v, &mut weights.0);
            }
        }
    }
    let factors = softmax(s, &mut weights.0, visible, partial);
    let mut paired = [[[0; 2]; PAGE / 2]; T];
    for t in 0..T {
        for (weights, paired) in weights.0[t].as_chunks().0.iter().zip(paired[t].as_chunks_mut().0) {
            pairs(s, s.load(weights), paired);
        }
    }
    let weights = PairedWeights { pairs: &paired, factors: &factors, visible };
    for (block, bytes) in values.chunks(2 * PAGE * ROW).enumerate() {
        let vectors = bytes.as_chunks().0;
        let values = Values { vectors, offset: keys.len() + block * 2 * PAGE * ROW, stream };
        let (first, width) = (WIDTH * block, vectors.len() / (PAGE / 2));
        let mut v = 0;
        if S::WIDE && T <= 4 && width == WIDTH {
            weighted_values::<S, T, WIDTH>(s, &weights, &values, v, first, partial);
            v = WIDTH;
        }
        while S::WIDE && v + 2 <= width {
            weighted_values::<S, T, 2>(s, &weights, &values, v, first + v, partial);
            v += 2;
        }
        while v < width {
            weighted_values::<S, T, 1>(s, &weights, &values, v, first + v, partial);
            v += 1;
        }
    }
}

/// Some rows of the keys of a page.
struct Keys<'a> {
    rows: &'a [[[u8; VECTOR]; WIDTH]],
    /// The first of them, in the page and in `stream`.
    first: usize,
    stream: Stream<'a>,
}

/// weights[t][i] += queries[t] . key i over the channels of `keys`, for `V` vectors of tokens from vector `v` on.
#[inline(always)]
fn scores<S: Simd, const T: usize, const V: usize>(
    s: S,
    queries: &[PairedQuery; T],
    keys: &Keys<'_>,
    v: usize,
    weights: &mut [[f32; PAGE]; T],
) {
    let mut acc = [[s.splat(0.0); V]; T];
    for t in 0..T {
        for i in 0..V {
            acc[t][i] = s.load(&weights[t].as_chunks().0[v + i]);
        }
    }
    for (d, row) in (keys.first..MAX_HEAD_DIM / 2).zip(keys.rows) {
        keys.stream.ahead((WIDTH * d + v) * VECTOR, V * VECTOR);
        let mut key = [s.load_pairs(&row[v]); V];
        for i in 1..V {
            key[i] = s.load_pairs(&row[v + i]);
        }
        for t in 0..T {
            for i in 0..V {
                acc[t][i] = s.dot_pair(acc[t][i], key[i], &queries[t][d]);
            }
        }
    }
    for t in 0..T {
        for i in 0..V {
            s.store(acc[t][i], &mut weights[t].as_chunks_mut::<LANES>().0[v + i]);
        }
    }
}

/// Rounded weights of a page's visible tokens, and the factors of what was before.
struct PairedWeights<'a, const T: usize> {
    pairs: &'a [[Pair; PAGE / 2]; T],
    factors: &'a [f32; T],
    visible: usize,
}

/// Up to 64 channels of the values of a page.
struct Values<'a> {
    /// `[32][vectors]`
    vectors: &'a [[u8; VECTOR]],
    /// In `stream`.
    offset: usize,
    stream: Stream<'a>,
}

/// partial[t].acc = acc * factors[t] + sum over visible tokens of weights[t][i] * value i, for `V` vectors of channels: of
/// `values` from vector `v` on, of the head from `first` on.
#[inline(always)]
fn weighted_values<S: Simd, const T: usize, const V: usize>(
    s: S,
    weights: &PairedWeights<'_, T>,
    values: &Values<'_>,
    v: usize,
    first: usize,
    partial: &mut [Partial],
) {
    let mut acc = [[s.splat(0.0); V]; T];
    let width = values.vectors.len() / (PAGE / 2);
    let rows = values.vectors.chunks_exact(width).enumerate();
    for (i, vectors) in rows.take(weights.visible / 2) {
        values.stream.ahead(values.offset + (width * i + v) * VECTOR, V * VECTOR);
        let vectors = vectors[v..].first_chunk().expect("a row holds the vectors");
        add_row(s, vectors, weights.pairs, i, &mut acc);
    }
    if weights.visible % 2 == 1 {
        let i = weights.visible / 2;
        let mut last = [[0; VECTOR]; V];
        for (last, vector) in last.iter_mut().zip(&values.vectors[width * i + v..]) {
            *last = evens(vector);
        }
        add_row(s, &last, weights.pairs, i, &mut acc);
    }
    for t in 0..T {
        for i in 0..V {
            let out = &mut partial[t].acc.as_chunks_mut::<LANES>().0[first + i];
            s.store(s.fma(s.load(out), s.splat(weights.factors[t]), acc[t][i]), out);
        }
    }
}

/// acc[t] += vectors . pairs[t][i]
#[inline(always)]
fn add_row<S: Simd, const T: usize, const V: usize>(
    s: S,
    vectors: &[[u8; VECTOR]; V],
    pairs: &[[Pair; PAGE / 2]; T],
    i: usize,
    acc: &mut [[S::F; V]; T],
) {
    let mut value = [s.load_pairs(&vectors[0]); V];
    for v in 1..V {
        value[v] = s.load_pairs(&vectors[v]);
    }
    for t in 0..T {
        for v in 0..V {
            acc[t][v] = s.dot_pair(acc[t][v], value[v], &pairs[t][i]);
        }
    }
}

/// The first numbers of 16 pairs, beside zeros.
#[inline(always)]
fn evens(vector: &[u8; VECTOR]) -> [u8; VECTOR] {
    let mut out = *vector;
    for pair in out.as_chunks_mut::<4>().0 {
        pair[2..].fill(0);
    }
    out
}
