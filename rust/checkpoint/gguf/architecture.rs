//! From a GGUF file's metadata to the `config.json` of the same model.
//!
//! Keys begin with the architecture's name. What GGUF leaves to the tensors is read off them: the vocabulary from the embedding,
//! a tied head from the absence of `output.weight`, layers without experts from that of a router.

use serde_json::{Map, Value, json};

use super::file::Entry;
use super::metadata::Metadata;
use crate::checkpoint::json::quote;
use crate::error::{Error, Result};

/// Most layers, those that predict further tokens included.
const MAX_LAYERS: usize = 1 << 12;
const NAME_KEY: &str = "general.architecture";

/// One architecture that is read.
struct Known {
    /// In `general.architecture`.
    name: &'static str,
    /// `model_type` of the text model.
    model_type: &'static str,
    /// Whether there are delta layers, and 1 was added to the norms.
    hybrid: bool,
    moe: bool,
    order: Order,
}

/// What stands in another order than in the original, as [`names`](super::names) tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Original,
    /// Value heads of delta layers.
    TiledHeads,
    /// Rows of queries and keys.
    PairedRows,
}

const PLAIN: Known =
    Known { name: "qwen3", model_type: "qwen3", hybrid: false, moe: false, order: Order::Original };
const KNOWN: [Known; 7] = [
    Known { name: "qwen35", model_type: "qwen3_5_text", hybrid: true, order: Order::TiledHeads, ..PLAIN },
    Known {
        name: "qwen35moe",
        model_type: "qwen3_5_moe_text",
        hybrid: true,
        order: Order::TiledHeads,
        moe: true,
    },
    Known { name: "qwen3next", model_type: "qwen3_next", hybrid: true, moe: true, ..PLAIN },
    PLAIN,
    Known { name: "qwen3moe", model_type: "qwen3_moe", moe: true, ..PLAIN },
    Known { name: "qwen3vl", model_type: "qwen3_vl_text", ..PLAIN },
    Known { name: "llama", model_type: "llama", order: Order::PairedRows, ..PLAIN },
];
/// Keys of other models that go by the name `llama`, which here would be read as something else; 0 says that there is none of it.
const OTHERS_THAN_LLAMA: [&str; 2] = ["expert_count", "attention.sliding_window"];

/// What the order of a model's tensors depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Layers of the model itself; those behind them predict further tokens.
    pub layers: usize,
    /// Layers behind them.
    pub extra: usize,
    /// Whether 1 was added to norms.
    pub norms_plus_one: bool,
    /// Heads of the delta layers whose value heads are tiled.
    pub tiled: Option<DeltaHeads>,
    /// Heads of attention whose rows stand in pairs.
    pub paired: Option<AttentionHeads>,
    /// Experts of a layer, 0 if there are none.
    pub experts: usize,
}

/// Heads of delta layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Query and key heads.
    pub keys: usize,
    /// Value heads, a multiple of `keys`.
    pub values: usize,
    /// Width of a query or key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
}

/// Heads of attention layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionHeads {
    /// Query heads.
    pub queries: usize,
    /// Key heads.
    pub keys: usize,
    /// Width of each, an even number.
    pub dim: usize,
}

/// A model's `config.json`, and what the order of its tensors depends on.
///
/// `tensor` gives the entry of a tensor by its name in the file.
pub fn read<'a>(
    metadata: &Metadata,
    tensor: &dyn Fn(&str) -> Option<&'a Entry>,
) -> Result<(Map<String, Value>, Facts)> {
    let known = known(metadata)?;
    let keys = Keys { metadata, prefix: known.name };
    let all = keys.require_size("block_count")?;
    let extra = keys.size("nextn_predict_layers")?.unwrap_or(0);
    let layers =
        all.checked_sub(extra).filter(|&layers| layers > 0 && all <= MAX_LAYERS).ok_or_else(|| {
            keys.error("block_count", format!("{all}, of which {extra} predict further tokens, cannot be"))
        })?;
    let mut config = text_config(&keys, tensor)?;
    config.insert("model_type".into(), known.model_type.into());
    config.insert("num_hidden_layers".into(), layers.into());
    let mut facts = Facts { layers, extra, norms_plus_one: known.hybrid, ..Facts::default() };
    if known.hybrid {
        let heads = delta(&keys, &mut config)?;
        config.insert("layer_types".into(), layer_types(&keys, layers, all)?);
        facts.tiled = (known.order == Order::TiledHeads).then_some(heads);
    }
    if known.order == Order::PairedRows {
        facts.paired = Some(paired(&keys, tensor)?);
    }
    if known.moe {
        facts.experts = experts(&keys, layers, tensor, &mut config)?;
    }
    Ok((config, facts))
}

