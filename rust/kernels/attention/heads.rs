//! Query and key heads on their way into attention: norm, rotary positions, scale.

use super::super::cpu::Cpu;
use super::super::lanes::{Op, Simd};
use super::super::norm::{rms_norm_row, row_grain};
use super::super::rope::RopeTable;
use crate::config::AttentionConfig;

/// Prepares the projections of one call in place: RMSNorm of each query and key head, if there is one, rotary positions, and queries
/// divided by `sqrt(head_dim)`. `queries`, perhaps of the last tokens only, as in [`attention`](super::attention), `keys` is `[tokens, kv_heads, head_dim]`.
/// The positions are those in `rope` from row `first` on.
pub fn prepare_query_key(
    cpu: &Cpu,
    config: &AttentionConfig,
    rope: &RopeTable,
    first: usize,
    norm: Option<QueryKeyNorm<'_>>,
    queries: &mut [f32],
    keys: &mut [f32],
) {
    let stride = config.query_width() / config.heads;
    let scale = 1.0 / (config.head_dim as f32).sqrt();
    let all = keys.len() / (config.kv_heads * config.head_dim);
    let rows = |x: &mut [f32], heads_per_token: usize, stride: usize, norm: Norm<'_>, scale: f32| {
        let width = heads_per_token * stride;
        let skipped = all - x.len() / width;
        cpu.rows(x, width, row_grain(width), |tokens, x| {
            cpu.run(PrepareHeads {
                rope,
                width: config.head_dim,
                first: first + skipped + tokens.start,
                heads_per_token,
                stride,
                norm,
                scale,
                x,
            });
        });
    };
    rows(queries, config.heads, stride, norm.map(|norm| (norm.query, norm.eps)), scale);
    rows(keys, config.kv_heads, config.head_dim, norm.map(|norm| (norm.key, norm.eps)), 1.0);
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

/// `[head_dim]`, and what is added to the mean square.
type Norm<'a> = Option<(&'a [f32], f32)>;

struct PrepareHeads<'a> {
    rope: &'a RopeTable,
    width: usize,
    first: usize,
    heads_per_token: usize,
    stride: usize,
    norm: Norm<'a>,
    scale: f32,
    x: &'a mut [f32],
}

impl Op for PrepareHeads<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, head) in self.x.chunks_exact_mut(self.stride).enumerate() {
            let head = &mut head[..self.width];
            if let Some((weight, eps)) = self.norm {
                rms_norm_row(s, head, weight, eps);
            }
            self.rope.rotate(self.first + i / self.heads_per_token, head);
            for x in head {
                *x *= self.scale;
            }
        }
    }
}
