//! One decoder layer: norm, mixer, residual, norm, feed-forward, residual.

use super::input::normalize;
use super::member::{self, Member};
use super::scratch::Scratch;
use super::{attention, feed_forward, gated_delta};
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::weights::model::{LayerWeights, MixerWeights};

/// Moves the residual stream in `scratch` `[tokens, hidden]` through layer `index`: all of it, or, if there are fewer `outputs`
/// than tokens, only the last token of each stretch, which then stand in its first rows.
///
/// All tokens move the states on. After the last layer only last tokens are of interest, and a layer of attention owes the
/// others nothing but their keys and values.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &LayerWeights,
    index: usize,
    members: &mut [Member<'_>],
    scratch: &mut Scratch,
    outputs: usize,
) {
    let tokens = member::tokens(members);
    let hidden = &mut scratch.hidden[..tokens * config.hidden_size];
    let normed = &mut scratch.normed[..tokens * config.hidden_size];
    let (buffer, quantized, inner) = (&mut scratch.input, &mut scratch.quantized, &mut scratch.inner);
    let eps = config.rms_norm_eps;

    let wants = weights.mixer.wants_quantized();
    let input = normalize(cpu, hidden, &weights.input_norm, eps, wants, normed, buffer);
    match &weights.mixer {
        MixerWeights::GatedDelta(mixer) => {
            let scratch = &mut scratch.delta;
            gated_delta::forward(
                cpu, config, mixer, index, members, scratch, inner, quantized, input, hidden,
            );
            if outputs < tokens {
                member::keep_ends(members, hidden);
            }
        }
        MixerWeights::Attention(mixer) => {
            if outputs < tokens {
                member::keep_ends(members, hidden);
            }
            let (rope, scratch) = (&scratch.rope, &mut scratch.attention);
            let hidden = &mut hidden[..outputs * config.hidden_size];
            attention::forward(
                cpu, config, mixer, rope, index, members, scratch, inner, quantized, input, hidden,
            );
        }
    }
    let rows = outputs * config.hidden_size;
    let (hidden, normed) = (&mut hidden[..rows], &mut normed[..rows]);
    let wants = weights.feed_forward.wants_quantized();
    let input = normalize(cpu, hidden, &weights.post_norm, eps, wants, normed, buffer);
    feed_forward::forward(
        cpu,
        config,
        &weights.feed_forward,
        &mut scratch.feed_forward,
        inner,
        quantized,
        input,
        hidden,
    );
}
