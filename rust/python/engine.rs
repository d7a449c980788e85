//! The engine and what it tells about itself.

use std::path::Path;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict};

use super::arrays::{FloatArray, float_array, pair, token_ids};
use super::batch::PyBatch;
use super::calibration::PyInputStatistics;
use super::errors::released;
use super::limits::last_level_cache;
use super::report::{self, WeightReport};
use super::sequence::PySequence;
use super::trace::{self, TextStages, VisionStages};
use super::vision::{PyVisualFeatures, spans};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::kernels::kv_cache::KvType;
use crate::kernels::{Cpu, Tier};
use crate::model::open::{Options, open};
use crate::model::vision::Grid;
use crate::model::{Engine, LayerState, State};
use crate::threads::available_threads;
use crate::weights::model::SwiGluWeights;

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
    #[pyo3(signature = (
        path, dtype = "auto", kv_dtype = "auto", recipe = None, threads = None, progress = None, yarn_factor = None,
        prefetch = None, large_pages = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn open(
        py: Python<'_>,
        path: &str,
        dtype: &str,
        kv_dtype: &str,
        recipe: Option<&str>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
        yarn_factor: Option<f64>,
        prefetch: Option<bool>,
        large_pages: Option<bool>,
    ) -> PyResult<Self> {
        let options =
            Options { yarn_factor, prefetch, large_pages, ..Options::parse(dtype, kv_dtype, recipe)? };
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
        let weights = WeightReport::of(&self.engine.model);
        let empty = self.engine.state();
        out.set_item("model_type", &self.config.model_type)?;
        out.set_item("parameters", weights.parameters())?;
        out.set_item("formats", weights.formats(py)?)?;
        out.set_item("weight_bytes", weights.bytes())?;
        out.set_item("file_bytes", self.checkpoint.nbytes())?;
        out.set_item("large_page_bytes", self.engine.settled_bytes())?;
        out.set_item("converted_from", self.checkpoint.gguf().map(|_| "GGUF"))?;
        self.set_experts(&out)?;
        out.set_item("state_bytes", empty.nbytes())?;
        out.set_item("kv_bytes_per_token", kv_bytes_per_token(&empty, self.engine.kv_type()))?;
        let by_type = KvType::ALL.map(|kv_type| (kv_type.name(), kv_bytes_per_token(&empty, kv_type)));
        out.set_item("kv_bytes_per_token_by_dtype", by_type.into_py_dict(py)?)?;
        out.set_item("decode_bytes_per_token", self.engine.costs().decode_bytes)?;
        out.set_item("kv_dtype", self.engine.kv_type().name())?;
        out.set_item("context_length", self.context_length())?;
        out.set_item("yarn_factor", self.config.text.rope.yarn.as_ref().map(|yarn| yarn.factor))?;
        out.set_item("threads", self.threads())?;
        out.set_item("tier", self.engine.cpu.tier.name())?;
        Ok(out)
    }

    fn costs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        report::costs(py, &self.engine.costs())
    }

    fn settle(&self, py: Python<'_>) -> PyResult<()> {
        released(py, |callbacks| self.engine.settle(&mut || callbacks.check_signals()))
    }

    #[pyo3(signature = (seconds = 0.05))]
    fn memory_speed(&self, py: Python<'_>, seconds: f64) -> PyResult<Option<f64>> {
        if !(seconds.is_finite() && seconds >= 0.0) {
            return Err(Error::argument("seconds", format!("{seconds} is no length of time")).into());
        }
        released(py, |_| Ok(self.engine.memory_speed(last_level_cache(), seconds)))
    }

    fn start_profile(&self) {
        self.engine.cpu.profile.start();
    }

    fn stop_profile<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        report::profile(py, &self.engine.cpu.profile.stop())
    }

    /// What the matrices of the text model read over a text.
    #[pyo3(signature = (ids, window, progress = None))]
    fn input_statistics(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        window: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<PyInputStatistics> {
        let ids = token_ids(ids)?;
        let statistics = released(py, |callbacks| {
            let mut proceed = |done: usize| {
                callbacks.progress(progress.as_ref(), done as u64, ids.len() as u64, "calibrating")
            };
            self.engine.input_statistics(&ids, window, &mut proceed)
        })?;
        Ok(PyInputStatistics { statistics })
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
        let config = &self.config.text;
        let (stages, trace) = released(py, |callbacks| {
            let prompt = self.engine.prompt(&ids, &spans)?;
            let mut stages = TextStages::new(config, ids.len())?;
            let mut watch = |stage, rows: &[f32]| stages.push(stage, rows);
            let trace = self.engine.trace(prompt, &mut || callbacks.check_signals(), &mut watch)?;
            Ok((stages, trace))
        })?;
        trace::text(py, config, ids.len(), stages, trace)
    }

    /// A number for the model and the type of its KV cache.
    fn fingerprint(&self, py: Python<'_>) -> PyResult<String> {
        released(py, |_| Ok(self.engine.fingerprint(&self.config_json)))
    }

    fn sequence(&self) -> PySequence {
        PySequence::new(Arc::clone(&self.engine))
    }

    fn batch(&self) -> PyBatch {
        PyBatch::new(Arc::clone(&self.engine))
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
        let (grid, pixels) = self.picture(pixel_values, grid_hw)?;
        let blocks = self.engine.vision()?.config.depth as u64;
        let features = released(py, |callbacks| {
            let mut proceed =
                |done: usize| callbacks.progress(progress.as_ref(), done as u64, blocks, "vision");
            self.engine.encode(pixels.data, [grid.rows(), grid.columns()], &mut proceed, &mut |_, _| {})
        })?;
        Ok(PyVisualFeatures::new(Arc::clone(&self.engine), features))
    }

    fn trace_vision<'py>(
        &self,
        py: Python<'py>,
        pixel_values: &Bound<'py, PyAny>,
        grid_hw: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (grid, pixels) = self.picture(pixel_values, grid_hw)?;
        let config = &self.engine.vision()?.config;
        let (stages, features) = released(py, |callbacks| {
            let mut stages = VisionStages::new(config.depth, grid, config.hidden_size)?;
            let mut proceed = |_| callbacks.check_signals();
            let mut watch = |stage, rows: &[f32]| stages.push(stage, rows);
            let sides = [grid.rows(), grid.columns()];
            let features = self.engine.encode(pixels.data, sides, &mut proceed, &mut watch)?;
            Ok((stages, features))
        })?;
        trace::vision(py, stages, features)
    }
}

