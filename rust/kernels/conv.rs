//! The short causal convolution of Gated DeltaNet: depthwise, kernel 4, followed by SiLU.
//!
//! out[t, c] = silu(sum over i of x[t - 3 + i, c] * weight[i, c]), where times before the call come from `tail`, the last
//! three inputs of the sequence so far. Lanes are channels, so weights are held `[4, channels]`.

use super::cpu::Cpu;
use super::lanes::{LANES, Op, Simd};
use super::math::{silu, zip_lanes};

/// Taps of the kernel.
pub const TAPS: usize = 4;
/// Inputs of earlier calls that the state keeps.
pub const TAIL: usize = TAPS - 1;

/// Weights `[channels, 4]` of a checkpoint as `[4, channels]`.
pub fn taps_first(weight: &[f32], channels: usize) -> Vec<f32> {
    (0..TAPS * channels).map(|i| weight[i % channels * TAPS + i / channels]).collect()
}

/// Convolves `x` `[tokens, channels]` with `weight` `[4, channels]` into `out` and moves `tail` `[3, channels]` on.
pub fn short_conv(cpu: &Cpu, x: &[f32], weight: &[f32], tail: &mut [f32], out: &mut [f32]) {
    let channels = weight.len() / TAPS;
    assert_eq!(weight.len(), TAPS * channels);
    assert_eq!(tail.len(), TAIL * channels);
    assert_eq!(x.len(), out.len());
    let history = &*tail;
    cpu.rows(out, channels, super::norm::row_grain(channels), |rows, out| {
        cpu.run(ShortConv { x, weight, tail: history, channels, first: rows.start, out });
    });
    advance_tail(x, tail, channels);
}

/// Keeps the last three of (tail, x).
fn advance_tail(x: &[f32], tail: &mut [f32], channels: usize) {
    let tokens = x.len() / channels;
    if tokens >= TAIL {
        tail.copy_from_slice(&x[(tokens - TAIL) * channels..]);
    } else {
        tail.copy_within(tokens * channels.., 0);
        tail[(TAIL - tokens) * channels..].copy_from_slice(x);
    }
}

struct ShortConv<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    tail: &'a [f32],
    channels: usize,
    first: usize,
    out: &'a mut [f32],
}

impl ShortConv<'_> {
    /// Input row of tap `tap` for token `t`.
    #[inline(always)]
    fn input(&self, t: usize, tap: usize) -> &[f32] {
        let row = t + tap;
        if row < TAIL {
            &self.tail[row * self.channels..][..self.channels]
        } else {
            &self.x[(row - TAIL) * self.channels..][..self.channels]
        }
    }
}

impl Op for ShortConv<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (channels, out) = (self.channels, std::mem::take(&mut self.out));
        let (w0, rest) = self.weight.split_at(channels);
        let (w1, rest) = rest.split_at(channels);
        let (w2, w3) = rest.split_at(channels);
        for (i, out) in out.chunks_exact_mut(channels).enumerate() {
            let t = self.first + i;
            let (x0, x1, x2, x3) = (self.input(t, 0), self.input(t, 1), self.input(t, 2), self.input(t, 3));
            zip_lanes!(s, out = [x0 in x0, x1 in x1, x2 in x2, x3 in x3, w0 in w0, w1 in w1, w2 in w2, w3 in w3] => {
                silu(s, s.fma(x3, w3, s.fma(x2, w2, s.fma(x1, w1, s.mul(x0, w0)))))
            });
        }
    }
}
