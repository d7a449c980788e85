//! Causal attention over a paged KV cache, with grouped heads and, in models that have it, an output gate.
//! Attention without a mask, which the vision tower has, is [`bidirectional`].
//!
//! A query visits the cache in pages of 64 tokens and spans of 4 pages, both at fixed absolute positions:
//!
//! ```text
//! for each span, from an empty (max, sum, acc):                     any thread
//!   for each page of the span up to the query's position:
//!     scores = q . K of the page                                    lanes are tokens
//!     max'   = max(max, scores);  c = e^(max - max')
//!     p      = e^(scores - max')                                    0 for tokens after the query
//!     sum    = sum * c + p's sum by the fixed tree
//!     acc    = acc * c + p . V                                      lanes are channels
//! combine spans in order:  out = acc / sum, times sigmoid(gate) if there is one
//! ```
//!
//! In a cache of f32 or f16 both products are sums of f32, channel by channel and token by token; what they are in one of
//! bfloat16 stands in `bf16_page`, and of INT8 in `int8_page`.
//!
//! Nothing depends on which other queries are in the call, on threads, or on how the cache was filled. Long prompts run
//! one item per KV head and a few queries, each walking all its spans; a few tokens at great depth run one item per span
//! and two KV heads, so that all cores share one query and read the cache in the order of memory. Both combine the same partial
//! results in the same order.
//!
//! The queries of an item, of several tokens and heads, take each page together; tiles of them share each load.
//!
//! Source: online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867), as in FlashAttention.
#![allow(unsafe_code, reason = "disjoint outputs of threads; in float_page.rs, raw reads of cached pages")]

mod bf16_page;
mod bidirectional;
mod float_page;
mod heads;
mod int8_page;
mod partial;
mod queries;

use std::ops::Range;

pub use self::bidirectional::bidirectional;
pub use self::heads::{QueryKeyNorm, prepare_query_key};
use self::partial::{Combine, Finish, MergeAll, Partial};
use self::queries::{Forms, QUERIES, Queries, Query, walk};
use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::kv_cache::{KvCache, PAGE};
use super::lanes::LANES;
use super::shares::{Piece, share_out};
use crate::config::AttentionConfig;

/// Pages whose partial result is combined with others.
const SPAN_PAGES: usize = 4;
/// Tokens of a span.
pub const SPAN: usize = SPAN_PAGES * PAGE;
/// The widest head the kernel has room for.
pub const MAX_HEAD_DIM: usize = 256;
/// Calls of at most this many tokens split their spans over threads.
const SPLIT_TOKENS: usize = 4;
/// KV heads that an item of a short call reads together: they stand side by side in memory. The last of an odd number is
/// read alone.
const SIDE: usize = 2;
/// Partial results from which on threads share combining them.
const SHARED_PARTS: usize = 64;

/// Queries and partial results of the spans of a short call; grows with the context.
#[derive(Debug, Default)]
pub struct Partials {
    /// `[kv_heads, tokens, group]`
    forms: Forms,
    /// `[spans, kv_heads, tokens, group]`
    parts: Vec<Partial>,
}

impl Partials {
    /// Makes room for calls of `tokens` tokens up to a context of `context` tokens.
    pub fn reserve(&mut self, tokens: usize, heads: usize, context: usize) {
        let rows = tokens.min(SPLIT_TOKENS) * heads;
        self.forms.reserve(rows);
        let needed = rows * context.div_ceil(SPAN);
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
    let call = Call { cpu, config, queries, cache, first: cache.len() - tokens, tokens };
    if tokens <= SPLIT_TOKENS {
        call.split_by_span(partials, out);
    } else {
        call.split_by_query(out);
    }
}

#[derive(Clone, Copy)]
struct Call<'a> {
    cpu: &'a Cpu,
    config: &'a AttentionConfig,
    queries: &'a [f32],
    cache: &'a KvCache,
    /// Absolute position of the first query.
    first: usize,
    tokens: usize,
}

impl<'a> Call<'a> {
    /// Query heads of one KV head.
    fn group(&self) -> usize {
        self.config.heads / self.config.kv_heads
    }

    /// Query `[head_dim]` and gate of `head` of token `token`.
    fn row(&self, token: usize, head: usize) -> (&'a [f32], &'a [f32]) {
        let width = self.config.query_width() / self.config.heads;
        let start = token * self.config.query_width() + head * width;
        self.queries[start..start + width].split_at(self.config.head_dim)
    }

    /// Spans a query at token `token` sees.
    fn spans(&self, token: usize) -> usize {
        (self.first + token) / SPAN + 1
    }

    /// The pages of a span, those left out that are not there yet.
    fn pages(&self, span: usize) -> Range<usize> {
        span * SPAN_PAGES..((span + 1) * SPAN_PAGES).min(self.cache.len().div_ceil(PAGE))
    }

    /// Token and head of row `row` of the `[tokens, group]` of KV head `kv_head`.
    fn place(&self, kv_head: usize, row: usize) -> (usize, usize) {
        let group = self.group();
        (row / group, kv_head * group + row % group)
    }

