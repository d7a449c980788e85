//! The model's configuration, read from a checkpoint's `config.json` and checked.
//!
//! Two forms are read: the full model (`model_type` `qwen3_5`, with the text model's entries under
//! `text_config`) and the text model alone (`qwen3_5_text`, all entries at the top). Shapes must be given;
//! only switches that older files leave out have defaults. An entry that is `null` counts as absent.

mod fields;

use std::path::Path;

use serde_json::Value;

use self::fields::{Fields, MAX_SIZE, describe};
use crate::checkpoint::json::{self, quote};
use crate::error::{Error, Result};

/// Longest `config.json` read, in bytes.
const MAX_JSON: usize = 4 << 20;
/// Most layers.
const MAX_LAYERS: usize = 1024;
/// Largest dimension of one head.
const MAX_HEAD_DIM: usize = 1 << 12;
/// Most numbers in the delta-rule state of one layer.
const MAX_STATE: usize = 1 << 28;
/// The two forms of configuration that are read.
const FULL_MODEL: &str = "qwen3_5";
const TEXT_MODEL: &str = "qwen3_5_text";

/// What mixes a layer's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Gated delta rule: a state of constant size (`linear_attention`).
    GatedDelta,
    /// Gated attention with a KV cache (`full_attention`).
    Attention,
}

/// The gated delta rule's shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaConfig {
    /// Query and key heads.
    pub key_heads: usize,
    /// Value heads, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Dimension of one query or key head, a multiple of 16.
    pub key_dim: usize,
    /// Dimension of one value head, a multiple of 16.
    pub value_dim: usize,
    /// Taps of the short convolution; always 4.
    pub conv_kernel: usize,
}

impl DeltaConfig {
    /// Channels of the short convolution: queries, keys and values of all heads.
    pub fn conv_dim(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }
}

/// The attention's shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionConfig {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimension of one head, a multiple of 16.
    pub head_dim: usize,
    /// Whether each query head brings a gate of `head_dim` for its output.
    pub output_gate: bool,
}

impl AttentionConfig {
    /// Channels of the query projection of a token: each head's query and, if there is one, its gate.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim * (1 + usize::from(self.output_gate))
    }
}

/// Rotary positions: the first `rotary_dim` channels of each head turn, frequencies interleaved over three
/// axes.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Channels that turn; even, at most the head's dimension.
    pub rotary_dim: usize,
    /// Frequencies on the time, height and width axes; they sum to `rotary_dim / 2`.
    pub sections: [usize; 3],
}

/// The text model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of embedding and head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Most tokens in one sequence.
    pub max_position_embeddings: usize,
    /// The mixer of each layer.
    pub layers: Vec<LayerKind>,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// Shapes of the gated delta rule.
    pub delta: DeltaConfig,
    /// Shapes of the attention.
    pub attention: AttentionConfig,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Whether the head is the embedding's matrix.
    pub tie_word_embeddings: bool,
}

/// A whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `qwen3_5` or `qwen3_5_text`.
    pub model_type: String,
    /// The text model.
    pub text: TextConfig,
    /// Whether the configuration describes a vision tower too.
    pub has_vision: bool,
    /// Tokens that end a text: those of the outer configuration if it names any, else those of `text_config`.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Parses and checks a `config.json`. `path` is for messages only; errors name the entry, dotted where
    /// nested.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        if json.len() > MAX_JSON {
            let reason = format!("has {} bytes, the limit for a configuration is {MAX_JSON}", json.len());
            return Err(Error::file(path, reason));
        }
        let root = json::parse(json).map_err(|reason| Error::file(path, reason))?;
        let outer = Fields::new(path, &root)?;
        let model_type = outer.require("model_type", outer.text("model_type")?)?;
        let text = match model_type {
            FULL_MODEL => Some(nested_text(&outer)?),
            TEXT_MODEL => None,
            other => {
                let reason =
                    format!("'{}' is not supported; known: {FULL_MODEL}, {TEXT_MODEL}", quote(other));
                return Err(outer.error("model_type", reason));
            }
        };
        let fields = text.as_ref().unwrap_or(&outer);
        for fields in [&outer, fields] {
            refuse_quantized(fields)?;
        }
        let eos_token_ids = match token_ids(&outer, "eos_token_id")? {
            ids if ids.is_empty() => token_ids(fields, "eos_token_id")?,
            ids => ids,
        };
        Ok(Self {
            model_type: model_type.to_owned(),
            text: text_config(fields, tied(&outer, fields)?)?,
            has_vision: text.is_some() && outer.object("vision_config")?.is_some(),
            eos_token_ids,
        })
    }
}

/// The text model's entries in a full model's configuration.
fn nested_text<'a>(outer: &Fields<'a>) -> Result<Fields<'a>> {
    let text = outer.require("text_config", outer.object("text_config")?)?;
    expect_text(&text, "model_type", TEXT_MODEL)?;
    Ok(text)
}

