//! What the matrices of a model read over a text, as a value for `quantize`.

use pyo3::prelude::*;

use crate::weights::moments::InputStatistics;

/// Second moments of inputs.
#[pyclass(name = "InputStatistics", module = "edgewise._native", frozen)]
pub struct PyInputStatistics {
    pub(super) statistics: InputStatistics,
}

#[pymethods]
impl PyInputStatistics {
    /// Tokens of the text.
    #[getter]
    fn tokens(&self) -> usize {
        self.statistics.tokens()
    }

    /// How many different inputs there are.
    #[getter]
    fn inputs(&self) -> usize {
        self.statistics.inputs()
    }
}
