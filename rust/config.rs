//! The model's configuration, read from a checkpoint's `config.json` and checked.
//!
//! Models are read in two forms: the full model (`model_type` such as `qwen3_5`, with the text model's entries under
//! `text_config`) and the text model alone (such as `qwen3_5_text`, all entries at the top); `family` has the list.
//! Shapes must be given; only switches that older files leave out have defaults. An entry that is `null` counts as
//! absent.

mod family;
mod fields;
mod moe;
mod quantization;
mod rope;
mod vision;
mod yarn;

use std::path::Path;

use serde_json::Value;

use self::family::{Family, Form};
use self::fields::{Fields, MAX_SIZE, describe};
pub use self::quantization::{Grid, Method, Quantization, Scheme, Strategy, WHOLE_ROW};
pub use self::vision::{MediaTokens, Vision, VisionConfig};
pub use self::yarn::YarnConfig;
use crate::checkpoint::Checkpoint;
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

/// What mixes a layer's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Gated delta rule: a state of constant size (`linear_attention`).
    GatedDelta,
    /// Gated attention with a KV cache (`full_attention`).
    Attention,
}

/// What follows the mixer in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForwardKind {
    /// One network for every token.
    Dense,
    /// A mixture of experts: a few small networks chosen for each token.
    Moe,
}

/// The shapes of a mixture of experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts chosen for each token.
    pub per_token: usize,
    /// Width of an expert's inner layer.
    pub width: usize,
    /// Width of the inner layer of the expert that every token goes to, if there is one.
    pub shared_width: Option<usize>,
    /// Whether the weights of a token's experts are scaled to sum 1.
    pub renormalise: bool,
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
    /// How positions are stretched over texts longer than those of training, if they are.
    pub yarn: Option<YarnConfig>,
}

/// The text model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of embedding and head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the inner layer of dense feed-forward networks; there exactly if a layer has one.
    pub intermediate_size: Option<usize>,
    /// Most tokens in one sequence: the entry of this name, or with YaRN the length it extends to.
    pub max_position_embeddings: usize,
    /// The mixer of each layer.
    pub layers: Vec<LayerKind>,
    /// The feed-forward network of each layer.
    pub feed_forwards: Vec<FeedForwardKind>,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// Whether the norms on the residual stream, queries and keys are stored as weight - 1.
    pub zero_centred_norms: bool,
    /// Whether queries and keys go through norms before they turn.
    pub query_key_norms: bool,
    /// Shapes of the gated delta rule; there exactly if a layer uses it.
    pub delta: Option<DeltaConfig>,
    /// Shapes of the mixture of experts; there exactly if a layer has one.
    pub moe: Option<MoeConfig>,
    /// Shapes of the attention.
    pub attention: AttentionConfig,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Whether the head is the embedding's matrix.
    pub tie_word_embeddings: bool,
}

impl TextConfig {
    /// Shapes of the gated delta rule, for code that runs in such a layer only.
    pub(crate) fn delta_shapes(&self) -> &DeltaConfig {
        self.delta.as_ref().expect("a model with gated delta layers has their shapes")
    }

    /// Shapes of the mixture of experts, for code that runs in such a layer only.
    pub(crate) fn moe_shapes(&self) -> &MoeConfig {
        self.moe.as_ref().expect("a model with experts has their shapes")
    }
}

/// Every `model_type` that is read.
pub fn model_types() -> Vec<&'static str> {
    family::model_types().collect()
}

