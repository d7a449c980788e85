//! What the weights of a model take, by format; what a token costs; where the time went.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::kernels::profile::{Operation, Spent};
use crate::model::{Costs, Model, Operations};
use crate::weights::matrix::{Format, Matrix};

/// Tensors, elements and bytes.
#[derive(Clone, Copy, Default)]
struct Tally {
    tensors: usize,
    elements: usize,
    bytes: usize,
}

/// What there is of each format, in the order of first use; vectors count as f32.
#[derive(Default)]
pub struct WeightReport {
    formats: Vec<(&'static str, Tally)>,
}

impl WeightReport {
    /// Counts the weights of the text model and, if there is one, of the vision tower.
    pub fn of(model: &Model) -> Self {
        let mut report = Self::default();
        model.weights.each_matrix(&mut |_, matrix| report.matrix(matrix));
        model.weights.each_vector(&mut |_, vector| report.vector(vector));
        if let Some(vision) = &model.vision {
            vision.weights.each_matrix(&mut |_, matrix| report.matrix(matrix));
            vision.weights.each_vector(&mut |_, vector| report.vector(vector));
        }
        report
    }

    /// Numbers in all.
    pub fn parameters(&self) -> usize {
        self.formats.iter().map(|(_, tally)| tally.elements).sum()
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.formats.iter().map(|(_, tally)| tally.bytes).sum()
    }

    /// `{format: {"tensors": .., "bytes": ..}}`
    pub fn formats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        for (name, tally) in &self.formats {
            let entry = PyDict::new(py);
            entry.set_item("tensors", tally.tensors)?;
            entry.set_item("bytes", tally.bytes)?;
            out.set_item(name, entry)?;
        }
        Ok(out)
    }

    fn matrix(&mut self, matrix: &Matrix) {
        self.add(matrix.format(), matrix.rows() * matrix.cols(), matrix.bytes().len());
    }

    fn vector(&mut self, vector: &[f32]) {
        self.add(Format::F32, vector.len(), 4 * vector.len());
    }

    fn add(&mut self, format: Format, elements: usize, bytes: usize) {
        let name = format.name();
        let at = self.formats.iter().position(|(found, _)| *found == name).unwrap_or_else(|| {
            self.formats.push((name, Tally::default()));
            self.formats.len() - 1
        });
        let tally = &mut self.formats[at].1;
        tally.tensors += 1;
        tally.elements += elements;
        tally.bytes += bytes;
    }
}

/// What a token costs.
pub fn costs<'py>(py: Python<'py>, costs: &Costs) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("decode_bytes", costs.decode_bytes)?;
    out.set_item("state_bytes", costs.state_bytes)?;
    out.set_item("layer_bytes", costs.layer_bytes)?;
    out.set_item("prefill_operations", operations(py, costs.prefill)?)?;
    out.set_item("skipped_operations", operations(py, costs.skipped)?)?;
    Ok(out)
}

fn operations(py: Python<'_>, operations: Operations) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("int8", operations.int8)?;
    out.set_item("f32", operations.f32)?;
    Ok(out)
}

/// What each kind of operation took, by name; those that did not happen are left out.
pub fn profile<'py>(py: Python<'py>, spent: &[(Operation, Spent)]) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    for (operation, spent) in spent.iter().filter(|(_, spent)| spent.calls > 0) {
        let entry = PyDict::new(py);
        entry.set_item("calls", spent.calls)?;
        entry.set_item("seconds", spent.seconds)?;
        entry.set_item("bytes", spent.bytes)?;
        entry.set_item("operations", spent.operations)?;
        out.set_item(operation.name(), entry)?;
    }
    Ok(out)
}