impl PyEngine {
    /// What computes.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// Adds what a mixture of experts has and what of it a token touches; zeros for a dense model.
    fn set_experts(&self, out: &Bound<'_, PyDict>) -> PyResult<()> {
        let weights = &self.engine.model.weights;
        let chosen = self.config.text.moe.as_ref().map_or(0, |moe| moe.per_token);
        let (mut all, mut touched, mut prefetch) = (0, 0, false);
        for moe in weights.moes() {
            let bytes: usize = moe.experts.iter().map(SwiGluWeights::nbytes).sum();
            all += bytes;
            touched += bytes / moe.experts.len() * chosen;
            prefetch |= moe.prefetch;
        }
        out.set_item("expert_bytes", all)?;
        out.set_item("expert_bytes_per_token", touched)?;
        out.set_item("prefetch", prefetch)
    }

    /// Reads `pixel_values` and `grid_hw`; the grid is checked first, since it tells how many patches there must be.
    fn picture(
        &self,
        pixel_values: &Bound<'_, PyAny>,
        grid_hw: &Bound<'_, PyAny>,
    ) -> PyResult<(Grid, FloatArray)> {
        let config = &self.engine.vision()?.config;
        let [rows, columns] = pair("grid_hw", grid_hw)?;
        let grid = Grid::new(config, rows, columns)?;
        let pixels = FloatArray::read("pixel_values", pixel_values, 2)?;
        pixels.expect("pixel_values", &[grid.patches(), config.patch_values()])?;
        Ok((grid, pixels))
    }
}

fn kv_bytes_per_token(state: &State, kv_type: KvType) -> usize {
    let bytes = |layer: &LayerState| match layer {
        LayerState::Attention(cache) => cache.bytes_per_token_as(kv_type),
        LayerState::GatedDelta(_) => 0,
    };
    state.layers().iter().map(bytes).sum()
}
