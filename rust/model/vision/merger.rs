//! Merging: the patches of a token, side by side, through two layers to the width of the text model.

use super::buffers::{Buffers, ROWS};
use super::{NORM_EPS, affine};
use crate::config::VisionConfig;
use crate::error::{Result, try_zeros};
use crate::kernels::Cpu;
use crate::kernels::activation::gelu_erf_in_place;
use crate::kernels::norm::layer_norm;
use crate::weights::vision::MergerWeights;

/// Tokens `[tokens, hidden]` of the patches in `buffers.x`, which stay as they are.
///
/// The norm is over each patch or over all patches of a token, as its weights are long.
pub fn forward(
    cpu: &Cpu,
    config: &VisionConfig,
    weights: &MergerWeights,
    buffers: &mut Buffers,
) -> Result<Vec<f32>> {
    let (merged, hidden) = (config.merged_width(), config.out_hidden_size);
    let Buffers { x, normed, wide, quantized, .. } = buffers;
    let mut out = try_zeros(x.len() / merged, hidden)?;
    let chunk = ROWS * config.hidden_size;
    for (x, out) in x.chunks(chunk).zip(out.chunks_mut(chunk / merged * hidden)) {
        let (normed, inner) = (&mut normed[..x.len()], &mut wide[..x.len()]);
        layer_norm(cpu, x, &weights.norm.weight, &weights.norm.bias, NORM_EPS, normed);
        affine(cpu, &weights.fc1, normed, quantized, inner);
        gelu_erf_in_place(cpu, inner);
        affine(cpu, &weights.fc2, inner, quantized, out);
    }
    Ok(out)
}
