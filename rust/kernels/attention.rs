//! Causal attention over a paged KV cache, with grouped heads and an output gate.
//!
//! A query visits the cache in pages of 64 tokens and spans of 8 pages, both at fixed absolute positions:
//!
//! ```text
//! for each span, from an empty (max, sum, acc):                     any thread
//!   for each page of the span up to the query's position:
//!     scores = q . K of the page                                    lanes are tokens
//!     max'   = max(max, scores);  c = e^(max - max')
//!     p      = e^(scores - max')                                    0 for tokens after the query
//!     sum    = sum * c + p's sum by the fixed tree
//!     acc    = acc * c + p . V, token by token                      lanes are channels
//! combine spans in order:  out = acc / sum, times sigmoid(gate)
//! ```
//!
//! Nothing depends on which other queries are in the call, on threads, or on how the cache was filled. Long prompts run
//! one item per KV head and a few queries, each walking all its spans; a single token at great depth runs one item per KV
//! head and span, so that all cores share one query. Both combine the same partial results in the same order.
//!
//! Up to four query heads of one token and one KV head share each load of keys and values.
//!
//! Source: online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867), as in FlashAttention.
#![allow(unsafe_code, reason = "disjoint outputs of threads; raw reads of cached pages")]

use std::ops::Range;

use super::activation::sigmoid_gate_row;
use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::elements::{Element, F16, F32};
use super::kv_cache::{KvCache, KvType, PAGE};
use super::lanes::{LANES, Op, Simd};
use super::math::{exp, zip_lanes};
use super::norm::rms_norm_row;
use super::rope::RopeTable;
use crate::config::AttentionConfig;

/// Pages whose partial result is combined with others.
const SPAN_PAGES: usize = 8;
/// Tokens of a span.
pub const SPAN: usize = SPAN_PAGES * PAGE;
/// The widest head the kernel has room for.
pub const MAX_HEAD_DIM: usize = 256;
/// Query heads that share loads.
const TILE: usize = 4;
/// Queries of one item in prefill.
const QUERIES: usize = 8;
/// Calls of at most this many tokens split their spans over threads.
const SPLIT_TOKENS: usize = 4;
/// Vectors of 16 tokens in a page.
const VECTORS: usize = PAGE / LANES;

/// Partial results of the spans of a short call; grows with the context.
#[derive(Debug, Default)]
pub struct Partials {
    /// `[tokens, heads, spans]`
    parts: Vec<Partial>,
}

/// The partial result of one query head over one span.
#[derive(Clone, Copy, Debug)]
struct Partial {
    max: f32,
    sum: f32,
    acc: [f32; MAX_HEAD_DIM],
}

impl Partial {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, acc: [0.0; MAX_HEAD_DIM] };
}

impl Partials {
    /// Makes room for calls of `tokens` tokens up to a context of `context` tokens.
    pub fn reserve(&mut self, tokens: usize, heads: usize, context: usize) {
        let needed = tokens.min(SPLIT_TOKENS) * heads * context.div_ceil(SPAN);
        if self.parts.len() < needed {
            self.parts.resize(needed, Partial::EMPTY);
        }
    }
}

/// Attends from the last tokens of `cache`.
///
/// `queries` is `[tokens, heads, head_dim * (1 + gated)]`: each head's query, rotated and divided by `sqrt(head_dim)`, then its
/// gate if the configuration has one. Their keys and values are already in the cache. `out` is `[tokens, heads, head_dim]`.
pub fn attention(
    cpu: &Cpu,
    config: &AttentionConfig,
    queries: &[f32],
    cache: &KvCache,
    partials: &mut Partials,
    out: &mut [f32],
) {
    let tokens = out.len() / (config.heads * config.head_dim);
    assert!(config.head_dim <= MAX_HEAD_DIM && config.head_dim.is_multiple_of(LANES));
    assert!(config.heads.is_multiple_of(config.kv_heads));
    assert_eq!(out.len(), tokens * config.heads * config.head_dim);
    assert_eq!(queries.len(), tokens * config.query_width());
    assert!(
        tokens <= cache.len() && cache.head_dim() == config.head_dim && cache.kv_heads() == config.kv_heads
    );
    if tokens == 0 {
        return;
    }
    let call = Call { config, queries, cache, first: cache.len() - tokens, tokens };
    if tokens <= SPLIT_TOKENS {
        split_by_span(cpu, &call, partials, out);
    } else {
        split_by_query(cpu, &call, out);
    }
}

struct Call<'a> {
    config: &'a AttentionConfig,
    queries: &'a [f32],
    cache: &'a KvCache,
    /// Absolute position of the first query.
    first: usize,
    tokens: usize,
}

impl Call<'_> {
    fn group(&self) -> usize {
        self.config.heads / self.config.kv_heads
    }

    /// Query `[head_dim]` and gate of `head` of token `token`.
    #[inline(always)]
    fn query(&self, token: usize, head: usize) -> (&[f32], &[f32]) {
        let width = self.config.query_width() / self.config.heads;
        let start = token * self.config.query_width() + head * width;
        self.queries[start..start + width].split_at(self.config.head_dim)
    }

    /// Spans a query at token `token` sees.
    fn spans(&self, token: usize) -> usize {
        (self.first + token) / SPAN + 1
    }
}

