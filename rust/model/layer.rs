//! One decoder layer: norm, mixer, residual, norm, feed-forward, residual.

use super::input::normalize;
use super::scratch::Scratch;
use super::state::LayerState;
use super::{attention, feed_forward, gated_delta};
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::weights::model::{LayerWeights, MixerWeights};

/// Moves the residual stream in `scratch` `[tokens, hidden]` through one layer, all of it or only its last `outputs` tokens.
///
/// All tokens move the state on. After the last layer only the last token is of interest, and a layer of attention owes the
/// others nothing but their keys and values.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &LayerWeights,
    state: &mut LayerState,
    scratch: &mut Scratch,
    tokens: usize,
    outputs: usize,
) {
    let hidden = &mut scratch.hidden[..tokens * config.hidden_size];
    let normed = &mut scratch.normed[..tokens * config.hidden_size];
    let (buffer, quantized) = (&mut scratch.input, &mut scratch.quantized);
    let eps = config.rms_norm_eps;

    let skipped = (tokens - outputs) * config.hidden_size;
    let wants = weights.mixer.wants_quantized();
    let input = normalize(cpu, hidden, &weights.input_norm, eps, wants, normed, buffer);
    match (&weights.mixer, state) {
        (MixerWeights::GatedDelta(mixer), LayerState::GatedDelta(state)) => {
            gated_delta::forward(cpu, config, mixer, state, &mut scratch.delta, quantized, input, hidden);
        }
        (MixerWeights::Attention(mixer), LayerState::Attention(cache)) => {
            let (rope, scratch) = (&scratch.rope, &mut scratch.attention);
            let hidden = &mut hidden[skipped..];
            attention::forward(cpu, config, mixer, rope, cache, scratch, quantized, input, hidden);
        }
        _ => unreachable!("weights and state are built from the same list of layers"),
    }
    let (hidden, normed) = (&mut hidden[skipped..], &mut normed[skipped..]);
    let wants = weights.feed_forward.wants_quantized();
    let input = normalize(cpu, hidden, &weights.post_norm, eps, wants, normed, buffer);
    feed_forward::forward(
        cpu,
        config,
        &weights.feed_forward,
        &mut scratch.feed_forward,
        quantized,
        input,
        hidden,
    );
}
