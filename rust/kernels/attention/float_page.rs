//! One page of f32 or f16, seen by a tile of queries that share its loads: scores, online softmax, weighted values.

use super::super::elements::Element;
use super::super::kv_cache::{PAGE, TILE};
use super::super::lanes::{LANES, Simd};
use super::super::prefetch::Stream;
use super::MAX_HEAD_DIM;
use super::partial::{Partial, Weights, softmax};

/// Vectors that stand together.
const PAIR: usize = TILE / LANES;

/// Moves the partial results of `T` queries `[head_dim]` on by the first `visible` tokens of a page.
///
/// `keys` is `[2][head_dim][32]` elements, `values` `[head_dim / 32][64][32]`, `partial` holds `T` results.
#[inline(always)]
pub fn visit<S: Simd, E: Element, const T: usize>(
    s: S,
    queries: &[&[f32]; T],
    (keys, values): (&[u8], &[u8]),
    stream: Stream<'_>,
    visible: usize,
    partial: &mut [Partial],
) {
    let head_dim = queries[0].len();
    assert!(queries.iter().all(|query| query.len() == head_dim));
    assert!(head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(LANES) && visible <= PAGE);
    assert!(keys.len() == PAGE * head_dim * E::SIZE && values.len() == keys.len());
    let partial = &mut partial[..T];
    let mut weights = Weights([[0.0; PAGE]; T]);
    // Tiers with few registers take one vector at a time.
    let wide = S::WIDE;
    for tokens in (0..visible.div_ceil(LANES)).step_by(if wide { PAIR } else { 1 }) {
        // SAFETY: keys hold a whole page, 4 vectors of tokens; queries hold head_dim numbers.
        unsafe {
            if wide {
                scores::<S, E, T, PAIR>(s, queries, keys.as_ptr(), stream, tokens, &mut weights.0);
            } else {
                scores::<S, E, T, 1>(s, queries, keys.as_ptr(), stream, tokens, &mut weights.0);
            }
        }
    }
    let factors = softmax(s, &mut weights.0, visible, partial);
    let values = Values { start: values.as_ptr(), offset: keys.len(), stream, head_dim, visible };
    let mut channels = 0;
    while channels < head_dim / LANES {
        // SAFETY: values hold a whole page, of which no more than all is visible, and those channels are left.
        unsafe {
            if wide && channels + PAIR <= head_dim / LANES {
                weighted_values::<S, E, T, PAIR>(s, &weights.0, &factors, &values, channels, partial);
                channels += PAIR;
            } else {
                weighted_values::<S, E, T, 1>(s, &weights.0, &factors, &values, channels, partial);
                channels += 1;
            }
        }
    }
}

/// weights[t][i] = queries[t] . key i, for `V` vectors of tokens from `tokens` on.
///
/// # Safety
/// `keys` points to `[2][head_dim][32]` elements, `head_dim` the length of each query; the vectors are 1 of 4, or 2 that
/// stand together.
#[inline(always)]
unsafe fn scores<S: Simd, E: Element, const T: usize, const V: usize>(
    s: S,
    queries: &[&[f32]; T],
    keys: *const u8,
    stream: Stream<'_>,
    tokens: usize,
    weights: &mut [[f32; PAGE]; T],
) {
    let head_dim = queries[0].len();
    let mut acc = [[s.splat(0.0); V]; T];
    for d in 0..head_dim {
        let place = ((tokens / PAIR * head_dim + d) * PAIR + tokens % PAIR) * LANES * E::SIZE;
        let mut key = [s.splat(0.0); V];
        for v in 0..V {
            // SAFETY: the vectors are inside the page.
            key[v] = unsafe { E::load(s, keys.add(place + v * LANES * E::SIZE)) };
        }
        stream.ahead(place, V * LANES * E::SIZE);
        for t in 0..T {
            // SAFETY: d < head_dim.
            let query = s.splat(unsafe { *queries[t].get_unchecked(d) });
            for v in 0..V {
                acc[t][v] = s.fma(key[v], query, acc[t][v]);
            }
        }
    }
    for t in 0..T {
        for v in 0..V {
            s.store(acc[t][v], &mut weights[t].as_chunks_mut::<LANES>().0[tokens + v]);
        }
    }
}

/// The values of a page.
struct Values<'a> {
    start: *const u8,
    /// Of the values in `stream`.
    offset: usize,
    stream: Stream<'a>,
    head_dim: usize,
    visible: usize,
}

/// partial[t].acc = acc * factors[t] + sum over visible tokens of weights[t][i] * value i, token by token, for `V` vectors
/// of channels from `channels` on.
///
/// # Safety
/// `values.start` points to `[head_dim / 32][64][32]` elements, the last row shorter if `head_dim` asks for it, `visible` is
/// at most 64; the vectors are one, or two that stand together.
#[inline(always)]
unsafe fn weighted_values<S: Simd, E: Element, const T: usize, const V: usize>(
    s: S,
    weights: &[[f32; PAGE]; T],
    factors: &[f32; T],
    values: &Values<'_>,
    channels: usize,
    partial: &mut [Partial],
) {
    let mut acc = [[s.splat(0.0); V]; T];
    for t in 0..T {
        for v in 0..V {
            let old = &partial[t].acc.as_chunks::<LANES>().0[channels + v];
            acc[t][v] = s.mul(s.load(old), s.splat(factors[t]));
        }
    }
    let first = channels / PAIR * PAIR;
    let width = PAIR.min(values.head_dim / LANES - first);
    for i in 0..values.visible {
        let place = (first * PAGE + i * width + channels - first) * LANES * E::SIZE;
        let mut value = [s.splat(0.0); V];
        for v in 0..V {
            // SAFETY: i < visible <= 64, and the vectors are inside the head.
            value[v] = unsafe { E::load(s, values.start.add(place + v * LANES * E::SIZE)) };
        }
        values.stream.ahead(values.offset + place, V * LANES * E::SIZE);
        for t in 0..T {
            // SAFETY: i < 64.
            let weight = s.splat(unsafe { *weights[t].get_unchecked(i) });
            for v in 0..V {
                acc[t][v] = s.fma(value[v], weight, acc[t][v]);
            }
        }
    }
    for t in 0..T {
        for v in 0..V {
            s.store(acc[t][v], &mut partial[t].acc.as_chunks_mut::<LANES>().0[channels + v]);
        }
    }
}
