//! `edgewise quantize` and `edgewise convert`.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::calibration::PyInputStatistics;
use super::errors::released;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::threads::{Pool, available_threads};
use crate::weights::convert::{Report, quantize_calibrated, quantize_checkpoint, repack_checkpoint};
use crate::weights::random;
use crate::weights::recipe::Recipe;

/// Writes a converted copy of the checkpoint `source` to the file `destination`.
#[pyfunction]
#[pyo3(signature = (source, destination, recipe = "int4", threads = None, progress = None, statistics = None))]
pub fn quantize<'py>(
    py: Python<'py>,
    source: &str,
    destination: &str,
    recipe: &str,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
    statistics: Option<&PyInputStatistics>,
) -> PyResult<Bound<'py, PyDict>> {
    let statistics = statistics.map(|statistics| &statistics.statistics);
    let recipe = Recipe::by_name_or_file(recipe)?;
    let pool = pool(threads)?;
    let report = released(py, |callbacks| {
        let checkpoint = Checkpoint::open(Path::new(source))?;
        let mut report = |done, total, name: &str| callbacks.progress(progress.as_ref(), done, total, name);
        let destination = Path::new(destination);
        match statistics {
            None => quantize_checkpoint(&checkpoint, destination, &recipe, &pool, &mut report),
            Some(statistics) => {
                quantize_calibrated(&checkpoint, destination, &recipe, statistics, &pool, &mut report)
            }
        }
    })?;
    report_dict(py, &report)
}

/// Writes the checkpoint `source`, which another program quantised, to the file `destination`, with its own levels where the grids
/// agree.
#[pyfunction]
#[pyo3(signature = (source, destination, threads = None, progress = None))]
pub fn convert<'py>(
    py: Python<'py>,
    source: &str,
    destination: &str,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let pool = pool(threads)?;
    let report = released(py, |callbacks| {
        let checkpoint = Checkpoint::open(Path::new(source))?;
        let mut report = |done, total, name: &str| callbacks.progress(progress.as_ref(), done, total, name);
        repack_checkpoint(&checkpoint, Path::new(destination), &pool, &mut report)
    })?;
    report_dict(py, &report)
}

fn pool(threads: Option<usize>) -> Result<Pool, Error> {
    if threads == Some(0) {
        return Err(Error::argument("threads", "at least one is needed"));
    }
    Ok(Pool::new(threads.unwrap_or_else(available_threads)))
}

/// The recipe used where none is named, as JSON: a table to read and change.
#[pyfunction]
#[pyo3(signature = (name = "int4"))]
pub fn default_recipe(name: &str) -> PyResult<String> {
    Ok(Recipe::by_name_or_file(name)?.to_json())
}

/// Writes a file of our own with random weights in the shapes of `config`, the text of a `config.json`.
#[pyfunction]
#[pyo3(signature = (config, destination, recipe = "int4", seed = 0))]
pub fn write_random(
    py: Python<'_>,
    config: &str,
    destination: &str,
    recipe: &str,
    seed: u64,
) -> PyResult<()> {
    let recipe = Recipe::by_name_or_file(recipe)?;
    released(py, |_| random::write_random(Path::new(destination), config.as_bytes(), &recipe, seed))
}

fn report_dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let formats = PyDict::new(py);
    for (name, tally) in &report.formats {
        let entry = PyDict::new(py);
        entry.set_item("tensors", tally.tensors)?;
        entry.set_item("bytes", tally.bytes)?;
        entry.set_item("calibrated", tally.calibrated)?;
        entry.set_item("relative_squared_error", tally.error.relative())?;
        formats.set_item(name, entry)?;
    }
    let out = PyDict::new(py);
    out.set_item("destination", report.destination.display().to_string())?;
    out.set_item("source_bytes", report.source_bytes)?;
    out.set_item("file_bytes", report.bytes)?;
    out.set_item("seconds", report.seconds)?;
    out.set_item("formats", formats)?;
    Ok(out)
}
