//! Traces: what the engine computed on the way, by name, for comparison with other implementations.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{float_array, index_array};
use crate::config::{DeltaConfig, FeedForwardKind, TextConfig};
use crate::error::{Result, try_with_capacity};
use crate::kernels::conv::TAIL;
use crate::kernels::delta_chunks::caught_up;
use crate::kernels::delta_rule_arrays::{DeltaShape, unpack_state};
use crate::model::vision::{Features, Grid, VisionStage};
use crate::model::{LayerState, Stage, Trace};

/// What was seen of a text, by stage: `[tokens, any]` each.
pub struct TextStages {
    /// After the embedding and each layer, `[tokens, hidden]`
    hidden: Vec<Vec<f32>>,
    /// By layer that has experts: scores, choices and weights.
    routes: BTreeMap<usize, [Vec<f32>; 3]>,
}

impl TextStages {
    /// Room for the stages of `tokens` tokens.
    pub fn new(config: &TextConfig, tokens: usize) -> Result<Self> {
        let mut routes = BTreeMap::new();
        for (layer, kind) in config.feed_forwards.iter().enumerate() {
            if let (FeedForwardKind::Moe, Some(moe)) = (kind, &config.moe) {
                let room = |width| try_with_capacity(tokens.saturating_mul(width));
                routes.insert(layer, [room(moe.experts)?, room(moe.per_token)?, room(moe.per_token)?]);
            }
        }
        Ok(Self { hidden: rooms(1 + config.layers.len(), tokens, config.hidden_size)?, routes })
    }

    /// Appends the rows of one pass.
    pub fn push(&mut self, stage: Stage, rows: &[f32]) {
        let room = match stage {
            Stage::Embedding => self.hidden.get_mut(0),
            Stage::Layer(i) => self.hidden.get_mut(i + 1),
            Stage::RouterLogits(i) => self.routes.get_mut(&i).map(|[logits, _, _]| logits),
            Stage::SelectedExperts(i) => self.routes.get_mut(&i).map(|[_, selected, _]| selected),
            Stage::RouterWeights(i) => self.routes.get_mut(&i).map(|[_, _, weights]| weights),
        };
        room.expect("there is room for every stage of the model").extend_from_slice(rows);
    }

    /// Adds the arrays to `out`.
    fn set(self, out: &Bound<'_, PyDict>, hidden: [usize; 2]) -> PyResult<()> {
        let py = out.py();
        for (i, rows) in self.hidden.into_iter().enumerate() {
            let name = if i == 0 { "embed".to_owned() } else { format!("layer{}.hidden", i - 1) };
            out.set_item(name, float_array(py, rows, &hidden)?)?;
        }
        for (i, [logits, selected, weights]) in self.routes {
            let shape = |rows: &[f32]| [hidden[0], rows.len() / hidden[0].max(1)];
            let (scores, chosen) = (shape(&logits), shape(&weights));
            out.set_item(format!("layer{i}.router_logits"), float_array(py, logits, &scores)?)?;
            let selected = selected.into_iter().map(|index| index as i64).collect();
            out.set_item(format!("layer{i}.selected_experts"), index_array(py, selected, &chosen)?)?;
            out.set_item(format!("layer{i}.router_weights"), float_array(py, weights, &chosen)?)?;
        }
        Ok(())
    }
}

/// Everything of a text of `tokens` tokens.
pub fn text<'py>(
    py: Python<'py>,
    config: &TextConfig,
    tokens: usize,
    stages: TextStages,
    trace: Trace,
) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    let hidden = [tokens, config.hidden_size];
    stages.set(&out, hidden)?;
    out.set_item("final_norm", float_array(py, trace.final_norm, &hidden)?)?;
    out.set_item("logits", float_array(py, trace.logits, &[tokens, config.vocab_size])?)?;
    let recent = trace.state.recent_tokens();
    for (i, layer) in trace.state.layers().iter().enumerate() {
        set_layer_state(&out, config, i, layer, recent)?;
    }
    Ok(out)
}

/// Adds the arrays of one layer's state to a trace; `recent` tokens are behind the last whole chunk.
fn set_layer_state(
    out: &Bound<'_, PyDict>,
    config: &TextConfig,
    index: usize,
    layer: &LayerState,
    recent: usize,
) -> PyResult<()> {
    let py = out.py();
    match layer {
        LayerState::GatedDelta(state) => {
            let delta = config.delta_shapes();
            let memory = caught_up(delta, &state.memory, &state.recent, recent);
            let memory = unpack_state(&memory, delta_shape(delta), delta);
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

/// The sizes of a model's delta rule, without tokens.
fn delta_shape(delta: &DeltaConfig) -> DeltaShape {
    let DeltaConfig { key_heads, value_heads, key_dim, value_dim, .. } = *delta;
    DeltaShape { tokens: 0, key_heads, value_heads, key_dim, value_dim }
}

/// The residual stream of the vision tower, by stage: `[patches, width]` each.
pub struct VisionStages(Vec<Vec<f32>>);

impl VisionStages {
    /// Room for the stages of a tower of `depth` blocks.
    pub fn new(depth: usize, grid: Grid, width: usize) -> Result<Self> {
        Ok(Self(rooms(2 + depth, grid.patches(), width)?))
    }

    /// Keeps the rows of a stage.
    pub fn push(&mut self, stage: VisionStage, rows: &[f32]) {
        let index = match stage {
            VisionStage::PatchEmbedding => 0,
            VisionStage::BlockInput => 1,
            VisionStage::Block(i) => i + 2,
        };
        self.0[index].extend_from_slice(rows);
    }
}

/// Everything of an image or pair of frames.
pub fn vision(py: Python<'_>, stages: VisionStages, features: Features) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    let set = |name: String, rows: Vec<f32>, count: usize| {
        let shape = [count, rows.len() / count];
        out.set_item(name, float_array(py, rows, &shape)?)
    };
    for (i, rows) in stages.0.into_iter().enumerate() {
        let name = match i {
            0 => "patch_embed".to_owned(),
            1 => "block_input".to_owned(),
            _ => format!("block{}", i - 2),
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

/// Empty arrays, each with room for `[rows, width]`.
fn rooms(count: usize, rows: usize, width: usize) -> Result<Vec<Vec<f32>>> {
    (0..count).map(|_| try_with_capacity(rows.saturating_mul(width))).collect()
}
