//! One decoder layer: norm, mixer, residual, norm, feed-forward, residual.

use super::scratch::Scratch;
use super::state::LayerState;
use super::{attention, feed_forward, gated_delta};
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::norm::rms_norm;
use crate::kernels::profile::Operation;
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
    let quantized = &mut scratch.quantized;

    let skipped = (tokens - outputs) * config.hidden_size;
    rms_norm(cpu, hidden, &weights.input_norm, config.rms_norm_eps, normed);
    cpu.profile.lap(Operation::Norms, size_of_val(&weights.input_norm[..]));
    match (&weights.mixer, state) {
        (MixerWeights::GatedDelta(mixer), LayerState::GatedDelta(state)) => {
            let scratch = &mut scratch.delta;
            gated_delta::forward(cpu, config, mixer, state, scratch, quantized, normed, hidden);
        }
        (MixerWeights::Attention(mixer), LayerState::Attention(cache)) => {
            let (rope, scratch) = (&scratch.rope, &mut scratch.attention);
            let hidden = &mut hidden[skipped..];
            attention::forward(cpu, config, mixer, rope, cache, scratch, quantized, normed, hidden);
        }
        _ => unreachable!("weights and state are built from the same list of layers"),
    }
    let (hidden, normed) = (&mut hidden[skipped..], &mut normed[skipped..]);
    rms_norm(cpu, hidden, &weights.post_norm, config.rms_norm_eps, normed);
    cpu.profile.lap(Operation::Norms, size_of_val(&weights.post_norm[..]));
    feed_forward::forward(
        cpu,
        config,
        &weights.feed_forward,
        &mut scratch.feed_forward,
        quantized,
        normed,
        hidden,
    );
}
