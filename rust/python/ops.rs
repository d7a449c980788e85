//! `edgewise.ops`: the bare operations on numpy arrays.

use numpy::PyReadonlyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arrays::{FloatArray, float_array};
use super::errors::released;
use crate::error::Error;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::conv::{self, TAIL, TAPS};
use crate::kernels::linear::{Input, Product, Store, linear};
use crate::kernels::{Cpu, Tier, norm};
use crate::tensor::Bytes;
use crate::threads::available_threads;
use crate::weights::matrix::{Format, Matrix};
use crate::weights::quantize::quantize_rows;

type Floats<'py> = PyReadonlyArrayDyn<'py, f32>;

fn cpu(threads: Option<usize>) -> PyResult<Cpu> {
    if threads == Some(0) {
        return Err(Error::argument("threads", "at least one is needed").into());
    }
    Ok(Cpu::new(Tier::from_environment()?, threads.unwrap_or_else(available_threads)))
}

fn quantize<'py>(py: Python<'py>, format: Format, weights: &Floats<'py>) -> PyResult<Bound<'py, PyBytes>> {
    let weights = FloatArray::read("weights", weights, 2)?;
    let [rows, cols] = [weights.shape[0], weights.shape[1]];
    let bytes = format.bytes(rows, cols).ok_or_else(|| Error::argument("weights", "is too large"))?;
    let blocks = released(py, |_| {
        let mut blocks = vec![0; bytes];
        quantize_rows(format, &weights.data, rows, cols, &mut blocks)
            .map_err(|fault| Error::argument("weights", fault.to_string()))?;
        Ok(blocks)
    })?;
    Ok(PyBytes::new(py, &blocks))
}

fn matrix(format: Format, blocks: &[u8], rows: usize, cols: usize) -> PyResult<Matrix> {
    let matrix = Matrix::new(format, rows, cols, Bytes::new(blocks.to_vec())).map_err(|_| {
        let needed = format.bytes(rows, cols).map_or_else(|| "too many".to_owned(), |n| n.to_string());
        let reason = format!("{} bytes; [{rows}, {cols}] in {} needs {needed}", blocks.len(), format.name());
        Error::argument("blocks", reason)
    })?;
    if !matrix.is_finite() {
        return Err(Error::argument("blocks", "a scale is NaN or infinite").into());
    }
    Ok(matrix)
}

fn dequantize<'py>(
    py: Python<'py>,
    format: Format,
    blocks: &[u8],
    shape: (usize, usize),
) -> PyResult<Bound<'py, PyAny>> {
    let matrix = matrix(format, blocks, shape.0, shape.1)?;
    let weights = released(py, |_| Ok(matrix.to_f32()))?;
    float_array(py, weights, &[shape.0, shape.1])
}

fn matmul<'py>(
    py: Python<'py>,
    format: Format,
    x: &Floats<'py>,
    blocks: &[u8],
    rows: usize,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let x = FloatArray::read("x", x, 2)?;
    let [tokens, cols] = [x.shape[0], x.shape[1]];
    if cols == 0 {
        return Err(Error::argument("x", "has no columns").into());
    }
    let weights = matrix(format, blocks, rows, cols)?;
    let cpu = cpu(threads)?;
    let out = released(py, |_| {
        let mut quantized = QuantizedRows::default();
        quantized.fill(&cpu, &x.data, cols);
        let mut out = vec![0.0; tokens * rows];
        let input = Input { dense: &x.data, quantized: Some(&quantized), tokens };
        linear(&cpu, input, [Product { weights: &weights, out: &mut out, store: Store::Set }]);
        Ok(out)
    })?;
    float_array(py, out, &[tokens, rows])
}

/// Quantises `weights` `[N, K]` to INT4 blocks.
#[pyfunction]
pub fn quantize_int4<'py>(py: Python<'py>, weights: Floats<'py>) -> PyResult<Bound<'py, PyBytes>> {
    quantize(py, Format::Int4, &weights)
}

