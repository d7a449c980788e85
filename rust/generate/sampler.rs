//! Choosing the next token: the public face.

use super::draw::Draw;
use super::logprobs::LogSoftmax;
pub use super::params::SamplingParams;
use super::params::check_ids;
use super::penalties::Penalties;
use super::scan;
use crate::threads::StandardFloat;
use crate::{Error, Result};

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its log softmax over the raw logits, before penalties, temperature and filters; at most 0.
    /// `None` unless [`SamplingParams::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The most probable tokens with their log-probabilities, best first, equal ones by lowest id. As many as
    /// [`SamplingParams::logprobs`] asks for, or fewer if fewer have a logit above -inf.
    pub top: Vec<(u32, f32)>,
}

/// Chooses one token at a time from logits, remembering what it was shown. One sampler belongs to one text.
///
/// A clone continues exactly as the original would. [`Self::new`] reserves all memory: [`Self::sample`] allocates
/// nothing but [`Choice::top`] (a clone also regains its reserve in its first calls).
#[derive(Clone)]
pub struct Sampler {
    params: SamplingParams,
    vocab_size: usize,
    penalties: Penalties,
    draw: Draw,
    /// `[vocab]`: logits after penalties. Empty while these change nothing.
    adjusted: Vec<f32>,
}

impl Sampler {
    /// A sampler for logits of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the parameter that is out of range.
    pub fn new(params: SamplingParams, vocab_size: usize) -> Result<Self> {
        params.validate(vocab_size)?;
        let penalties = Penalties::new(&params, vocab_size);
        let adjusted = if penalties.may_change() { Vec::with_capacity(vocab_size) } else { Vec::new() };
        Ok(Self { penalties, draw: Draw::new(&params, vocab_size), adjusted, params, vocab_size })
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Shows the sampler tokens of the text, for the penalties. Prompt tokens (`generated` false) count for the
    /// repetition penalty only. [`Self::sample`] does not do this by itself: pass it each token you accept.
    ///
    /// # Errors
    /// [`Error::Argument`] if an id is outside the vocabulary; then none of `ids` is counted.
    pub fn observe(&mut self, ids: &[u32], generated: bool) -> Result<()> {
        check_ids("ids", ids, self.vocab_size)?;
        self.penalties.observe(ids, generated);
        Ok(())
    }

    /// Chooses a token from `logits`, `[vocab]`. Consumes one random number, or none at temperature 0.
    ///
    /// # Errors
    /// [`Error::Argument`] if `logits` has another length than the vocabulary; [`Error::NonFinite`] if one is
    /// NaN or +inf, or none that is not suppressed is above -inf. The sampler is then as before the call.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Choice> {
        let _standard = StandardFloat::enter();
        if logits.len() != self.vocab_size {
            let reason = format!("has {} values, the vocabulary has {}", logits.len(), self.vocab_size);
            return Err(Error::argument("logits", reason));
        }
        let highest = scan::highest(logits)?;
        let token = self.choose(logits, highest)?;
        Ok(self.with_logprobs(token, logits, highest))
    }

    fn choose(&mut self, logits: &[f32], highest: f32) -> Result<u32> {
        if self.penalties.change_nothing() {
            return pick(&mut self.draw, logits, highest, &self.params);
        }
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        self.penalties.apply(&mut self.adjusted);
        let highest = scan::highest(&self.adjusted)?;
        pick(&mut self.draw, &self.adjusted, highest, &self.params)
    }

    fn with_logprobs(&mut self, token: u32, logits: &[f32], highest: f32) -> Choice {
        let Some(count) = self.params.logprobs else {
            return Choice { token, logprob: None, top: Vec::new() };
        };
        let log_softmax = LogSoftmax::new(logits, highest);
        let top = log_softmax.top(logits, count, self.draw.ranking());
        Choice { token, logprob: Some(log_softmax.of(logits[token as usize])), top }
    }
}

/// The token of adjusted `logits`, `[vocab]`: the highest at temperature 0 (lowest id of equals), else a draw.
fn pick(draw: &mut Draw, logits: &[f32], highest: f32, params: &SamplingParams) -> Result<u32> {
    if params.temperature > 0.0 {
        return draw.token(logits, highest, params);
    }
    let id = scan::first_equal(logits, highest).ok_or_else(|| Error::NonFinite {
        what: "logits",
        reason: format!("the highest logit, {highest}, was not found again"),
    })?;
    Ok(id as u32)
}
