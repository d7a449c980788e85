//! What a token costs at least, counted from the weights: the other half of any claim that a speed is near its limit.

use super::{Engine, LayerState};
use crate::kernels::limits::read_speed;
use crate::weights::matrix::Matrix;
use crate::weights::model::{FeedForwardWeights, LayerWeights, MixerWeights, SwiGluWeights, Weights};

/// Multiplications and additions of products with weights, counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// With quantised weights.
    pub int8: usize,
    /// With others.
    pub f32: usize,
}

impl Operations {
    fn of<'a>(matrices: impl IntoIterator<Item = &'a Matrix>) -> Self {
        let mut sum = Self::default();
        for matrix in matrices {
            let kind = if matrix.format().is_quantized() { &mut sum.int8 } else { &mut sum.f32 };
            *kind += matrix.operations();
        }
        sum
    }
}

/// What a token costs. Constant; attention adds the KV cache's bytes for each token of context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Bytes of weights and state that decoding one token reads, on average.
    pub decode_bytes: usize,
    /// Those of state.
    pub state_bytes: usize,
    /// Bytes of all weights of the layers, whether a token meets them or not.
    pub layer_bytes: usize,
    /// Of one token of a prompt, the parts of the last layer left out that all but the last token of a pass skip.
    pub prefill: Operations,
    /// Those parts.
    pub skipped: Operations,
}

impl Engine {
    /// What a token costs.
    pub fn costs(&self) -> Costs {
        let weights = &self.model.weights;
        let chosen = self.model.config.moe.as_ref().map_or(0, |moe| moe.per_token);
        let met = weights.layers.iter().flat_map(|layer| touched(layer, chosen));
        let matrix_bytes: usize = met.clone().map(|matrix| matrix.bytes().len()).sum();
        let vector_bytes =
            weights.layers.iter().flat_map(LayerWeights::vectors).map(|(_, v)| size_of_val(v)).sum::<usize>();
        let all = weights.layers.iter().flat_map(|layer| touched(layer, usize::MAX));
        let outside =
            weights.embedding.row_bytes() + size_of_val(&weights.final_norm[..]) + weights.head.bytes().len();
        let state: usize = self.state().layers().iter().map(state_bytes).sum();
        let (whole, skipped) = (
            Operations::of(met),
            Operations::of(weights.layers.last().map_or(vec![], |last| skipped(last, chosen))),
        );
        Costs {
            decode_bytes: matrix_bytes + vector_bytes + state + outside,
            state_bytes: state,
            layer_bytes: all.map(|matrix| matrix.bytes().len()).sum::<usize>() + vector_bytes,
            prefill: Operations { int8: whole.int8 - skipped.int8, f32: whole.f32 - skipped.f32 },
            skipped,
        }
    }

    /// Bytes per second at which the threads read the weights that every token meets, and do nothing else, in about `seconds`;
    /// none if they are not far more than `cache` bytes.
    pub fn memory_speed(&self, cache: usize, seconds: f64) -> Option<f64> {
        let weights = &self.model.weights;
        let layers = weights.layers.iter().flat_map(|layer| touched(layer, 0));
        let matrices: Vec<&[u8]> = layers.chain([&weights.head]).map(Matrix::bytes).collect();
        read_speed(&self.cpu, &matrices, cache, seconds)
    }
}

/// All matrices that some token meets.
pub(super) fn met(weights: &Weights) -> impl Iterator<Item = &Matrix> {
    weights.layers.iter().flat_map(|layer| touched(layer, usize::MAX)).chain([&weights.head])
}

/// The matrices of a layer that one token meets, `chosen` experts among them.
fn touched(layer: &LayerWeights, chosen: usize) -> Vec<&Matrix> {
    let mixer = layer.mixer.matrices().into_iter().map(|(_, matrix)| matrix);
    mixer.chain(feed_forward(layer, chosen)).collect()
}

/// Those of the feed-forward network. Experts are alike, so the first `chosen` of them stand for any.
fn feed_forward(layer: &LayerWeights, chosen: usize) -> Vec<&Matrix> {
    match &layer.feed_forward {
        FeedForwardWeights::Dense(network) => network.all().to_vec(),
        FeedForwardWeights::Moe(moe) => {
            let experts = moe.experts.iter().take(chosen);
            let shared = moe.shared.as_ref();
            let networks = experts.chain(shared.map(|shared| &shared.network)).flat_map(SwiGluWeights::all);
            [&moe.router].into_iter().chain(shared.map(|shared| &shared.gate)).chain(networks).collect()
        }
    }
}

/// Those that only the last token of a pass meets, if the layer is the last; see [`super::layer::forward`].
fn skipped(layer: &LayerWeights, chosen: usize) -> Vec<&Matrix> {
    let mut matrices = feed_forward(layer, chosen);
    if let MixerWeights::Attention(attention) = &layer.mixer {
        matrices.extend([&attention.query, &attention.out]);
    }
    matrices
}

/// A token meets half of what a delta layer has room for of recent ones.
fn state_bytes(layer: &LayerState) -> usize {
    match layer {
        LayerState::GatedDelta(state) => state.nbytes() - size_of_val(&state.recent[..]) / 2,
        LayerState::Attention(_) => 0,
    }
}
