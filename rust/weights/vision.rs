//! The weights of the vision tower: one field for each tensor, shapes in the comments, names in [`load`].
//!
//! W width of the tower, P numbers of a patch, I feed-forward width, M = 4 W width of the patches that become one token, H width of
//! the text model.

use super::matrix::Matrix;
use super::model::NonFinite;
use super::names::Source;
use crate::config::VisionConfig;
use crate::error::Result;

/// Everything between pixels and embeddings. Never changes after loading.
#[derive(Debug)]
pub struct VisionWeights {
    /// The convolution over patches: `[W, P]`
    pub patch_embed: Affine,
    /// The table of positions: `[side * side, W]`
    pub positions: Matrix,
    /// In order.
    pub blocks: Vec<BlockWeights>,
    /// Patches to tokens.
    pub merger: MergerWeights,
    /// One for each block whose output goes to the decoder too.
    pub deepstack: Vec<MergerWeights>,
}

/// A matrix product with a bias.
#[derive(Debug)]
pub struct Affine {
    /// `[rows, cols]`
    pub weight: Matrix,
    /// `[rows]`
    pub bias: Vec<f32>,
}

/// A layer norm.
#[derive(Debug)]
pub struct NormWeights {
    /// `[width]`
    pub weight: Vec<f32>,
    /// `[width]`
    pub bias: Vec<f32>,
}

/// One transformer block.
#[derive(Debug)]
pub struct BlockWeights {
    /// `[W]`
    pub norm1: NormWeights,
    /// Queries, keys and values of all heads: `[3 W, W]`
    pub qkv: Affine,
    /// `[W, W]`
    pub proj: Affine,
    /// `[W]`
    pub norm2: NormWeights,
    /// `[I, W]`
    pub fc1: Affine,
    /// `[W, I]`
    pub fc2: Affine,
}

/// From patches to the text model's embeddings.
#[derive(Debug)]
pub struct MergerWeights {
    /// `[W]` of a patch, or `[M]` of the patches of a token.
    pub norm: NormWeights,
    /// `[M, M]`
    pub fc1: Affine,
    /// `[H, M]`
    pub fc2: Affine,
}

/// Prefix of the tower's tensors after the model's own.
pub const PREFIX: &str = "visual.";

/// Builds the weights of a vision tower. Names begin with [`PREFIX`].
pub fn load(config: &VisionConfig, source: &mut dyn Source) -> Result<VisionWeights> {
    let (width, merged) = (config.hidden_size, config.merged_width());
    let mut tensors = Tensors { source };
    let patch_embed = tensors.affine("patch_embed.proj", [width, config.patch_values()])?;
    let places = config.position_side * config.position_side;
    let positions = tensors.matrix("pos_embed.weight", [places, width])?;
    let blocks = (0..config.depth).map(|i| tensors.block(config, i)).collect::<Result<_>>()?;
    let out = config.out_hidden_size;
    let merger = tensors.merger("merger", width, [out, merged])?;
    let deepstack = (0..config.deepstack_layers.len())
        .map(|j| tensors.merger(&format!("deepstack_merger_list.{j}"), merged, [out, merged]))
        .collect::<Result<_>>()?;
    Ok(VisionWeights { patch_embed, positions, blocks, merger, deepstack })
}

struct Tensors<'a> {
    source: &'a mut dyn Source,
}

