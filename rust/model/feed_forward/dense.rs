//! The dense feed-forward network: SwiGLU.

use crate::kernels::Cpu;
use crate::kernels::activation::swiglu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::linear::linear;
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
    swiglu(cpu, gate, up);
    add_projection(cpu, gate, &weights.down, quantized, hidden);
}
