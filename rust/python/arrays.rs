//! Numpy arrays and lists in, numpy arrays out.

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{Error, try_zeros};

/// Token ids: a list of integers or an array of uint32.
pub fn token_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Ok(array) = ids.extract::<PyReadonlyArray1<'_, u32>>() {
        return Ok(array.as_array().iter().copied().collect());
    }
    ids.extract::<Vec<u32>>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(ids.py()) {
            return PyValueError::new_err("ids: expected whole numbers from 0 to 4294967295");
        }
        if error.is_instance_of::<PyTypeError>(ids.py()) { mistyped("ids", "token ids", ids) } else { error }
    })
}

/// A whole number from 0, as an argument called `name`.
pub fn size(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    value.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            return PyValueError::new_err(format!("{name}: expected a whole number from 0, got {value}"));
        }
        mistyped(name, "a whole number", value)
    })
}

/// A number, as an argument called `name`.
pub fn real(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f32> {
    value.extract().map_err(|_| mistyped(name, "a number", value))
}

/// Two whole numbers from 0.
pub fn pair(name: &str, value: &Bound<'_, PyAny>) -> PyResult<[usize; 2]> {
    let numbers: Vec<Bound<'_, PyAny>> =
        value.extract().map_err(|_| mistyped(name, "two whole numbers", value))?;
    match numbers.as_slice() {
        [first, second] => Ok([size(name, first)?, size(name, second)?]),
        _ => Err(Error::argument(name, format!("expected two whole numbers, got {}", numbers.len())).into()),
    }
}

/// The argument called `name`: bytes, or an array of uint8 of any shape.
pub fn bytes(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    let array = value
        .extract::<PyReadonlyArrayDyn<'_, u8>>()
        .map_err(|_| mistyped(name, "an array of uint8 or bytes", value))?;
    Ok(array.as_array().iter().copied().collect())
}

fn mistyped(name: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let element = value.getattr("dtype").and_then(|dtype| dtype.str());
    let found = match (value.get_type().name(), element) {
        (Ok(kind), Ok(element)) => format!("{kind} of {element}"),
        (Ok(kind), Err(_)) => kind.to_string(),
        (Err(error), _) => return error,
    };
    PyTypeError::new_err(format!("{name}: expected {wanted}, got {found}"))
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
    pub fn read(name: &str, array: &Bound<'_, PyAny>, dimensions: usize) -> PyResult<Self> {
        let array = array
            .extract::<PyReadonlyArrayDyn<'_, f32>>()
            .map_err(|_| mistyped(name, "an array of float32", array))?;
        let shape = array.shape().to_vec();
        if shape.len() != dimensions {
            let reason = format!("has {} dimensions {shape:?}, it needs {dimensions}", shape.len());
            return Err(Error::argument(name, reason).into());
        }
        // The view's slice, which exists in row-major order only; the array's own exists in column-major order too.
        let view = array.as_array();
        let mut data = try_zeros(view.len(), 1)?;
        match view.as_slice() {
            Some(rows) => data.copy_from_slice(rows),
            None => data.iter_mut().zip(view).for_each(|(out, x)| *out = *x),
        }
        Ok(Self { data, shape })
    }

    /// Refuses a shape other than `expected`.
    pub fn expect(&self, name: &str, expected: &[usize]) -> PyResult<()> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::argument(name, format!("has shape {:?}, expected {expected:?}", self.shape)).into())
    }
}

/// An array of int64, int32 or uint32 with any number of dimensions.
pub struct IndexArray {
    /// Row-major elements.
    pub data: Vec<i64>,
    /// Dimensions.
    pub shape: Vec<usize>,
}

impl IndexArray {
    /// Reads the argument called `name`, which must have `dimensions` dimensions.
    pub fn read(name: &str, array: &Bound<'_, PyAny>, dimensions: usize) -> PyResult<Self> {
        let found = Self::elements::<i64>(array)
            .or_else(|| Self::elements::<i32>(array))
            .or_else(|| Self::elements::<u32>(array));
        let found = found.ok_or_else(|| mistyped(name, "an array of int64, int32 or uint32", array))?;
        if found.shape.len() != dimensions {
            let reason =
                format!("has {} dimensions {:?}, it needs {dimensions}", found.shape.len(), found.shape);
            return Err(Error::argument(name, reason).into());
        }
        Ok(found)
    }

    fn elements<T: numpy::Element + Copy + Into<i64>>(array: &Bound<'_, PyAny>) -> Option<Self> {
        let array = array.extract::<PyReadonlyArrayDyn<'_, T>>().ok()?;
        let data = array.as_array().iter().map(|&x| x.into()).collect();
        Some(Self { data, shape: array.shape().to_vec() })
    }
}

/// A uint8 array of `shape`.
pub fn byte_array<'py>(py: Python<'py>, data: Vec<u8>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyArray1::from_vec(py, data).reshape(shape.to_vec())?.into_any())
}

/// A float32 array of `shape`.
pub fn float_array<'py>(py: Python<'py>, data: Vec<f32>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyArray1::from_vec(py, data).reshape(shape.to_vec())?.into_any())
}

/// An int64 array of `shape`.
pub fn index_array<'py>(py: Python<'py>, data: Vec<i64>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyArray1::from_vec(py, data).reshape(shape.to_vec())?.into_any())
}
