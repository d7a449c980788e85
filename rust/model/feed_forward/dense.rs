//! The dense feed-forward network: SwiGLU.

use crate::kernels::Cpu;
use crate::kernels::activation::swiglu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::linear::linear;
use crate::kernels::profile::Operation;
use crate::model::input::{add_projection, prepare, set};
use crate::model::scratch::SwiGluScratch;
use crate::weights::model::SwiGluWeights;

/// hidden += down(silu(gate(normed)) * up(normed)), both `[tokens, hidden]`.
pub fn forward(
    cpu: &Cpu,
    weights: &SwiGluWeights,
    scratch: &mut SwiGluScratch,
    quantized: &mut QuantizedRows,
    normed: &[f32],
    hidden: &mut [f32],
) {
    let (width, cols) = (weights.gate.rows(), weights.gate.cols());
    let tokens = normed.len() / cols;
    let gate = &mut scratch.gate[..tokens * width];
    let up = &mut scratch.up[..tokens * width];
    let input = prepare(cpu, normed, cols, &[&weights.gate, &weights.up], quantized);
    linear(cpu, input, [set(&weights.gate, gate), set(&weights.up, up)]);
    cpu.profile.products(Operation::FeedForward, tokens, &[&weights.gate, &weights.up]);
    swiglu(cpu, gate, up);
    cpu.profile.lap(Operation::Activation, 0);
    add_projection(cpu, gate, &weights.down, quantized, hidden);
    cpu.profile.products(Operation::FeedForward, tokens, &[&weights.down]);
}
