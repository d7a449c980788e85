//! Element-wise activations and biases.

use super::activations::{MakeRow, QuantizedRows, make_rows};
use super::cpu::Cpu;
use super::lanes::{LANES, Op, Simd};
use super::math::{gelu_erf, gelu_tanh, sigmoid, silu, zip_lanes};

/// Elements of one work item.
const GRAIN: usize = 8 * 1024;

/// gate = silu(gate) * up, for rows of `width`; `gate` and `up` are `[tokens, width]`. Where `quantized` is given, it gets the rows
/// as INT8.
///
/// Source: SwiGLU (Shazeer 2020, arXiv 2002.05202).
pub fn swiglu(cpu: &Cpu, gate: &mut [f32], up: &[f32], width: usize, quantized: Option<&mut QuantizedRows>) {
    assert_eq!(gate.len(), up.len());
    make_rows(cpu, gate, width, quantized, &SwiGlu { up });
}

struct SwiGlu<'a> {
    up: &'a [f32],
}

impl MakeRow for SwiGlu<'_> {
    #[inline(always)]
    fn make<S: Simd>(&self, s: S, row: usize, gate: &mut [f32]) {
        let up = &self.up[row * gate.len()..][..gate.len()];
        zip_lanes!(s, gate = [x in gate, up in up] => s.mul(silu(s, x), up));
    }
}

/// `x = gelu(x)` by the tanh approximation, element by element, in place.
pub fn gelu_tanh_in_place(cpu: &Cpu, x: &mut [f32]) {
    cpu.rows(x, 1, GRAIN, |_, x| cpu.run(GeluTanh { x }));
}

struct GeluTanh<'a> {
    x: &'a mut [f32],
}

impl Op for GeluTanh<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = self.x;
        zip_lanes!(s, x = [value in x] => gelu_tanh(s, value));
    }
}

/// `x = gelu(x)` by the error function, element by element, in place.
pub fn gelu_erf_in_place(cpu: &Cpu, x: &mut [f32]) {
    cpu.rows(x, 1, GRAIN, |_, x| {
        for x in x {
            *x = gelu_erf(*x);
        }
    });
}

/// `x = sigmoid(x)`, element by element, in place.
pub fn sigmoid_in_place(cpu: &Cpu, x: &mut [f32]) {
    cpu.rows(x, 1, GRAIN, |_, x| cpu.run(Sigmoid { x }));
}

struct Sigmoid<'a> {
    x: &'a mut [f32],
}

impl Op for Sigmoid<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = self.x;
        zip_lanes!(s, x = [value in x] => sigmoid(s, value));
    }
}

/// x = x + bias, for each row of `bias.len()`; `x` is `[rows, width]`.
pub fn add_bias(cpu: &Cpu, x: &mut [f32], bias: &[f32]) {
    let width = bias.len();
    cpu.rows(x, width, (GRAIN / width.max(1)).max(1), |_, x| cpu.run(AddBias { x, bias }));
}

struct AddBias<'a> {
    x: &'a mut [f32],
    bias: &'a [f32],
}

impl Op for AddBias<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_exact_mut(self.bias.len()) {
            zip_lanes!(s, x = [value in x, b in self.bias] => s.add(value, b));
        }
    }
}

/// x = x * sigmoid(gate), for one row in place.
#[inline(always)]
pub(super) fn sigmoid_gate_row<S: Simd>(s: S, x: &mut [f32], gate: &[f32]) {
    zip_lanes!(s, x = [value in x, gate in gate] => s.mul(value, sigmoid(s, gate)));
}