/// An entry that may be absent, but if it stands must have this value.
fn expect_text(fields: &Fields, key: &str, value: &str) -> Result<()> {
    match fields.text(key)? {
        Some(other) if other != value => {
            Err(fields.error(key, format!("'{}' is not supported; known: {value}", quote(other))))
        }
        _ => Ok(()),
    }
}

/// Weights that another program has quantised are stored under other names and types.
fn refuse_quantized(fields: &Fields) -> Result<()> {
    let key = "quantization_config";
    match fields.object(key)? {
        Some(settings) => {
            let method = settings.text("quant_method")?.unwrap_or("unknown");
            let reason =
                format!("weights quantised by '{}' are not supported; use the original", quote(method));
            Err(fields.error(key, reason))
        }
        None => Ok(()),
    }
}

/// Whether the head shares the embedding's matrix.
///
/// The outermost value decides where it stands, as in transformers 5, where the head belongs to the outer
/// model; else the text model's own; else false. Published configurations write the same value in both
/// places.
fn tied(outer: &Fields, text: &Fields) -> Result<bool> {
    let key = "tie_word_embeddings";
    let inner = text.flag(key)?;
    Ok(outer.flag(key)?.or(inner).unwrap_or(false))
}

fn text_config(fields: &Fields, tie_word_embeddings: bool) -> Result<TextConfig> {
    expect_text(fields, "hidden_act", "silu")?;
    if fields.flag("attention_bias")? == Some(true) {
        return Err(fields.error("attention_bias", "true is not supported"));
    }
    let attention = attention(fields)?;
    Ok(TextConfig {
        vocab_size: fields.size("vocab_size", MAX_SIZE)?,
        hidden_size: fields.size("hidden_size", MAX_SIZE)?,
        intermediate_size: fields.size("intermediate_size", MAX_SIZE)?,
        max_position_embeddings: fields.size("max_position_embeddings", MAX_SIZE)?,
        layers: layers(fields)?,
        rms_norm_eps: rms_norm_eps(fields)?,
        delta: delta(fields)?,
        rope: rope(fields, attention.head_dim)?,
        attention,
        tie_word_embeddings,
    })
}

fn rms_norm_eps(fields: &Fields) -> Result<f32> {
    let key = "rms_norm_eps";
    let eps = fields.require(key, fields.positive(key)?)?;
    match eps as f32 {
        eps if eps.is_finite() && eps > 0.0 => Ok(eps),
        _ => Err(fields.error(key, format!("{eps} is out of range"))),
    }
}

/// The kind of each layer: as listed, or every `full_attention_interval`-th one attention.
fn layers(fields: &Fields) -> Result<Vec<LayerKind>> {
    let count = fields.size("num_hidden_layers", MAX_LAYERS)?;
    let interval = fields.optional_size("full_attention_interval", MAX_SIZE)?.unwrap_or(4);
    let key = "layer_types";
    let Some(listed) = fields.list(key)? else {
        let kind = |i: usize| {
            if (i + 1).is_multiple_of(interval) { LayerKind::Attention } else { LayerKind::GatedDelta }
        };
        return Ok((0..count).map(kind).collect());
    };
    if listed.len() != count {
        return Err(fields.error(key, format!("has {} entries for {count} layers", listed.len())));
    }
    let kinds = listed.iter().enumerate().map(|(i, value)| match value.as_str() {
        Some("linear_attention") => Ok(LayerKind::GatedDelta),
        Some("full_attention") => Ok(LayerKind::Attention),
        _ => {
            let reason = format!("must be linear_attention or full_attention, not {}", describe(value));
            Err(fields.error(&format!("{key}[{i}]"), reason))
        }
    });
    kinds.collect()
}

fn delta(fields: &Fields) -> Result<DeltaConfig> {
    let kernel_key = "linear_conv_kernel_dim";
    let delta = DeltaConfig {
        key_heads: fields.size("linear_num_key_heads", MAX_SIZE)?,
        value_heads: fields.size("linear_num_value_heads", MAX_SIZE)?,
        key_dim: head_dim(fields, "linear_key_head_dim")?,
        value_dim: head_dim(fields, "linear_value_head_dim")?,
        conv_kernel: fields.size(kernel_key, MAX_SIZE)?,
    };
    if delta.conv_kernel != 4 {
        return Err(fields.error(kernel_key, format!("{} is not supported; known: 4", delta.conv_kernel)));
    }
    divides(fields, "linear_num_value_heads", delta.value_heads, "linear_num_key_heads", delta.key_heads)?;
    let keys = width(fields, "linear_num_key_heads", &[2, delta.key_heads, delta.key_dim], MAX_SIZE)?;
    let values = width(fields, "linear_num_value_heads", &[delta.value_heads, delta.value_dim], MAX_SIZE)?;
    if keys + values > MAX_SIZE {
        return Err(
            fields.error("linear_num_value_heads", format!("{} channels are too many", keys + values))
        );
    }
    let state = [delta.value_heads, delta.key_dim, delta.value_dim];
    width(fields, "linear_num_value_heads", &state, MAX_STATE)?;
    Ok(delta)
}

