//! The feed-forward network of a vision block.

use super::buffers::{Buffers, ROWS};
use super::{NORM_EPS, add_affine, affine};
use crate::config::VisionConfig;
use crate::kernels::Cpu;
use crate::kernels::activation::gelu_tanh_in_place;
use crate::kernels::norm::layer_norm;
use crate::weights::vision::BlockWeights;

/// x += fc2(gelu(fc1(norm2(x))))
pub fn forward(cpu: &Cpu, config: &VisionConfig, weights: &BlockWeights, buffers: &mut Buffers) {
    let Buffers { x, normed, wide, quantized, .. } = buffers;
    for x in x.chunks_mut(ROWS * config.hidden_size) {
        let rows = x.len() / config.hidden_size;
        let (normed, inner) = (&mut normed[..x.len()], &mut wide[..rows * config.intermediate_size]);
        layer_norm(cpu, x, &weights.norm2.weight, &weights.norm2.bias, NORM_EPS, normed);
        affine(cpu, &weights.fc1, normed, quantized, inner);
        gelu_tanh_in_place(cpu, inner);
        add_affine(cpu, &weights.fc2, inner, quantized, x);
    }
}
