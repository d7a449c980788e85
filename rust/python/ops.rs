//! `edgewise.ops`: the bare operations on numpy arrays.
//!
//! What stands before a function here is its docstring in Python, and stands in `_native.pyi` too.
#![allow(clippy::doc_markdown, reason = "the functions' documentation is Python's")]

use pyo3::prelude::*;

use super::arrays::{FloatArray, byte_array, bytes, float_array, pair, real, size};
use super::errors::released;
use crate::error::{Error, try_zeros};
use crate::kernels::activations::QuantizedRows;
use crate::kernels::conv::{self, TAIL, TAPS};
use crate::kernels::delta_rule_arrays::{DeltaArrays, DeltaShape, gated_delta_rule_recurrent};
use crate::kernels::delta_rule_chunked::{CHUNK, gated_delta_rule_chunked};
use crate::kernels::linear::{Input, Product, Store, linear};
use crate::kernels::{Cpu, Tier, norm};
use crate::tensor::Bytes;
use crate::threads::available_threads;
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS, Format, Matrix};
use crate::weights::quantize::quantize_rows;

pub(super) type Argument<'a, 'py> = &'a Bound<'py, PyAny>;

pub(super) fn cpu(threads: Option<Argument<'_, '_>>) -> PyResult<Cpu> {
    let threads = match threads {
        Some(threads) => size("threads", threads)?,
        None => available_threads(),
    };
    if threads == 0 {
        return Err(Error::argument("threads", "at least one is needed").into());
    }
    Ok(Cpu::new(Tier::from_environment()?, threads))
}

pub(super) fn single_cpu() -> PyResult<Cpu> {
    Ok(Cpu::new(Tier::from_environment()?, 1))
}

fn quantize<'py>(py: Python<'py>, format: Format, weights: Argument<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    let weights = FloatArray::read("weights", weights, 2)?;
    let [rows, cols] = [weights.shape[0], weights.shape[1]];
    let nbytes = format.bytes(rows, cols).ok_or_else(|| Error::argument("weights", "is too large"))?;
    let blocks = released(py, |_| {
        let mut blocks = vec![0; nbytes];
        quantize_rows(format, &weights.data, rows, cols, &mut blocks)
            .map_err(|fault| Error::argument("weights", fault.to_string()))?;
        Ok(blocks)
    })?;
    let [panels, per_panel] = [rows.div_ceil(BLOCK_ROWS), cols.div_ceil(BLOCK_COLS)];
    byte_array(py, blocks, &[panels, per_panel, format.block_bytes()])
}

fn matrix(format: Format, blocks: Vec<u8>, rows: usize, cols: usize) -> PyResult<Matrix> {
    let given = blocks.len();
    let matrix = Matrix::new(format, rows, cols, Bytes::new(blocks)).map_err(|_| {
        let needed = format.bytes(rows, cols).map_or_else(|| "too many".to_owned(), |n| n.to_string());
        let reason = format!("{given} bytes; [{rows}, {cols}] in {} needs {needed}", format.name());
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
    blocks: Argument<'_, 'py>,
    shape: Argument<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let shape = pair("shape", shape)?;
    let matrix = matrix(format, bytes("blocks", blocks)?, shape[0], shape[1])?;
    let weights = released(py, |_| Ok(matrix.to_f32()))?;
    float_array(py, weights, &shape)
}

fn matmul<'py>(
    py: Python<'py>,
    format: Format,
    x: Argument<'_, 'py>,
    blocks: Argument<'_, 'py>,
    rows: Option<Argument<'_, 'py>>,
    threads: Option<Argument<'_, 'py>>,
) -> PyResult<Bound<'py, PyAny>> {
    let x = FloatArray::read("x", x, 2)?;
    let [tokens, cols] = [x.shape[0], x.shape[1]];
    if cols == 0 {
        return Err(Error::argument("x", "has no columns").into());
    }
    let blocks = bytes("blocks", blocks)?;
    let rows = match rows {
        Some(rows) => size("rows", rows)?,
        None => blocks.len() / (cols.div_ceil(BLOCK_COLS) * format.block_bytes()) * BLOCK_ROWS,
    };
    let weights = matrix(format, blocks, rows, cols)?;
    let cpu = cpu(threads)?;
    let out = released(py, |_| {
        let mut quantized = QuantizedRows::default();
        quantized.fill(&cpu, &x.data, cols);
        let mut out = try_zeros(tokens, rows)?;
        let input = Input { dense: &x.data, quantized: Some(&quantized), tokens };
        linear(&cpu, input, [Product { weights: &weights, out: &mut out, store: Store::Set }]);
        Ok(out)
    })?;
    float_array(py, out, &[tokens, rows])
}

