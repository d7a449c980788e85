//! The Gated DeltaNet mixer: projections, short convolution, gates, delta rule, gated norm, projection back.

use super::input::{add_projection, prepare, set};
use super::scratch::DeltaScratch;
use super::state::DeltaState;
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::conv::short_conv;
use crate::kernels::delta_rule::{DeltaInput, delta_rule, gates, normalize_query_key};
use crate::kernels::linear::linear;
use crate::kernels::norm::gated_rms_norm;
use crate::kernels::profile::Operation;
use crate::weights::model::DeltaWeights;

/// hidden += mixer(normed), both `[tokens, hidden]`; moves `state` on.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &DeltaWeights,
    state: &mut DeltaState,
    scratch: &mut DeltaScratch,
    quantized: &mut QuantizedRows,
    normed: &[f32],
    hidden: &mut [f32],
) {
    let shape = config.delta_shapes();
    let tokens = normed.len() / config.hidden_size;
    let out_width = shape.value_heads * shape.value_dim;
    let projected = &mut scratch.projected[..tokens * shape.conv_dim()];
    let qkv = &mut scratch.qkv[..tokens * shape.conv_dim()];
    let z = &mut scratch.z[..tokens * out_width];
    let a = &mut scratch.a[..tokens * shape.value_heads];
    let b = &mut scratch.b[..tokens * shape.value_heads];
    let out = &mut scratch.out[..tokens * out_width];

    let matrices = [&weights.qkv, &weights.z, &weights.a, &weights.b];
    let input = prepare(cpu, normed, config.hidden_size, &matrices, quantized);
    let products = [set(&weights.qkv, projected), set(&weights.z, z), set(&weights.a, a), set(&weights.b, b)];
    linear(cpu, input, products);
    cpu.profile.products(Operation::DeltaProjections, tokens, &matrices);

    short_conv(cpu, projected, &weights.conv, &mut state.conv_tail, qkv);
    cpu.profile
        .lap(Operation::Convolution, size_of_val(&weights.conv[..]) + size_of_val(&state.conv_tail[..]));
    normalize_query_key(cpu, shape, qkv);
    cpu.profile.lap(Operation::Norms, 0);
    gates(cpu, a, b, &weights.decay_rate, &weights.dt_bias);
    delta_rule(cpu, shape, DeltaInput { qkv, decay: a, beta: b }, &mut state.memory, out);
    let gate_bytes = size_of_val(&weights.decay_rate[..]) + size_of_val(&weights.dt_bias[..]);
    cpu.profile.lap(Operation::DeltaRule, gate_bytes + size_of_val(&state.memory[..]));
    gated_rms_norm(cpu, out, z, &weights.norm, config.rms_norm_eps);
    cpu.profile.lap(Operation::Norms, size_of_val(&weights.norm[..]));
    add_projection(cpu, out, &weights.out, quantized, hidden);
    cpu.profile.products(Operation::DeltaProjections, tokens, &[&weights.out]);
}
