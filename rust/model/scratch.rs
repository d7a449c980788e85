//! Activations of one forward pass, allocated once for the largest chunk of tokens.

use super::Stage;
use crate::config::{DeltaConfig, LayerKind, MoeConfig, TextConfig};
use crate::floats::Floats;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::attention::Partials;
use crate::kernels::experts::ExpertScratch;
use crate::kernels::rope::{Position, RopeTable};
use crate::kernels::routing::Routes;

/// Buffers of a forward pass over at most `tokens` tokens. Holds nothing between calls.
#[derive(Debug)]
pub struct Scratch {
    pub(super) tokens: usize,
    pub(super) positions: Vec<Position>,
    pub(super) rope: RopeTable,
    /// The residual stream, `[tokens, hidden]`
    pub(super) hidden: Floats,
    /// `[tokens, hidden]`
    pub(super) normed: Floats,
    /// `normed` as INT8
    pub(super) input: QuantizedRows,
    /// What layers compute inside, as INT8
    pub(super) quantized: QuantizedRows,
    pub(super) delta: DeltaScratch,
    pub(super) attention: AttentionScratch,
    pub(super) feed_forward: FeedForwardScratch,
}

/// Buffers of a Gated DeltaNet layer.
#[derive(Debug)]
pub struct DeltaScratch {
    /// `[tokens, channels]`, before the convolution
    pub(super) projected: Floats,
    /// `[tokens, value_heads, v_dim]`
    pub(super) z: Floats,
    /// `[tokens, value_heads]`
    pub(super) a: Floats,
    /// `[tokens, value_heads]`
    pub(super) b: Floats,
    /// `[tokens, value_heads, v_dim]`
    pub(super) out: Floats,
    /// Of each thread a block of one head.
    pub(super) blocks: Vec<f32>,
}

/// Buffers of an attention layer.
#[derive(Debug)]
pub struct AttentionScratch {
    /// `[tokens, heads, head_dim * (1 + gated)]`
    pub(super) queries: Floats,
    /// `[tokens, kv_heads, head_dim]`
    pub(super) keys: Floats,
    /// `[tokens, kv_heads, head_dim]`
    pub(super) values: Floats,
    /// `[tokens, heads, head_dim]`
    pub(super) out: Floats,
    /// Inputs of tokens whose output is wanted where not all are, `[sequences, hidden]`
    pub(super) ends: Vec<f32>,
    pub(super) partials: Partials,
}

/// Buffers of the feed-forward networks.
#[derive(Debug)]
pub struct FeedForwardScratch {
    /// For dense networks.
    pub(super) dense: SwiGluScratch,
    /// There if a layer has experts.
    pub(super) moe: Option<MoeScratch>,
    /// The largest chunk.
    tokens: usize,
}

impl FeedForwardScratch {
    /// Shows what the router of layer `layer` just decided over `tokens` tokens.
    pub(super) fn show_routes(&self, layer: usize, tokens: usize, show: &mut dyn FnMut(Stage, &[f32])) {
        let Some(moe) = &self.moe else { return };
        let experts = moe.logits.len() / self.tokens;
        let selected: Vec<f32> = moe.routes.experts().iter().map(|&expert| expert as f32).collect();
        show(Stage::RouterLogits(layer), &moe.logits[..tokens * experts]);
        show(Stage::SelectedExperts(layer), &selected);
        show(Stage::RouterWeights(layer), moe.routes.weights());
    }
}

/// Buffers of a mixture of experts.
#[derive(Debug)]
pub struct MoeScratch {
    /// Scores of the experts, `[tokens, experts]`
    pub(super) logits: Vec<f32>,
    pub(super) routes: Routes,
    /// The shared expert's gates before their sigmoid, `[tokens]`
    pub(super) shared_gate: Vec<f32>,
    pub(super) experts: ExpertScratch,
}

impl MoeScratch {
    fn new(config: &TextConfig, moe: &MoeConfig, tokens: usize) -> Self {
        let shared = usize::from(moe.shared_width.is_some());
        let width = moe.width.max(moe.shared_width.unwrap_or(0));
        let (per_token, experts) = (moe.per_token + shared, moe.experts + shared);
        Self {
            logits: vec![0.0; tokens * moe.experts],
            routes: Routes::with_capacity(tokens, moe.per_token),
            shared_gate: vec![0.0; tokens * shared],
            experts: ExpertScratch::with_capacity(tokens, per_token, experts, config.hidden_size, width),
        }
    }
}

/// Buffers of a SwiGLU network.
#[derive(Debug)]
pub struct SwiGluScratch {
    /// `[tokens, intermediate]`
    pub(super) gate: Floats,
    /// `[tokens, intermediate]`
    pub(super) up: Floats,
}

impl Scratch {
    /// Buffers for chunks of up to `tokens` tokens.
    pub fn new(config: &TextConfig, tokens: usize) -> Self {
        // Only the kinds of layers that exist: their tensors vouch for the sizes a configuration claims.
        let delta = |width: fn(&DeltaConfig) -> usize| config.delta.as_ref().map_or(0, width);
        let attention = |width| if config.layers.contains(&LayerKind::Attention) { width } else { 0 };
        let heads = delta(|delta| delta.value_heads);
        let channels = delta(DeltaConfig::conv_dim);
        let delta_out = delta(|delta| delta.value_heads * delta.value_dim);
        let queries = attention(config.attention.query_width());
        let attention_out = attention(config.attention.heads * config.attention.head_dim);
        let kv = attention(config.attention.kv_heads * config.attention.head_dim);
        let dense = config.intermediate_size.unwrap_or(0);
        let widest = dense.max(delta_out).max(attention_out);
        let widths = [
            config.hidden_size,
            config.hidden_size,
            channels,
            delta_out,
            heads,
            heads,
            delta_out,
            queries,
            kv,
            kv,
            attention_out,
            dense,
            dense,
        ];
        let [hidden, normed, projected, z, a, b, delta_out, queries, keys, values, attention_out, gate, up] =
            Floats::zeroed_array(widths.map(|width| tokens * width));
        Self {
            tokens,
            positions: Vec::with_capacity(tokens),
            rope: RopeTable::new(&config.rope, tokens),
            hidden,
            normed,
            input: QuantizedRows::with_capacity(tokens, config.hidden_size),
            quantized: QuantizedRows::with_capacity(tokens, widest.max(config.hidden_size)),
            delta: DeltaScratch { projected, z, a, b, out: delta_out, blocks: Vec::new() },
            attention: AttentionScratch {
                queries,
                keys,
                values,
                out: attention_out,
                ends: Vec::with_capacity(config.hidden_size),
                partials: Partials::default(),
            },
            feed_forward: FeedForwardScratch {
                dense: SwiGluScratch { gate, up },
                moe: config.moe.as_ref().map(|moe| MoeScratch::new(config, moe, tokens)),
                tokens,
            },
        }
    }

    /// The largest chunk.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}
