//! Images as the engine sees them: features, and where they stand in a text.

use std::sync::Arc;

use numpy::PyArray1;
use numpy::PyArrayMethods;
use pyo3::prelude::*;

use super::arrays::float_array;
use crate::error::{Error, Result, try_with_capacity, try_zeros};
use crate::model::positions::{Area, place};
use crate::model::vision::Features;
use crate::model::{Engine, Span};

/// What an engine has seen of one image or pair of frames: embeddings that stand in place of tokens.
#[pyclass(name = "VisualFeatures", module = "edgewise._native", frozen)]
pub struct PyVisualFeatures {
    engine: Arc<Engine>,
    features: Arc<Features>,
}

impl PyVisualFeatures {
    /// Features that `engine` has made.
    pub fn new(engine: Arc<Engine>, features: Features) -> Self {
        Self::shared(engine, Arc::new(features))
    }

    /// The same where somebody else has them too.
    pub fn shared(engine: Arc<Engine>, features: Arc<Features>) -> Self {
        Self { engine, features }
    }

    /// `[tokens, hidden]`
    fn array<'py>(&self, py: Python<'py>, rows: &[f32]) -> PyResult<Bound<'py, PyAny>> {
        let tokens = self.features.tokens();
        let mut copy = try_zeros(rows.len(), 1)?;
        copy.copy_from_slice(rows);
        float_array(py, copy, &[tokens, rows.len() / tokens])
    }
}

#[pymethods]
impl PyVisualFeatures {
    #[getter]
    fn grid_hw(&self) -> (usize, usize) {
        (self.features.grid.rows(), self.features.grid.columns())
    }

    #[getter]
    fn tokens(&self) -> usize {
        self.features.tokens()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.features.nbytes()
    }

    #[getter]
    fn embeddings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.array(py, &self.features.embeddings)
    }

    #[getter]
    fn deepstack<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.features.deepstack.iter().map(|rows| self.array(py, rows)).collect()
    }
}

/// Pairs (index of the first placeholder, features) as spans of a prompt for `engine`.
pub fn spans(engine: &Arc<Engine>, media: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<Span>> {
    let Some(media) = media else { return Ok(Vec::new()) };
    let media: Vec<(usize, Bound<'_, PyVisualFeatures>)> = media.extract().map_err(|_| {
        pyo3::exceptions::PyTypeError::new_err(
            "media: expected a list of (index of the first placeholder, VisualFeatures)",
        )
    })?;
    let span = |(i, (start, features)): (usize, (usize, Bound<'_, PyVisualFeatures>))| {
        let features = features.get();
        if !Arc::ptr_eq(&features.engine, engine) {
            return Err(Error::argument(&format!("media[{i}]"), "comes from another model").into());
        }
        Ok(Span { start, features: Arc::clone(&features.features) })
    };
    media.into_iter().enumerate().map(span).collect()
}

/// Rotary positions of a prompt; the docstring is in the stub.
#[pyfunction]
#[pyo3(signature = (tokens, spans, first = 0))]
pub fn position_ids(
    py: Python<'_>,
    tokens: usize,
    spans: Vec<(usize, usize, usize)>,
    first: u32,
) -> PyResult<(Bound<'_, PyAny>, u32)> {
    let areas = areas(tokens, &spans, first)?;
    let (mut positions, mut next) = (try_with_capacity(tokens)?, first);
    place(areas.into_iter(), 0..tokens, &mut next, &mut positions);
    let mut rows: Vec<u32> = try_with_capacity(3 * tokens)?;
    rows.extend((0..3).flat_map(|axis| positions.iter().map(move |position| position[axis])));
    let array = PyArray1::from_vec(py, rows).reshape([3, tokens])?;
    Ok((array.into_any(), next))
}

/// The areas, in order, apart and inside the prompt.
fn areas(tokens: usize, spans: &[(usize, usize, usize)], first: u32) -> Result<Vec<Area>> {
    const MOST: usize = 1 << 30;
    if tokens > MOST || first as usize > MOST {
        return Err(Error::argument("tokens", format!("{tokens} from {first} on are too many")));
    }
    let mut free = 0;
    let area = |(i, &(start, rows, columns)): (usize, &(usize, usize, usize))| {
        let end = rows.checked_mul(columns).filter(|&area| area > 0).and_then(|area| start.checked_add(area));
        match end.filter(|&end| start >= free && end <= tokens) {
            Some(end) => {
                free = end;
                Ok(Area { start, rows, columns })
            }
            None => Err(Error::argument(
                &format!("spans[{i}]"),
                format!("{rows} x {columns} tokens from index {start} do not fit into {free}..{tokens}"),
            )),
        }
    };
    spans.iter().enumerate().map(area).collect()
}
