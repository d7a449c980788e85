//! `edgewise.ops`: routing tokens to experts, and the feed-forward network of experts, on numpy arrays.
//!
//! What stands before a function here is its docstring in Python, and stands in `_native.pyi` too.
#![allow(clippy::doc_markdown, reason = "the functions' documentation is Python's")]

use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arrays::{FloatArray, IndexArray, bytes, float_array, index_array, size};
use super::errors::released;
use super::ops::{Argument, cpu, single_cpu};
use crate::error::{Error, try_zeros};
use crate::kernels::activations::QuantizedRows;
use crate::kernels::experts::{ExpertScratch, Experts, expert_feed_forward};
use crate::kernels::linear::{Input, Store};
use crate::kernels::routing::{self, Routes};
use crate::tensor::Bytes;
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS, Format, Matrix};
use crate::weights::model::SwiGluWeights;

/// Choose the experts each token goes to: the `k` largest of softmax(logits).
///
/// Of experts with equal logits the first ones are taken.
///
/// Source: the router of Qwen3-Next and Qwen3.5 in Hugging Face transformers.
///
/// Args:
///     logits: float32 [tokens, experts], finite.
///     k: experts of a token.
///     renormalise: divide the weights of each token by their sum.
///
/// Returns:
///     int64 [tokens, k], the experts by falling weight; and float32 [tokens, k], their weights.
///
/// Raises:
///     TypeError: if an argument has the wrong type.
///     ValueError: if `logits` has not two dimensions or a number in it is not finite, or there are no `k`
///         experts.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> experts, weights = ops.route_top_k(np.array([[0.1, 2.0, 0.5, 1.0]], np.float32), 2)
/// >>> experts
/// array([[1, 3]])
/// >>> weights.round(3)
/// array([[0.731, 0.269]], dtype=float32)
#[pyfunction]
#[pyo3(signature = (logits, k, *, renormalise = true))]
pub fn route_top_k<'py>(
    py: Python<'py>,
    logits: Argument<'_, 'py>,
    k: Argument<'_, 'py>,
    renormalise: bool,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let logits = FloatArray::read("logits", logits, 2)?;
    let [tokens, experts] = [logits.shape[0], logits.shape[1]];
    let k = size("k", k)?;
    if !(1..=experts).contains(&k) {
        return Err(Error::argument("k", format!("{k} of {experts} experts")).into());
    }
    if let Some(at) = logits.data.iter().position(|x| !x.is_finite()) {
        let (x, token, expert) = (logits.data[at], at / experts, at % experts);
        let reason = format!("{x} for token {token} and expert {expert} is not finite");
        return Err(Error::argument("logits", reason).into());
    }
    let cpu = single_cpu()?;
    let mut routes = Routes::default();
    released(py, |_| {
        routing::route_top_k(&cpu, &logits.data, experts, k, renormalise, &mut routes);
        Ok(())
    })?;
    let chosen = routes.experts().iter().map(|&expert| i64::from(expert)).collect();
    let weights = routes.weights().to_vec();
    Ok((index_array(py, chosen, &[tokens, k])?, float_array(py, weights, &[tokens, k])?))
}

/// Run a feed-forward network of experts, as the engine does, each token through its own few.
///
/// `out[t] = sum of weights[t, i] * (silu(x[t] @ gate[e].T) * (x[t] @ up[e].T)) @ down[e].T` over the experts
/// `e = experts[t, i]` of the token, added in rising order of `e`. Where matrices are blocks, what they are
/// multiplied with is first rounded to INT8, as `int4_matmul` says. The result has the same bits for any
/// number of threads, and each of its rows whatever rows are computed beside it.
///
/// Checkpoints store gate and up as one array `gate_up` [experts, 2 * width, hidden]: pass
/// `gate_up[:, :width]` and `gate_up[:, width:]`. A shared expert is one more expert, whose weight is the
/// sigmoid of its own gate, for every token.
///
/// Source: the sparse block of Qwen3-Next and Qwen3.5 in Hugging Face transformers.
///
/// Args:
///     x: float32 [tokens, hidden].
///     gate: float32 [experts, width, hidden], or INT4 or INT8 blocks, uint8
///         [experts, ceil(width / 16), ceil(hidden / 32), 288 or 544]: for each expert what `quantize_int4`
///         or `quantize_int8` gives.
///     up: the same.
///     down: float32 [experts, hidden, width], or blocks of it.
///     experts: integers [tokens, k], such as `route_top_k` gives.
///     weights: float32 [tokens, k].
///     threads: how many to compute with; `None` for as many as suit this computer.
///
/// Returns:
///     float32 [tokens, hidden].
///
/// Raises:
///     TypeError: if an argument has the wrong type.
///     ValueError: if shapes do not fit, a scale in blocks is not finite, or there is no such expert.
///
/// >>> import numpy as np
/// >>> from edgewise import ops
/// >>> gate = np.array([[[100.0, 0.0]], [[0.0, 50.0]]], np.float32)  # two experts of one channel
/// >>> up = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
/// >>> down = np.array([[[1.0], [0.0]], [[0.0], [1.0]]], np.float32)
/// >>> x = np.array([[1.0, 2.0]], np.float32)
/// >>> ops.moe_feed_forward(x, gate, up, down, np.array([[1, 0]]), np.array([[0.75, 0.25]], np.float32))
/// array([[ 25., 150.]], dtype=float32)
#[pyfunction]
#[pyo3(signature = (x, gate, up, down, experts, weights, threads = None))]
pub fn moe_feed_forward<'py>(
    py: Python<'py>,
    x: Argument<'_, 'py>,
    gate: Argument<'_, 'py>,
    up: Argument<'_, 'py>,
    down: Argument<'_, 'py>,
    experts: Argument<'_, 'py>,
    weights: Argument<'_, 'py>,
    threads: Option<Argument<'_, 'py>>,
) -> PyResult<Bound<'py, PyAny>> {
    let x = FloatArray::read("x", x, 2)?;
    let [tokens, hidden] = [x.shape[0], x.shape[1]];
    if hidden == 0 {
        return Err(Error::argument("x", "has no columns").into());
    }
    let stacks = [Stack::read("gate", gate)?, Stack::read("up", up)?, Stack::read("down", down)?];
    let experts = IndexArray::read("experts", experts, 2)?;
    let weights = FloatArray::read("weights", weights, 2)?;
    weights.expect("weights", &experts.shape)?;
    let per_token = experts.shape[1];
    if experts.shape[0] != tokens {
        let reason = format!("has shape {:?}, expected a row for each of {tokens} tokens", experts.shape);
        return Err(Error::argument("experts", reason).into());
    }
    let layer = layer(&stacks, hidden)?;
    let chosen = chosen(&experts.data, layer.len())?;
    let cpu = cpu(threads)?;
    let out = released(py, |_| {
        let mut quantized = QuantizedRows::default();
        if stacks.iter().any(|stack| stack.format.is_quantized()) {
            quantized.fill(&cpu, &x.data, hidden);
        }
        let mut out = try_zeros(tokens, hidden)?;
        let input = Input { dense: &x.data, quantized: Some(&quantized), tokens };
        let routes = Routes::new(chosen, weights.data, per_token);
        let experts = Experts { routed: &layer, shared: None };
        let scratch = &mut ExpertScratch::default();
        expert_feed_forward(&cpu, experts, input, &routes, scratch, &mut out, Store::Set);
        Ok(out)
    })?;
    float_array(py, out, &[tokens, hidden])
}