/// Store a matrix in INT4 blocks: levels of 4 bits, with an f16 scale for every row and 32 columns.
///
/// Each group gets the scale that leaves the least squared error of those a search tries. A block is 16 rows
/// x 32 columns; missing rows and columns are filled up with zeros.
///
/// Args:
///     weights: float32 [rows, cols], finite.
///
/// Returns:
///     uint8 [ceil(rows / 16), ceil(cols / 32), 288]: panels of 16 rows, in each its blocks of 32 columns.
///
/// Raises:
///     TypeError: if `weights` is not an array of float32.
///     ValueError: if it has not two dimensions, or a number in it is not finite or too large for the format.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> weights = np.array([[0.5, -1.0, 0.25, 0.0]], np.float32)
/// >>> blocks = ops.quantize_int4(weights)
/// >>> blocks.shape
/// (1, 1, 288)
/// >>> ops.dequantize_int4(blocks, weights.shape)
/// array([[ 0.5 , -1.  ,  0.25,  0.  ]], dtype=float32)
#[pyfunction]
pub fn quantize_int4<'py>(py: Python<'py>, weights: Argument<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    quantize(py, Format::Int4, weights)
}

/// Return the numbers that INT4 blocks stand for.
///
/// Args:
///     blocks: as `quantize_int4` gives them.
///     shape: (rows, cols) of the matrix.
///
/// Returns:
///     float32 [rows, cols], exactly level times scale.
///
/// Raises:
///     TypeError: if `blocks` are neither an array of uint8 nor bytes.
///     ValueError: if `blocks` are not as many as `shape` needs, or a scale is not finite.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> ops.dequantize_int4(ops.quantize_int4(np.array([[-8.0, 3.0]], np.float32)), (1, 2))
/// array([[-8.,  3.]], dtype=float32)
#[pyfunction]
pub fn dequantize_int4<'py>(
    py: Python<'py>,
    blocks: Argument<'_, 'py>,
    shape: Argument<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    dequantize(py, Format::Int4, blocks, shape)
}

/// Multiply activations with a matrix in INT4 blocks, as the engine does: `x @ weights.T`.
///
/// Activations are first rounded to INT8, symmetric, with a scale for every row of `x` and 128 columns, of
/// which 32 that are small beside the others have a half, a quarter and so on of it for a step; products are
/// exact in whole numbers within 32 columns and summed in float32 over these. The result has the same bits
/// for any number of threads, and each of its rows whatever rows are computed beside it.
///
/// Args:
///     x: float32 [tokens, cols].
///     blocks: a matrix [rows, cols], as `quantize_int4` gives it.
///     rows: rows of that matrix; `None` for all that stand in the blocks, filled up to 16.
///     threads: how many to compute with; `None` for as many as suit this computer.
///
/// Returns:
///     float32 [tokens, rows].
///
/// Raises:
///     TypeError: if an argument has the wrong type.
///     ValueError: if shapes do not fit, or a scale in `blocks` is not finite.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> weights = np.array([[0.5, -1.0], [0.25, 2.0]], np.float32)
/// >>> x = np.array([[127.0, 2.0]], np.float32)
/// >>> ops.int4_matmul(x, ops.quantize_int4(weights), rows=2)
/// array([[61.5 , 35.75]], dtype=float32)
#[pyfunction]
#[pyo3(signature = (x, blocks, rows = None, threads = None))]
pub fn int4_matmul<'py>(
    py: Python<'py>,
    x: Argument<'_, 'py>,
    blocks: Argument<'_, 'py>,
    rows: Option<Argument<'_, 'py>>,
    threads: Option<Argument<'_, 'py>>,
) -> PyResult<Bound<'py, PyAny>> {
    matmul(py, Format::Int4, x, blocks, rows, threads)
}

