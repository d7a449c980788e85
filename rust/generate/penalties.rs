//! Penalties on tokens already seen, and ids that are never chosen.
//!
//! Semantics of vLLM and `OpenAI`: repetition counts prompt and generated text, presence and frequency count
//! generated text only. Order: repetition, then frequency, then presence, then suppression.

use super::params::SamplingParams;

/// What was seen so far, and what that does to logits.
#[derive(Clone)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    suppress: Vec<u32>,
    /// `[vocab]`: whether the token occurred at all. Empty if the three penalties are neutral.
    seen: Vec<bool>,
    /// `[vocab]`: how often the token was generated. Empty if the three penalties are neutral.
    generated: Vec<u32>,
    /// The distinct tokens with `seen`, in order of first occurrence.
    distinct: Vec<u32>,
}

impl Penalties {
    pub(super) fn new(params: &SamplingParams, vocab_size: usize) -> Self {
        let neutral = params.repetition_penalty == 1.0
            && params.presence_penalty == 0.0
            && params.frequency_penalty == 0.0;
        let tracked = if neutral { 0 } else { vocab_size };
        Self {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            suppress: params.suppress.clone(),
            seen: vec![false; tracked],
            generated: vec![0; tracked],
            distinct: Vec::with_capacity(tracked),
        }
    }

    /// Counts `ids`, all below the vocabulary size.
    pub(super) fn observe(&mut self, ids: &[u32], generated: bool) {
        if self.seen.is_empty() {
            return;
        }
        for &id in ids {
            let slot = id as usize;
            if !self.seen[slot] {
                self.seen[slot] = true;
                self.distinct.push(id);
            }
            if generated {
                self.generated[slot] = self.generated[slot].saturating_add(1);
            }
        }
    }

    /// Whether [`Self::apply`] can ever change a logit.
    pub(super) fn may_change(&self) -> bool {
        !self.seen.is_empty() || !self.suppress.is_empty()
    }

    /// Whether [`Self::apply`] would leave all logits as they are.
    pub(super) fn change_nothing(&self) -> bool {
        self.distinct.is_empty() && self.suppress.is_empty()
    }

    /// Changes `logits`, `[vocab]`, in place. Suppressed ones become -inf.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for &id in &self.distinct {
            let slot = id as usize;
            logits[slot] = self.penalised(logits[slot], self.generated[slot]);
        }
        for &id in &self.suppress {
            logits[id as usize] = f32::NEG_INFINITY;
        }
    }

    /// The logit of a token that was seen, and generated `count` times. Extreme penalties saturate at the largest
    /// finite number, so that a penalty alone neither forbids a token nor leaves the finite numbers.
    fn penalised(&self, logit: f32, count: u32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        let repeated = if logit < 0.0 { logit * self.repetition } else { logit / self.repetition };
        let less_frequent = repeated.clamp(f32::MIN, f32::MAX) - self.frequency * count as f32;
        let presence = if count > 0 { self.presence } else { 0.0 };
        (less_frequent.clamp(f32::MIN, f32::MAX) - presence).clamp(f32::MIN, f32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalties(repetition: f32, presence: f32, frequency: f32) -> Penalties {
        let params = SamplingParams {
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            ..SamplingParams::default()
        };
        Penalties::new(&params, 6)
    }

    #[test]
    fn each_penalty_by_hand() {
        // Prompt 0 1 1, generated 2 3 3: repetition hits 0..=3 once each, the others only 2 and 3.
        let cases = [
            (penalties(2.0, 0.0, 0.0), [2.0, -2.0, 0.0, 1.5, -1.0, 4.0]),
            (penalties(1.0, 0.5, 0.0), [4.0, -1.0, -0.5, 2.5, -1.0, 4.0]),
            (penalties(1.0, 0.0, 0.5), [4.0, -1.0, -0.5, 2.0, -1.0, 4.0]),
            (penalties(2.0, 0.5, 0.25), [2.0, -2.0, -0.75, 0.5, -1.0, 4.0]),
            (penalties(0.5, -1.0, 0.0), [8.0, -0.5, 1.0, 7.0, -1.0, 4.0]),
        ];
        for (mut penalties, expected) in cases {
            penalties.observe(&[0, 1, 1], false);
            penalties.observe(&[2, 3, 3], true);
            let mut logits = [4.0, -1.0, 0.0, 3.0, -1.0, 4.0];
            penalties.apply(&mut logits);
            assert_eq!(logits, expected);
        }
    }

    #[test]
    fn neutral_penalties_track_nothing() {
        let mut penalties = penalties(1.0, 0.0, 0.0);
        penalties.observe(&[0, 1, 2], true);
        assert!(penalties.change_nothing() && !penalties.may_change());
    }

    #[test]
    fn extreme_penalties_stay_finite_and_minus_infinity_stays() {
        for (repetition, presence, frequency) in [
            (1e-45, 0.0, 0.0),
            (f32::MAX, 0.0, 0.0),
            (1e-45, f32::MIN, f32::MAX),
            (f32::MAX, f32::MAX, f32::MIN),
        ] {
            let mut penalties = penalties(repetition, presence, frequency);
            penalties.observe(&[0, 1, 2, 3, 3, 3, 4], true);
            let mut logits = [f32::MAX, f32::MIN, 0.0, 7.0, f32::NEG_INFINITY, 1.0];
            penalties.apply(&mut logits);
            assert!(logits[..4].iter().all(|logit| logit.is_finite()), "{logits:?}");
            assert_eq!(logits[4..], [f32::NEG_INFINITY, 1.0]);
        }
    }
}
