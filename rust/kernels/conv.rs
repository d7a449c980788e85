//! The short causal convolution of Gated DeltaNet: depthwise, kernel 4, followed by SiLU.
//!
//! out[t, c] = silu(sum over i of x[t - 3 + i, c] * weight[i, c]), where times before the call come from `tail`, the last
//! three inputs of the sequence so far. Lanes are channels, so weights are held `[4, channels]`.

use std::ops::Range;

use super::cpu::Cpu;
use super::lanes::{LANES, Op, Simd};
use super::math::{silu, zip_lanes};
use super::prefetch;

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
    let history = rows_of(tail, channels);
    cpu.rows(out, channels, super::norm::row_grain(channels), |rows, out| {
        let strip = Strip::new(x, weight, channels, 0..channels, history);
        cpu.run(ShortConv { strip, first: rows.start, out });
    });
    advance_tail(x, tail, channels);
}

/// `tail` `[3, channels]` as its three rows.
fn rows_of(tail: &[f32], channels: usize) -> [&[f32]; TAIL] {
    [0, 1, 2].map(|row| &tail[row * channels..][..channels])
}

/// Keeps the last three of (tail, x).
fn advance_tail(x: &[f32], tail: &mut [f32], channels: usize) {
    let (t0, rest) = tail.split_at_mut(channels);
    let (t1, t2) = rest.split_at_mut(channels);
    advance_strip(x, channels, 0, [t0, t1, t2]);
}

/// Keeps the last three of (tail, x), where `x` is `[tokens, channels]` and `tail` holds the channels from `first`.
pub(super) fn advance_strip(x: &[f32], channels: usize, first: usize, mut tail: [&mut [f32]; TAIL]) {
    let tokens = x.len() / channels;
    if tokens == 0 {
        return;
    }
    for row in 0..TAIL {
        let from = row + tokens;
        if from < TAIL {
            let (to, from) = tail.split_at_mut(from);
            to[row].copy_from_slice(from[0]);
        } else {
            tail[row].copy_from_slice(&x[(from - TAIL) * channels + first..][..tail[row].len()]);
        }
    }
}

/// Neighbouring channels of the convolution: all it reads.
pub(super) struct Strip<'a> {
    /// `[tokens, channels]`
    x: &'a [f32],
    /// All channels.
    channels: usize,
    /// Those of the strip.
    range: Range<usize>,
    /// The strip's channels of the last three inputs before `x`.
    tail: [&'a [f32]; TAIL],
    /// The strip's channels of the weights.
    weight: [&'a [f32]; TAPS],
}

impl<'a> Strip<'a> {
    /// Channels `range` of `x` `[tokens, channels]` and `weight` `[4, channels]`; `tail` has only those.
    #[inline(always)]
    pub(super) fn new(
        x: &'a [f32],
        weight: &'a [f32],
        channels: usize,
        range: Range<usize>,
        tail: [&'a [f32]; TAIL],
    ) -> Self {
        let mut taps = [&weight[..0]; TAPS];
        for (tap, taps) in taps.iter_mut().enumerate() {
            *taps = &weight[tap * channels..][range.clone()];
        }
        Self { x, channels, range, tail, weight: taps }
    }

    /// Input `row`, where the first three are the tail.
    #[inline(always)]
    fn input(&self, row: usize) -> &[f32] {
        if row < TAIL { self.tail[row] } else { &self.x[(row - TAIL) * self.channels..][self.range.clone()] }
    }

    /// Asks for the input of token `t`, if there is one.
    #[inline(always)]
    pub(super) fn prefetch(&self, t: usize) {
        if (t + 1) * self.channels <= self.x.len() {
            let row = &self.x[t * self.channels..][self.range.clone()];
            prefetch::lines(row.as_ptr().cast(), size_of_val(row));
        }
    }

    /// The convolution at token `t`.
    #[inline(always)]
    pub(super) fn convolve<S: Simd>(&self, s: S, t: usize, out: &mut [f32]) {
        let (x0, x1, x2, x3) = (self.input(t), self.input(t + 1), self.input(t + 2), self.input(t + 3));
        let [w0, w1, w2, w3] = self.weight;
        zip_lanes!(s, out = [x0 in x0, x1 in x1, x2 in x2, x3 in x3, w0 in w0, w1 in w1, w2 in w2, w3 in w3] => {
            silu(s, s.fma(x3, w3, s.fma(x2, w2, s.fma(x1, w1, s.mul(x0, w0)))))
        });
    }
}

struct ShortConv<'a> {
    strip: Strip<'a>,
    first: usize,
    out: &'a mut [f32],
}

impl Op for ShortConv<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, out) in self.out.chunks_exact_mut(self.strip.channels).enumerate() {
            self.strip.convolve(s, self.first + i, out);
        }
    }
}
