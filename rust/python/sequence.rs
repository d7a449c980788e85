//! One text on an engine.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arrays::{float_array, token_ids};
use super::batch::PyWork;
use super::engine::PyEngine;
use super::errors::released;
use super::sampler::PySampler;
use super::vision::{PyVisualFeatures, spans};
use crate::error::{Error, Result};
use crate::model::saved::{Saved, SavedMedium};
use crate::model::{Engine, State};

/// Index of the first token, features, and the digest of the pixels.
type Medium<'py> = (usize, Bound<'py, PyVisualFeatures>, Bound<'py, PyBytes>);

/// A sequence from a file: itself, its ids, and what stands among them as in [`Medium`].
type Loaded<'py> = (PySequence, Vec<u32>, Vec<(usize, PyVisualFeatures, Bound<'py, PyBytes>)>);

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
        Self::of(engine, state)
    }

    /// The text that `state` is of.
    pub fn of(engine: Arc<Engine>, state: State) -> Self {
        Self { engine, state, logits: Vec::new(), scored: 0 }
    }

    /// What the model keeps of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The same to move on.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
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

    /// Something to be done in a step; the docstring is in the stub.
    #[pyo3(signature = (ids, media = None, sampler = None, places = Vec::new()))]
    fn work(
        slf: &Bound<'_, Self>,
        ids: &Bound<'_, PyAny>,
        media: Option<&Bound<'_, PyAny>>,
        sampler: Option<Py<PySampler>>,
        places: Vec<usize>,
    ) -> PyResult<PyWork> {
        PyWork::new(slf, ids, media, sampler, places)
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
    /// Writes the sequence; the docstring is in the stub.
    fn save(
        &self,
        py: Python<'_>,
        path: PathBuf,
        fingerprint: &str,
        ids: &Bound<'_, PyAny>,
        media: Vec<Medium<'_>>,
    ) -> PyResult<()> {
        let ids = token_ids(ids)?;
        if ids.len() != self.state.len() {
            let reason = format!("there are {}, the sequence has {}", ids.len(), self.state.len());
            return Err(Error::argument("ids", reason).into());
        }
        let places: Vec<(usize, Bound<'_, PyVisualFeatures>)> =
            media.iter().map(|(start, features, _)| (*start, features.clone())).collect();
        let spans = spans(&self.engine, Some(&places.into_pyobject(py)?))?;
        let digest = |bytes: &Bound<'_, PyBytes>| {
            bytes.as_bytes().try_into().map_err(|_| Error::argument("digest", "must have 16 bytes"))
        };
        let media = spans
            .into_iter()
            .zip(&media)
            .map(|(span, (_, _, bytes))| Ok(SavedMedium { span, digest: digest(bytes)? }));
        let saved = Saved { ids, media: media.collect::<Result<_>>()?, state: self.state.clone() };
        released(py, |_| saved.write(fingerprint, &path))
    }

    /// Reads what `save` wrote; the docstring is in the stub.
    #[staticmethod]
    fn load<'py>(
        py: Python<'py>,
        engine: &PyEngine,
        path: PathBuf,
        fingerprint: &str,
    ) -> PyResult<Loaded<'py>> {
        let engine = engine.engine();
        let saved = released(py, |_| Saved::read(&engine, fingerprint, &path))?;
        let media = saved.media.into_iter().map(|medium| {
            let features = PyVisualFeatures::shared(Arc::clone(&engine), medium.span.features);
            (medium.span.start, features, PyBytes::new(py, &medium.digest))
        });
        let media = media.collect();
        Ok((Self::of(engine, saved.state), saved.ids, media))
    }
}
