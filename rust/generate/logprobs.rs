//! Log-probabilities of the model's own distribution: log softmax of the raw logits.

use super::ranking::Ranking;
use super::softmax;

/// The logarithm of softmax's denominator, apart from the highest logit.
pub(super) struct LogSoftmax {
    highest: f32,
    log_sum: f64,
}

impl LogSoftmax {
    /// Of `logits`, `[vocab]`, whose highest is `highest`.
    pub(super) fn new(logits: &[f32], highest: f32) -> Self {
        Self { highest, log_sum: libm::log(softmax::sum_of_weights(logits, highest, 1.0)) }
    }

    /// The log-probability of a token with this logit, in nats: at most 0.
    pub(super) fn of(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.highest) - self.log_sum) as f32
    }

    /// The `count` most probable tokens, best first, equal ones by lowest id; fewer if fewer are above -inf.
    pub(super) fn top(&self, logits: &[f32], count: usize, ranking: &mut Ranking) -> Vec<(u32, f32)> {
        if count == 0 {
            return Vec::new();
        }
        ranking.best(logits, count).iter().map(|token| (token.id(), self.of(token.logit()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distribution() {
        // Probabilities 1/2, 1/4, 1/4 whatever is added to the logits.
        for shift in [0.0, -40.0, 300.0] {
            let logits = [shift, 2.0_f32.ln() + shift, shift, f32::NEG_INFINITY];
            let log_softmax = LogSoftmax::new(&logits, logits[1]);
            let top = log_softmax.top(&logits, 4, &mut Ranking::with_room(4, 4));
            let ids: Vec<u32> = top.iter().map(|&(id, _)| id).collect();
            assert_eq!(ids, [1, 0, 2]);
            for ((_, logprob), probability) in top.iter().zip([0.5_f32, 0.25, 0.25]) {
                assert!((logprob - probability.ln()).abs() < 2e-5, "{logprob} at shift {shift}");
            }
        }
    }

    #[test]
    fn a_certain_token_has_log_probability_zero() {
        let log_softmax = LogSoftmax::new(&[0.0, f32::MIN], 0.0);
        assert_eq!(log_softmax.of(0.0), 0.0);
    }
}
