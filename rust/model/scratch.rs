//! Activations of one forward pass, allocated once for the largest chunk of tokens.

use super::Stage;
use crate::config::{AttentionConfig, DeltaConfig, LayerKind, MoeConfig, TextConfig};
use crate::floats::{Floats, LINE};
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
    /// What a mixer or a dense network computes inside: one is at work at a time, and cuts it into [`parts`]
    pub(super) inner: Floats,
    pub(super) delta: DeltaScratch,
    pub(super) attention: AttentionScratch,
    pub(super) feed_forward: FeedForwardScratch,
}

/// Buffers of a Gated DeltaNet layer that are not in [`Scratch::inner`].
#[derive(Debug, Default)]
pub struct DeltaScratch {
    /// Of each thread a block of one head.
    pub(super) blocks: Vec<f32>,
}

/// Buffers of an attention layer that are not in [`Scratch::inner`].
#[derive(Debug)]
pub struct AttentionScratch {
    /// Inputs of tokens whose output is wanted where not all are, `[sequences, hidden]`
    pub(super) ends: Vec<f32>,
    pub(super) partials: Partials,
}

/// Buffers of the feed-forward networks that are not in [`Scratch::inner`].
#[derive(Debug)]
pub struct FeedForwardScratch {
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

/// The beginning of `buffer` as arrays of these lengths, each from a cache line on.
///
/// # Panics
/// If they are longer than `buffer`.
pub fn parts<const N: usize>(buffer: &mut [f32], lens: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = buffer;
    lens.map(|len| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(LINE));
        rest = behind;
        &mut part[..len]
    })
}

/// Numbers of a token that a Gated DeltaNet layer computes inside: before the convolution, z, a, b and its output.
pub fn delta_widths(delta: &DeltaConfig) -> [usize; 5] {
    let out = delta.value_heads * delta.value_dim;
    [delta.conv_dim(), out, delta.value_heads, delta.value_heads, out]
}

/// The same of an attention layer: queries with their gates, keys, values and its output.
pub fn attention_widths(attention: &AttentionConfig) -> [usize; 4] {
    let kv = attention.kv_heads * attention.head_dim;
    [attention.query_width(), kv, kv, attention.heads * attention.head_dim]
}

impl Scratch {
    /// Buffers for chunks of up to `tokens` tokens.
    pub fn new(config: &TextConfig, tokens: usize) -> Self {
        // Only the kinds of layers that exist: their tensors vouch for the sizes a configuration claims.
        let delta = config.delta.as_ref();
        let attention = config.layers.contains(&LayerKind::Attention).then_some(&config.attention);
        let dense = config.intermediate_size.unwrap_or(0);
        let delta_out = delta.map_or(0, |delta| delta.value_heads * delta.value_dim);
        let attention_out = attention.map_or(0, |attention| attention.heads * attention.head_dim);
        let widest = dense.max(delta_out).max(attention_out).max(config.hidden_size);
        let whole =
            |widths: &[usize]| widths.iter().map(|width| (tokens * width).next_multiple_of(LINE)).sum();
        let inner: usize = [
            delta.map_or(0, |delta| whole(&delta_widths(delta))),
            attention.map_or(0, |attention| whole(&attention_widths(attention))),
            whole(&[dense; 2]),
        ]
        .into_iter()
        .max()
        .unwrap_or(0);
        let rows = tokens * config.hidden_size;
        let [hidden, normed, inner] = Floats::zeroed_array([rows, rows, inner]);
        Self {
            tokens,
            positions: Vec::with_capacity(tokens),
            rope: RopeTable::new(&config.rope, tokens),
            hidden,
            normed,
            input: QuantizedRows::with_capacity(tokens, config.hidden_size),
            quantized: QuantizedRows::with_capacity(tokens, widest),
            inner,
            delta: DeltaScratch::default(),
            attention: AttentionScratch {
                ends: Vec::with_capacity(config.hidden_size),
                partials: Partials::default(),
            },
            feed_forward: FeedForwardScratch {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_apart_and_begin_at_lines() {
        let [mut buffer] = Floats::zeroed_array([3 * LINE + 2]);
        let parts = parts(&mut buffer, [1, 0, LINE + 1]);
        let places = parts.map(|part| {
            part.fill(1.0);
            (part.len(), part.as_ptr().align_offset(64))
        });
        assert_eq!(places, [(1, 0), (0, 0), (LINE + 1, 0)]);
        let filled: Vec<usize> = (0..buffer.len()).filter(|&i| buffer[i] != 0.0).collect();
        assert_eq!(filled, [&[0][..], &(LINE..=2 * LINE).collect::<Vec<_>>()].concat());
    }
}
