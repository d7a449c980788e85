//! Attention in which every token sees every token: the patches of one image or pair of frames.
//!
//! ```text
//! for each head and each block of 32 queries:                          any thread
//!   for each page of 64 tokens:                                        its keys and values stay in the first cache
//!     for each tile of up to 8 queries:  visit the page                online softmax, see tile.rs
//!   out = acc / sum
//! ```
//!
//! The score matrix never exists: one page's scores of one tile do. A query's result does not depend on the block and tile
//! it is computed in. Eight queries share each load of keys and values, where the tier has registers for them.

use std::ops::Range;

use super::super::cpu::Cpu;
use super::super::disjoint::Disjoint;
use super::super::elements::{Element, F16, F32};
use super::super::kv_cache::{KvCache, KvType, PAGE};
use super::super::lanes::{LANES, Op, Simd};
use super::tile::{Partial, finish, visit};
use super::{MAX_HEAD_DIM, tile_size};

/// Queries of one item.
const QUERIES: usize = 32;
/// Queries that share loads, at most.
const TILE: usize = 8;

/// Attends from `queries` to all tokens of `cache`.
///
/// `queries` is `[tokens, heads, head_dim]`, rotated and divided by the root of the true head width; `cache` has as many heads.
/// `out` is `[tokens, heads, width]`: the first `width` channels of each head, for heads that were filled up with zeros
/// to a multiple of 16.
pub fn bidirectional(cpu: &Cpu, queries: &[f32], cache: &KvCache, width: usize, out: &mut [f32]) {
    let (heads, head_dim) = (cache.kv_heads(), cache.head_dim());
    let tokens = queries.len() / (heads * head_dim);
    assert!(head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(LANES) && width <= head_dim);
    assert_eq!(queries.len(), tokens * heads * head_dim);
    assert_eq!(out.len(), tokens * heads * width);
    if cache.is_empty() {
        return out.fill(0.0);
    }
    let out = Disjoint::new(out);
    let blocks = tokens.div_ceil(QUERIES);
    cpu.pool.run(heads * blocks, &|item| {
        // One head after another, so that its keys and values stay in the second cache.
        let (head, block) = (item / blocks, item % blocks);
        let rows = block * QUERIES..((block + 1) * QUERIES).min(tokens);
        cpu.run(Block { queries, cache, head, rows, width, out: &out });
    });
}

struct Block<'a> {
    queries: &'a [f32],
    cache: &'a KvCache,
    head: usize,
    rows: Range<usize>,
    width: usize,
    out: &'a Disjoint<'a, f32>,
}

impl Op for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut partials = [Partial::EMPTY; QUERIES];
        for page in 0..self.cache.len().div_ceil(PAGE) {
            let mut done = 0;
            while done < self.rows.len() {
                let tile = tile_size(self.rows.len() - done, TILE.min(S::TILE));
                self.visit(s, page, done, &mut partials[done..done + tile]);
                done += tile;
            }
        }
        let heads = self.cache.kv_heads();
        for (row, partial) in self.rows.clone().zip(&partials) {
            let start = (row * heads + self.head) * self.width;
            // SAFETY: every item has its own rows and head.
            let out = unsafe { self.out.part(start..start + self.width) };
            finish(s, partial, &[], out);
        }
    }
}

impl Block<'_> {
    /// Moves the queries from row `first` of the block on by one page.
    #[inline(always)]
    fn visit<S: Simd>(&self, s: S, page: usize, first: usize, partials: &mut [Partial]) {
        match (self.cache.kv_type(), partials.len()) {
            (KvType::F32, 8) => self.visit_tile::<S, F32, 8>(s, page, first, partials),
            (KvType::F32, 4) => self.visit_tile::<S, F32, 4>(s, page, first, partials),
            (KvType::F32, 2) => self.visit_tile::<S, F32, 2>(s, page, first, partials),
            (KvType::F32, _) => self.visit_tile::<S, F32, 1>(s, page, first, partials),
            (KvType::F16, 8) => self.visit_tile::<S, F16, 8>(s, page, first, partials),
            (KvType::F16, 4) => self.visit_tile::<S, F16, 4>(s, page, first, partials),
            (KvType::F16, 2) => self.visit_tile::<S, F16, 2>(s, page, first, partials),
            (KvType::F16, _) => self.visit_tile::<S, F16, 1>(s, page, first, partials),
        }
    }

    #[inline(always)]
    fn visit_tile<S: Simd, E: Element, const T: usize>(
        &self,
        s: S,
        page: usize,
        first: usize,
        partials: &mut [Partial],
    ) {
        let (heads, head_dim) = (self.cache.kv_heads(), self.cache.head_dim());
        let mut queries = [&[][..]; T];
        for (i, query) in queries.iter_mut().enumerate() {
            let row = self.rows.start + first + i;
            *query = &self.queries[(row * heads + self.head) * head_dim..][..head_dim];
        }
        let visible = (self.cache.len() - page * PAGE).min(PAGE);
        visit::<S, E, T>(s, &queries, self.cache.head(page, self.head), visible, partials);
    }
}