/// Expert ids as the kernel takes them.
fn chosen(ids: &[i64], experts: usize) -> PyResult<Vec<u32>> {
    let known = |&id: &i64| u32::try_from(id).ok().filter(|&id| (id as usize) < experts).ok_or(id);
    ids.iter()
        .map(known)
        .collect::<Result<_, i64>>()
        .map_err(|id| Error::argument("experts", format!("{id} is none of the {experts} experts")).into())
}

/// One projection of all experts.
struct Stack {
    name: &'static str,
    format: Format,
    /// `[experts, rows, cols]`, or `[experts, panels, blocks, bytes]` of a block format
    shape: Vec<usize>,
    data: Bytes,
}

impl Stack {
    fn read(name: &'static str, value: Argument<'_, '_>) -> PyResult<Self> {
        let Ok(blocks) = value.extract::<PyReadonlyArrayDyn<'_, u8>>() else {
            let floats = FloatArray::read(name, value, 3)?;
            let data: Vec<u8> = floats.data.iter().flat_map(|x| x.to_le_bytes()).collect();
            return Ok(Self { name, format: Format::F32, shape: floats.shape, data: Bytes::new(data) });
        };
        let shape = blocks.shape().to_vec();
        let is_block = |format: &Format| shape.len() == 4 && shape[3] == format.block_bytes();
        let Some(format) = [Format::Int4, Format::Int8].into_iter().find(is_block) else {
            let reason = format!("has shape {shape:?}, expected [experts, panels, blocks, 288 or 544]");
            return Err(Error::argument(name, reason).into());
        };
        Ok(Self { name, format, shape, data: Bytes::new(bytes(name, value)?) })
    }

    /// The matrices `[rows, cols]` of `experts` experts.
    fn matrices(&self, experts: usize, rows: usize, cols: usize) -> PyResult<Vec<Matrix>> {
        let expected = if self.format.is_quantized() {
            let (panels, blocks) = (rows.div_ceil(BLOCK_ROWS), cols.div_ceil(BLOCK_COLS));
            vec![experts, panels, blocks, self.format.block_bytes()]
        } else {
            vec![experts, rows, cols]
        };
        if self.shape != expected {
            let reason = format!("has shape {:?}, expected {expected:?}", self.shape);
            return Err(Error::argument(self.name, reason).into());
        }
        let bytes = self.data.len() / experts.max(1);
        let matrix = |expert: usize| {
            let data = self.data.slice(expert * bytes..(expert + 1) * bytes);
            let data = data.ok_or_else(|| Error::argument(self.name, "is too short"))?;
            let matrix = Matrix::new(self.format, rows, cols, data)?;
            if self.format.is_quantized() && !matrix.is_finite() {
                let reason = format!("a scale of expert {expert} is NaN or infinite");
                return Err(Error::argument(self.name, reason));
            }
            Ok(matrix)
        };
        Ok((0..experts).map(matrix).collect::<Result<_, Error>>()?)
    }
}

/// The experts of gate, up and down projections. Their width is that of an array of numbers; blocks alone do not tell
/// which rows fill up the last panel, and then all count, which makes no difference: they are zeros.
fn layer(stacks: &[Stack; 3], hidden: usize) -> PyResult<Vec<SwiGluWeights>> {
    let [gate, up, down] = stacks;
    let experts = gate.shape[0];
    let numbers = |stack: &Stack, axis: usize| (!stack.format.is_quantized()).then(|| stack.shape[axis]);
    let width = numbers(gate, 1).or(numbers(up, 1)).or(numbers(down, 2));
    let width = width.unwrap_or(gate.shape[1] * BLOCK_ROWS);
    let gate = gate.matrices(experts, width, hidden)?;
    let up = up.matrices(experts, width, hidden)?;
    let down = down.matrices(experts, hidden, width)?;
    let all = gate.into_iter().zip(up).zip(down);
    Ok(all.map(|((gate, up), down)| SwiGluWeights { gate, up, down }).collect())
}
