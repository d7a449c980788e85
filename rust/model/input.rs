//! Activations on their way into matrix products.

use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::linear::{Input, Product, Store, linear};
use crate::kernels::norm::rms_norm;
use crate::kernels::profile::Operation;
use crate::weights::matrix::Matrix;
use crate::weights::model::any_quantized;

/// The norm of `hidden` `[tokens, hidden]` in `normed`, and as INT8 in `buffer` if `quantized`: what a layer's products read.
pub fn normalize<'a>(
    cpu: &Cpu,
    hidden: &[f32],
    weight: &[f32],
    eps: f32,
    quantized: bool,
    normed: &'a mut [f32],
    buffer: &'a mut QuantizedRows,
) -> Input<'a> {
    rms_norm(cpu, hidden, weight, eps, normed, quantized.then_some(&mut *buffer));
    cpu.profile.lap(Operation::Norms, size_of_val(weight));
    Input { dense: normed, quantized: quantized.then_some(&*buffer), tokens: normed.len() / weight.len() }
}

/// `rows` `[tokens, cols]`, quantised into `buffer` if any of `weights` wants INT8 activations.
pub fn prepare<'a>(
    cpu: &Cpu,
    rows: &'a [f32],
    cols: usize,
    weights: &[&Matrix],
    buffer: &'a mut QuantizedRows,
) -> Input<'a> {
    let quantized = any_quantized(weights);
    if quantized {
        buffer.fill(cpu, rows, cols);
        cpu.profile.lap(Operation::Quantization, 0);
    }
    Input { dense: rows, quantized: quantized.then_some(&*buffer), tokens: rows.len() / cols }
}

/// hidden += rows x weights, the end of each residual branch.
pub fn add_projection(
    cpu: &Cpu,
    rows: &[f32],
    weights: &Matrix,
    buffer: &mut QuantizedRows,
    hidden: &mut [f32],
) {
    let input = prepare(cpu, rows, weights.cols(), &[weights], buffer);
    linear(cpu, input, [Product { weights, out: hidden, store: Store::Add }]);
}

/// A product that overwrites `out`.
pub fn set<'a>(weights: &'a Matrix, out: &'a mut [f32]) -> Product<'a> {
    Product { weights, out, store: Store::Set }
}
