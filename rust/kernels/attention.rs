//! Causal attention over a paged KV cache, with grouped heads and, in models that have it, an output gate.
//! Attention without a mask, which the vision tower has, is [`bidirectional`].
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
//! combine spans in order:  out = acc / sum, times sigmoid(gate) if there is one
//! ```
//!
//! Nothing depends on which other queries are in the call, on threads, or on how the cache was filled. Long prompts run
//! one item per KV head and a few queries, each walking all its spans; a single token at great depth runs one item per KV
//! head and span, so that all cores share one query. Both combine the same partial results in the same order.
//!
//! Up to four query heads of one token and one KV head share each load of keys and values.
//!
//! Source: online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867), as in FlashAttention.
#![allow(unsafe_code, reason = "disjoint outputs of threads; in tile.rs, raw reads of cached pages")]

mod bidirectional;
mod heads;
mod tile;

use std::ops::Range;

pub use self::bidirectional::bidirectional;
pub use self::heads::{QueryKeyNorm, prepare_query_key};
use self::tile::{Partial, finish, merge, visit};
use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::elements::{Element, F16, F32};
use super::kv_cache::{KvCache, KvType, PAGE};
use super::lanes::{LANES, Op, Simd};
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

/// Partial results of the spans of a short call; grows with the context.
#[derive(Debug, Default)]
pub struct Partials {
    /// `[tokens, heads, spans]`
    parts: Vec<Partial>,
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
            let tile = tile_size(group - done, TILE);
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
            let tile = tile_size(group - done, TILE);
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

/// The largest power of two that is at most `left` and `most`, itself a power of two.
fn tile_size(left: usize, most: usize) -> usize {
    if left >= most { most } else { 1 << left.ilog2() }
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
    let position = call.first + token;
    let kv_head = first / call.group();
    let mut queries = [&[][..]; T];
    for (i, query) in queries.iter_mut().enumerate() {
        *query = call.query(token, first + i).0;
    }
    let last_page = (position / PAGE).min((index + 1) * SPAN_PAGES - 1);
    for page in index * SPAN_PAGES..=last_page {
        let visible = (position + 1 - page * PAGE).min(PAGE);
        visit::<S, E, T>(s, &queries, call.cache.head(page, kv_head), visible, partial);
    }
}
