//! Element-wise activations.

use super::cpu::Cpu;
use super::lanes::{Op, Simd};
use super::math::{sigmoid, silu, update};

/// Elements of one work item.
const GRAIN: usize = 8 * 1024;

/// gate = silu(gate) * up, element by element, in place.
///
/// Source: SwiGLU (Shazeer 2020, arXiv 2002.05202).
pub fn swiglu(cpu: &Cpu, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    cpu.rows(gate, 1, GRAIN, |rows, gate| {
        cpu.run(SwiGlu { gate, up: &up[rows] });
    });
}

struct SwiGlu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Op for SwiGlu<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        update(s, self.gate, [self.up], |s, gate, [up]| s.mul(silu(s, gate), up));
    }
}

/// x = x * sigmoid(gate), for one row in place.
#[inline(always)]
pub(super) fn sigmoid_gate_row<S: Simd>(s: S, x: &mut [f32], gate: &[f32]) {
    update(s, x, [gate], |s, x, [gate]| s.mul(x, sigmoid(s, gate)));
}
