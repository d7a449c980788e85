//! The sampler.

use pyo3::prelude::*;

use super::arrays::token_ids;
use super::errors::released;
use super::sequence::PySequence;
use crate::generate::{Choice, Sampler, SamplingParams};
use crate::kernels::profile::Operation;

/// A token, its log-probability if asked for, and the likeliest tokens with theirs.
pub type Sampled = (u32, Option<f32>, Vec<(u32, f32)>);

/// Picks tokens; see the stub for what its arguments mean.
#[pyclass(name = "Sampler", module = "edgewise._native")]
pub struct PySampler {
    sampler: Sampler,
}

impl PySampler {
    /// What picks.
    pub fn sampler(&mut self) -> &mut Sampler {
        &mut self.sampler
    }
}

/// A choice as Python gets it.
pub fn sampled(choice: Choice) -> Sampled {
    (choice.token, choice.logprob, choice.top)
}

#[pymethods]
impl PySampler {
    #[new]
    #[pyo3(signature = (
        vocab_size, *, temperature = 1.0, top_k = 0, top_p = 1.0, min_p = 0.0, repetition_penalty = 1.0,
        presence_penalty = 0.0, frequency_penalty = 0.0, seed = 0, logprobs = None, suppress = Vec::new()
    ))]
    fn new(
        vocab_size: usize,
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        seed: u64,
        logprobs: Option<usize>,
        suppress: Vec<u32>,
    ) -> PyResult<Self> {
        let params = SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            seed,
            logprobs,
            suppress,
        };
        Ok(Self { sampler: Sampler::new(params, vocab_size)? })
    }

    #[pyo3(signature = (ids, generated = false))]
    fn observe(&mut self, ids: &Bound<'_, PyAny>, generated: bool) -> PyResult<()> {
        Ok(self.sampler.observe(&token_ids(ids)?, generated)?)
    }

    fn sample(&mut self, py: Python<'_>, sequence: &mut PySequence) -> PyResult<Sampled> {
        let engine = sequence.engine();
        let choice = released(py, |_| {
            let scores = sequence.scores()?;
            engine.cpu.profile.begin();
            let choice = self.sampler.sample(scores)?;
            engine.cpu.profile.lap(Operation::Sampling, 0);
            Ok(choice)
        })?;
        Ok(sampled(choice))
    }
}