/// One item per KV head and a few queries.
fn split_by_query(cpu: &Cpu, call: &Call<'_>, out: &mut [f32]) {
    let out = Disjoint::new(out);
    let blocks = call.tokens.div_ceil(QUERIES);
    cpu.pool.run(blocks * call.config.kv_heads, &|item| {
        // Late queries see the most tokens: they go first.
        let (block, kv_head) = (blocks - 1 - item / call.config.kv_heads, item % call.config.kv_heads);
        let tokens = block * QUERIES..((block + 1) * QUERIES).min(call.tokens);
        cpu.run(QueryItem { call, kv_head, tokens, out: &out });
    });
}

/// One item per KV head, token and span; then the spans are combined.
fn split_by_span(cpu: &Cpu, call: &Call<'_>, partials: &mut Partials, out: &mut [f32]) {
    let spans = call.spans(call.tokens - 1);
    partials.reserve(call.tokens, call.config.heads, call.first + call.tokens);
    let parts = Disjoint::new(&mut partials.parts);
    let kv_heads = call.config.kv_heads;
    cpu.pool.run(call.tokens * kv_heads * spans, &|item| {
        let (span, kv_head, token) = (item % spans, item / spans % kv_heads, item / spans / kv_heads);
        if span < call.spans(token) {
            cpu.run(SpanItem { call, kv_head, token, span, spans, parts: &parts });
        }
    });
    let heads = call.config.heads;
    for (i, out) in out.chunks_exact_mut(call.config.head_dim).enumerate() {
        let (token, head) = (i / heads, i % heads);
        let parts = &partials.parts[i * spans..][..call.spans(token)];
        cpu.run(Combine { parts, gate: call.query(token, head).1, out });
    }
}

struct SpanItem<'a> {
    call: &'a Call<'a>,
    kv_head: usize,
    token: usize,
    span: usize,
    spans: usize,
    parts: &'a Disjoint<'a, Partial>,
}

impl Op for SpanItem<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let group = self.call.group();
        let mut done = 0;
        while done < group {
            let tile = tile_size(group - done);
            let first = self.kv_head * group + done;
            let mut partial = [Partial::EMPTY; TILE];
            span(s, self.call, self.token, first, self.span, &mut partial[..tile]);
            for (i, partial) in partial[..tile].iter().enumerate() {
                let place = (self.token * self.call.config.heads + first + i) * self.spans + self.span;
                // SAFETY: every item has its own places.
                *unsafe { self.parts.item(place) } = *partial;
            }
            done += tile;
        }
    }
}

struct Combine<'a> {
    parts: &'a [Partial],
    gate: &'a [f32],
    out: &'a mut [f32],
}

impl Op for Combine<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut total = Partial::EMPTY;
        for part in self.parts {
            merge(s, &mut total, part, self.out.len());
        }
        finish(s, &total, self.gate, self.out);
    }
}

struct QueryItem<'a> {
    call: &'a Call<'a>,
    kv_head: usize,
    tokens: Range<usize>,
    out: &'a Disjoint<'a, f32>,
}

impl Op for QueryItem<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let group = self.call.group();
        let mut done = 0;
        while done < group {
            let tile = tile_size(group - done);
            let first = self.kv_head * group + done;
            self.tile(s, first, tile);
            done += tile;
        }
    }
}

impl QueryItem<'_> {
    /// Heads `first..first + tile` of all the item's tokens; spans outermost, so that their pages stay in cache.
    #[inline(always)]
    fn tile<S: Simd>(&self, s: S, first: usize, tile: usize) {
        let call = self.call;
        let head_dim = call.config.head_dim;
        let mut totals = [[Partial::EMPTY; TILE]; QUERIES];
        for index in 0..call.spans(self.tokens.end - 1) {
            for (token, totals) in self.tokens.clone().zip(&mut totals) {
                if index < call.spans(token) {
                    let mut partial = [Partial::EMPTY; TILE];
                    span(s, call, token, first, index, &mut partial[..tile]);
                    for (total, partial) in totals.iter_mut().zip(&partial[..tile]) {
                        merge(s, total, partial, head_dim);
                    }
                }
            }
        }
        for (token, totals) in self.tokens.clone().zip(&totals) {
            for (head, total) in (first..first + tile).zip(totals) {
                let start = (token * call.config.heads + head) * head_dim;
                // SAFETY: every item has its own tokens and heads.
                let out = unsafe { self.out.part(start..start + head_dim) };
                finish(s, total, call.query(token, head).1, out);
            }
        }
    }
}

