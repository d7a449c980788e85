//! Element-wise activations.

use super::cpu::Cpu;
use super::lanes::{LANES, Op, Simd};
use super::math::{sigmoid, silu, zip_lanes};

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
        let Self { gate, up } = self;
        zip_lanes!(s, gate = [x in gate, up in up] => s.mul(silu(s, x), up));
    }
}

/// x = x * sigmoid(gate), for one row in place.
#[inline(always)]
pub(super) fn sigmoid_gate_row<S: Simd>(s: S, x: &mut [f32], gate: &[f32]) {
    zip_lanes!(s, x = [value in x, gate in gate] => s.mul(value, sigmoid(s, gate)));
}
