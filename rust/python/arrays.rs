//! Numpy arrays and lists in, numpy arrays out.

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Error;

/// Token ids: a list of integers or an array of uint32.
pub fn token_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Ok(array) = ids.extract::<PyReadonlyArray1<'_, u32>>() {
        return Ok(array.as_array().iter().copied().collect());
    }
    ids.extract::<Vec<u32>>()
        .map_err(|error| Error::argument("ids", format!("they are not token ids: {error}")).into())
}

/// A float32 array of any number of dimensions, copied if it is not contiguous.
pub struct FloatArray {
    /// Row-major elements.
    pub data: Vec<f32>,
    /// Dimensions.
    pub shape: Vec<usize>,
}

impl FloatArray {
    /// Reads the argument called `name`, which must have `dimensions` dimensions.
    pub fn read(name: &str, array: &PyReadonlyArrayDyn<'_, f32>, dimensions: usize) -> PyResult<Self> {
        let shape = array.shape().to_vec();
        if shape.len() != dimensions {
            let reason = format!("has {} dimensions {shape:?}, it needs {dimensions}", shape.len());
            return Err(Error::argument(name, reason).into());
        }
        Ok(Self { data: array.as_array().iter().copied().collect(), shape })
    }

    /// Refuses a shape other than `expected`.
    pub fn expect(&self, name: &str, expected: &[usize]) -> PyResult<()> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::argument(name, format!("has shape {:?}, expected {expected:?}", self.shape)).into())
    }
}

/// A float32 array of `shape`.
pub fn float_array<'py>(py: Python<'py>, data: Vec<f32>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyArray1::from_vec(py, data).reshape(shape.to_vec())?.into_any())
}
