//! What this machine can do at most.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::released;
use crate::checkpoint::mmap::map;
use crate::error::Error;
use crate::kernels::Tier;
use crate::kernels::limits::{Buffers, Limits, measure};
use crate::threads::cache_bytes;

/// Assumed where the system does not tell the size of its last-level cache.
const CACHE: usize = 8 << 20;

/// Bytes of the last-level cache.
pub fn last_level_cache() -> usize {
    cache_bytes().unwrap_or(CACHE)
}

/// Measures memory and arithmetic; see the stub.
#[pyfunction]
#[pyo3(signature = (threads, seconds = 0.2, path = None))]
pub fn machine_limits<'py>(
    py: Python<'py>,
    threads: usize,
    seconds: f64,
    path: Option<&str>,
) -> PyResult<Bound<'py, PyDict>> {
    if threads == 0 {
        return Err(Error::argument("threads", "at least one is needed").into());
    }
    let tier = Tier::from_environment()?;
    let (bytes, limits) = released(py, |callbacks| {
        let file = path.map(|path| map(Path::new(path))).transpose()?;
        let buffers = Buffers::new(last_level_cache(), file)?;
        Ok((buffers.bytes(), measure(tier, threads, &buffers, seconds, &mut || callbacks.check_signals())?))
    })?;
    let out = PyDict::new(py);
    out.set_item("tier", tier.name())?;
    out.set_item("buffer_bytes", bytes)?;
    out.set_item("threads", limits.iter().map(|limits| entry(py, limits)).collect::<PyResult<Vec<_>>>()?)?;
    Ok(out)
}

fn entry<'py>(py: Python<'py>, limits: &Limits) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("threads", limits.threads)?;
    out.set_item("memory_bytes_per_second", limits.memory)?;
    out.set_item("mapped_bytes_per_second", limits.mapped)?;
    out.set_item("int8_operations_per_second", limits.int8)?;
    out.set_item("f32_operations_per_second", limits.f32)?;
    Ok(out)
}
