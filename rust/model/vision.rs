//! The vision tower: the patches of an image, or of a pair of frames, to embeddings for the text model.
//!
//! ```text
//! x = patch_embed(pixels) + positions                      the convolution over patches is a matrix product
//! for each block:
//!   q, k, v = split(qkv(norm1(x))),  q and k turned by row and column
//!   x += proj(attention(q, k, v))                          every patch sees every patch of its frame
//!   x += fc2(gelu(fc1(norm2(x))))
//!   a DeepStack merger reads x, after blocks that are listed for it
//! embeddings = fc2(gelu(fc1(norm(x)))) of each 2 x 2 patches
//! ```
//!
//! Patches stand in the order of the tokens they become: the four of a token side by side, tokens row by row. All but
//! attention works on a few hundred patches at a time, so memory for the wide layers does not grow with the image.
//!
//! Source: the Qwen3-VL vision model code; vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929).

mod attention;
mod buffers;
mod feed_forward;
mod grid;
mod merger;
mod positions;

pub use grid::Grid;

use self::buffers::{Buffers, ROWS};
use super::input::{add_projection, prepare, set};
use crate::config::{MediaTokens, VisionConfig};
use crate::error::Result;
use crate::floats::Floats;
use crate::kernels::Cpu;
use crate::kernels::activation::add_bias;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::kv_cache::KvType;
use crate::kernels::linear::linear;
use crate::threads::StandardFloat;
use crate::weights::vision::{Affine, BlockWeights, VisionWeights};

/// Added to the variance in the tower's norms.
const NORM_EPS: f32 = 1e-6;

/// A vision tower: its shapes and weights.
#[derive(Debug)]
pub struct VisionTower {
    /// Shapes and constants.
    pub config: VisionConfig,
    /// Ids that stand for images and video in a text.
    pub tokens: MediaTokens,
    /// The weights.
    pub weights: VisionWeights,
}

/// What the text model sees of one image or pair of frames.
#[derive(Debug)]
pub struct Features {
    /// Patches before merging.
    pub grid: Grid,
    /// In place of token embeddings: `[tokens, hidden]`
    pub embeddings: Vec<f32>,
    /// Added to the hidden states after decoder layer j: `[tokens, hidden]` each.
    pub deepstack: Vec<Vec<f32>>,
}

impl Features {
    /// Tokens it takes in a text.
    pub fn tokens(&self) -> usize {
        self.grid.tokens()
    }

    /// Bytes held.
    pub fn nbytes(&self) -> usize {
        let numbers = self.embeddings.len() + self.deepstack.iter().map(Vec::len).sum::<usize>();
        size_of::<Self>() + 4 * numbers
    }

    /// Whether all numbers are finite.
    pub fn is_finite(&self) -> bool {
        self.deepstack.iter().chain([&self.embeddings]).flatten().all(|x| x.is_finite())
    }
}

/// A place in the tower that can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisionStage {
    /// Patches after the convolution, `[patches, width]`.
    PatchEmbedding,
    /// The same with positions, `[patches, width]`.
    BlockInput,
    /// The output of block i, `[patches, width]`.
    Block(usize),
}

/// Sees each stage once.
pub type VisionWatch<'a> = &'a mut dyn FnMut(VisionStage, &[f32]);

impl VisionTower {
    /// Encodes `pixels` `[patches, patch values]` of one image or pair of frames, and gives their memory back before the rest of
    /// what the blocks need is taken.
    ///
    /// `proceed` is told before each block how many are done, and stops the work with an error. `watch` sees every stage.
    ///
    /// # Panics
    /// If `pixels` does not fit `grid`.
    pub fn encode(
        &self,
        cpu: &Cpu,
        pixels: Vec<f32>,
        grid: Grid,
        proceed: &mut dyn FnMut(usize) -> Result<()>,
        watch: VisionWatch<'_>,
    ) -> Result<Features> {
        let _standard = StandardFloat::enter();
        let (config, weights) = (&self.config, &self.weights);
        assert_eq!(pixels.len(), grid.patches() * config.patch_values(), "pixels are [patches, values]");
        proceed(0)?;
        let mut x = self.embed_patches(cpu, &pixels)?;
        drop(pixels);
        watch(VisionStage::PatchEmbedding, &x);
        positions::add(cpu, config, &weights.positions, grid, &mut x);
        watch(VisionStage::BlockInput, &x);
        let mut buffers = Buffers::new(config, grid, x, self.kv_type())?;
        let mut deepstack = Vec::with_capacity(weights.deepstack.len());
        for (i, block) in weights.blocks.iter().enumerate() {
            proceed(i)?;
            attention::forward(cpu, config, block, &mut buffers);
            feed_forward::forward(cpu, config, block, &mut buffers);
            watch(VisionStage::Block(i), &buffers.x);
            if let Some(j) = config.deepstack_layers.iter().position(|&layer| layer == i) {
                deepstack.push(merger::forward(cpu, config, &weights.deepstack[j], &mut buffers)?);
            }
        }
        proceed(weights.blocks.len())?;
        let embeddings = merger::forward(cpu, config, &weights.merger, &mut buffers)?;
        Ok(Features { grid, embeddings, deepstack })
    }

    /// How keys and values meet queries: of quantised weights as bfloat16, else exactly.
    fn kv_type(&self) -> KvType {
        let quantized = |block: &BlockWeights| block.qkv.weight.format().is_quantized();
        if self.weights.blocks.iter().all(quantized) { KvType::Bf16 } else { KvType::F32 }
    }

    /// `patch_embed(pixels)`, `[patches, width]`
    fn embed_patches(&self, cpu: &Cpu, pixels: &[f32]) -> Result<Floats> {
        let (values, width) = (self.config.patch_values(), self.config.hidden_size);
        let patches = pixels.len() / values;
        let [mut x] = Floats::try_zeroed_array([patches.saturating_mul(width)])?;
        let mut quantized = QuantizedRows::with_capacity(ROWS.min(patches), values);
        for (pixels, x) in pixels.chunks(ROWS * values).zip(x.chunks_mut(ROWS * width)) {
            affine(cpu, &self.weights.patch_embed, pixels, &mut quantized, x);
        }
        Ok(x)
    }
}

/// out = rows x weight + bias
fn affine(cpu: &Cpu, layer: &Affine, rows: &[f32], quantized: &mut QuantizedRows, out: &mut [f32]) {
    let input = prepare(cpu, rows, layer.weight.cols(), &[&layer.weight], quantized);
    linear(cpu, input, [set(&layer.weight, out)]);
    add_bias(cpu, out, &layer.bias);
}

/// hidden += rows x weight + bias
fn add_affine(cpu: &Cpu, layer: &Affine, rows: &[f32], quantized: &mut QuantizedRows, hidden: &mut [f32]) {
    add_bias(cpu, hidden, &layer.bias);
    add_projection(cpu, rows, &layer.weight, quantized, hidden);
}
