//! Activations on their way into matrix products.

use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::linear::{Input, Product, Store, linear};
use crate::kernels::profile::Operation;
use crate::weights::matrix::Matrix;

/// `rows` `[tokens, cols]`, quantised into `buffer` if any of `weights` wants INT8 activations.
pub fn prepare<'a>(
    cpu: &Cpu,
    rows: &'a [f32],
    cols: usize,
    weights: &[&Matrix],
    buffer: &'a mut QuantizedRows,
) -> Input<'a> {
    prepare_if(weights.iter().any(|matrix| matrix.format().is_quantized()), cpu, rows, cols, buffer)
}

/// `rows` `[tokens, cols]`, quantised into `buffer` if `quantized`.
pub fn prepare_if<'a>(
    quantized: bool,
    cpu: &Cpu,
    rows: &'a [f32],
    cols: usize,
    buffer: &'a mut QuantizedRows,
) -> Input<'a> {
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
