//! Query and key heads on their way into attention: norm, rotary positions, scale.

use super::super::cpu::Cpu;
use super::super::lanes::{Op, Simd};
use super::super::norm::{rms_norm_row, row_grain};
use super::super::rope::RopeTable;
use crate::config::AttentionConfig;

/// Prepares the projections of one call in place: RMSNorm of each query and key head, rotary positions, and queries divided
/// by `sqrt(head_dim)`. `queries`, perhaps of the last tokens only, as in [`attention`](super::attention), `keys` is `[tokens, kv_heads, head_dim]`.
/// The positions are those in `rope` from row `first` on.
pub fn prepare_query_key(
    cpu: &Cpu,
    config: &AttentionConfig,
    rope: &RopeTable,
    first: usize,
    norm: QueryKeyNorm<'_>,
    queries: &mut [f32],
    keys: &mut [f32],
) {
    let stride = config.query_width() / config.heads;
    let scale = 1.0 / (config.head_dim as f32).sqrt();
    let heads = Heads { rope, eps: norm.eps, width: config.head_dim };
    let all = keys.len() / (config.kv_heads * config.head_dim);
    let rows = |x: &mut [f32], heads_per_token: usize, stride: usize, weight: &[f32], scale: f32| {
        let width = heads_per_token * stride;
        let skipped = all - x.len() / width;
        cpu.rows(x, width, row_grain(width), |tokens, x| {
            cpu.run(PrepareHeads {
                heads,
                first: first + skipped + tokens.start,
                heads_per_token,
                stride,
                weight,
                scale,
                x,
            });
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
    const BLOCKS: bool = false;
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
