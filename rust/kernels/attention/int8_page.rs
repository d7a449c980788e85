//! One INT8 page, seen by a tile of queries that share its loads. All products are exact sums of 32 in i32.
//!
//! ```text
//! for each 16 tokens:                                                lanes are tokens
//!   for each 32 channels:   score = fma(levels . query, scale of key x scale of query, score)
//! weights of the page by the online softmax
//! for each 32 channels:                                              lanes are channels
//!   for each 32 tokens:     step = largest weight x largest scale / 32767
//!                           a[i] = weight[i] x scale[i] / step, rounded: 0..=32767
//!   acc = acc x factor;  for each 32 tokens:  acc = fma(levels . a, step, acc)
//! ```
//!
//! So a value's scale goes into its weight, and the weight becomes an integer of 15 bits relative to the largest of its
//! 32 tokens. The step covers visible tokens only: what comes after a query does not change its bits.

use super::super::activations::Group;
use super::super::kv_cache::PAGE;
use super::super::kv_cache::int8::{BLOCK, GROUP, HALVES, PAIR, groups, key_bytes, scale_bytes, value_bytes};
use super::super::lanes::{LANES, Simd};
use super::super::prefetch::Stream;
use super::MAX_HEAD_DIM;
use super::partial::{Partial, Weights, softmax};

/// The largest integer weight.
const LARGEST: f32 = 32767.0;
/// One vector holds a number for each group of channels and half of a page.
const _: () = assert!(groups(MAX_HEAD_DIM) * HALVES <= LANES);

/// Moves the partial results of `T` queries `[groups]` of heads of `head_dim` on by the first `visible` tokens of a page.
///
/// `keys` and `values` are as [`int8`](super::super::kv_cache::int8) has them, `partial` holds `T` results.
#[inline(always)]
pub fn visit<S: Simd, const T: usize>(
    s: S,
    queries: &[&[Group]; T],
    head_dim: usize,
    (keys, values): (&[u8], &[u8]),
    stream: Stream<'_>,
    visible: usize,
    partial: &mut [Partial],
) {
    assert!(queries.iter().all(|query| query.len() == groups(head_dim)));
    assert!(head_dim.is_multiple_of(LANES) && head_dim <= MAX_HEAD_DIM && visible <= PAGE);
    assert!(keys.len() == key_bytes(head_dim) && values.len() == value_bytes(head_dim));
    let partial = &mut partial[..T];
    let mut weights = Weights([[0.0; PAGE]; T]);
    for half in 0..visible.div_ceil(GROUP) {
        for g in 0..groups(head_dim) {
            let place = half * groups(head_dim) + g;
            stream.ahead(place * KEY_STEP, KEY_STEP);
            let (scales, levels) = keys.split_at(scale_bytes(head_dim));
            let (scales, levels) = (scales.as_chunks().0.as_chunks().0, levels.as_chunks().0.as_chunks().0);
            let pair = (&scales[place], &levels[place]);
            if S::WIDE {
                scores::<S, T, PAIR>(s, queries, g, pair, half, 0, &mut weights.0);
            } else {
                scores::<S, T, 1>(s, queries, g, pair, half, 0, &mut weights.0);
                scores::<S, T, 1>(s, queries, g, pair, half, 1, &mut weights.0);
            }
        }
    }
    let factors = softmax(s, &mut weights.0, visible, partial);
    let values = Values::new(s, values.split_at(scale_bytes(head_dim)), visible);
    weighted_values(s, &mut weights.0, &factors, &values, (stream, keys.len()), partial);
}

/// Scales and levels of 32 tokens x 32 channels.
type Pair<'a> = (&'a [[u8; 2 * LANES]; PAIR], &'a [[u8; BLOCK]; PAIR]);
/// Bytes of a [`Pair`].
const KEY_STEP: usize = PAIR * (2 * LANES + BLOCK);

