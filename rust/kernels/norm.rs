//! Normalisations: `RMSNorm`, its gated form, the L2 norm of the delta rule's keys and queries, and `LayerNorm` of the vision tower.
//!
//! All take the weight as it is multiplied. Qwen3.5's zero-centred norms add 1 to theirs at load, in one place.

use super::activations::{MakeRow, QuantizedRows, make_rows};
use super::cpu::Cpu;
use super::lanes::{LANES, Op, Simd};
use super::math::{silu, sum, sum_of_squares, zip_lanes};

/// out = x / sqrt(mean(x^2) + eps) * weight, over rows of `weight.len()`; `x` and `out` are `[rows, width]`. Where `quantized` is
/// given, it gets the rows as INT8.
///
/// Source: Zhang and Sennrich 2019 (arXiv 1910.07467).
pub fn rms_norm(
    cpu: &Cpu,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
    quantized: Option<&mut QuantizedRows>,
) {
    assert_eq!(x.len(), out.len());
    make_rows(cpu, out, weight.len(), quantized, &RmsNorm { x, weight, eps });
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias`, over rows of `weight.len()`; `x` and `out` are `[rows, width]`.
///
/// Source: Ba et al. 2016 (arXiv 1607.06450).
pub fn layer_norm(cpu: &Cpu, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    assert_eq!(weight.len(), bias.len());
    let width = weight.len();
    cpu.rows(out, width, row_grain(width), |rows, out| {
        let x = &x[rows.start * width..rows.end * width];
        cpu.run(LayerNorm { x, weight, bias, eps, out });
    });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Op for LayerNorm<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mean = s.splat(sum(s, x) / width as f32);
            zip_lanes!(s, out = [x in x] => s.sub(x, mean));
            let variance = sum_of_squares(s, out) / width as f32;
            let inverse = s.splat(1.0 / (variance + self.eps).sqrt());
            zip_lanes!(s, out = [x in out, w in self.weight, b in self.bias] => s.fma(s.mul(x, inverse), w, b));
        }
    }
}

/// Rows that make about 16 thousand elements of work.
pub(super) fn row_grain(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl MakeRow for RmsNorm<'_> {
    #[inline(always)]
    fn make<S: Simd>(&self, s: S, row: usize, out: &mut [f32]) {
        let weight = self.weight;
        let x = &self.x[row * weight.len()..][..weight.len()];
        let inverse = s.splat(inverse_rms(s, x, self.eps));
        zip_lanes!(s, out = [x in x, w in weight] => s.mul(s.mul(x, inverse), w));
    }
}

/// 1 / sqrt(mean(x^2) + eps)
#[inline(always)]
pub(super) fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(s, x) / x.len() as f32 + eps).sqrt()
}

/// x = x / sqrt(mean(x^2) + eps) * weight, for one row in place.
#[inline(always)]
pub(super) fn rms_norm_row<S: Simd>(s: S, x: &mut [f32], weight: &[f32], eps: f32) {
    let inverse = inverse_rms(s, x, eps);
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * inverse * w;
    }
}

/// x = x / sqrt(sum(x^2) + eps) * scale, for one row in place.
#[inline(always)]
pub(super) fn l2_norm_row<S: Simd>(s: S, x: &mut [f32], eps: f32, scale: f32) {
    let inverse = 1.0 / (sum_of_squares(s, x) + eps).sqrt();
    for x in x.iter_mut() {
        *x = *x * inverse * scale;
    }
}

/// `x = rms_norm(x) * weight * silu(gate)`, for each head; `x` and `gate` are `[tokens, heads, width]`, in place.
///
/// Source: the gated norm of Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464).
pub fn gated_rms_norm(cpu: &Cpu, x: &mut [f32], gate: &[f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), gate.len());
    let width = weight.len();
    cpu.rows(x, width, row_grain(width), |rows, x| {
        let gate = &gate[rows.start * width..rows.end * width];
        cpu.run(GatedRmsNorm { x, gate, weight, eps });
    });
}

struct GatedRmsNorm<'a> {
    x: &'a mut [f32],
    gate: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Op for GatedRmsNorm<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        for (x, gate) in self.x.chunks_exact_mut(width).zip(self.gate.chunks_exact(width)) {
            gated_rms_norm_row(s, x, gate, self.weight, self.eps);
        }
    }
}

/// `x = rms_norm(x) * weight * silu(gate)`, for one row in place.
#[inline(always)]
pub(super) fn gated_rms_norm_row<S: Simd>(s: S, x: &mut [f32], gate: &[f32], weight: &[f32], eps: f32) {
    rms_norm_row(s, x, weight, eps);
    zip_lanes!(s, x = [value in x, gate in gate] => s.mul(value, silu(s, gate)));
}
