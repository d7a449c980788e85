//! The dense feed-forward network: SwiGLU.

use super::input::{add_projection, prepare, set};
use super::scratch::FeedForwardScratch;
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::activation::swiglu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::linear::linear;
use crate::weights::model::FeedForwardWeights;

/// hidden += down(silu(gate(normed)) * up(normed)), both `[tokens, hidden]`.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &FeedForwardWeights,
    scratch: &mut FeedForwardScratch,
    quantized: &mut QuantizedRows,
    normed: &[f32],
    hidden: &mut [f32],
) {
    let tokens = normed.len() / config.hidden_size;
    let gate = &mut scratch.gate[..tokens * config.intermediate_size];
    let up = &mut scratch.up[..tokens * config.intermediate_size];
    let input = prepare(cpu, normed, config.hidden_size, &[&weights.gate, &weights.up], quantized);
    linear(cpu, input, [set(&weights.gate, gate), set(&weights.up, up)]);
    swiglu(cpu, gate, up);
    add_projection(cpu, gate, &weights.down, quantized, hidden);
}
