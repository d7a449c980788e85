//! The engine and what it tells about itself.

use std::path::Path;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::arrays::{FloatArray, float_array, pair, token_ids};
use super::errors::released;
use super::sequence::PySequence;
use super::vision::{PyVisualFeatures, spans};
use crate::checkpoint::Checkpoint;
use crate::config::{DeltaConfig, ModelConfig};
use crate::error::{Error, try_zeros};
use crate::kernels::conv::TAIL;
use crate::kernels::delta_rule_arrays::{DeltaShape, unpack_state};
use crate::kernels::{Cpu, Tier};
use crate::model::open::{Options, open};
use crate::model::vision::{Features, VisionStage};
use crate::model::{Engine, LayerState, Stage};
use crate::threads::available_threads;
use crate::weights::matrix::{Format, Matrix};

/// A model ready to compute.
#[pyclass(name = "Engine", module = "edgewise._native", frozen)]
pub struct PyEngine {
    engine: Arc<Engine>,
    checkpoint: Checkpoint,
    config: ModelConfig,
    config_json: String,
}

fn cpu(threads: Option<usize>) -> PyResult<Cpu> {
    if threads == Some(0) {
        return Err(Error::argument("threads", "at least one is needed").into());
    }
    Ok(Cpu::new(Tier::from_environment()?, threads.unwrap_or_else(available_threads)))
}

#[pymethods]
impl PyEngine {
    #[staticmethod]
    #[pyo3(signature = (path, dtype = "auto", kv_dtype = "auto", recipe = None, threads = None, progress = None))]
    fn open(
        py: Python<'_>,
        path: &str,
        dtype: &str,
        kv_dtype: &str,
        recipe: Option<&str>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let options = Options::parse(dtype, kv_dtype, recipe)?;
        let cpu = cpu(threads)?;
        let opened = released(py, |callbacks| {
            let mut report =
                |done, total, name: &str| callbacks.progress(progress.as_ref(), done, total, name);
            open(Path::new(path), &options, cpu, &mut report)
        })?;
        let json = opened.checkpoint.side_file("config.json")?.unwrap_or_default();
        Ok(Self {
            engine: Arc::new(opened.engine),
            checkpoint: opened.checkpoint,
            config: opened.config,
            config_json: String::from_utf8_lossy(&json).into_owned(),
        })
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.config.text.vocab_size
    }

    #[getter]
    fn context_length(&self) -> usize {
        self.config.text.max_position_embeddings
    }

    #[getter]
    fn threads(&self) -> usize {
        self.engine.cpu.pool.threads()
    }

    #[getter]
    fn config(&self) -> &str {
        &self.config_json
    }