impl Tensors<'_> {
    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.source.matrix(&format!("{PREFIX}{name}"), shape)
    }

    fn vector(&mut self, name: &str, width: usize) -> Result<Vec<f32>> {
        self.source.vector(&format!("{PREFIX}{name}"), &[width])
    }

    fn affine(&mut self, name: &str, shape: [usize; 2]) -> Result<Affine> {
        let weight = self.matrix(&format!("{name}.weight"), shape)?;
        Ok(Affine { weight, bias: self.vector(&format!("{name}.bias"), shape[0])? })
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<NormWeights> {
        let weight = self.vector(&format!("{name}.weight"), width)?;
        Ok(NormWeights { weight, bias: self.vector(&format!("{name}.bias"), width)? })
    }

    fn block(&mut self, config: &VisionConfig, index: usize) -> Result<BlockWeights> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("blocks.{index}.{part}");
        Ok(BlockWeights {
            norm1: self.norm(&name("norm1"), width)?,
            qkv: self.affine(&name("attn.qkv"), [3 * width, width])?,
            proj: self.affine(&name("attn.proj"), [width, width])?,
            norm2: self.norm(&name("norm2"), width)?,
            fc1: self.affine(&name("mlp.linear_fc1"), [inner, width])?,
            fc2: self.affine(&name("mlp.linear_fc2"), [width, inner])?,
        })
    }

    fn merger(&mut self, name: &str, norm: usize, [out, merged]: [usize; 2]) -> Result<MergerWeights> {
        Ok(MergerWeights {
            norm: self.norm(&format!("{name}.norm"), norm)?,
            fc1: self.affine(&format!("{name}.linear_fc1"), [merged, merged])?,
            fc2: self.affine(&format!("{name}.linear_fc2"), [out, merged])?,
        })
    }
}

impl VisionWeights {
    /// Calls `visit` with each matrix and its name from [`PREFIX`] on.
    pub fn each_matrix<'a>(&'a self, visit: &mut dyn FnMut(String, &'a Matrix)) {
        visit(format!("{PREFIX}pos_embed.weight"), &self.positions);
        for (name, affine) in self.affines() {
            visit(format!("{PREFIX}{name}.weight"), &affine.weight);
        }
    }

    /// Calls `visit` with each vector and its name.
    pub fn each_vector<'a>(&'a self, visit: &mut dyn FnMut(String, &'a [f32])) {
        for (name, affine) in self.affines() {
            visit(format!("{PREFIX}{name}.bias"), &affine.bias);
        }
        for (name, norm) in self.norms() {
            visit(format!("{PREFIX}{name}.weight"), &norm.weight);
            visit(format!("{PREFIX}{name}.bias"), &norm.bias);
        }
    }

    /// The name of a tensor that holds a number that is not finite. Reads all weights.
    pub fn find_non_finite(&self) -> Option<String> {
        let mut search = NonFinite::default();
        self.each_vector(&mut |name, vector| search.vector(name, vector));
        self.each_matrix(&mut |name, matrix| search.matrix(name, matrix));
        search.found
    }

    fn affines(&self) -> impl Iterator<Item = (String, &Affine)> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            let parts = [
                ("attn.qkv", &block.qkv),
                ("attn.proj", &block.proj),
                ("mlp.linear_fc1", &block.fc1),
                ("mlp.linear_fc2", &block.fc2),
            ];
            parts.map(|(name, affine)| (format!("blocks.{i}.{name}"), affine))
        });
        let mergers = self.mergers().flat_map(|(name, merger)| {
            [(format!("{name}.linear_fc1"), &merger.fc1), (format!("{name}.linear_fc2"), &merger.fc2)]
        });
        std::iter::once(("patch_embed.proj".to_owned(), &self.patch_embed)).chain(blocks).chain(mergers)
    }

    fn norms(&self) -> impl Iterator<Item = (String, &NormWeights)> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            [(format!("blocks.{i}.norm1"), &block.norm1), (format!("blocks.{i}.norm2"), &block.norm2)]
        });
        blocks.chain(self.mergers().map(|(name, merger)| (format!("{name}.norm"), &merger.norm)))
    }

    fn mergers(&self) -> impl Iterator<Item = (String, &MergerWeights)> {
        let deepstack = self.deepstack.iter().enumerate();
        let deepstack = deepstack.map(|(j, merger)| (format!("deepstack_merger_list.{j}"), merger));
        std::iter::once(("merger".to_owned(), &self.merger)).chain(deepstack)
    }
}
