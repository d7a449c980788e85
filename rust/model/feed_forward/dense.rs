//! The dense feed-forward network: SwiGLU.

use crate::kernels::Cpu;
use crate::kernels::activation::swiglu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::linear::{Input, Product, Store, linear};
use crate::kernels::profile::Operation;
use crate::model::input::set;
use crate::model::scratch::parts;
use crate::weights::model::SwiGluWeights;

/// hidden += down(silu(gate(input)) * up(input)), both `[tokens, hidden]`.
pub fn forward(
    cpu: &Cpu,
    weights: &SwiGluWeights,
    inner: &mut [f32],
    quantized: &mut QuantizedRows,
    input: Input<'_>,
    hidden: &mut [f32],
) {
    let (width, tokens) = (weights.gate.rows(), input.tokens);
    let [gate, up] = parts(inner, [tokens * width; 2]);
    linear(cpu, input, [set(&weights.gate, gate), set(&weights.up, up)]);
    cpu.profile.products(Operation::FeedForward, tokens, &[&weights.gate, &weights.up]);
    let wants = weights.down.format().is_quantized();
    swiglu(cpu, gate, up, width, wants.then_some(&mut *quantized));
    cpu.profile.lap(Operation::Activation, 0);
    let activated = Input { dense: gate, quantized: wants.then_some(&*quantized), tokens };
    linear(cpu, activated, [Product { weights: &weights.down, out: hidden, store: Store::Add }]);
    cpu.profile.products(Operation::FeedForward, tokens, &[&weights.down]);
}
