//! Attention in which every token sees every token: the patches of one image or pair of frames.
//!
//! ```text
//! for each head and each block of 32 queries:                          any thread
//!   for each page of 64 tokens:                                        its keys and values stay in the first cache
//!     for each tile of queries:  visit the page                        online softmax
//!   out = acc / sum
//! ```
//!
//! The score matrix never exists: one page's scores of one tile do. A query's result does not depend on the block and tile
//! it is computed in. Up to eight queries share each load of keys and values, where the tier has registers for them.

use super::super::cpu::Cpu;
use super::super::disjoint::Disjoint;
use super::super::kv_cache::{KvCache, PAGE};
use super::super::lanes::LANES;
use super::MAX_HEAD_DIM;
use super::partial::{Finish, Partial};
use super::queries::{Forms, QUERIES, Queries, Query, walk};

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
        let values = |row: usize| &queries[(row * heads + head) * head_dim..][..head_dim];
        let mut forms = Forms::default();
        forms.fill(cpu, cache, rows.clone().map(values));
        let query = |row| Query { values: values(row), last: cache.len() - 1 };
        let block = Queries::new(cache, head, rows.clone().map(query), &forms, 0);
        let mut partials = vec![Partial::EMPTY; rows.len()];
        walk(cpu, 0..cache.len().div_ceil(PAGE), &mut [(&block, &mut partials)]);
        for (row, total) in rows.zip(&partials) {
            let start = (row * heads + head) * width;
            // SAFETY: every item has its own rows and head.
            let out = unsafe { out.part(start..start + width) };
            cpu.run(Finish { total, gate: &[], out });
        }
    });
}
