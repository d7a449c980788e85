//! Rotary positions: partial (the first `rotary_dim` channels of a head), with three interleaved axes.
//!
//! Channel pair i of rotary_dim / 2 turns by position x theta^(-2i / rotary_dim). Its position is that of the token's
//! height if i mod 3 = 1 and `i < 3 sections[1]`, of its width if i mod 3 = 2 and `i < 3 sections[2]`, else of its time. Text has
//! the same position on all axes. Angles are rounded to f32 as in the model code; sine and cosine come from `libm`,
//! the same code on every machine.
//!
//! Source: RoFormer (Su et al. 2021, arXiv 2104.09864); interleaved axes as in the Qwen3-VL model code.

use crate::config::RopeConfig;
use crate::error::{Result, try_with_capacity};

/// Time, height and width of a token.
pub type Position = [u32; 3];

/// Sines and cosines of the tokens of one call, shared by all layers and heads.
#[derive(Debug)]
pub struct RopeTable {
    /// theta^(-2i / rotary_dim), `[rotary_dim / 2]`
    frequencies: Vec<f32>,
    /// Which axis turns pair i, `[rotary_dim / 2]`
    axes: Vec<usize>,
    /// `[tokens, rotary_dim / 2]`
    cos: Vec<f32>,
    /// `[tokens, rotary_dim / 2]`
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for up to `tokens` tokens without further allocation.
    pub fn new(config: &RopeConfig, tokens: usize) -> Self {
        let half = config.rotary_dim / 2;
        let axes = (0..half).map(|i| axis(i, config.sections)).collect();
        let frequencies = (0..half).map(|i| frequency(config.theta, i, half)).collect();
        let room = tokens * half;
        Self { frequencies, axes, cos: Vec::with_capacity(room), sin: Vec::with_capacity(room) }
    }

    /// The vision tower's table for heads of `head_dim` channels: the first half of the pairs turns with the row, the second
    /// with the column, both through the same frequencies.
    pub fn two_axes(theta: f64, head_dim: usize, tokens: usize) -> Result<Self> {
        let quarter = head_dim / 4;
        let frequencies = (0..2 * quarter).map(|i| frequency(theta, i % quarter, quarter)).collect();
        let axes = (0..2 * quarter).map(|i| 1 + i / quarter).collect();
        let room = tokens * 2 * quarter;
        Ok(Self { frequencies, axes, cos: try_with_capacity(room)?, sin: try_with_capacity(room)? })
    }

    /// Computes the rows of `positions`.
    pub fn fill(&mut self, positions: impl IntoIterator<Item = Position>) {
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            for (frequency, &axis) in self.frequencies.iter().zip(&self.axes) {
                let (sin, cos) = libm::sincosf(position[axis] as f32 * frequency);
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }

    /// Turns one head `[head_dim]` of token `token` in place.
    #[inline(always)]
    pub fn rotate(&self, token: usize, head: &mut [f32]) {
        let half = self.frequencies.len();
        let (cos, sin) = (&self.cos[token * half..][..half], &self.sin[token * half..][..half]);
        let (first, rest) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (first[i], rest[i]);
            first[i] = a * cos[i] - b * sin[i];
            rest[i] = b * cos[i] + a * sin[i];
        }
    }
}

/// theta^(-i / pairs)
fn frequency(theta: f64, i: usize, pairs: usize) -> f32 {
    let exponent = i as f64 / pairs as f64;
    (1.0 / libm::pow(theta, exponent)) as f32
}

/// The axis of pair `i`: 0 time, 1 height, 2 width.
fn axis(i: usize, sections: [usize; 3]) -> usize {
    match i % 3 {
        axis @ (1 | 2) if i < 3 * sections[axis] => axis,
        _ => 0,
    }
}