    fn side_file<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        Ok(self.checkpoint.side_file(name)?.map(|bytes| PyBytes::new(py, &bytes)))
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        let formats = PyDict::new(py);
        let mut total = Totals::default();
        for (name, tally) in self.formats(&mut total) {
            let entry = PyDict::new(py);
            entry.set_item("tensors", tally.tensors)?;
            entry.set_item("bytes", tally.bytes)?;
            formats.set_item(name, entry)?;
        }
        let empty = self.engine.state();
        let kv: usize = empty.layers().iter().map(kv_bytes_per_token).sum();
        out.set_item("model_type", &self.config.model_type)?;
        out.set_item("parameters", total.parameters)?;
        out.set_item("formats", formats)?;
        out.set_item("weight_bytes", total.bytes)?;
        out.set_item("file_bytes", self.checkpoint.nbytes())?;
        out.set_item("state_bytes", empty.nbytes())?;
        out.set_item("kv_bytes_per_token", kv)?;
        out.set_item("kv_dtype", self.engine.kv_type().name())?;
        out.set_item("context_length", self.context_length())?;
        out.set_item("threads", self.threads())?;
        out.set_item("tier", self.engine.cpu.tier.name())?;
        Ok(out)
    }

    #[pyo3(signature = (ids, media = None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        media: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (ids, spans) = (token_ids(ids)?, spans(&self.engine, media)?);
        let logits = released(py, |callbacks| {
            let prompt = self.engine.prompt(&ids, &spans)?;
            self.engine.all_logits(prompt, &mut || callbacks.check_signals())
        })?;
        float_array(py, logits, &[ids.len(), self.vocab_size()])
    }

    #[pyo3(signature = (ids, media = None))]
    fn trace<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        media: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (ids, spans) = (token_ids(ids)?, spans(&self.engine, media)?);
        let mut stages: Vec<Vec<f32>> = vec![Vec::new(); 1 + self.config.text.layers.len()];
        let width = self.config.text.hidden_size;
        let trace = released(py, |callbacks| {
            for rows in &mut stages {
                *rows = try_zeros(ids.len(), width)?;
                rows.clear();
            }
            let mut watch = |stage, rows: &[f32]| {
                let index = match stage {
                    Stage::Embedding => 0,
                    Stage::Layer(i) => i + 1,
                };
                stages[index].extend_from_slice(rows);
            };
            let prompt = self.engine.prompt(&ids, &spans)?;
            self.engine.trace(prompt, &mut || callbacks.check_signals(), &mut watch)
        })?;
        let out = PyDict::new(py);
        let hidden = [ids.len(), self.config.text.hidden_size];
        for (i, rows) in stages.into_iter().enumerate() {
            let name = if i == 0 { "embed".to_owned() } else { format!("layer{}.hidden", i - 1) };
            out.set_item(name, float_array(py, rows, &hidden)?)?;
        }
        out.set_item("final_norm", float_array(py, trace.final_norm, &hidden)?)?;
        out.set_item("logits", float_array(py, trace.logits, &[ids.len(), self.vocab_size()])?)?;
        for (i, layer) in trace.state.layers().iter().enumerate() {
            self.set_layer_state(&out, i, layer)?;
        }
        Ok(out)
    }

    fn sequence(&self) -> PySequence {
        PySequence::new(Arc::clone(&self.engine))
    }

    /// Shapes and placeholder tokens of the vision tower, `None` for a model of text alone.
    #[getter]
    fn vision<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(tower) = &self.engine.model.vision else { return Ok(None) };
        let (config, tokens) = (&tower.config, &tower.tokens);
        let out = PyDict::new(py);
        out.set_item("depth", config.depth)?;
        out.set_item("hidden_size", config.hidden_size)?;
        out.set_item("patch_size", config.patch_size)?;
        out.set_item("temporal_patch_size", config.temporal_patch_size)?;
        out.set_item("merge_size", config.merge_size)?;
        out.set_item("in_channels", config.in_channels)?;
        out.set_item("image_token_id", tokens.image)?;
        out.set_item("video_token_id", tokens.video)?;
        out.set_item("vision_start_token_id", tokens.vision_start)?;
        out.set_item("vision_end_token_id", tokens.vision_end)?;
        Ok(Some(out))
    }

    #[pyo3(signature = (pixel_values, grid_hw, progress = None))]
    fn encode(
        &self,
        py: Python<'_>,
        pixel_values: &Bound<'_, PyAny>,
        grid_hw: &Bound<'_, PyAny>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<PyVisualFeatures> {
        let features = self.encoded(py, pixel_values, grid_hw, progress, &mut |_, _| {})?;
        Ok(PyVisualFeatures::new(Arc::clone(&self.engine), features))
    }

    fn trace_vision<'py>(
        &self,
        py: Python<'py>,
        pixel_values: &Bound<'py, PyAny>,
        grid_hw: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let mut stages = Vec::new();
        let mut watch = |stage, rows: &[f32]| stages.push((stage, rows.to_vec()));
        let features = self.encoded(py, pixel_values, grid_hw, None, &mut watch)?;
        let out = PyDict::new(py);
        let set = |name: String, rows: Vec<f32>, count: usize| {
            let shape = [count, rows.len() / count];
            out.set_item(name, float_array(py, rows, &shape)?)
        };
        for (stage, rows) in stages {
            let name = match stage {
                VisionStage::PatchEmbedding => "patch_embed".to_owned(),
                VisionStage::BlockInput => "block_input".to_owned(),
                VisionStage::Block(i) => format!("block{i}"),
            };
            set(name, rows, features.grid.patches())?;
        }
        let tokens = features.tokens();
        for (j, rows) in features.deepstack.into_iter().enumerate() {
            set(format!("deepstack{j}"), rows, tokens)?;
        }
        set("merged".to_owned(), features.embeddings, tokens)?;
        Ok(out)
    }
}

#[derive(Default)]
struct Totals {
    parameters: usize,
    bytes: usize,
}