/// A whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The name of its family and form, such as `qwen3_5` or `qwen3_5_text`.
    pub model_type: String,
    /// The text model.
    pub text: TextConfig,
    /// The vision tower and its tokens, if there is one.
    pub vision: Option<Vision>,
    /// Tokens that end a text: those of the outer configuration if it names any, else those of `text_config`.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads the `config.json` of a checkpoint.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let json = checkpoint.side_file("config.json")?;
        let json = json.ok_or_else(|| Error::file(checkpoint.path(), "there is no config.json"))?;
        Self::parse(&checkpoint.path().join("config.json"), &json)
    }

    /// Parses and checks a `config.json`. `path` is for messages only; errors name the entry, dotted where
    /// nested.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let root = parse_root(path, json)?;
        let outer = Fields::new(path, &root)?;
        let model_type = outer.require("model_type", outer.text("model_type")?)?;
        let (family, form) = Family::of(&outer, model_type)?;
        let nested = match form {
            Form::Full => Some(nested_text(&outer, family)?),
            Form::Text => None,
        };
        let fields = nested.as_ref().unwrap_or(&outer);
        quantization::check(path, &root)?;
        let eos_token_ids = match token_ids(&outer, "eos_token_id")? {
            ids if ids.is_empty() => token_ids(fields, "eos_token_id")?,
            ids => ids,
        };
        let text = text_config(fields, family, tied(&outer, fields)?)?;
        let vision = match nested {
            Some(_) => Vision::parse(&outer, &text)?,
            None => None,
        };
        if vision.is_some() {
            rope::require_sections(fields)?;
        }
        Ok(Self { model_type: model_type.to_owned(), text, vision, eos_token_ids })
    }
}

/// The text model's entries in a full model's configuration.
fn nested_text<'a>(outer: &Fields<'a>, family: &Family) -> Result<Fields<'a>> {
    let text = outer.require("text_config", outer.object("text_config")?)?;
    expect_text(&text, "model_type", family.text)?;
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

/// A size that has only one value in known models.
fn known_size(fields: &Fields, key: &str, known: usize) -> Result<usize> {
    let size = fields.size(key, MAX_SIZE)?;
    if size != known {
        return Err(fields.error(key, format!("{size} is not supported; known: {known}")));
    }
    Ok(size)
}

