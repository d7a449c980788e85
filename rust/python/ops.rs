//! `edgewise.ops`: the bare operations on numpy arrays.

use numpy::PyReadonlyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arrays::{FloatArray, float_array};
use super::errors::released;
use crate::error::Error;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::conv::{self, TAIL, TAPS};
use crate::kernels::delta_rule_arrays::{DeltaArrays, DeltaShape, gated_delta_rule_recurrent};
use crate::kernels::delta_rule_chunked::gated_delta_rule_chunked;
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

/// The gated delta rule in its recurrent or chunked form.
#[pyfunction]
#[pyo3(signature = (q, k, v, g, beta, state = None, *, form = "recurrent", use_qk_l2norm = false, chunk_size = 64, threads = None))]
pub fn gated_delta_rule<'py>(
    py: Python<'py>,
    q: Floats<'py>,
    k: Floats<'py>,
    v: Floats<'py>,
    g: Floats<'py>,
    beta: Floats<'py>,
    state: Option<Floats<'py>>,
    form: &str,
    use_qk_l2norm: bool,
    chunk_size: usize,
    threads: Option<usize>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let (q, k) = (FloatArray::read("q", &q, 3)?, FloatArray::read("k", &k, 3)?);
    let v = FloatArray::read("v", &v, 3)?;
    let (g, beta) = (FloatArray::read("g", &g, 2)?, FloatArray::read("beta", &beta, 2)?);
    let [tokens, key_heads, key_dim] = [q.shape[0], q.shape[1], q.shape[2]];
    let [value_heads, value_dim] = [v.shape[1], v.shape[2]];
    k.expect("k", &q.shape)?;
    v.expect("v", &[tokens, value_heads, value_dim])?;
    g.expect("g", &[tokens, value_heads])?;
    beta.expect("beta", &[tokens, value_heads])?;
    let state = state.map(|state| FloatArray::read("state", &state, 3)).transpose()?;
    if let Some(state) = &state {
        state.expect("state", &[value_heads, key_dim, value_dim])?;
    }
    let shape = DeltaShape { tokens, key_heads, value_heads, key_dim, value_dim };
    let cpu = cpu(threads)?;
    let result = released(py, |_| {
        let state = state.as_ref().map(|state| &state.data[..]);
        let arrays = DeltaArrays {
            shape,
            q: &q.data,
            k: &k.data,
            v: &v.data,
            g: &g.data,
            beta: &beta.data,
            state,
            scale: None,
            use_qk_l2norm,
        };
        match form {
            "recurrent" => gated_delta_rule_recurrent(&cpu, &arrays),
            "chunked" => gated_delta_rule_chunked(&cpu, &arrays, chunk_size),
            _ => Err(Error::argument("form", format!("'{form}' is neither recurrent nor chunked"))),
        }
    })?;
    let out = float_array(py, result.out, &[tokens, value_heads, value_dim])?;
    Ok((out, float_array(py, result.state, &[value_heads, key_dim, value_dim])?))
}
