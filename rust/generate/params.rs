//! What a user can ask of the sampler, and the check of it.

use crate::{Error, Result};

/// How the next token is chosen. [`Default`] is plain sampling: temperature 1 and everything else neutral.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits: below 1 sharpens, above 1 flattens, 0 always takes the highest. Finite, >= 0.
    pub temperature: f32,
    /// Keeps the `top_k` highest logits; 0, or the vocabulary size or more, keeps all.
    pub top_k: usize,
    /// Keeps the fewest, most probable tokens whose probabilities sum to this or more. In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable one. In [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of every token seen in the prompt or generated, once per
    /// distinct token (Keskar et al. 2019, CTRL). Finite, > 0; 1 changes nothing, below 1 rewards repetition.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens generated at least once. Any finite number; 0 changes nothing,
    /// negative rewards. (`OpenAI`'s API allows -2 to 2, which is a server's matter.)
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once per time it was generated. Any finite number, as above.
    pub frequency_penalty: f32,
    /// Where the random numbers start. Equal seeds give equal tokens.
    pub seed: u64,
    /// `Some(n)`: report the chosen token's log-probability and those of the `n` most probable tokens.
    pub logprobs: Option<usize>,
    /// Ids that are never chosen. They still appear in reported log-probabilities, which describe the model.
    pub suppress: Vec<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logprobs: None,
            suppress: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Refuses the first parameter that is out of its range, or names an id outside `vocab_size`.
    pub(super) fn validate(&self, vocab_size: usize) -> Result<()> {
        if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
            return Err(Error::argument("vocab_size", format!("must be in [1, 2^32), got {vocab_size}")));
        }
        self.validate_numbers()?;
        if let Some(count) = self.logprobs.filter(|&count| count > vocab_size) {
            return Err(Error::argument(
                "logprobs",
                format!("must not exceed the vocabulary of {vocab_size} tokens, got {count}"),
            ));
        }
        self.validate_suppress(vocab_size)
    }

    fn validate_numbers(&self) -> Result<()> {
        let finite = f32::is_finite;
        let rules = [
            (
                "temperature",
                self.temperature,
                finite(self.temperature) && self.temperature >= 0.0,
                "finite and >= 0",
            ),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "in (0, 1]"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "in [0, 1]"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
                "finite and > 0",
            ),
            ("presence_penalty", self.presence_penalty, finite(self.presence_penalty), "finite"),
            ("frequency_penalty", self.frequency_penalty, finite(self.frequency_penalty), "finite"),
        ];
        for (name, value, valid, range) in rules {
            if !valid {
                return Err(Error::argument(name, format!("must be {range}, got {value}")));
            }
        }
        Ok(())
    }

    fn validate_suppress(&self, vocab_size: usize) -> Result<()> {
        check_ids("suppress", &self.suppress, vocab_size)?;
        if self.suppress.len() >= vocab_size {
            let mut distinct = self.suppress.clone();
            distinct.sort_unstable();
            distinct.dedup();
            if distinct.len() == vocab_size {
                return Err(Error::argument("suppress", "names the whole vocabulary, so no token is left"));
            }
        }
        Ok(())
    }
}

/// Refuses the first id that is not below `vocab_size`, as an error about `argument`.
pub(super) fn check_ids(argument: &str, ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => Err(Error::argument(
            argument,
            format!("token id {id} is outside the vocabulary of {vocab_size} tokens"),
        )),
        None => Ok(()),
    }
}