/// The JSON of a `config.json`, if it is not too long.
fn parse_root(path: &Path, json: &[u8]) -> Result<Value> {
    if json.len() > MAX_JSON {
        let reason = format!("has {} bytes, the limit for a configuration is {MAX_JSON}", json.len());
        return Err(Error::file(path, reason));
    }
    json::parse(json).map_err(|reason| Error::file(path, reason))
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

fn text_config(fields: &Fields, family: &Family, tie_word_embeddings: bool) -> Result<TextConfig> {
    expect_text(fields, "hidden_act", "silu")?;
    for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        if fields.flag(key)? == Some(true) {
            return Err(fields.error(key, "true is not supported"));
        }
    }
    if let Some(ranks) = fields.optional_size("pretraining_tp", MAX_SIZE)?.filter(|&ranks| ranks != 1) {
        return Err(fields.error("pretraining_tp", format!("{ranks} is not supported; known: 1")));
    }
    let attention = attention(fields, family)?;
    let layers = layers(fields, family)?;
    let context = fields.size("max_position_embeddings", MAX_SIZE)?;
    let rope = rope::parse(fields, family, attention.head_dim, context)?;
    let feed_forwards = moe::kinds(fields, family, layers.len())?;
    let dense = feed_forwards.contains(&FeedForwardKind::Dense);
    let experts = feed_forwards.contains(&FeedForwardKind::Moe);
    Ok(TextConfig {
        vocab_size: fields.size("vocab_size", MAX_SIZE)?,
        hidden_size: fields.size("hidden_size", MAX_SIZE)?,
        intermediate_size: dense.then(|| fields.size("intermediate_size", MAX_SIZE)).transpose()?,
        max_position_embeddings: rope.yarn.as_ref().map_or(context, YarnConfig::context),
        rms_norm_eps: rms_norm_eps(fields)?,
        zero_centred_norms: family.zero_centred_norms,
        query_key_norms: family.query_key_norms,
        delta: if layers.contains(&LayerKind::GatedDelta) { Some(delta(fields)?) } else { None },
        rope,
        moe: experts.then(|| moe::parse(fields, family)).transpose()?,
        layers,
        feed_forwards,
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

/// The kind of each layer: as listed, or every `full_attention_interval`-th one attention, or all of them in a
/// family that has nothing else.
fn layers(fields: &Fields, family: &Family) -> Result<Vec<LayerKind>> {
    let count = fields.size("num_hidden_layers", MAX_LAYERS)?;
    let interval = fields.optional_size("full_attention_interval", MAX_SIZE)?.unwrap_or(4);
    let key = "layer_types";
    let Some(listed) = fields.list(key)? else {
        let attends = |i: usize| !family.hybrid || (i + 1).is_multiple_of(interval);
        let kind = |i| if attends(i) { LayerKind::Attention } else { LayerKind::GatedDelta };
        return Ok((0..count).map(kind).collect());
    };
    if listed.len() != count {
        return Err(fields.error(key, format!("has {} entries for {count} layers", listed.len())));
    }
    let kinds = listed.iter().enumerate().map(|(i, value)| match value.as_str() {
        Some("linear_attention") if family.hybrid => Ok(LayerKind::GatedDelta),
        Some("full_attention") => Ok(LayerKind::Attention),
        _ => {
            let known = if family.hybrid { "linear_attention or full_attention" } else { "full_attention" };
            let reason = format!("must be {known}, not {}", describe(value));
            Err(fields.error(&format!("{key}[{i}]"), reason))
        }
    });
    kinds.collect()
}

fn delta(fields: &Fields) -> Result<DeltaConfig> {
    let delta = DeltaConfig {
        key_heads: fields.size("linear_num_key_heads", MAX_SIZE)?,
        value_heads: fields.size("linear_num_value_heads", MAX_SIZE)?,
        key_dim: head_dim(fields, "linear_key_head_dim")?,
        value_dim: head_dim(fields, "linear_value_head_dim")?,
        conv_kernel: known_size(fields, "linear_conv_kernel_dim", 4)?,
    };
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

fn attention(fields: &Fields, family: &Family) -> Result<AttentionConfig> {
    let gate_key = "attn_output_gate";
    let output_gate = fields.flag(gate_key)?.unwrap_or(family.hybrid);
    if output_gate && !family.hybrid {
        return Err(fields.error(gate_key, format!("true is not supported in {}", family.text)));
    }
    let heads = fields.size("num_attention_heads", MAX_SIZE)?;
    let kv_key = "num_key_value_heads";
    let attention = AttentionConfig {
        heads,
        kv_heads: match fields.optional_size(kv_key, MAX_SIZE)? {
            None if family.older_theta.is_some() => heads,
            kv_heads => fields.require(kv_key, kv_heads)?,
        },
        head_dim: attention_head_dim(fields, family, heads)?,
        output_gate,
    };
    divides(fields, "num_attention_heads", attention.heads, "num_key_value_heads", attention.kv_heads)?;
    width(fields, "num_attention_heads", &[2, attention.heads, attention.head_dim], MAX_SIZE)?;
    Ok(attention)
}

/// The dimension of one of `heads` heads; the attention kernel keeps a head's output in a buffer of fixed size.
fn attention_head_dim(fields: &Fields, family: &Family, heads: usize) -> Result<usize> {
    let (key, max) = ("head_dim", crate::kernels::attention::MAX_HEAD_DIM);
    let dim = match fields.optional_size(key, MAX_HEAD_DIM)? {
        None if family.older_theta.is_some() => {
            let hidden = fields.size("hidden_size", MAX_SIZE)?;
            divides(fields, "hidden_size", hidden, "num_attention_heads", heads)?;
            sixteens(fields, key, hidden / heads)?
        }
        _ => head_dim(fields, key)?,
    };
    if dim > max {
        return Err(fields.error(key, format!("must be at most {max}, not {dim}")));
    }
    Ok(dim)
}

fn head_dim(fields: &Fields, key: &str) -> Result<usize> {
    sixteens(fields, key, fields.size(key, MAX_HEAD_DIM)?)
}

/// The dimension of a head: kernels work on 16 channels at a time.
fn sixteens(fields: &Fields, key: &str, dim: usize) -> Result<usize> {
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