/// Store a matrix in INT8 blocks: levels of 8 bits, with an f16 scale for every row and 32 columns.
///
/// Each group gets the scale that leaves the least squared error of those a search tries. A block is 16 rows
/// x 32 columns; missing rows and columns are filled up with zeros.
///
/// Args:
///     weights: float32 [rows, cols], finite.
///
/// Returns:
///     uint8 [ceil(rows / 16), ceil(cols / 32), 544]: panels of 16 rows, in each its blocks of 32 columns.
///
/// Raises:
///     TypeError: if `weights` is not an array of float32.
///     ValueError: if it has not two dimensions, or a number in it is not finite or too large for the format.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> weights = np.array([[127.0, -3.0, 0.0, 1.0]], np.float32)
/// >>> blocks = ops.quantize_int8(weights)
/// >>> blocks.shape
/// (1, 1, 544)
/// >>> ops.dequantize_int8(blocks, weights.shape)
/// array([[127.,  -3.,   0.,   1.]], dtype=float32)
#[pyfunction]
pub fn quantize_int8<'py>(py: Python<'py>, weights: Argument<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    quantize(py, Format::Int8, weights)
}

/// Return the numbers that INT8 blocks stand for.
///
/// Args:
///     blocks: as `quantize_int8` gives them.
///     shape: (rows, cols) of the matrix.
///
/// Returns:
///     float32 [rows, cols], exactly level times scale.
///
/// Raises:
///     TypeError: if `blocks` are neither an array of uint8 nor bytes.
///     ValueError: if `blocks` are not as many as `shape` needs, or a scale is not finite.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> ops.dequantize_int8(ops.quantize_int8(np.array([[127.0, -3.0]], np.float32)), (1, 2))
/// array([[127.,  -3.]], dtype=float32)
#[pyfunction]
pub fn dequantize_int8<'py>(
    py: Python<'py>,
    blocks: Argument<'_, 'py>,
    shape: Argument<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    dequantize(py, Format::Int8, blocks, shape)
}

/// Multiply activations with a matrix in INT8 blocks, as the engine does: `x @ weights.T`.
///
/// Activations are first rounded to INT8, symmetric, with a scale for every row of `x` and 128 columns, of
/// which 32 that are small beside the others have a half, a quarter and so on of it for a step; products are
/// exact in whole numbers within 32 columns and summed in float32 over these. The result has the same bits
/// for any number of threads, and each of its rows whatever rows are computed beside it.
///
/// Args:
///     x: float32 [tokens, cols].
///     blocks: a matrix [rows, cols], as `quantize_int8` gives it.
///     rows: rows of that matrix; `None` for all that stand in the blocks, filled up to 16.
///     threads: how many to compute with; `None` for as many as suit this computer.
///
/// Returns:
///     float32 [tokens, rows].
///
/// Raises:
///     TypeError: if an argument has the wrong type.
///     ValueError: if shapes do not fit, or a scale in `blocks` is not finite.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> weights = np.array([[0.5, -1.0], [0.25, 2.0]], np.float32)
/// >>> x = np.array([[127.0, 2.0]], np.float32)
/// >>> ops.int8_matmul(x, ops.quantize_int8(weights), rows=2).round(1)
/// array([[61.5, 35.7]], dtype=float32)
#[pyfunction]
#[pyo3(signature = (x, blocks, rows = None, threads = None))]
pub fn int8_matmul<'py>(
    py: Python<'py>,
    x: Argument<'_, 'py>,
    blocks: Argument<'_, 'py>,
    rows: Option<Argument<'_, 'py>>,
    threads: Option<Argument<'_, 'py>>,
) -> PyResult<Bound<'py, PyAny>> {
    matmul(py, Format::Int8, x, blocks, rows, threads)
}

