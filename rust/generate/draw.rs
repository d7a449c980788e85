//! Drawing a token by weight from the filtered candidates, which stand in descending order of logit.
//!
//! With top-k, the candidates are a short sorted list. Without, they are the whole vocabulary, divided into bands.

use super::bands::{Bands, Field};
use super::filters::{self, Cut};
use super::params::SamplingParams;
use super::ranking::Ranking;
use super::rng::Uniform;
use super::{scan, softmax};
use crate::{Error, Result};

/// Random numbers and the memory to draw with.
#[derive(Clone)]
pub(super) struct Draw {
    uniform: Uniform,
    ranking: Ranking,
    bands: Bands,
}

impl Draw {
    /// Reserves the memory of any draw: without top-k, one band may hold the whole vocabulary.
    pub(super) fn new(params: &SamplingParams, vocab_size: usize) -> Self {
        let drawn = match params.top_k {
            _ if params.temperature == 0.0 => 0,
            0 => vocab_size,
            top_k => top_k.min(vocab_size),
        };
        let listed = drawn.max(params.logprobs.unwrap_or(0));
        Self {
            uniform: Uniform::new(params.seed),
            ranking: Ranking::with_room(listed, vocab_size),
            bands: Bands::new(),
        }
    }

    /// The memory of the ranked list, for other uses between draws.
    pub(super) fn ranking(&mut self) -> &mut Ranking {
        &mut self.ranking
    }

    /// A token of `logits`, `[vocab]`, whose highest is `highest`, at a temperature above 0. Consumes one number.
    pub(super) fn token(&mut self, logits: &[f32], highest: f32, params: &SamplingParams) -> Result<u32> {
        let uniform = self.uniform.next();
        let token = if (1..logits.len()).contains(&params.top_k) {
            self.among_best(logits, highest, uniform, params)
        } else {
            self.among_all(logits, highest, uniform, params)
        };
        token.ok_or_else(|| Error::NonFinite {
            what: "logits",
            reason: "the candidates' probabilities have no sum".into(),
        })
    }

    fn among_best(
        &mut self,
        logits: &[f32],
        highest: f32,
        uniform: f64,
        params: &SamplingParams,
    ) -> Option<u32> {
        let weight = |logit| softmax::weight(logit, highest, params.temperature);
        let weights = self.ranking.best_weights(logits, params.top_k, weight);
        // Summed in the order of the walk below, so that a number below 1 always falls on a token.
        let total = weights.iter().fold(0.0, |sum, &weight| sum + f64::from(weight));
        let kept = Cut::new(params, total).kept_weight(weights, 0.0).unwrap_or(total);
        let place = filters::place(weights, 0.0, uniform * kept)?;
        self.ranking.id_at(place)
    }

    fn among_all(
        &mut self,
        logits: &[f32],
        highest: f32,
        uniform: f64,
        params: &SamplingParams,
    ) -> Option<u32> {
        let field = Field::new(logits, highest, scan::lowest(logits), params.temperature);
        let total = self.bands.fill(&field, params.min_p);
        let kept = self.bands.kept_weight(&field, &Cut::new(params, total), &mut self.ranking);
        self.bands.token(&field, uniform * kept, &mut self.ranking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_need_no_memory_beyond_the_reserve() {
        // Equal logits share one band; ascending ones fill the list of the best most often.
        let equal = vec![1.0; 5000];
        let ascending: Vec<f32> = (0..5000).map(|i| i as f32 * 1e-3).collect();
        for top_k in [0, 1, 700, 4999, 5000] {
            let params = SamplingParams { top_k, top_p: 0.9, ..SamplingParams::default() };
            let mut draw = Draw::new(&params, 5000);
            let reserve = draw.ranking.capacity();
            for logits in [&equal, &ascending] {
                draw.token(logits, scan::highest(logits).unwrap(), &params).unwrap();
                assert_eq!(draw.ranking.capacity(), reserve, "top_k {top_k}");
            }
        }
    }
}
