//! YaRN: rotary positions stretched over texts longer than those of training.
//!
//! Entries and defaults are those of transformers 5, except that what it warns of is refused here.
//!
//! The context is `original_max_position_embeddings` x `factor`, as in vLLM, whatever `max_position_embeddings` says. That
//! is published as the length before (Qwen3.5: 262144, factor 4), as the length after (Yarn-Llama-2), and as neither
//! (Qwen3-VL: 1000000 beside 3 x 262144, for prompts of pictures, whose positions grow more slowly than their tokens). The
//! frequencies are stretched for exactly `factor` times the original positions in all of them.
//!
//! Source: YaRN (Peng et al. 2023, arXiv 2309.00071).

use std::f64::consts::TAU;

use super::TextConfig;
use super::fields::{Fields, MAX_SIZE};
use crate::error::{Error, Result};

/// How rotary positions are stretched.
#[derive(Clone, Debug, PartialEq)]
pub struct YarnConfig {
    /// By how much the context grows, at least 1.
    pub factor: f64,
    /// Tokens of the context before.
    pub original_context: usize,
    /// Channel pairs that turn at least so often in the original context keep their frequency.
    pub beta_fast: f64,
    /// Channel pairs that turn at most so often have it divided by `factor`.
    pub beta_slow: f64,
    /// Whether the ramp between both begins and ends at a whole pair.
    pub truncate: bool,
    /// Multiplies sines and cosines.
    pub attention_factor: f64,
}

impl YarnConfig {
    /// With the parameters that the paper suggests.
    fn new(original_context: usize, factor: f64) -> Self {
        let attention_factor = magnitude(factor, 1.0);
        Self { factor, original_context, beta_fast: 32.0, beta_slow: 1.0, truncate: true, attention_factor }
    }

    /// Reads the entries of `rope`, in a model whose `max_position_embeddings` is `context`.
    pub(super) fn parse(rope: &Fields, context: usize, theta: f64, rotary_dim: usize) -> Result<Self> {
        let original = rope.optional_size("original_max_position_embeddings", MAX_SIZE)?.unwrap_or(context);
        let factor = match rope.at_least("factor", 1.0)? {
            None if context > original => Some(context as f64 / original as f64),
            factor => factor,
        };
        let default = Self::new(original, rope.require("factor", factor)?);
        let yarn = Self {
            beta_fast: rope.positive("beta_fast")?.unwrap_or(default.beta_fast),
            beta_slow: rope.positive("beta_slow")?.unwrap_or(default.beta_slow),
            truncate: rope.flag("truncate")?.unwrap_or(default.truncate),
            attention_factor: attention_factor(rope, default.factor)?,
            ..default
        };
        if yarn.beta_fast < yarn.beta_slow {
            let reason = format!("{} is less than beta_slow, {}", yarn.beta_fast, yarn.beta_slow);
            return Err(rope.error("beta_fast", reason));
        }
        match yarn.fault(theta, rotary_dim) {
            Some((key, reason)) => Err(rope.error(key, reason)),
            None => Ok(yarn),
        }
    }

    /// Most tokens in one sequence.
    pub fn context(&self) -> usize {
        (self.original_context as f64 * self.factor) as usize
    }

    /// Between which channel pairs the ramp runs, the first below the second.
    pub fn ramp(&self, theta: f64, rotary_dim: usize) -> [f64; 2] {
        let [low, high] = self.bounds(theta, rotary_dim);
        [low, if low < high { high } else { high + 0.001 }]
    }

    fn bounds(&self, theta: f64, rotary_dim: usize) -> [f64; 2] {
        let pair = |turns: f64| {
            let positions = self.original_context as f64 / (turns * TAU);
            rotary_dim as f64 * libm::log(positions) / (2.0 * libm::log(theta))
        };
        let (low, high) = (pair(self.beta_fast), pair(self.beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        [low.max(0.0), high.min((rotary_dim - 1) as f64)]
    }

    /// The entry that does not fit the others, and why.
    fn fault(&self, theta: f64, rotary_dim: usize) -> Option<(&'static str, String)> {
        let original = self.original_context;
        if original as f64 * self.factor > MAX_SIZE as f64 {
            let reason = format!("{original} tokens x {:?} are more than {MAX_SIZE}", self.factor);
            return Some(("factor", reason));
        }
        if theta <= 1.0 {
            return Some(("rope_type", format!("yarn needs a rope_theta above 1, not {theta}")));
        }
        // Where all pairs turn faster or slower than the ramp asks for, the model code's ramp runs backwards.
        let [low, high] = self.bounds(theta, rotary_dim);
        (low > high).then(|| {
            let reason =
                format!("with {original} tokens and rope_theta {theta:?} no channel pair is on the ramp");
            ("original_max_position_embeddings", reason)
        })
    }
}

impl TextConfig {
    /// Extends the context by `factor` through YaRN, as if `config.json` said so.
    pub(crate) fn extend(&mut self, factor: f64) -> Result<()> {
        let error = |reason| Err(Error::argument("yarn_factor", reason));
        if let Some(yarn) = &self.rope.yarn {
            let (context, factor) = (yarn.context(), yarn.factor);
            return error(format!("the model has YaRN already: factor {factor}, {context} tokens"));
        }
        if !(factor.is_finite() && factor > 1.0) {
            return error(format!("must be a number above 1, not {factor:?}"));
        }
        let yarn = YarnConfig::new(self.max_position_embeddings, factor);
        if let Some((_, reason)) = yarn.fault(self.rope.theta, self.rope.rotary_dim) {
            return error(reason);
        }
        self.max_position_embeddings = yarn.context();
        self.rope.yarn = Some(yarn);
        Ok(())
    }
}

/// By how much attention to far more tokens has to be sharpened: 1 + scale x ln(factor) / 10.
fn magnitude(factor: f64, scale: f64) -> f64 {
    0.1 * scale * libm::log(factor) + 1.0
}

/// `attention_factor`, else from both `mscale` and `mscale_all_dim`, else from `factor` alone. An mscale of 0 counts as
/// absent, as in the model code.
fn attention_factor(rope: &Fields, factor: f64) -> Result<f64> {
    let scales = (rope.at_least("mscale", 0.0)?, rope.at_least("mscale_all_dim", 0.0)?);
    let (key, value) = match (rope.positive("attention_factor")?, scales) {
        (Some(given), _) => ("attention_factor", given),
        (None, (Some(scale), Some(all))) if scale > 0.0 && all > 0.0 => {
            ("mscale", magnitude(factor, scale) / magnitude(factor, all))
        }
        _ => ("factor", magnitude(factor, 1.0)),
    };
    match value as f32 {
        narrow if narrow.is_finite() && narrow > 0.0 => Ok(value),
        _ => Err(rope.error(key, format!("makes an attention factor of {value:?}, which is out of range"))),
    }
}

#[cfg(test)]
mod tests;