fn known(metadata: &Metadata) -> Result<&'static Known> {
    let name = metadata.text(NAME_KEY)?.ok_or_else(|| metadata.missing(NAME_KEY))?;
    KNOWN.iter().find(|known| known.name == name).ok_or_else(|| {
        let names = KNOWN.each_ref().map(|known| known.name).join(", ");
        let hint = if name == "clip" { "; this file holds a vision tower and no language model" } else { "" };
        metadata.error(NAME_KEY, format!("'{}' is not supported; known: {names}{hint}", quote(name)))
    })
}

/// Keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn size(&self, name: &str) -> Result<Option<usize>> {
        self.metadata.size(&self.key(name))
    }

    fn require_size(&self, name: &str) -> Result<usize> {
        self.metadata.require_size(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(name))
    }

    fn error(&self, name: &str, reason: impl std::fmt::Display) -> Error {
        self.metadata.error(&self.key(name), reason)
    }
}

/// What every architecture has.
fn text_config<'a>(
    keys: &Keys<'_>,
    tensor: &dyn Fn(&str) -> Option<&'a Entry>,
) -> Result<Map<String, Value>> {
    let embedding = tensor("token_embd.weight");
    let vocabulary = embedding.and_then(|entry| entry.shape.first().copied());
    let vocabulary =
        vocabulary.ok_or_else(|| Error::tensor(keys.metadata.path(), "token_embd.weight", "is missing"))?;
    let hidden = keys.require_size("embedding_length")?;
    let heads = attention_heads(keys)?;
    if keys.size("attention.value_length")?.is_some_and(|dim| dim != heads.dim) {
        return Err(keys.error("attention.value_length", format!("differs from the keys' {}", heads.dim)));
    }
    let mut config = json!({
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "max_position_embeddings": keys.require_size("context_length")?,
        "num_attention_heads": heads.queries,
        "num_key_value_heads": heads.keys,
        "head_dim": heads.dim,
        "rms_norm_eps": keys.metadata.require_number(&keys.key("attention.layer_norm_rms_epsilon"))?,
        "tie_word_embeddings": tensor("output.weight").is_none(),
        "rope_parameters": rope(keys, heads.dim)?,
    });
    let width = keys.size("feed_forward_length")?;
    let config = config.as_object_mut().map(std::mem::take).unwrap_or_default();
    Ok(config.into_iter().chain(width.map(|width| ("intermediate_size".to_owned(), width.into()))).collect())
}

fn attention_heads(keys: &Keys<'_>) -> Result<AttentionHeads> {
    let queries = keys.require_size("attention.head_count")?;
    let dim = match keys.size("attention.key_length")? {
        Some(dim) => dim,
        None => keys.require_size("embedding_length")?.checked_div(queries).unwrap_or(0),
    };
    Ok(AttentionHeads { queries, keys: keys.size("attention.head_count_kv")?.unwrap_or(queries), dim })
}

/// The heads of a `llama`, all of whose channels turn.
fn paired<'a>(keys: &Keys<'_>, tensor: &dyn Fn(&str) -> Option<&'a Entry>) -> Result<AttentionHeads> {
    for name in OTHERS_THAN_LLAMA {
        if let Some(number) = keys.size(name)?.filter(|&number| number != 0) {
            return Err(keys.error(name, format!("{number} is not supported; known: 0")));
        }
    }
    if tensor("rope_freqs.weight").is_some() {
        let reason = "is not supported: frequencies that are changed one by one, as in Llama 3.1";
        return Err(Error::tensor(keys.metadata.path(), "rope_freqs.weight", reason));
    }
    let heads = attention_heads(keys)?;
    let turning = keys.size("rope.dimension_count")?.unwrap_or(heads.dim);
    if turning != heads.dim || !heads.dim.is_multiple_of(2) {
        let reason = format!("{turning} of {} channels is not supported; known: all, in pairs", heads.dim);
        return Err(keys.error("rope.dimension_count", reason));
    }
    Ok(heads)
}

fn rope(keys: &Keys<'_>, head_dim: usize) -> Result<Value> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let turning = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    let mut rope = json!({"rope_theta": theta, "partial_rotary_factor": turning as f64 / head_dim as f64});
    let sections = keys.metadata.sizes(&keys.key("rope.dimension_sections"), 4)?;
    match sections.as_deref() {
        None => {}
        Some([time, height, width] | [time, height, width, 0]) => {
            rope["mrope_section"] = json!([time, height, width]);
        }
        Some(other) => {
            return Err(keys.error("rope.dimension_sections", format!("{other:?} is not supported")));
        }
    }
    match keys.metadata.text(&keys.key("rope.scaling.type"))? {
        Some("none") => {}
        None => not_stretched(keys)?,
        Some("yarn") => yarn(keys, &mut rope)?,
        Some(other) => {
            let reason = format!("'{}' is not supported; known: none, yarn", quote(other));
            return Err(keys.error("rope.scaling.type", reason));
        }
    }
    Ok(rope)
}

