//! The gated attention mixer: projections, QK norm, rotary positions, KV cache, attention, projection back.

use super::input::{add_projection, prepare, set};
use super::member::{self, Member};
use super::scratch::{AttentionScratch, attention_widths, parts};
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::attention::{QueryKeyNorm, attention, prepare_query_key};
use crate::kernels::linear::{Input, linear};
use crate::kernels::profile::Operation;
use crate::kernels::rope::RopeTable;
use crate::weights::model::AttentionWeights;

/// hidden += mixer(input), `input` `[tokens, hidden]`, `hidden` `[outputs, hidden]`: for all tokens, or the last of each stretch.
/// Appends all of them to the caches of layer `index`.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &AttentionWeights,
    rope: &RopeTable,
    index: usize,
    members: &mut [Member<'_>],
    scratch: &mut AttentionScratch,
    inner: &mut [f32],
    quantized: &mut QuantizedRows,
    input: Input<'_>,
    hidden: &mut [f32],
) {
    let shape = &config.attention;
    let tokens = input.tokens;
    let outputs = hidden.len() / config.hidden_size;
    let kv_width = shape.kv_heads * shape.head_dim;
    let whole = outputs == tokens;
    let out_width = shape.heads * shape.head_dim;
    let [of_queries, of_keys, of_values, of_out] = attention_widths(shape);
    let lens = [outputs * of_queries, tokens * of_keys, tokens * of_values, outputs * of_out];
    let [queries, keys, values, out] = parts(inner, lens);

    let (keys_set, values_set) = (set(&weights.key, keys), set(&weights.value, values));
    if whole {
        linear(cpu, input, [set(&weights.query, queries), keys_set, values_set]);
        cpu.profile.products(Operation::AttentionProjections, tokens, &weights.inputs());
    } else {
        linear(cpu, input, [keys_set, values_set]);
        cpu.profile.products(Operation::AttentionProjections, tokens, &[&weights.key, &weights.value]);
        member::copy_ends(members, input.dense, &mut scratch.ends);
        let input = prepare(cpu, &scratch.ends, config.hidden_size, &[&weights.query], quantized);
        linear(cpu, input, [set(&weights.query, queries)]);
        cpu.profile.products(Operation::AttentionProjections, outputs, &[&weights.query]);
    }

    let norm = weights.norms.as_ref().map(|norms| QueryKeyNorm {
        query: &norms.query,
        key: &norms.key,
        eps: config.rms_norm_eps,
    });
    let norm_bytes = norm.map_or(0, |norm| size_of_val(norm.query) + size_of_val(norm.key));
    let mut done = 0;
    for (member, rows) in member::rows_mut(members) {
        let (state, stretches) = member.stretches_mut();
        let cache = state.cache(index);
        for (stretch, copy) in stretches {
            let stretch = rows.start + stretch.start..rows.start + stretch.end;
            let outputs = done..done + if whole { stretch.len() } else { 1 };
            done = outputs.end;
            let queries =
                &mut queries[outputs.start * shape.query_width()..outputs.end * shape.query_width()];
            let of_keys = stretch.start * kv_width..stretch.end * kv_width;
            let (keys, values) = (&mut keys[of_keys.clone()], &values[of_keys]);
            prepare_query_key(cpu, shape, rope, stretch.start, norm, queries, keys);
            cpu.profile.lap(Operation::Norms, norm_bytes);
            cache.append(cpu, keys, values);
            let out = &mut out[outputs.start * out_width..outputs.end * out_width];
            attention(cpu, shape, queries, cache, &mut scratch.partials, out);
            cpu.profile.lap(Operation::Attention, cache.len() * cache.bytes_per_token());
            if let Some(copy) = copy {
                *copy.cache(index) = cache.clone();
            }
        }
    }
    add_projection(cpu, out, &weights.out, quantized, hidden);
    cpu.profile.products(Operation::AttentionProjections, outputs, &[&weights.out]);
}
