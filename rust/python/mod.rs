//! The extension module `edgewise._native`: classes and functions over the engine. No arithmetic happens here.
//!
//! Long work runs with the interpreter released and asks for signals between pieces. A panic would be a defect of ours:
//! it becomes a `RuntimeError` and never ends the process.

mod arrays;
mod batch;
mod calibration;
mod convert;
mod engine;
mod errors;
mod experts;
mod limits;
mod ops;
mod prefix_cache;
mod report;
mod sampler;
mod sequence;
mod trace;
mod vision;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::kernels::Tier;
use crate::memory::available_bytes;
use crate::threads::{available_threads, thread_report};

#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use super::batch::{PyBatch, PyWork};
    #[pymodule_export]
    use super::calibration::PyInputStatistics;
    #[pymodule_export]
    use super::convert::{convert, default_recipe, quantize, write_random};
    #[pymodule_export]
    use super::engine::PyEngine;
    #[pymodule_export]
    use super::errors::{CheckpointError, ContextError, NonFiniteError};
    #[pymodule_export]
    use super::experts::{moe_feed_forward, route_top_k};
    #[pymodule_export]
    use super::limits::machine_limits;
    #[pymodule_export]
    use super::ops::{
        dequantize_int4, dequantize_int8, gated_delta_rule, int4_matmul, int8_matmul, quantize_int4,
        quantize_int8, rms_norm, short_conv,
    };
    #[pymodule_export]
    use super::prefix_cache::{PyPrefixCache, PyTextPath};
    #[pymodule_export]
    use super::sampler::PySampler;
    #[pymodule_export]
    use super::sequence::PySequence;
    #[pymodule_export]
    use super::vision::{PyVisualFeatures, position_ids};
    #[pymodule_export]
    use super::{active_tier, available_memory, build_info, tiers, usable_threads};
}

/// What this build is and what it found on this computer.
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("architecture", std::env::consts::ARCH)?;
    info.set_item("system", std::env::consts::OS)?;
    let report = thread_report();
    let threads = PyDict::new(py);
    threads.set_item("affinity", report.affinity)?;
    threads.set_item("quota", report.quota)?;
    threads.set_item("performance_cores", report.performance_cores)?;
    threads.set_item("chosen", report.chosen)?;
    info.set_item("thread_report", threads)?;
    Ok(info)
}

/// Names of the tiers this CPU has, slowest first.
#[pyfunction]
fn tiers() -> Vec<&'static str> {
    Tier::available().into_iter().map(Tier::name).collect()
}

/// The name of the tier that a model opened now would run on.
#[pyfunction]
fn active_tier() -> PyResult<&'static str> {
    Ok(Tier::from_environment()?.name())
}

/// Bytes of memory that can be filled, as far as the system and control groups tell.
#[pyfunction]
fn available_memory() -> Option<u64> {
    available_bytes()
}

/// How many threads a model takes if nobody says.
#[pyfunction]
#[pyo3(name = "available_threads")]
fn usable_threads() -> usize {
    available_threads()
}