/// The largest supported tile for `left` heads.
fn tile_size(left: usize) -> usize {
    if left >= TILE { TILE } else { 1 << left.ilog2() }
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

/// out = acc / sum, times sigmoid(gate) if there is one.
#[inline(always)]
fn finish<S: Simd>(s: S, total: &Partial, gate: &[f32], out: &mut [f32]) {
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

/// Heads `first..` of token `token` over span `index`, into `partial`, one for each head.
#[inline(always)]
fn span<S: Simd>(s: S, call: &Call<'_>, token: usize, first: usize, index: usize, partial: &mut [Partial]) {
    match (call.cache.kv_type(), partial.len()) {
        (KvType::F16, 4) => span_tile::<S, F16, 4>(s, call, token, first, index, partial),
        (KvType::F16, 2) => span_tile::<S, F16, 2>(s, call, token, first, index, partial),
        (KvType::F16, _) => span_tile::<S, F16, 1>(s, call, token, first, index, partial),
        (KvType::F32, 4) => span_tile::<S, F32, 4>(s, call, token, first, index, partial),
        (KvType::F32, 2) => span_tile::<S, F32, 2>(s, call, token, first, index, partial),
        (KvType::F32, _) => span_tile::<S, F32, 1>(s, call, token, first, index, partial),
    }
}

#[inline(always)]
fn span_tile<S: Simd, E: Element, const T: usize>(
    s: S,
    call: &Call<'_>,
    token: usize,
    first: usize,
    index: usize,
    partial: &mut [Partial],
) {
    let head_dim = call.config.head_dim;
    let position = call.first + token;
    let kv_head = first / call.group();
    let mut queries = [&[][..]; T];
    for (i, query) in queries.iter_mut().enumerate() {
        *query = call.query(token, first + i).0;
    }
    let last_page = (position / PAGE).min((index + 1) * SPAN_PAGES - 1);
    for page in index * SPAN_PAGES..=last_page {
        let visible = (position + 1 - page * PAGE).min(PAGE);
        let (keys, values) = call.cache.head(page, kv_head);
        assert!(keys.len() == PAGE * head_dim * E::SIZE && values.len() == keys.len());
        let mut weights = [[0.0; PAGE]; T];
        // SAFETY: keys and values hold a whole page, queries hold head_dim numbers.
        unsafe {
            scores::<S, E, T>(s, &queries, keys.as_ptr(), visible, &mut weights);
        }
        let mut factors = [0.0; T];
        for t in 0..T {
            factors[t] = softmax_step(s, &mut weights[t], visible, &mut partial[t]);
        }
        // SAFETY: as above.
        unsafe {
            weighted_values::<S, E, T>(s, &weights, &factors, values.as_ptr(), visible, head_dim, partial);
        };
    }
}

/// weights[t][i] = queries[t] . key i, for the first `visible` tokens rounded up to whole vectors.
///
/// # Safety
/// `keys` points to `[4][head_dim][16]` elements.
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
/// `values` points to `[64][head_dim]` elements; `partial` holds T results.
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

/// Prepares the projections of one call in place: RMSNorm of each query and key head, rotary positions, and queries divided
/// by `sqrt(head_dim)`. `queries` as in [`attention`], `keys` is `[tokens, kv_heads, head_dim]`.
pub fn prepare_query_key(
    cpu: &Cpu,
    config: &AttentionConfig,
    rope: &RopeTable,
    norm: QueryKeyNorm<'_>,
    queries: &mut [f32],
    keys: &mut [f32],
) {
    let stride = config.query_width() / config.heads;
    let scale = 1.0 / (config.head_dim as f32).sqrt();
    let heads = Heads { rope, eps: norm.eps, width: config.head_dim };
    let rows = |x: &mut [f32], heads_per_token: usize, stride: usize, weight: &[f32], scale: f32| {
        let width = heads_per_token * stride;
        cpu.rows(x, width, super::norm::row_grain(width), |tokens, x| {
            cpu.run(PrepareHeads { heads, first: tokens.start, heads_per_token, stride, weight, scale, x });
        });
    };
    rows(queries, config.heads, stride, norm.query, scale);
    rows(keys, config.kv_heads, config.head_dim, norm.key, 1.0);
}

/// Weights of the norms on queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct QueryKeyNorm<'a> {
    /// `[head_dim]`
    pub query: &'a [f32],
    /// `[head_dim]`
    pub key: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

#[derive(Clone, Copy)]
struct Heads<'a> {
    rope: &'a RopeTable,
    eps: f32,
    width: usize,
}

struct PrepareHeads<'a> {
    heads: Heads<'a>,
    first: usize,
    heads_per_token: usize,
    stride: usize,
    weight: &'a [f32],
    scale: f32,
    x: &'a mut [f32],
}

impl Op for PrepareHeads<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, head) in self.x.chunks_exact_mut(self.stride).enumerate() {
            let head = &mut head[..self.heads.width];
            rms_norm_row(s, head, self.weight, self.heads.eps);
            self.heads.rope.rotate(self.first + i / self.heads_per_token, head);
            for x in head {
                *x *= self.scale;
            }
        }
    }
}
