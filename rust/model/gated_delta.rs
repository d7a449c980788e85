//! The Gated DeltaNet mixer: projections, short convolution, gates, delta rule, gated norm, projection back.

use std::array;

use super::input::{add_projection, set};
use super::member::{self, Member};
use super::scratch::{DeltaScratch, delta_widths, parts};
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::gated_delta::{GatedDelta, Sequence, gated_delta};
use crate::kernels::linear::{Input, linear};
use crate::kernels::profile::Operation;
use crate::weights::model::DeltaWeights;

/// Sequences that share a parallel region.
const TOGETHER: usize = 16;

/// hidden += mixer(input), both `[tokens, hidden]`; moves the states of layer `index` on.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &DeltaWeights,
    index: usize,
    members: &mut [Member<'_>],
    scratch: &mut DeltaScratch,
    inner: &mut [f32],
    quantized: &mut QuantizedRows,
    input: Input<'_>,
    hidden: &mut [f32],
) {
    let shape = config.delta_shapes();
    let tokens = input.tokens;
    let out_width = shape.value_heads * shape.value_dim;
    let [projected, z, a, b, out] = parts(inner, delta_widths(shape).map(|width| tokens * width));

    let products = [set(&weights.qkv, projected), set(&weights.z, z), set(&weights.a, a), set(&weights.b, b)];
    linear(cpu, input, products);
    cpu.profile.products(Operation::DeltaProjections, tokens, &weights.inputs());

    let parameters = [&weights.conv, &weights.decay_rate, &weights.dt_bias, &weights.norm];
    let parameters: usize = parameters.map(|values| size_of_val(&values[..])).iter().sum();
    let mut first = 0;
    for members in members.chunks_mut(TOGETHER) {
        let rows = first..first + member::tokens(members);
        first = rows.end;
        let of = |width: usize| rows.start * width..rows.end * width;
        let layer = GatedDelta {
            shape,
            projected: &projected[of(shape.conv_dim())],
            z: &z[of(out_width)],
            a: &a[of(shape.value_heads)],
            b: &b[of(shape.value_heads)],
            conv: &weights.conv,
            rate: &weights.decay_rate,
            dt_bias: &weights.dt_bias,
            norm: &weights.norm,
            eps: config.rms_norm_eps,
        };
        let mut bytes = parameters;
        let mut members = members.iter_mut();
        let sequences: [_; TOGETHER] = array::from_fn(|_| {
            let member = members.next()?;
            let tokens = member.tokens();
            let state = member.state.delta(index);
            let (tail, memory) = (&mut state.conv_tail[..], &mut state.memory[..]);
            bytes += size_of_val(tail) + size_of_val(memory);
            Some(Sequence { tokens, tail, memory })
        });
        gated_delta(cpu, layer, sequences, &mut scratch.blocks, &mut out[of(out_width)]);
        cpu.profile.lap(Operation::DeltaRule, bytes);
    }
    add_projection(cpu, out, &weights.out, quantized, hidden);
    cpu.profile.products(Operation::DeltaProjections, tokens, &[&weights.out]);
}