/// Divide each row by its root mean square: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// The weight is multiplied as it stands; checkpoints of Qwen3.5 store most of theirs less 1.
///
/// Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization (arXiv 1910.07467).
///
/// Args:
///     x: float32 [rows, width].
///     weight: float32 [width].
///     eps: added to the mean square; finite and not negative.
///
/// Returns:
///     float32 [rows, width].
///
/// Raises:
///     TypeError: if an argument has the wrong type.
///     ValueError: if shapes do not fit, or `eps` is out of range.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> ops.rms_norm(np.array([[3.0, 4.0]], np.float32), np.array([1.0, 2.0], np.float32), eps=0.0).round(4)
/// array([[0.8485, 2.2627]], dtype=float32)
#[pyfunction]
#[pyo3(signature = (x, weight, eps = None), text_signature = "(x, weight, eps=1e-06)")]
pub fn rms_norm<'py>(
    py: Python<'py>,
    x: Argument<'_, 'py>,
    weight: Argument<'_, 'py>,
    eps: Option<Argument<'_, 'py>>,
) -> PyResult<Bound<'py, PyAny>> {
    let (x, weight) = (FloatArray::read("x", x, 2)?, FloatArray::read("weight", weight, 1)?);
    weight.expect("weight", &x.shape[1..])?;
    if x.shape[1] == 0 {
        return Err(Error::argument("x", "has no columns").into());
    }
    let eps = match eps {
        Some(eps) => real("eps", eps)?,
        None => 1e-6,
    };
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(Error::argument("eps", format!("must be finite and not negative, got {eps}")).into());
    }
    let cpu = single_cpu()?;
    let mut out = vec![0.0; x.data.len()];
    released(py, |_| {
        norm::rms_norm(&cpu, &x.data, &weight.data, eps, &mut out, None);
        Ok(())
    })?;
    float_array(py, out, &x.shape)
}

/// Convolve each channel with its own kernel of four taps over time, then apply SiLU.
///
/// `out[t, c] = silu(sum of x[t - 3 + i, c] * weight[c, i] for i in 0..4)`: causal, the last tap meets the
/// present. What came before `x` stands in `tail`, so that a text may be convolved in pieces with the same
/// result.
///
/// Source: the short convolution of Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464).
///
/// Args:
///     x: float32 [tokens, channels].
///     weight: float32 [channels, 4], the oldest input's tap first.
///     tail: float32 [3, channels], the three inputs before `x`, oldest first; `None` for zeros.
///
/// Returns:
///     float32 [tokens, channels], and the tail for what follows `x`.
///
/// Raises:
///     TypeError: if an argument has the wrong type.
///     ValueError: if shapes do not fit.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> x = np.array([[1.0], [2.0]], np.float32)
/// >>> out, tail = ops.short_conv(x, np.array([[0.0, 0.0, 10.0, 1.0]], np.float32))
/// >>> out.ravel().round(3)
/// array([ 0.731, 12.   ], dtype=float32)
/// >>> tail.ravel()
/// array([0., 1., 2.], dtype=float32)
#[pyfunction]
#[pyo3(signature = (x, weight, tail = None))]
pub fn short_conv<'py>(
    py: Python<'py>,
    x: Argument<'_, 'py>,
    weight: Argument<'_, 'py>,
    tail: Option<Argument<'_, 'py>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let (x, weight) = (FloatArray::read("x", x, 2)?, FloatArray::read("weight", weight, 2)?);
    let channels = x.shape[1];
    weight.expect("weight", &[channels, TAPS])?;
    if channels == 0 {
        return Err(Error::argument("x", "has no channels").into());
    }
    let mut tail_data = vec![0.0; TAIL * channels];
    if let Some(tail) = tail {
        let tail = FloatArray::read("tail", tail, 2)?;
        tail.expect("tail", &[TAIL, channels])?;
        tail_data = tail.data;
    }
    let taps = conv::taps_first(&weight.data, channels);
    let cpu = single_cpu()?;
    let mut out = vec![0.0; x.data.len()];
    released(py, |_| {
        conv::short_conv(&cpu, &x.data, &taps, &mut tail_data, &mut out);
        Ok(())
    })?;
    Ok((float_array(py, out, &x.shape)?, float_array(py, tail_data, &[TAIL, channels])?))
}