#[derive(Default)]
struct Tally {
    tensors: usize,
    bytes: usize,
}

impl PyEngine {
    fn encoded(
        &self,
        py: Python<'_>,
        pixel_values: &Bound<'_, PyAny>,
        grid_hw: &Bound<'_, PyAny>,
        progress: Option<Py<PyAny>>,
        watch: &mut (dyn FnMut(VisionStage, &[f32]) + Send),
    ) -> PyResult<Features> {
        let tower = self.engine.vision()?;
        let grid = pair("grid_hw", grid_hw)?;
        let pixels = FloatArray::read("pixel_values", pixel_values, 2)?;
        let patches = grid[0].saturating_mul(grid[1]);
        pixels.expect("pixel_values", &[patches, tower.config.patch_values()])?;
        let blocks = tower.config.depth as u64;
        released(py, |callbacks| {
            let mut proceed =
                |done: usize| callbacks.progress(progress.as_ref(), done as u64, blocks, "vision");
            self.engine.encode(&pixels.data, grid, &mut proceed, watch)
        })
    }

    /// Tensors and bytes of each format in use, vectors counted as f32.
    fn formats(&self, total: &mut Totals) -> Vec<(&'static str, Tally)> {
        let mut found: Vec<(&'static str, Tally)> = Vec::new();
        let mut add = |format: Format, elements: usize, bytes: usize| {
            total.parameters += elements;
            total.bytes += bytes;
            let name = format.name();
            let at = found.iter().position(|(found, _)| *found == name).unwrap_or_else(|| {
                found.push((name, Tally::default()));
                found.len() - 1
            });
            found[at].1.tensors += 1;
            found[at].1.bytes += bytes;
        };
        let size = |matrix: &Matrix| (matrix.format(), matrix.rows() * matrix.cols(), matrix.bytes().len());
        let model = &self.engine.model;
        let mut sizes = Vec::new();
        model.weights.each_matrix(&mut |_, matrix| sizes.push(size(matrix)));
        model.weights.each_vector(&mut |_, vector| sizes.push((Format::F32, vector.len(), 4 * vector.len())));
        if let Some(vision) = &model.vision {
            vision.weights.each_matrix(&mut |_, matrix| sizes.push(size(matrix)));
            vision
                .weights
                .each_vector(&mut |_, vector| sizes.push((Format::F32, vector.len(), 4 * vector.len())));
        }
        for (format, elements, bytes) in sizes {
            add(format, elements, bytes);
        }
        found
    }

    /// Adds the arrays of one layer's state to a trace.
    fn set_layer_state(&self, out: &Bound<'_, PyDict>, index: usize, layer: &LayerState) -> PyResult<()> {
        let (py, config) = (out.py(), &self.config.text);
        match layer {
            LayerState::GatedDelta(state) => {
                let delta = config.delta_shapes();
                let memory = unpack_state(&state.memory, delta_shape(delta), delta);
                let shape = [delta.value_heads, delta.key_dim, delta.value_dim];
                out.set_item(format!("layer{index}.recurrent_state"), float_array(py, memory, &shape)?)?;
                let channels = delta.conv_dim();
                let tail =
                    (0..channels * TAIL).map(|i| state.conv_tail[i % TAIL * channels + i / TAIL]).collect();
                out.set_item(format!("layer{index}.conv_state"), float_array(py, tail, &[channels, TAIL])?)
            }
            LayerState::Attention(cache) => {
                let (keys, values) = cache.to_f32();
                let shape = [cache.kv_heads(), cache.len(), cache.head_dim()];
                out.set_item(format!("layer{index}.k_cache"), float_array(py, keys, &shape)?)?;
                out.set_item(format!("layer{index}.v_cache"), float_array(py, values, &shape)?)
            }
        }
    }
}

/// The sizes of a model's delta rule, without tokens.
fn delta_shape(delta: &DeltaConfig) -> DeltaShape {
    let DeltaConfig { key_heads, value_heads, key_dim, value_dim, .. } = *delta;
    DeltaShape { tokens: 0, key_heads, value_heads, key_dim, value_dim }
}

fn kv_bytes_per_token(layer: &LayerState) -> usize {
    match layer {
        LayerState::Attention(cache) => cache.bytes_per_token(),
        LayerState::GatedDelta(_) => 0,
    }
}
