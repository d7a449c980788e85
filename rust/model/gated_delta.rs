//! The Gated DeltaNet mixer: projections, short convolution, gates, delta rule, gated norm, projection back.

use super::input::{add_projection, set};
use super::scratch::DeltaScratch;
use super::state::DeltaState;
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::gated_delta::{GatedDelta, gated_delta};
use crate::kernels::linear::{Input, linear};
use crate::kernels::profile::Operation;
use crate::weights::model::DeltaWeights;

/// hidden += mixer(input), both `[tokens, hidden]`; moves `state` on.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &DeltaWeights,
    state: &mut DeltaState,
    scratch: &mut DeltaScratch,
    quantized: &mut QuantizedRows,
    input: Input<'_>,
    hidden: &mut [f32],
) {
    let shape = config.delta_shapes();
    let tokens = input.tokens;
    let out_width = shape.value_heads * shape.value_dim;
    let projected = &mut scratch.projected[..tokens * shape.conv_dim()];
    let z = &mut scratch.z[..tokens * out_width];
    let a = &mut scratch.a[..tokens * shape.value_heads];
    let b = &mut scratch.b[..tokens * shape.value_heads];
    let out = &mut scratch.out[..tokens * out_width];

    let products = [set(&weights.qkv, projected), set(&weights.z, z), set(&weights.a, a), set(&weights.b, b)];
    linear(cpu, input, products);
    cpu.profile.products(Operation::DeltaProjections, tokens, &weights.inputs());

    let layer = GatedDelta {
        shape,
        projected,
        z,
        a,
        b,
        conv: &weights.conv,
        rate: &weights.decay_rate,
        dt_bias: &weights.dt_bias,
        norm: &weights.norm,
        eps: config.rms_norm_eps,
    };
    gated_delta(cpu, layer, &mut state.conv_tail, &mut state.memory, &mut scratch.blocks, out);
    let parameters = [&weights.conv, &weights.decay_rate, &weights.dt_bias, &weights.norm];
    let states = size_of_val(&state.conv_tail[..]) + size_of_val(&state.memory[..]);
    cpu.profile.lap(
        Operation::DeltaRule,
        parameters.map(|values| size_of_val(&values[..])).iter().sum::<usize>() + states,
    );
    add_projection(cpu, out, &weights.out, quantized, hidden);
    cpu.profile.products(Operation::DeltaProjections, tokens, &[&weights.out]);
}
