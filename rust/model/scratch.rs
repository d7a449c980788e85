//! Activations of one forward pass, allocated once for the largest chunk of tokens.

use crate::config::{DeltaConfig, LayerKind, TextConfig};
use crate::kernels::activations::QuantizedRows;
use crate::kernels::attention::Partials;
use crate::kernels::rope::{Position, RopeTable};

/// Buffers of a forward pass over at most `tokens` tokens. Holds nothing between calls.
#[derive(Debug)]
pub struct Scratch {
    pub(super) tokens: usize,
    pub(super) positions: Vec<Position>,
    pub(super) rope: RopeTable,
    /// The residual stream, `[tokens, hidden]`
    pub(super) hidden: Vec<f32>,
    /// `[tokens, hidden]`
    pub(super) normed: Vec<f32>,
    pub(super) quantized: QuantizedRows,
    pub(super) delta: DeltaScratch,
    pub(super) attention: AttentionScratch,
    pub(super) feed_forward: SwiGluScratch,
}

/// Buffers of a Gated DeltaNet layer.
#[derive(Debug)]
pub struct DeltaScratch {
    /// `[tokens, channels]`, before the convolution
    pub(super) projected: Vec<f32>,
    /// `[tokens, channels]`, after it
    pub(super) qkv: Vec<f32>,
    /// `[tokens, value_heads, v_dim]`
    pub(super) z: Vec<f32>,
    /// `[tokens, value_heads]`
    pub(super) a: Vec<f32>,
    /// `[tokens, value_heads]`
    pub(super) b: Vec<f32>,
    /// `[tokens, value_heads, v_dim]`
    pub(super) out: Vec<f32>,
}

/// Buffers of an attention layer.
#[derive(Debug)]
pub struct AttentionScratch {
    /// `[tokens, heads, head_dim * (1 + gated)]`
    pub(super) queries: Vec<f32>,
    /// `[tokens, kv_heads, head_dim]`
    pub(super) keys: Vec<f32>,
    /// `[tokens, kv_heads, head_dim]`
    pub(super) values: Vec<f32>,
    /// `[tokens, heads, head_dim]`
    pub(super) out: Vec<f32>,
    pub(super) partials: Partials,
}

/// Buffers of a feed-forward network.
#[derive(Debug)]
pub struct SwiGluScratch {
    /// `[tokens, intermediate]`
    pub(super) gate: Vec<f32>,
    /// `[tokens, intermediate]`
    pub(super) up: Vec<f32>,
}

impl Scratch {
    /// Buffers for chunks of up to `tokens` tokens.
    pub fn new(config: &TextConfig, tokens: usize) -> Self {
        let buffer = |width: usize| vec![0.0; tokens * width];
        // Only the kinds of layers that exist: their tensors vouch for the sizes a configuration claims.
        let delta = |width: fn(&DeltaConfig) -> usize| config.delta.as_ref().map_or(0, width);
        let attention = |width| if config.layers.contains(&LayerKind::Attention) { width } else { 0 };
        let heads = delta(|delta| delta.value_heads);
        let channels = delta(DeltaConfig::conv_dim);
        let delta_out = delta(|delta| delta.value_heads * delta.value_dim);
        let queries = attention(config.attention.query_width());
        let attention_out = attention(config.attention.heads * config.attention.head_dim);
        let kv = attention(config.attention.kv_heads * config.attention.head_dim);
        let widest = config.hidden_size.max(config.intermediate_size).max(delta_out).max(attention_out);
        Self {
            tokens,
            positions: Vec::with_capacity(tokens),
            rope: RopeTable::new(&config.rope, tokens),
            hidden: buffer(config.hidden_size),
            normed: buffer(config.hidden_size),
            quantized: QuantizedRows::with_capacity(tokens, widest),
            delta: DeltaScratch {
                projected: buffer(channels),
                qkv: buffer(channels),
                z: buffer(delta_out),
                a: buffer(heads),
                b: buffer(heads),
                out: buffer(delta_out),
            },
            attention: AttentionScratch {
                queries: buffer(queries),
                keys: buffer(kv),
                values: buffer(kv),
                out: buffer(attention_out),
                partials: Partials::default(),
            },
            feed_forward: SwiGluScratch {
                gate: buffer(config.intermediate_size),
                up: buffer(config.intermediate_size),
            },
        }
    }

    /// The largest chunk.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}
