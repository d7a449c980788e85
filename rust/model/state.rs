//! What the model keeps of one sequence: constant-size states of the delta layers, and a KV cache that grows.

use std::sync::Arc;

use crate::config::{LayerKind, TextConfig};
use crate::error::Result;
use crate::floats::Floats;
use crate::kernels::conv::TAIL;
use crate::kernels::delta_chunks::{CHUNK, Recent};
use crate::kernels::kv_cache::{KvCache, KvType};

/// The state of one sequence. A clone shares all of it until one side moves on: the delta layers' states, which a pass then
/// leaves in arrays of their own, and the pages of the KV cache, of which it copies those that it writes to.
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
    /// Pages of each KV cache that were taken up to be moved into large pages of memory, see [`super::settling`].
    pub(super) settled_pages: usize,
}

/// The state of one layer.
#[derive(Clone, Debug)]
pub enum LayerState {
    /// Gated DeltaNet.
    GatedDelta(Arc<DeltaState>),
    /// Attention.
    Attention(KvCache),
}

/// The state of one Gated DeltaNet layer. Those of all layers of a sequence lie side by side.
#[derive(Debug)]
pub struct DeltaState {
    /// The convolution's last three inputs, oldest first: `[3, channels]`
    pub conv_tail: Floats,
    /// The delta rule's memory up to the last whole chunk, in tiles of 16 value channels: `[value_heads, v_dim / 16, k_dim, 16]`
    pub memory: Floats,
    /// What came after that: `[key_heads, room]`, see [`Recent`]
    pub recent: Floats,
    /// How `recent` is laid out.
    layout: Recent,
}

impl State {
    /// The state before the first token. Its delta layers share one state of zeros.
    pub fn new(config: &TextConfig, kv_type: KvType) -> Self {
        let layers = zeroed_layers(config, kv_type);
        Self {
            len: 0,
            next_position: 0,
            broken: false,
            layers,
            last_hidden: Vec::with_capacity(config.hidden_size),
            settled_pages: 0,
        }
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tokens since the last whole chunk of the delta rule.
    pub fn recent_tokens(&self) -> usize {
        self.len % CHUNK
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

    /// Bytes of all but the pages of the KV cache.
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
    pub(super) fn delta(&mut self, index: usize) -> &mut Arc<DeltaState> {
        match &mut self.layers[index] {
            LayerState::GatedDelta(state) => state,
            LayerState::Attention(_) => unreachable!("weights and state are built from one list of layers"),
        }
    }

    /// Whether another state shares the delta layers' states.
    pub(super) fn is_shared(&mut self) -> bool {
        self.layers.iter_mut().any(|layer| match layer {
            LayerState::GatedDelta(state) => Arc::get_mut(state).is_none(),
            LayerState::Attention(_) => false,
        })
    }

    /// Zeros as large as the states of the delta layers, one for each layer of the model; none for layers of attention.
    ///
    /// Those of a sequence that begins are asked for in large pages. A cache keeps many of the others, and before it hands out
    /// so many large pages, a system that has run for a while has to move others: turns of a conversation waited 40 ms longer.
    pub(super) fn fresh_deltas(&self) -> Result<Vec<Option<DeltaState>>> {
        let deltas = self.layers.iter().filter_map(LayerState::delta);
        let lens: Vec<usize> = deltas.flat_map(|delta| delta.arrays().map(<[f32]>::len)).collect();
        let mut arrays = Floats::try_zeroed(&lens, self.is_empty())?.into_iter();
        Ok(self.layers.iter().map(|layer| layer.delta()?.with(arrays.by_ref())).collect())
    }

    /// What is to become a copy of this state later, when it has `len` tokens and the next one's position is `next_position`.
    pub(super) fn later_copy(&self, len: usize, next_position: u32) -> Result<Self> {
        let fresh = self.fresh_deltas()?;
        let layer = |(layer, fresh): (&LayerState, Option<DeltaState>)| match (layer, fresh) {
            (LayerState::Attention(cache), _) => LayerState::Attention(cache.empty()),
            (LayerState::GatedDelta(_), Some(fresh)) => LayerState::GatedDelta(Arc::new(fresh)),
            (LayerState::GatedDelta(_), None) => unreachable!("there is one for each"),
        };
        let layers = self.layers.iter().zip(fresh).map(layer).collect();
        let last_hidden = Vec::with_capacity(self.last_hidden.capacity());
        Ok(Self { len, next_position, broken: true, layers, last_hidden, settled_pages: 0 })
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

/// The layers' states before the first token.
fn zeroed_layers(config: &TextConfig, kv_type: KvType) -> Vec<LayerState> {
    let has_delta = config.layers.contains(&LayerKind::GatedDelta);
    let zeros = has_delta.then(|| Arc::new(DeltaState::zeroed(config)));
    let layer = |kind: &LayerKind| match kind {
        LayerKind::GatedDelta => {
            LayerState::GatedDelta(Arc::clone(zeros.as_ref().expect("there is such a layer")))
        }
        LayerKind::Attention => {
            let attention = &config.attention;
            LayerState::Attention(KvCache::new(kv_type, attention.kv_heads, attention.head_dim))
        }
    };
    config.layers.iter().map(layer).collect()
}

impl DeltaState {
    /// The state of any such layer before the first token.
    fn zeroed(config: &TextConfig) -> Self {
        let delta = config.delta_shapes();
        let layout = Recent::new(delta);
        let memory = delta.value_heads * delta.value_dim * delta.key_dim;
        let lens = [TAIL * delta.conv_dim(), memory, delta.key_heads * layout.room()];
        let [conv_tail, memory, recent] = Floats::zeroed_array(lens);
        Self { conv_tail, memory, recent, layout }
    }

    /// One like this with the next three of `arrays`.
    fn with(&self, arrays: &mut impl Iterator<Item = Floats>) -> Option<Self> {
        let (conv_tail, memory, recent) = (arrays.next()?, arrays.next()?, arrays.next()?);
        Some(Self { conv_tail, memory, recent, layout: self.layout })
    }

    /// Of each key head, what it keeps of `tokens` recent tokens.
    pub fn recent_of_heads(&self, tokens: usize) -> Vec<&[f32]> {
        let (room, len) = (self.layout.room(), self.layout.len(tokens));
        self.recent.chunks_exact(room).map(|head| &head[..len]).collect()
    }

    /// The same to be filled.
    pub(super) fn recent_of_heads_mut(&mut self, tokens: usize) -> Vec<&mut [f32]> {
        let (room, len) = (self.layout.room(), self.layout.len(tokens));
        self.recent.chunks_exact_mut(room).map(|head| &mut head[..len]).collect()
    }

    /// All that it holds.
    pub fn arrays(&self) -> [&[f32]; 3] {
        [&self.conv_tail, &self.memory, &self.recent]
    }

    /// Bytes held.
    pub fn nbytes(&self) -> usize {
        self.arrays().map(size_of_val).iter().sum()
    }
}

impl LayerState {
    fn delta(&self) -> Option<&DeltaState> {
        match self {
            Self::GatedDelta(state) => Some(state),
            Self::Attention(_) => None,
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Self::GatedDelta(delta) => delta.nbytes(),
            Self::Attention(cache) => cache.nbytes(),
        }
    }
}
