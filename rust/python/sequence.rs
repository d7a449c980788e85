//! One text on an engine.

use std::sync::Arc;

use pyo3::prelude::*;

use super::arrays::{float_array, token_ids};
use super::errors::released;
use super::vision::spans;
use crate::error::Result;
use crate::model::{Engine, State};

/// The state of one text: everything the model keeps of the tokens appended so far.
#[pyclass(name = "Sequence", module = "edgewise._native")]
pub struct PySequence {
    engine: Arc<Engine>,
    state: State,
    /// `[vocab]`, valid if `scored` is the state's length.
    logits: Vec<f32>,
    scored: usize,
}

impl PySequence {
    /// The empty text.
    pub fn new(engine: Arc<Engine>) -> Self {
        let state = engine.state();
        Self { engine, state, logits: Vec::new(), scored: 0 }
    }

    /// Where it is computed.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// Logits after the last token, `[vocab]`, computed once for each length.
    pub fn scores(&mut self) -> Result<&[f32]> {
        if self.scored != self.state.len() || self.state.is_empty() {
            self.logits.resize(self.engine.model.config.vocab_size, 0.0);
            self.engine.logits(&self.state, &mut self.logits)?;
            self.scored = self.state.len();
        }
        Ok(&self.logits)
    }
}

#[pymethods]
impl PySequence {
    #[pyo3(signature = (ids, media = None))]
    fn append(
        &mut self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        media: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (ids, spans) = (token_ids(ids)?, spans(&self.engine, media)?);
        released(py, |callbacks| {
            let prompt = self.engine.prompt(&ids, &spans)?;
            self.engine.append(&mut self.state, prompt, &mut || callbacks.check_signals())
        })
    }

    fn reserve(&mut self, py: Python<'_>, tokens: usize) -> PyResult<()> {
        released(py, |_| self.engine.reserve(&mut self.state, tokens))
    }

    fn logits<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let logits = released(py, |_| Ok(self.scores()?.to_vec()))?;
        let shape = [logits.len()];
        float_array(py, logits, &shape)
    }

    fn __len__(&self) -> usize {
        self.state.len()
    }

    #[getter]
    fn next_position(&self) -> u32 {
        self.state.next_position()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.state.nbytes()
    }

    fn fork(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
            state: self.state.clone(),
            logits: self.logits.clone(),
            scored: self.scored,
        }
    }
}
