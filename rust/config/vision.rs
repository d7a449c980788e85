//! The vision tower's configuration (`vision_config`), and the tokens that hold places for its features.

use super::fields::{Fields, MAX_SIZE, describe};
use super::{MAX_LAYERS, TextConfig, divides, expect_text, known_size, width};
use crate::error::Result;
use crate::kernels::attention::MAX_HEAD_DIM;

/// Base of the rotary frequencies where none stands.
const ROPE_THETA: f64 = 10_000.0;

/// The vision tower's shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Attention heads; they divide `hidden_size`.
    pub heads: usize,
    /// Width of a feature; the text model's `hidden_size`.
    pub out_hidden_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames of a patch; always 2.
    pub temporal_patch_size: usize,
    /// Colours of a pixel; always 3.
    pub in_channels: usize,
    /// Side in patches of the square that becomes one token (`spatial_merge_size`); always 2.
    pub merge_size: usize,
    /// Side of the square table of learned positions.
    pub position_side: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Blocks whose output is also added inside the text model, behind decoder layers 0, 1, ...; ascending.
    pub deepstack_layers: Vec<usize>,
}

impl VisionConfig {
    /// Channels of one head, a multiple of 4: rows and columns each turn a quarter of them in pairs.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.heads
    }

    /// Numbers of one patch.
    pub fn patch_values(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Width of the patches that become one token, side by side.
    pub fn merged_width(&self) -> usize {
        self.hidden_size * self.merge_size * self.merge_size
    }
}

/// Ids of the tokens around an image or video and of those that hold its places. All are different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaTokens {
    /// Place of one feature of an image.
    pub image: u32,
    /// Place of one feature of a video.
    pub video: u32,
    /// Stands before the places.
    pub vision_start: u32,
    /// Stands behind the places.
    pub vision_end: u32,
}

/// What a model that sees has beside its text model.
#[derive(Clone, Debug, PartialEq)]
pub struct Vision {
    /// The vision tower.
    pub tower: VisionConfig,
    /// Its tokens.
    pub tokens: MediaTokens,
}

impl Vision {
    /// Reads `vision_config`, which may be absent, and the token ids beside it.
    pub(super) fn parse(outer: &Fields, text: &TextConfig) -> Result<Option<Self>> {
        let Some(fields) = outer.object("vision_config")? else {
            return Ok(None);
        };
        Ok(Some(Self { tower: tower(&fields, text)?, tokens: tokens(outer, text.vocab_size)? }))
    }
}

fn tower(fields: &Fields, text: &TextConfig) -> Result<VisionConfig> {
    expect_text(fields, "hidden_act", "gelu_pytorch_tanh")?;
    let depth = fields.size("depth", MAX_LAYERS)?;
    let tower = VisionConfig {
        depth,
        hidden_size: fields.size("hidden_size", MAX_SIZE)?,
        intermediate_size: fields.size("intermediate_size", MAX_SIZE)?,
        heads: fields.size("num_heads", MAX_SIZE)?,
        out_hidden_size: fields.size("out_hidden_size", MAX_SIZE)?,
        patch_size: fields.size("patch_size", MAX_SIZE)?,
        temporal_patch_size: known_size(fields, "temporal_patch_size", 2)?,
        in_channels: known_size(fields, "in_channels", 3)?,
        merge_size: known_size(fields, "spatial_merge_size", 2)?,
        position_side: position_side(fields)?,
        rope_theta: rope_theta(fields)?,
        deepstack_layers: deepstack_layers(fields, depth, text.layers.len())?,
    };
    check_widths(fields, &tower)?;
    if tower.out_hidden_size != text.hidden_size {
        let reason =
            format!("{} is not the text model's hidden_size {}", tower.out_hidden_size, text.hidden_size);
        return Err(fields.error("out_hidden_size", reason));
    }
    Ok(tower)
}

/// Heads must fit, and everything laid out in one row must have a sensible length.
fn check_widths(fields: &Fields, tower: &VisionConfig) -> Result<()> {
    divides(fields, "hidden_size", tower.hidden_size, "num_heads", tower.heads)?;
    let head_dim = tower.head_dim();
    if !head_dim.is_multiple_of(4) || head_dim > MAX_HEAD_DIM {
        let reason = format!(
            "{} heads of {head_dim} channels; a head must have a multiple of 4 and at most {MAX_HEAD_DIM}",
            tower.heads
        );
        return Err(fields.error("num_heads", reason));
    }
    let VisionConfig { temporal_patch_size: frames, in_channels, merge_size, patch_size, .. } = *tower;
    width(fields, "hidden_size", &[tower.hidden_size, merge_size, merge_size], MAX_SIZE)?;
    width(fields, "patch_size", &[in_channels, frames, patch_size, patch_size], MAX_SIZE)?;
    Ok(())
}

/// The table of positions is square.
fn position_side(fields: &Fields) -> Result<usize> {
    let key = "num_position_embeddings";
    let positions = fields.size(key, MAX_SIZE)?;
    let side = positions.isqrt();
    if side * side != positions {
        return Err(fields.error(key, format!("{positions} is not the square of a whole number")));
    }
    Ok(side)
}

fn rope_theta(fields: &Fields) -> Result<f64> {
    let Some(rope) = fields.object("rope_parameters")? else {
        return Ok(ROPE_THETA);
    };
    match rope.text("rope_type")? {
        None | Some("default") => {}
        Some(_) => expect_text(&rope, "rope_type", "axial")?,
    }
    Ok(rope.positive("rope_theta")?.unwrap_or(ROPE_THETA))
}

/// Ascending numbers of blocks; each has a decoder layer of its own to go to.
fn deepstack_layers(fields: &Fields, depth: usize, decoder_layers: usize) -> Result<Vec<usize>> {
    let key = "deepstack_visual_indexes";
    let mut layers = Vec::new();
    for (i, value) in fields.list(key)?.unwrap_or_default().iter().enumerate() {
        let next = layers.last().map_or(0, |last| last + 1);
        let layer = value.as_u64().and_then(|layer| usize::try_from(layer).ok());
        let Some(layer) = layer.filter(|layer| (next..depth).contains(layer)) else {
            let reason =
                format!("must be a block above the one before and below {depth}, not {}", describe(value));
            return Err(fields.error(&format!("{key}[{i}]"), reason));
        };
        layers.push(layer);
    }
    if layers.len() > decoder_layers {
        let reason = format!("has {} entries for {decoder_layers} decoder layers", layers.len());
        return Err(fields.error(key, reason));
    }
    Ok(layers)
}

fn tokens(outer: &Fields, vocab_size: usize) -> Result<MediaTokens> {
    let mut seen = Vec::new();
    let mut token = |key| {
        let id = token_id(outer, key, vocab_size)?;
        if let Some((other, _)) = seen.iter().find(|(_, other)| *other == id) {
            return Err(outer.error(key, format!("{id} is {other} too")));
        }
        seen.push((key, id));
        Ok(id)
    };
    Ok(MediaTokens {
        image: token("image_token_id")?,
        video: token("video_token_id")?,
        vision_start: token("vision_start_token_id")?,
        vision_end: token("vision_end_token_id")?,
    })
}

fn token_id(outer: &Fields, key: &str, vocab_size: usize) -> Result<u32> {
    let value = outer.require(key, outer.get(key))?;
    let id = value.as_u64().filter(|&id| id < vocab_size as u64);
    id.and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
        let reason = format!("must be a token id below vocab_size {vocab_size}, not {}", describe(value));
        outer.error(key, reason)
    })
}

#[cfg(test)]
mod tests;
