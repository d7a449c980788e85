//! What follows the mixer in a layer: a feed-forward network, dense or of experts.

mod dense;
mod moe;

use super::scratch::FeedForwardScratch;
use crate::config::TextConfig;
use crate::kernels::Cpu;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::linear::Input;
use crate::weights::model::FeedForwardWeights;

/// hidden += network(input), both `[tokens, hidden]`.
pub fn forward(
    cpu: &Cpu,
    config: &TextConfig,
    weights: &FeedForwardWeights,
    scratch: &mut FeedForwardScratch,
    inner: &mut [f32],
    quantized: &mut QuantizedRows,
    input: Input<'_>,
    hidden: &mut [f32],
) {
    match weights {
        FeedForwardWeights::Dense(network) => {
            dense::forward(cpu, network, inner, quantized, input, hidden);
        }
        FeedForwardWeights::Moe(moe) => {
            let scratch = scratch.moe.as_mut().expect("a model with experts has scratch memory for them");
            moe::forward(cpu, config.moe_shapes(), moe, scratch, input, hidden);
        }
    }
}