/// Quantises `weights` `[N, K]` to INT8 blocks.
#[pyfunction]
pub fn quantize_int8<'py>(py: Python<'py>, weights: Floats<'py>) -> PyResult<Bound<'py, PyBytes>> {
    quantize(py, Format::Int8, &weights)
}

/// The numbers that INT4 blocks stand for.
#[pyfunction]
pub fn dequantize_int4<'py>(
    py: Python<'py>,
    blocks: &[u8],
    shape: (usize, usize),
) -> PyResult<Bound<'py, PyAny>> {
    dequantize(py, Format::Int4, blocks, shape)
}

/// The numbers that INT8 blocks stand for.
#[pyfunction]
pub fn dequantize_int8<'py>(
    py: Python<'py>,
    blocks: &[u8],
    shape: (usize, usize),
) -> PyResult<Bound<'py, PyAny>> {
    dequantize(py, Format::Int8, blocks, shape)
}

/// x `[tokens, K]` times INT4 weights `[rows, K]`.
#[pyfunction]
#[pyo3(signature = (x, blocks, rows, threads = None))]
pub fn int4_matmul<'py>(
    py: Python<'py>,
    x: Floats<'py>,
    blocks: &[u8],
    rows: usize,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    matmul(py, Format::Int4, &x, blocks, rows, threads)
}

/// x `[tokens, K]` times INT8 weights `[rows, K]`.
#[pyfunction]
#[pyo3(signature = (x, blocks, rows, threads = None))]
pub fn int8_matmul<'py>(
    py: Python<'py>,
    x: Floats<'py>,
    blocks: &[u8],
    rows: usize,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    matmul(py, Format::Int8, &x, blocks, rows, threads)
}

/// RMSNorm of `x` `[rows, width]`.
#[pyfunction]
#[pyo3(signature = (x, weight, eps = 1e-6))]
pub fn rms_norm<'py>(
    py: Python<'py>,
    x: Floats<'py>,
    weight: Floats<'py>,
    eps: f32,
) -> PyResult<Bound<'py, PyAny>> {
    let (x, weight) = (FloatArray::read("x", &x, 2)?, FloatArray::read("weight", &weight, 1)?);
    weight.expect("weight", &x.shape[1..])?;
    if x.shape[1] == 0 {
        return Err(Error::argument("x", "has no columns").into());
    }
    let cpu = cpu(Some(1))?;
    let mut out = vec![0.0; x.data.len()];
    py.detach(|| norm::rms_norm(&cpu, &x.data, &weight.data, eps, &mut out));
    float_array(py, out, &x.shape)
}

/// The short convolution with SiLU of `x` `[tokens, channels]`; returns the output and the tail for the next call.
#[pyfunction]
#[pyo3(signature = (x, weight, tail = None))]
pub fn short_conv<'py>(
    py: Python<'py>,
    x: Floats<'py>,
    weight: Floats<'py>,
    tail: Option<Floats<'py>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let (x, weight) = (FloatArray::read("x", &x, 2)?, FloatArray::read("weight", &weight, 2)?);
    let channels = x.shape[1];
    weight.expect("weight", &[channels, TAPS])?;
    if channels == 0 {
        return Err(Error::argument("x", "has no channels").into());
    }
    let mut tail_data = vec![0.0; TAIL * channels];
    if let Some(tail) = tail {
        let tail = FloatArray::read("tail", &tail, 2)?;
        tail.expect("tail", &[TAIL, channels])?;
        tail_data = tail.data;
    }
    let taps: Vec<f32> =
        (0..TAPS * channels).map(|i| weight.data[i % channels * TAPS + i / channels]).collect();
    let cpu = cpu(Some(1))?;
    let mut out = vec![0.0; x.data.len()];
    py.detach(|| conv::short_conv(&cpu, &x.data, &taps, &mut tail_data, &mut out));
    Ok((float_array(py, out, &x.shape)?, float_array(py, tail_data, &[TAIL, channels])?))
}
