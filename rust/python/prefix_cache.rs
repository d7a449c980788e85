//! The cache of states by the beginnings of texts.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use std::sync::Arc;

use super::arrays::token_ids;
use super::engine::PyEngine;
use super::errors::released;
use super::sequence::PySequence;
use crate::error::Error;
use crate::model::{Engine, PrefixCache, State, TextPath};

/// What stands at each place of a text.
#[pyclass(name = "TextPath", module = "edgewise._native")]
pub struct PyTextPath {
    path: TextPath,
}

#[pymethods]
impl PyTextPath {
    #[new]
    fn new() -> Self {
        Self { path: TextPath::default() }
    }

    fn extend(&mut self, ids: &Bound<'_, PyAny>) -> PyResult<()> {
        self.path.extend(&token_ids(ids)?);
        Ok(())
    }

    fn mark(&mut self, start: usize, tokens: usize, digest: &Bound<'_, PyBytes>) -> PyResult<()> {
        let digest = digest.as_bytes().try_into();
        let digest = digest.map_err(|_| Error::argument("digest", "must have 16 bytes"))?;
        Ok(self.path.mark(start, tokens, digest)?)
    }

    fn truncate(&mut self, places: usize) {
        self.path.truncate(places);
    }

    fn copy(&self) -> Self {
        Self { path: self.path.clone() }
    }

    fn __len__(&self) -> usize {
        self.path.len()
    }
}

/// States of one engine.
#[pyclass(name = "PrefixCache", module = "edgewise._native", frozen)]
pub struct PyPrefixCache {
    engine: Arc<Engine>,
    cache: PrefixCache,
}

#[pymethods]
impl PyPrefixCache {
    #[new]
    fn new(engine: &PyEngine, limit: usize) -> Self {
        Self { engine: engine.engine(), cache: PrefixCache::new(limit) }
    }

    #[getter]
    fn limit(&self) -> usize {
        self.cache.limit()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.cache.nbytes()
    }

    fn __len__(&self) -> usize {
        self.cache.len()
    }

    fn clear(&self) {
        self.cache.clear();
    }

    fn known(&self, path: &PyTextPath, most: usize) -> usize {
        self.cache.known(&path.path, most)
    }

    fn find(
        &self,
        py: Python<'_>,
        path: &PyTextPath,
        beyond: usize,
        most: usize,
    ) -> PyResult<Option<PySequence>> {
        let state = released(py, |_| Ok(self.cache.find(&path.path, beyond, most)))?;
        Ok(state.map(|state| PySequence::of(Arc::clone(&self.engine), state)))
    }

    fn put(&self, py: Python<'_>, path: &PyTextPath, sequence: &PySequence) -> PyResult<()> {
        if !Arc::ptr_eq(&self.engine, &sequence.engine()) {
            return Err(Error::argument("sequence", "comes from another model").into());
        }
        released(py, |_| self.cache.put(&path.path, sequence.state()))
    }

    fn exchange(
        &self,
        py: Python<'_>,
        path: &PyTextPath,
        sequence: &PySequence,
    ) -> PyResult<Vec<(Vec<u32>, PySequence)>> {
        if !Arc::ptr_eq(&self.engine, &sequence.engine()) {
            return Err(Error::argument("sequence", "comes from another model").into());
        }
        let mut dropped = Vec::new();
        released(py, |_| {
            self.cache.exchange(&path.path, sequence.state(), |path, state| dropped.push((path, state)))
        })?;
        Ok(self.plain(dropped))
    }

    fn make_room(&self, py: Python<'_>, bytes: usize) -> PyResult<Vec<(Vec<u32>, PySequence)>> {
        let mut dropped = Vec::new();
        released(py, |_| {
            self.cache.make_room(bytes, |path, state| dropped.push((path, state)));
            Ok(())
        })?;
        Ok(self.plain(dropped))
    }

    fn texts(&self) -> Vec<Vec<u32>> {
        self.cache.texts().iter().filter_map(|(path, tokens)| path.ids(*tokens)).collect()
    }
}

impl PyPrefixCache {
    /// Those without pictures, as ids and sequences.
    fn plain(&self, states: Vec<(TextPath, Arc<State>)>) -> Vec<(Vec<u32>, PySequence)> {
        let plain = states.into_iter().filter_map(|(path, state)| {
            let ids = path.ids(state.len())?;
            Some((ids, PySequence::of(Arc::clone(&self.engine), Arc::unwrap_or_clone(state))))
        });
        plain.collect()
    }
}
