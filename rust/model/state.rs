//! What the model keeps of one sequence: constant-size states of the delta layers, and a KV cache that grows.

use crate::config::{LayerKind, TextConfig};
use crate::error::Result;
use crate::kernels::conv::TAIL;
use crate::kernels::kv_cache::{KvCache, KvType};

/// The state of one sequence. Cloning shares the pages of the KV cache until one side writes.
#[derive(Clone, Debug)]
pub struct State {
    /// Tokens so far.
    pub(super) len: usize,
    /// Rotary position of the next token on all axes; equals `len` as long as there is only text.
    pub(super) next_position: u32,
    /// Whether a pass began and did not end: then layers are at different tokens.
    pub(super) broken: bool,
    /// One for each layer.
    pub(super) layers: Vec<LayerState>,
    /// The last token's hidden state before the final norm, `[hidden]`; empty before the first token.
    pub(super) last_hidden: Vec<f32>,
}

/// The state of one layer.
#[derive(Clone, Debug)]
pub enum LayerState {
    /// Gated DeltaNet.
    GatedDelta(DeltaState),
    /// Attention.
    Attention(KvCache),
}

/// The state of one Gated DeltaNet layer.
#[derive(Clone, Debug)]
pub struct DeltaState {
    /// The convolution's last three inputs, oldest first: `[3, channels]`
    pub conv_tail: Vec<f32>,
    /// The delta rule's memory in tiles of 16 value channels: `[value_heads, v_dim / 16, k_dim, 16]`
    pub memory: Vec<f32>,
}

impl State {
    /// The state before the first token.
    pub fn new(config: &TextConfig, kv_type: KvType) -> Self {
        let layers = config.layers.iter().map(|kind| LayerState::new(config, *kind, kv_type)).collect();
        Self {
            len: 0,
            next_position: 0,
            broken: false,
            layers,
            last_hidden: Vec::with_capacity(config.hidden_size),
        }
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token has been appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Rotary position of the next token, on all axes if it is text.
    pub fn next_position(&self) -> u32 {
        self.next_position
    }

    /// The layers' states, in order.
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    /// Bytes held, shared pages included.
    pub fn nbytes(&self) -> usize {
        self.layers.iter().map(LayerState::nbytes).sum::<usize>() + 4 * self.last_hidden.capacity()
    }

    /// Bytes of what a clone copies: all but the pages of the KV cache.
    pub fn constant_bytes(&self) -> usize {
        let delta = |layer: &LayerState| match layer {
            LayerState::GatedDelta(_) => layer.nbytes(),
            LayerState::Attention(_) => 0,
        };
        self.layers.iter().map(delta).sum::<usize>() + 4 * self.last_hidden.len()
    }

    /// The caches of the attention layers.
    pub fn kv_caches(&self) -> impl Iterator<Item = &KvCache> {
        self.layers.iter().filter_map(|layer| match layer {
            LayerState::Attention(cache) => Some(cache),
            LayerState::GatedDelta(_) => None,
        })
    }

    /// The state of layer `index`, a delta layer.
    pub(super) fn delta(&mut self, index: usize) -> &mut DeltaState {
        match &mut self.layers[index] {
            LayerState::GatedDelta(state) => state,
            LayerState::Attention(_) => unreachable!("weights and state are built from one list of layers"),
        }
    }

    /// The cache of layer `index`, an attention layer.
    pub(super) fn cache(&mut self, index: usize) -> &mut KvCache {
        match &mut self.layers[index] {
            LayerState::Attention(cache) => cache,
            LayerState::GatedDelta(_) => unreachable!("weights and state are built from one list of layers"),
        }
    }

    /// Allocates KV pages for `tokens` tokens in all; see [`Engine::reserve`](super::Engine::reserve).
    pub(super) fn reserve(&mut self, tokens: usize) -> Result<()> {
        for layer in &mut self.layers {
            if let LayerState::Attention(cache) = layer {
                cache.reserve(tokens)?;
            }
        }
        Ok(())
    }
}

impl LayerState {
    fn new(config: &TextConfig, kind: LayerKind, kv_type: KvType) -> Self {
        match kind {
            LayerKind::GatedDelta => {
                let delta = config.delta_shapes();
                Self::GatedDelta(DeltaState {
                    conv_tail: vec![0.0; TAIL * delta.conv_dim()],
                    memory: vec![0.0; delta.value_heads * delta.value_dim * delta.key_dim],
                })
            }
            LayerKind::Attention => {
                Self::Attention(KvCache::new(kv_type, config.attention.kv_heads, config.attention.head_dim))
            }
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Self::GatedDelta(delta) => 4 * (delta.conv_tail.len() + delta.memory.len()),
            Self::Attention(cache) => cache.nbytes(),
        }
    }
}