/// weights[t][i] = weights[t][i] + queries[t] . key i over channels of group `g`, or without what stood there for the first,
/// for `V` vectors of half `half` of the page from vector `first` on.
///
/// The sums of a tile fill the registers, so scores stay in memory.
#[inline(always)]
fn scores<S: Simd, const T: usize, const V: usize>(
    s: S,
    queries: &[&[Group]; T],
    g: usize,
    (scales, levels): Pair<'_>,
    half: usize,
    first: usize,
    weights: &mut [[f32; PAGE]; T],
) {
    let (mut a, mut starts) = ([&queries[0][g].values; T], [0; T]);
    for t in 0..T {
        (a[t], starts[t]) = (&queries[t][g].values, queries[t][g].start_i8::<S>());
    }
    let (mut blocks, mut scale) = ([&levels[0]; V], [s.splat(0.0); V]);
    for v in 0..V {
        (blocks[v], scale[v]) = (&levels[first + v], s.load_f16(&scales[first + v]));
    }
    let dots = s.blocks_i8(blocks, a, starts);
    for t in 0..T {
        let scores = weights[t].as_chunks_mut::<LANES>().0;
        for v in 0..V {
            let out = &mut scores[PAIR * half + first + v];
            let scale = s.mul(scale[v], s.splat(queries[t][g].scale));
            let dot = s.above(dots[v][t], queries[t][g].base);
            s.store(s.fma(dot, scale, s.load(out)), out);
        }
    }
}

/// Values of a page, and what the queries of a tile share of their weights' scales.
struct Values<'a> {
    /// `[groups][halves]` pairs of blocks; in the last group single ones if there is one vector of channels
    blocks: &'a [[u8; BLOCK]],
    /// `[groups][4]`
    scales: &'a [[[u8; 2 * LANES]; PAGE / LANES]],
    /// The largest scale among visible tokens over [`LARGEST`], `[groups][halves]`; NaN if one is.
    steps: [f32; LANES],
    /// The inverse of [`Self::steps`]; 0 where that is 0 or NaN.
    inverses: [f32; LANES],
}

impl<'a> Values<'a> {
    #[inline(always)]
    fn new<S: Simd>(s: S, (scales, levels): (&'a [u8], &'a [u8]), visible: usize) -> Self {
        let mut largest = [0; 2 * LANES];
        for (tokens, largest) in scales.as_chunks::<{ 2 * PAGE }>().0.iter().zip(largest.as_chunks_mut().0) {
            *largest = largest_scales(tokens, visible);
        }
        let largest = s.load_f16(&largest);
        let (zero, limit) = (s.splat(0.0), s.splat(LARGEST));
        let inverses = s.select_lt(zero, largest, s.div(limit, largest), zero);
        let mut out = Self {
            blocks: levels.as_chunks().0,
            scales: scales.as_chunks().0.as_chunks().0,
            steps: [0.0; LANES],
            inverses: [0.0; LANES],
        };
        s.store(s.div(largest, limit), &mut out.steps);
        s.store(inverses, &mut out.inverses);
        out
    }
}

/// The bytes of the largest f16 among the first `visible` of each half: NaN if one is, as its bits are above all others.
#[inline(always)]
fn largest_scales(tokens: &[u8; 2 * PAGE], visible: usize) -> [u8; 2 * HALVES] {
    let mut out = [0; 2 * HALVES];
    for half in 0..HALVES {
        let mut largest = 0;
        let seen = visible.saturating_sub(GROUP * half).min(GROUP);
        for bytes in &tokens.as_chunks().0[GROUP * half..][..seen] {
            let bits = u16::from_le_bytes(*bytes);
            largest = if bits > largest { bits } else { largest };
        }
        out[2 * half..2 * half + 2].copy_from_slice(&largest.to_le_bytes());
    }
    out
}

/// Weights as parts of the largest of their half, in place; returns the largest.
#[inline(always)]
fn normalize<S: Simd>(s: S, weights: &mut [f32; PAGE]) -> [f32; HALVES] {
    let mut largest = [0.0; HALVES];
    let vectors = weights.as_chunks_mut::<LANES>().0;
    for half in 0..HALVES {
        let (low, high) = (s.load(&vectors[2 * half]), s.load(&vectors[2 * half + 1]));
        largest[half] = s.max_lane(s.max(low, high));
        let inverse = s.splat(if largest[half] > 0.0 { 1.0 / largest[half] } else { 0.0 });
        // A NaN becomes 1 here: it is in the sum of weights, and so reaches the result.
        s.store(s.min(s.mul(low, inverse), s.splat(1.0)), &mut vectors[2 * half]);
        s.store(s.min(s.mul(high, inverse), s.splat(1.0)), &mut vectors[2 * half + 1]);
    }
    largest
}