/// Without a type, older files stretched positions by a factor alone.
fn not_stretched(keys: &Keys<'_>) -> Result<()> {
    for name in ["rope.scaling.factor", "rope.scale_linear"] {
        if let Some(factor) = keys.number(name)?.filter(|&factor| (factor - 1.0).abs() > f64::EPSILON) {
            return Err(keys.error(name, format!("{factor} without a rope.scaling.type is not supported")));
        }
    }
    Ok(())
}

fn yarn(keys: &Keys<'_>, rope: &mut Value) -> Result<()> {
    rope["rope_type"] = "yarn".into();
    rope["factor"] = keys.metadata.require_number(&keys.key("rope.scaling.factor"))?.into();
    let context = keys.size("rope.scaling.original_context_length")?;
    rope["original_max_position_embeddings"] = context.into();
    for (ours, name) in [
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ("attention_factor", "rope.scaling.yarn_attn_factor"),
    ] {
        rope[ours] = keys.number(name)?.into();
    }
    Ok(())
}

fn delta(keys: &Keys<'_>, config: &mut Map<String, Value>) -> Result<DeltaHeads> {
    let (key_heads, values) =
        (keys.require_size("ssm.group_count")?, keys.require_size("ssm.time_step_rank")?);
    let (key_dim, width) = (keys.require_size("ssm.state_size")?, keys.require_size("ssm.inner_size")?);
    if values == 0 || !width.is_multiple_of(values) {
        return Err(
            keys.error("ssm.inner_size", format!("{width} does not divide among {values} value heads"))
        );
    }
    if key_heads == 0 || !values.is_multiple_of(key_heads) {
        let reason = format!("{values} value heads do not divide among {key_heads} key heads");
        return Err(keys.error("ssm.time_step_rank", reason));
    }
    let heads = DeltaHeads { keys: key_heads, values, key_dim, value_dim: width / values };
    for (name, value) in [
        ("linear_num_key_heads", heads.keys),
        ("linear_num_value_heads", heads.values),
        ("linear_key_head_dim", heads.key_dim),
        ("linear_value_head_dim", heads.value_dim),
        ("linear_conv_kernel_dim", keys.require_size("ssm.conv_kernel")?),
    ] {
        config.insert(name.to_owned(), value.into());
    }
    Ok(heads)
}

/// Which layers are delta rules: as listed, or all but every `full_attention_interval`-th.
fn layer_types(keys: &Keys<'_>, layers: usize, all: usize) -> Result<Value> {
    let listed = "attention.recurrent_layers";
    let is_delta = match keys.metadata.flags(&keys.key(listed), MAX_LAYERS as u64)? {
        Some(flags) if flags.len() == all => flags,
        Some(flags) => {
            return Err(keys.error(listed, format!("has {} entries for {all} layers", flags.len())));
        }
        None => {
            let interval = keys.size("full_attention_interval")?.unwrap_or(4).max(1);
            (0..all).map(|i| !(i + 1).is_multiple_of(interval)).collect()
        }
    };
    let name = |&is_delta: &bool| if is_delta { "linear_attention" } else { "full_attention" };
    Ok(is_delta[..layers].iter().map(name).collect())
}

/// Adds the shapes of a mixture of experts, and returns how many experts there are.
fn experts<'a>(
    keys: &Keys<'_>,
    layers: usize,
    tensor: &dyn Fn(&str) -> Option<&'a Entry>,
    config: &mut Map<String, Value>,
) -> Result<usize> {
    let experts = keys.require_size("expert_count")?;
    let dense: Vec<_> =
        (0..layers).filter(|i| tensor(&format!("blk.{i}.ffn_gate_inp.weight")).is_none()).collect();
    let shared = match keys.size("expert_shared_feed_forward_length")? {
        None => (0..layers)
            .find_map(|i| tensor(&format!("blk.{i}.ffn_gate_shexp.weight"))?.shape.first().copied()),
        width => width,
    };
    let normalised = keys.metadata.flag(&keys.key("expert_weights_norm"))?.unwrap_or(true);
    for (name, value) in [
        ("num_experts", experts.into()),
        ("num_experts_per_tok", keys.require_size("expert_used_count")?.into()),
        ("moe_intermediate_size", keys.require_size("expert_feed_forward_length")?.into()),
        ("norm_topk_prob", normalised.into()),
        ("mlp_only_layers", dense.into()),
        ("shared_expert_intermediate_size", shared.into()),
    ] {
        config.insert(name.to_owned(), value);
    }
    Ok(experts)
}
