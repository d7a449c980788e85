//! Rotary positions: partial (the first `rotary_dim` channels of a head), with three interleaved axes.
//!
//! Channel pair i of rotary_dim / 2 turns by position x theta^(-2i / rotary_dim). Its position is that of the token's
//! height if i mod 3 = 1 and `i < 3 sections[1]`, of its width if i mod 3 = 2 and `i < 3 sections[2]`, else of its time. Text has
//! the same position on all axes. Angles are rounded to f32 as in the model code; sine and cosine come from `libm`,
//! the same code on every machine.
//!
//! With YaRN, pairs that turn often within the length of training keep their frequency, those that hardly turn have it
//! divided by the factor of extension, and those between are mixed; sines and cosines are multiplied by one number:
//!
//! ```text
//! period = theta^(2i / rotary_dim)
//! ramp = clamp((i - low) / (high - low), 0, 1)
//! frequency = ramp / (factor * period) + (1 - ramp) / period
//! ```
//!
//! Source: RoFormer (Su et al. 2021, arXiv 2104.09864); interleaved axes as in the Qwen3-VL model code; YaRN (Peng et
//! al. 2023, arXiv 2309.00071) as in transformers' `_compute_yarn_parameters`.

use crate::config::{RopeConfig, YarnConfig};
use crate::error::{Result, try_with_capacity};

/// Time, height and width of a token.
pub type Position = [u32; 3];

/// Sines and cosines of the tokens of one call, shared by all layers and heads.
#[derive(Debug)]
pub struct RopeTable {
    /// Angle of pair i at position 1, `[rotary_dim / 2]`
    frequencies: Vec<f32>,
    /// Multiplies sines and cosines.
    scale: f32,
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
        let frequencies = frequencies(config);
        let scale = config.yarn.as_ref().map_or(1.0, |yarn| yarn.attention_factor as f32);
        let room = tokens * half;
        Self { frequencies, scale, axes, cos: Vec::with_capacity(room), sin: Vec::with_capacity(room) }
    }

    /// The vision tower's table for heads of `head_dim` channels: the first half of the pairs turns with the row, the second
    /// with the column, both through the same frequencies.
    pub fn two_axes(theta: f64, head_dim: usize, tokens: usize) -> Result<Self> {
        let quarter = head_dim / 4;
        let frequencies = (0..2 * quarter).map(|i| frequency(theta, i % quarter, quarter)).collect();
        let axes = (0..2 * quarter).map(|i| 1 + i / quarter).collect();
        let room = tokens * 2 * quarter;
        let (cos, sin) = (try_with_capacity(room)?, try_with_capacity(room)?);
        Ok(Self { frequencies, scale: 1.0, axes, cos, sin })
    }

    /// Computes the rows of `positions`.
    pub fn fill(&mut self, positions: impl IntoIterator<Item = Position>) {
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            for (frequency, &axis) in self.frequencies.iter().zip(&self.axes) {
                let (sin, cos) = libm::sincosf(position[axis] as f32 * frequency);
                self.cos.push(cos * self.scale);
                self.sin.push(sin * self.scale);
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

/// The angle of each channel pair at position 1, `[rotary_dim / 2]`.
pub fn frequencies(config: &RopeConfig) -> Vec<f32> {
    let half = config.rotary_dim / 2;
    match &config.yarn {
        None => (0..half).map(|i| frequency(config.theta, i, half)).collect(),
        Some(yarn) => stretched_frequencies(config, yarn),
    }
}

/// Rounds to f32 wherever the model code does: at a position of a million, the last bit of a frequency moves an angle by
/// some hundredths.
fn stretched_frequencies(config: &RopeConfig, yarn: &YarnConfig) -> Vec<f32> {
    let [low, high] = yarn.ramp(config.theta, config.rotary_dim);
    let (low, width) = (low as f32, (high - low) as f32);
    let (theta, factor) = (f64::from(config.theta as f32), yarn.factor as f32);
    let frequencies = (0..config.rotary_dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / config.rotary_dim as f32;
        let period = libm::pow(theta, f64::from(exponent)) as f32;
        let kept = 1.0 - ((i as f32 - low) / width).clamp(0.0, 1.0);
        (1.0 / (factor * period)) * (1.0 - kept) + (1.0 / period) * kept
    });
    frequencies.collect()
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