/// Integer weights of `T` queries.
#[repr(C, align(64))]
struct Integers<const T: usize>([[[i16; GROUP]; HALVES]; T]);

/// partial[t].acc = acc * factors[t] + sum over visible tokens of weights[t][i] * value i.
#[inline(always)]
fn weighted_values<S: Simd, const T: usize>(
    s: S,
    weights: &mut [[f32; PAGE]; T],
    factors: &[f32; T],
    values: &Values<'_>,
    (stream, offset): (Stream<'_>, usize),
    partial: &mut [Partial],
) {
    let mut tile =
        Tile { largest: [[0.0; HALVES]; T], integers: Integers([[[0; GROUP]; HALVES]; T]), factors };
    for t in 0..T {
        tile.largest[t] = normalize(s, &mut weights[t]);
    }
    for (g, scales) in values.scales.iter().enumerate() {
        stream.ahead(offset + g * VALUE_STEP, VALUE_STEP);
        // Scales as parts of the largest, times LARGEST: finite whatever stands behind the visible tokens.
        let mut ratios = [[s.splat(0.0); PAIR]; HALVES];
        for half in 0..HALVES {
            let inverse = s.splat(values.inverses[HALVES * g + half]);
            for v in 0..PAIR {
                let ratio = s.mul(s.load_f16(&scales[PAIR * half + v]), inverse);
                ratios[half][v] = s.min(ratio, s.splat(LARGEST));
            }
        }
        for t in 0..T {
            let weights = weights[t].as_chunks::<LANES>().0;
            for half in 0..HALVES {
                let low = s.mul(s.load(&weights[PAIR * half]), ratios[half][0]);
                let high = s.mul(s.load(&weights[PAIR * half + 1]), ratios[half][1]);
                s.store_i16([s.round(low), s.round(high)], &mut tile.integers.0[t][half]);
            }
        }
        let blocks = &values.blocks[HALVES * PAIR * g..];
        let blocks = &blocks[..blocks.len().min(HALVES * PAIR)];
        let width = blocks.len() / HALVES;
        for half in 0..HALVES {
            let steps = values.steps[HALVES * g + half];
            let blocks = &blocks[width * half..width * (half + 1)];
            if S::WIDE && width == PAIR {
                tile.add::<S, PAIR>(s, [&blocks[0], &blocks[1]], PAIR * g, half, steps, partial);
            } else {
                for (v, block) in blocks.iter().enumerate() {
                    tile.add::<S, 1>(s, [block], PAIR * g + v, half, steps, partial);
                }
            }
        }
    }
}

/// Bytes of values of one group of channels.
const VALUE_STEP: usize = 2 * PAGE + PAGE * GROUP;

/// What `T` queries bring to the blocks of a group of channels.
struct Tile<'a, const T: usize> {
    largest: [[f32; HALVES]; T],
    integers: Integers<T>,
    factors: &'a [f32; T],
}

impl<const T: usize> Tile<'_, T> {
    /// Adds half `half` of the page to `V` vectors of channels from `first` on, whose scales have the step `step`.
    #[inline(always)]
    fn add<S: Simd, const V: usize>(
        &self,
        s: S,
        blocks: [&[u8; BLOCK]; V],
        first: usize,
        half: usize,
        step: f32,
        partial: &mut [Partial],
    ) {
        let mut a = [&self.integers.0[0][half]; T];
        for t in 0..T {
            a[t] = &self.integers.0[t][half];
        }
        let dots = s.blocks_i16(blocks, a);
        for t in 0..T {
            let step = s.splat(self.largest[t][half] * step);
            for v in 0..V {
                let acc = &mut partial[t].acc.as_chunks_mut::<LANES>().0[first + v];
                let old = s.load(acc);
                let old = if half == 0 { s.mul(old, s.splat(self.factors[t])) } else { old };
                s.store(s.fma(s.to_f32(dots[v][t]), step, old), acc);
            }
        }
    }
}
