//! Attention of a vision block.

use super::buffers::{Buffers, ROWS, padded};
use super::{NORM_EPS, add_affine, affine};
use crate::config::VisionConfig;
use crate::kernels::Cpu;
use crate::kernels::attention::bidirectional;
use crate::kernels::norm::layer_norm;
use crate::kernels::rope::RopeTable;
use crate::weights::vision::BlockWeights;

/// Patches of one work item.
const GRAIN: usize = 16;

/// x += proj(attention(norm1(x)))
pub fn forward(cpu: &Cpu, config: &VisionConfig, weights: &BlockWeights, buffers: &mut Buffers) {
    let width = config.hidden_size;
    project(cpu, config, weights, buffers);
    let Buffers { x, queries, cache, attended, quantized, .. } = buffers;
    bidirectional(cpu, queries, cache, config.head_dim(), attended);
    for (attended, x) in attended.chunks(ROWS * width).zip(x.chunks_mut(ROWS * width)) {
        add_affine(cpu, &weights.proj, attended, quantized, x);
    }
}

/// Fills queries and cache.
fn project(cpu: &Cpu, config: &VisionConfig, weights: &BlockWeights, buffers: &mut Buffers) {
    let width = config.hidden_size;
    let heads = config.heads * padded(config.head_dim());
    let Buffers { x, queries, cache, rope, normed, wide, keys, values, quantized, .. } = buffers;
    cache.truncate(0);
    let rows = x.chunks(ROWS * width).zip(queries.chunks_mut(ROWS * heads));
    for (chunk, (x, queries)) in rows.enumerate() {
        let count = x.len() / width;
        let (normed, qkv) = (&mut normed[..x.len()], &mut wide[..3 * x.len()]);
        let (keys, values) = (&mut keys[..count * heads], &mut values[..count * heads]);
        layer_norm(cpu, x, &weights.norm1.weight, &weights.norm1.bias, NORM_EPS, normed);
        affine(cpu, &weights.qkv, normed, quantized, qkv);
        let split = Split { config, qkv, rope, first: chunk * ROWS };
        split.take(cpu, 0, Some(1.0 / (config.head_dim() as f32).sqrt()), queries);
        split.take(cpu, 1, Some(1.0), keys);
        split.take(cpu, 2, None, values);
        cache.append(cpu, keys, values);
    }
}

/// `qkv` `[rows, 3, heads, head]`, whose first row is patch `first`.
struct Split<'a> {
    config: &'a VisionConfig,
    qkv: &'a [f32],
    rope: &'a RopeTable,
    first: usize,
}

impl Split<'_> {
    /// Part 0, 1 or 2 to `out` `[rows, heads, padded head]`; turned and multiplied with `turn`, if given.
    fn take(&self, cpu: &Cpu, part: usize, turn: Option<f32>, out: &mut [f32]) {
        let (width, head_dim) = (self.config.hidden_size, self.config.head_dim());
        let head = padded(head_dim);
        cpu.rows(out, self.config.heads * head, GRAIN, |rows, out| {
            for (row, out) in rows.zip(out.chunks_exact_mut(self.config.heads * head)) {
                let qkv = &self.qkv[(3 * row + part) * width..][..width];
                for (x, out) in qkv.chunks_exact(head_dim).zip(out.chunks_exact_mut(head)) {
                    let out = &mut out[..head_dim];
                    out.copy_from_slice(x);
                    if let Some(scale) = turn {
                        self.rope.rotate(self.first + row, out);
                        for x in out {
                            *x *= scale;
                        }
                    }
                }
            }
        });
    }
}