/// Run the gated delta rule over a text: a memory that forgets by `g` and learns by `beta`.
///
/// For each token, with the state S `[k_dim, v_dim]` of a head: `S *= exp(g)`;
/// `S += outer(k, beta * (v - S.T @ k))`; `out = S.T @ (q / sqrt(k_dim))`. Value head h reads
/// query and key head `h // (value_heads // key_heads)`.
///
/// Source: Yang et al. 2024, Gated Delta Networks (arXiv 2412.06464).
///
/// Args:
///     q: float32 [tokens, key_heads, k_dim].
///     k: float32 [tokens, key_heads, k_dim].
///     v: float32 [tokens, value_heads, v_dim].
///     g: float32 [tokens, value_heads], the log of the decay; not positive.
///     beta: float32 [tokens, value_heads].
///     state: float32 [value_heads, k_dim, v_dim] before the first token; `None` for zeros.
///     form: `recurrent`, token by token, or `chunked`, many tokens at once; the engine takes eight at once.
///     use_qk_l2norm: first divide each query and key by its length.
///     chunk_size: tokens of a chunk of the chunked form.
///     threads: how many to compute with; `None` for as many as suit this computer.
///
/// Returns:
///     float32 [tokens, value_heads, v_dim], and the state after the last token.
///
/// Raises:
///     TypeError: if an argument has the wrong type.
///     ValueError: if shapes do not fit, or `form` is not one of the two.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> q = k = np.ones((2, 1, 4), np.float32) / 2
/// >>> v = np.array([[[1.0]], [[3.0]]], np.float32)
/// >>> g, beta = np.zeros((2, 1), np.float32), np.ones((2, 1), np.float32)
/// >>> out, state = ops.gated_delta_rule(q, k, v, g, beta)
/// >>> out.ravel()
/// array([0.5, 1.5], dtype=float32)
/// >>> state.ravel()
/// array([1.5, 1.5, 1.5, 1.5], dtype=float32)
#[pyfunction]
#[pyo3(signature = (
    q, k, v, g, beta, state = None, *, form = "recurrent", use_qk_l2norm = false, chunk_size = None, threads = None
))]
pub fn gated_delta_rule<'py>(
    py: Python<'py>,
    q: Argument<'_, 'py>,
    k: Argument<'_, 'py>,
    v: Argument<'_, 'py>,
    g: Argument<'_, 'py>,
    beta: Argument<'_, 'py>,
    state: Option<Argument<'_, 'py>>,
    form: &str,
    use_qk_l2norm: bool,
    chunk_size: Option<Argument<'_, 'py>>,
    threads: Option<Argument<'_, 'py>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let (q, k) = (FloatArray::read("q", q, 3)?, FloatArray::read("k", k, 3)?);
    let v = FloatArray::read("v", v, 3)?;
    let (g, beta) = (FloatArray::read("g", g, 2)?, FloatArray::read("beta", beta, 2)?);
    let [tokens, key_heads, key_dim] = [q.shape[0], q.shape[1], q.shape[2]];
    let [value_heads, value_dim] = [v.shape[1], v.shape[2]];
    k.expect("k", &q.shape)?;
    v.expect("v", &[tokens, value_heads, value_dim])?;
    g.expect("g", &[tokens, value_heads])?;
    beta.expect("beta", &[tokens, value_heads])?;
    let state = state.map(|state| FloatArray::read("state", state, 3)).transpose()?;
    if let Some(state) = &state {
        state.expect("state", &[value_heads, key_dim, value_dim])?;
    }
    let chunk = chunk_size.map_or(Ok(CHUNK), |chunk| size("chunk_size", chunk))?;
    let shape = DeltaShape { tokens, key_heads, value_heads, key_dim, value_dim };
    let cpu = cpu(threads)?;
    let result = released(py, |_| {
        let arrays = DeltaArrays {
            shape,
            q: &q.data,
            k: &k.data,
            v: &v.data,
            g: &g.data,
            beta: &beta.data,
            state: state.as_ref().map(|state| &state.data[..]),
            scale: None,
            use_qk_l2norm,
        };
        match form {
            "recurrent" => gated_delta_rule_recurrent(&cpu, &arrays),
            "chunked" => gated_delta_rule_chunked(&cpu, &arrays, chunk),
            _ => Err(Error::argument("form", format!("'{form}' is neither recurrent nor chunked"))),
        }
    })?;
    let out = float_array(py, result.out, &[tokens, value_heads, value_dim])?;
    Ok((out, float_array(py, result.state, &[value_heads, key_dim, value_dim])?))
}
