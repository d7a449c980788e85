//! The gated attention mixer: projections, QK norm, rotary positions, KV cache, attention, projection back.

use super::input::{add_projection, prepare, set};
use super::scratch::AttentionScratch;
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::attention::{QueryKeyNorm, attention, prepare_query_key};
use crate::kernels::kv_cache::KvCache;
use crate::kernels::linear::{Input, linear};
use crate::kernels::profile::Operation;
use crate::kernels::rope::RopeTable;
use crate::weights::model::AttentionWeights;

/// hidden += mixer(input) for the last tokens, `input` `[tokens, hidden]`, `hidden` `[outputs, hidden]`; appends all to `cache`.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &AttentionWeights,
    rope: &RopeTable,
    cache: &mut KvCache,
    scratch: &mut AttentionScratch,
    quantized: &mut QuantizedRows,
    input: Input<'_>,
    hidden: &mut [f32],
) {
    let shape = &config.attention;
    let tokens = input.tokens;
    let outputs = hidden.len() / config.hidden_size;
    let kv_width = shape.kv_heads * shape.head_dim;
    let queries = &mut scratch.queries[..outputs * shape.query_width()];
    let keys = &mut scratch.keys[..tokens * kv_width];
    let values = &mut scratch.values[..tokens * kv_width];
    let out = &mut scratch.out[..outputs * shape.heads * shape.head_dim];

    let (keys_set, values_set) = (set(&weights.key, keys), set(&weights.value, values));
    if outputs == tokens {
        linear(cpu, input, [set(&weights.query, queries), keys_set, values_set]);
        cpu.profile.products(Operation::AttentionProjections, tokens, &weights.inputs());
    } else {
        linear(cpu, input, [keys_set, values_set]);
        cpu.profile.products(Operation::AttentionProjections, tokens, &[&weights.key, &weights.value]);
        let last = &input.dense[input.dense.len() - hidden.len()..];
        let input = prepare(cpu, last, config.hidden_size, &[&weights.query], quantized);
        linear(cpu, input, [set(&weights.query, queries)]);
        cpu.profile.products(Operation::AttentionProjections, outputs, &[&weights.query]);
    }

    let norm = QueryKeyNorm { query: &weights.query_norm, key: &weights.key_norm, eps: config.rms_norm_eps };
    prepare_query_key(cpu, shape, rope, norm, queries, keys);
    cpu.profile.lap(Operation::Norms, size_of_val(norm.query) + size_of_val(norm.key));
    cache.append(cpu, keys, values);
    attention(cpu, shape, queries, cache, &mut scratch.partials, out);
    cpu.profile.lap(Operation::Attention, cache.len() * cache.bytes_per_token());
    add_projection(cpu, out, &weights.out, quantized, hidden);
    cpu.profile.products(Operation::AttentionProjections, outputs, &[&weights.out]);
}
