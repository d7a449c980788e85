//! The Gated DeltaNet mixer: projections, short convolution, gates, delta rule, gated norm, projection back.

use std::array;
use std::sync::Arc;

use super::DeltaState;
use super::input::{add_projection, set};
use super::member::{self, Member};
use super::scratch::{DeltaScratch, delta_widths, parts};
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::gated_delta::{GatedDelta, Kept, Sequence, gated_delta};
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
        let mut each = members.iter_mut();
        let sequences: [_; TOGETHER] = array::from_fn(|_| {
            let sequence = sequence(each.next()?, index);
            let start = sequence.start.iter().flatten().map(|array| size_of_val(*array)).sum::<usize>();
            bytes += start + (1 + sequence.copies.len()) * kept_bytes(&sequence.kept);
            Some(sequence)
        });
        gated_delta(cpu, layer, sequences, &mut scratch.blocks, &mut out[of(out_width)]);
        for member in members {
            if let Some(fresh) = member.fresh.get_mut(index) {
                *member.state.delta(index) = Arc::new(fresh.take().expect("a layer is passed once"));
            }
        }
        cpu.profile.lap(Operation::DeltaRule, bytes);
    }
    add_projection(cpu, out, &weights.out, quantized, hidden);
    cpu.profile.products(Operation::DeltaProjections, tokens, &[&weights.out]);
}

/// What layer `index` keeps of a member.
fn sequence<'a>(member: &'a mut Member<'_>, index: usize) -> Sequence<'a> {
    let tokens = member.tokens();
    let position = member.state.len();
    let copies = member.stops.iter_mut().map(|stop| (stop.after, kept(own(stop.state.delta(index)))));
    let copies = copies.collect();
    let state = member.state.delta(index);
    match member.fresh.get_mut(index) {
        None => Sequence { position, tokens, start: None, kept: kept(own(state)), copies },
        Some(fresh) => {
            let fresh = fresh.as_mut().expect("a layer is passed once");
            // Before the first token there are zeros, as in what is fresh.
            let start = (position > 0).then(|| state.arrays());
            Sequence { position, tokens, start, kept: kept(fresh), copies }
        }
    }
}

/// A state that nobody shares.
fn own(state: &mut Arc<DeltaState>) -> &mut DeltaState {
    Arc::get_mut(state).expect("members have fresh states for those that are shared")
}

fn kept(state: &mut DeltaState) -> Kept<'_> {
    Kept { tail: &mut state.conv_tail, memory: &mut state.memory, recent: &mut state.recent }
}

/// Of what is kept of recent tokens, a pass meets half.
fn kept_bytes(kept: &Kept<'_>) -> usize {
    size_of_val(&*kept.tail) + size_of_val(&*kept.memory) + size_of_val(&*kept.recent) / 2
}