    /// The query of row `row` of KV head `kv_head`.
    fn query(&self, kv_head: usize, row: usize) -> Query<'a> {
        let (token, head) = self.place(kv_head, row);
        Query { values: self.row(token, head).0, last: self.first + token }
    }

    /// One item per KV head and a few queries.
    fn split_by_query(&self, out: &mut [f32]) {
        let out = Disjoint::new(out);
        let kv_heads = self.config.kv_heads;
        let rows = self.tokens * self.group();
        let blocks = rows.div_ceil(QUERIES);
        self.cpu.pool.run(blocks * kv_heads, &|item| {
            // Late queries see the most tokens: they go first.
            let (block, kv_head) = (blocks - 1 - item / kv_heads, item % kv_heads);
            self.attend(kv_head, block * QUERIES..((block + 1) * QUERIES).min(rows), &out);
        });
    }

    /// Rows `rows` of the `[tokens, group]` of a KV head from its first token to the output.
    fn attend(&self, kv_head: usize, rows: Range<usize>, out: &Disjoint<'_, f32>) {
        let (cpu, group, head_dim) = (self.cpu, self.group(), self.config.head_dim);
        let mut forms = Forms::default();
        forms.fill(cpu, self.cache, rows.clone().map(|row| self.query(kv_head, row).values));
        let query = |row| self.query(kv_head, row);
        let queries = Queries::new(self.cache, kv_head, rows.clone().map(query), &forms, 0);
        // Not on the stack, of which a thread may have 128 KB.
        let mut totals = vec![Partial::EMPTY; rows.len()];
        let mut parts = totals.clone();
        for span in 0..self.spans((rows.end - 1) / group) {
            parts.fill(Partial::EMPTY);
            walk(cpu, self.pages(span), &mut [(&queries, &mut parts)]);
            let seeing = queries.blind_before(span * SPAN)..rows.len();
            cpu.run(MergeAll { totals: &mut totals[seeing.clone()], parts: &parts[seeing], head_dim });
        }
        for (row, total) in rows.zip(&totals) {
            let (token, head) = self.place(kv_head, row);
            let start = (token * self.config.heads + head) * head_dim;
            // SAFETY: every item has its own tokens and heads.
            let out = unsafe { out.part(start..start + head_dim) };
            cpu.run(Finish { total, gate: self.row(token, head).1, out });
        }
    }

    /// One item per span, a few KV heads and a few queries, in the order of memory, see `shares`; then the spans are combined.
    fn split_by_span(&self, partials: &mut Partials, out: &mut [f32]) {
        let (cpu, heads, kv_heads) = (self.cpu, self.config.heads, self.config.kv_heads);
        let (spans, rows) = (self.spans(self.tokens - 1), self.tokens * self.group());
        partials.reserve(self.tokens, heads, self.first + self.tokens);
        let (blocks, sides) = (rows.div_ceil(QUERIES), kv_heads.div_ceil(SIDE));
        let Partials { forms, parts } = partials;
        let values = |i: usize| self.query(i / rows, i % rows).values;
        forms.fill(cpu, self.cache, (0..kv_heads * rows).map(values));
        let (forms, all) = (&*forms, Disjoint::new(parts));
        share_out(&cpu.pool, spans * sides * blocks, Piece { least: 1, most: usize::MAX }, &|items| {
            for item in items {
                let (span, side, block) = (item / blocks / sides, item / blocks % sides, item % blocks);
                let rows = Rows { of_head: rows, some: block * QUERIES..((block + 1) * QUERIES).min(rows) };
                let first = side * SIDE;
                if kv_heads - first >= SIDE {
                    self.walk_span::<SIDE>(span, first, &rows, forms, &all);
                } else {
                    (first..kv_heads).for_each(|head| self.walk_span::<1>(span, head, &rows, forms, &all));
                }
            }
        });
        let parts = &*parts;
        let grain = if spans * rows * kv_heads < SHARED_PARTS { self.tokens * heads } else { 1 };
        cpu.rows(out, self.config.head_dim, grain, |all, out| {
            for (i, out) in all.zip(out.chunks_exact_mut(self.config.head_dim)) {
                let (token, head) = (i / heads, i % heads);
                let (kv_head, row) = (head / self.group(), token * self.group() + head % self.group());
                let parts =
                    parts[kv_head * rows + row..].iter().step_by(kv_heads * rows).take(self.spans(token));
                cpu.run(Combine { parts, gate: self.row(token, head).1, out });
            }
        });
    }

    /// Rows `rows` of `N` KV heads from `first` on meet the pages of a span; `parts` is `[spans, kv_heads, rows.of_head]`.
    fn walk_span<const N: usize>(
        &self,
        span: usize,
        first: usize,
        rows: &Rows,
        forms: &Forms,
        parts: &Disjoint<'_, Partial>,
    ) {
        let queries: [_; N] = std::array::from_fn(|i| {
            let some = rows.some.clone().map(|row| self.query(first + i, row));
            Queries::new(self.cache, first + i, some, forms, (first + i) * rows.of_head + rows.some.start)
        });
        let mut heads: [_; N] = std::array::from_fn(|i| {
            let place = (span * self.config.kv_heads + first + i) * rows.of_head;
            // SAFETY: every item has its own span, heads and rows.
            let parts = unsafe { parts.part(place + rows.some.start..place + rows.some.end) };
            parts.fill(Partial::EMPTY);
            (&queries[i], parts)
        });
        walk(self.cpu, self.pages(span), &mut heads);
    }
}

/// Some of the `[tokens, group]` of a KV head.
struct Rows {
    /// How many it has in all.
    of_head: usize,
    some: Range<usize>,
}