fn attention(fields: &Fields) -> Result<AttentionConfig> {
    let attention = AttentionConfig {
        heads: fields.size("num_attention_heads", MAX_SIZE)?,
        kv_heads: fields.size("num_key_value_heads", MAX_SIZE)?,
        head_dim: attention_head_dim(fields)?,
        output_gate: fields.flag("attn_output_gate")?.unwrap_or(true),
    };
    divides(fields, "num_attention_heads", attention.heads, "num_key_value_heads", attention.kv_heads)?;
    width(fields, "num_attention_heads", &[2, attention.heads, attention.head_dim], MAX_SIZE)?;
    Ok(attention)
}

/// The attention kernel keeps a head's output in a buffer of fixed size.
fn attention_head_dim(fields: &Fields) -> Result<usize> {
    let dim = head_dim(fields, "head_dim")?;
    if dim > crate::kernels::attention::MAX_HEAD_DIM {
        let max = crate::kernels::attention::MAX_HEAD_DIM;
        return Err(fields.error("head_dim", format!("must be at most {max}, not {dim}")));
    }
    Ok(dim)
}

/// The dimension of a head: kernels work on 16 channels at a time.
fn head_dim(fields: &Fields, key: &str) -> Result<usize> {
    let dim = fields.size(key, MAX_HEAD_DIM)?;
    if !dim.is_multiple_of(16) {
        return Err(fields.error(key, format!("must be a multiple of 16, not {dim}")));
    }
    Ok(dim)
}

fn divides(fields: &Fields, key: &str, whole: usize, part_key: &str, part: usize) -> Result<()> {
    if whole.is_multiple_of(part) {
        return Ok(());
    }
    Err(fields.error(key, format!("{whole} is not a multiple of {part_key} {part}")))
}

/// The product of `factors`, which must not exceed `max`.
fn width(fields: &Fields, key: &str, factors: &[usize], max: usize) -> Result<usize> {
    let product = factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor));
    product.filter(|&product| product <= max).ok_or_else(|| {
        let factors: Vec<_> = factors.iter().map(usize::to_string).collect();
        fields.error(key, format!("{} is more than {max}", factors.join(" x ")))
    })
}

/// Rotary settings from `rope_parameters`, or from the older `rope_scaling` with `rope_theta` beside it.
fn rope(fields: &Fields, head_dim: usize) -> Result<RopeConfig> {
    let settings = match (fields.object("rope_parameters")?, fields.object("rope_scaling")?) {
        (Some(_), Some(_)) => {
            return Err(fields.error("rope_scaling", "stands beside rope_parameters; only one of them may"));
        }
        (parameters, scaling) => parameters.or(scaling),
    };
    let inner = settings.as_ref().unwrap_or(fields);
    if settings.is_some() {
        for key in ["rope_type", "type"] {
            expect_text(inner, key, "default")?;
        }
    }
    let theta = match inner.positive("rope_theta")? {
        Some(theta) => theta,
        None => inner.require("rope_theta", fields.positive("rope_theta")?)?,
    };
    let rotary_dim = rotary_dim(inner, fields, head_dim)?;
    Ok(RopeConfig { theta, rotary_dim, sections: sections(inner, rotary_dim)? })
}

/// `partial_rotary_factor` x `head_dim`, rounded down; the family's factor is 0.25 where none stands.
fn rotary_dim(inner: &Fields, outer: &Fields, head_dim: usize) -> Result<usize> {
    let key = "partial_rotary_factor";
    let (place, factor) = match inner.positive(key)? {
        Some(factor) => (inner, factor),
        None => (outer, outer.positive(key)?.unwrap_or(0.25)),
    };
    if factor > 1.0 {
        return Err(place.error(key, format!("must be at most 1, not {factor}")));
    }
    let dim = (head_dim as f64 * factor) as usize;
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(place.error(
            key,
            format!("{factor} of head_dim {head_dim} gives {dim} channels, not an even number"),
        ));
    }
    Ok(dim)
}

/// Frequencies on each axis; all on the time axis where none are given.
fn sections(rope: &Fields, rotary_dim: usize) -> Result<[usize; 3]> {
    let key = "mrope_section";
    let half = rotary_dim / 2;
    let interleaved = rope.flag("mrope_interleaved")?.unwrap_or(true);
    let Some(listed) = rope.list(key)? else {
        return Ok([half, 0, 0]);
    };
    if !interleaved {
        return Err(rope.error("mrope_interleaved", "false is not supported"));
    }
    let wrong = || {
        rope.error(key, format!("must be three whole numbers with the sum {half}, half the rotary channels"))
    };
    let sizes: Option<Vec<u64>> =
        listed.iter().map(|value| value.as_u64().filter(|&x| x <= half as u64)).collect();
    match sizes.as_deref() {
        Some(&[t, h, w]) if t + h + w == half as u64 => Ok([t as usize, h as usize, w as usize]),
        _ => Err(wrong()),
    }
}

/// Token ids given as one number, a list, or not at all.
fn token_ids(fields: &Fields, key: &str) -> Result<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match fields.get(key) {
        None => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| fields.error(key, "must be a token id or a list of token ids"))
}

#[cfg(test)]
mod tests;
