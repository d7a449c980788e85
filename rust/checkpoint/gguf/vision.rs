//! The vision tower, which GGUF has in a file of its own: `mmproj-NAME.gguf` beside the model.
//!
//! Names and what differs stand in the table below: the convolution over pairs of frames is cut into one for each frame, the
//! projector is `mm`, and mergers behind inner blocks (`DeepStack`) are numbered by their block.
//!
//! Source: `conversion/qwen3vl.py` of llama.cpp.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::file::File;
use super::metadata::Metadata;
use super::names::Change;
use super::tokenizer;
use crate::checkpoint::json::quote;
use crate::error::{Error, Result};

/// What every such file is named with.
const MARK: &str = "mmproj";
/// The projector of the families that are read.
const PROJECTOR: &str = "qwen3vl_merger";
/// Most blocks.
const MAX_BLOCKS: u64 = 1 << 10;
/// The second of the two tensors that the convolution over patches was cut into.
pub(super) const SECOND_FRAME: &str = "v.patch_embd.weight.1";
const PREFIX: &str = "model.visual.";

type Row = (&'static str, &'static str);

/// Outside blocks; `weight` or `bias` follows.
const TOP: [Row; 5] = [
    ("v.patch_embd.", "patch_embed.proj."),
    ("v.position_embd.", "pos_embed."),
    ("v.post_ln.", "merger.norm."),
    ("mm.0.", "merger.linear_fc1."),
    ("mm.2.", "merger.linear_fc2."),
];
/// Behind `v.blk.N.`, and behind `blocks.N.`
const BLOCK: [Row; 6] = [
    ("ln1.", "norm1."),
    ("ln2.", "norm2."),
    ("attn_qkv.", "attn.qkv."),
    ("attn_out.", "attn.proj."),
    ("ffn_up.", "mlp.linear_fc1."),
    ("ffn_down.", "mlp.linear_fc2."),
];
/// Behind `v.deepstack.N.`, and behind `deepstack_merger_list.M.`
const DEEPSTACK: [Row; 3] = [("norm.", "norm."), ("fc1.", "linear_fc1."), ("fc2.", "linear_fc2.")];

/// The vision file beside the model at `path`, if there is exactly one.
pub(super) fn beside(path: &Path) -> Result<Option<PathBuf>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = |source| Error::io(folder, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if is_gguf && entry.file_name().to_string_lossy().to_lowercase().contains(MARK) {
            found.push(path);
        }
    }
    Ok(if found.len() == 1 { found.pop() } else { None })
}

/// Opens a vision file, and checks that it is of a known kind.
pub(super) fn open(path: &Path) -> Result<File> {
    let file = File::open(path)?;
    let keys = ["clip.projector_type", "clip.vision.projector_type"];
    let key = keys.into_iter().find(|key| file.metadata.contains(key)).unwrap_or(keys[0]);
    match file.metadata.text(key)? {
        Some(PROJECTOR) => Ok(file),
        other => {
            let other = quote(other.unwrap_or_default());
            let reason = format!(
                "'{other}' is not supported; known: {PROJECTOR}. To read text only, have no {MARK} file beside the model"
            );
            Err(file.metadata.error(key, reason))
        }
    }
}

/// The blocks whose output goes to the decoder too.
pub(super) fn deepstack(metadata: &Metadata) -> Result<Vec<usize>> {
    let flags = metadata.flags("clip.vision.is_deepstack_layers", MAX_BLOCKS)?.unwrap_or_default();
    Ok(flags.iter().enumerate().filter_map(|(i, &flag)| flag.then_some(i)).collect())
}

/// What a tensor of a vision file is called in the original checkpoint, and how it differs; `None` if no known tower has it.
pub(super) fn original(name: &str, deepstack: &[usize]) -> Option<(String, Change)> {
    let find = |rows: &[Row], name: &str| {
        rows.iter().find_map(|(gguf, ours)| match name.strip_prefix(gguf)? {
            kind @ ("weight" | "bias") => Some(format!("{ours}{kind}")),
            _ => None,
        })
    };
    let numbered = |rest: &str, rows: &[Row]| {
        let (number, rest) = rest.split_once('.')?;
        let index = number.parse::<usize>().ok().filter(|index| index.to_string() == number)?;
        Some((index, find(rows, rest)?))
    };
    let ours = if let Some(rest) = name.strip_prefix("v.blk.") {
        let (index, ours) = numbered(rest, &BLOCK)?;
        format!("blocks.{index}.{ours}")
    } else if let Some(rest) = name.strip_prefix("v.deepstack.") {
        let (block, ours) = numbered(rest, &DEEPSTACK)?;
        format!("deepstack_merger_list.{}.{ours}", deepstack.iter().position(|&other| other == block)?)
    } else {
        find(&TOP, name)?
    };
    let change = if name == "v.patch_embd.weight" { Change::Frames } else { Change::Same };
    Some((format!("{PREFIX}{ours}"), change))
}

/// The configuration of a model that sees: that of its text model, of its tower, and the tokens that hold places.
pub(super) fn whole_config(
    mut text: Map<String, Value>,
    text_metadata: &Metadata,
    file: &File,
    deepstack: &[usize],
) -> Result<Map<String, Value>> {
    let tied = text.get("tie_word_embeddings").cloned();
    let model_type = text.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let full = model_type.strip_suffix("_text").unwrap_or(model_type).to_owned();
    if let Some(rope) = text.get_mut("rope_parameters").and_then(Value::as_object_mut) {
        rope.insert("mrope_interleaved".into(), true.into());
    }
    let mut config = Map::new();
    config.insert("model_type".into(), full.into());
    config.insert("tie_word_embeddings".into(), tied.into());
    for (key, token) in [
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ] {
        let id = tokenizer::id(text_metadata, token)?;
        let id = id.ok_or_else(|| {
            Error::file(text_metadata.path(), format!("has no token {token}, which a model that sees needs"))
        })?;
        config.insert(key.into(), id.into());
    }
    config.insert("vision_config".into(), tower(file, deepstack)?);
    config.insert("text_config".into(), text.into());
    Ok(config)
}

fn tower(file: &File, deepstack: &[usize]) -> Result<Value> {
    let size = |key: &str| file.metadata.require_size(&format!("clip.vision.{key}"));
    let position = "v.position_embd.weight";
    let places = file.tensors.get(position).and_then(|entry| entry.shape.first().copied());
    let places = places.ok_or_else(|| Error::tensor(&file.path, position, "is missing"))?;
    Ok(json!({
        "depth": size("block_count")?,
        "hidden_size": size("embedding_length")?,
        "intermediate_size": size("feed_forward_length")?,
        "num_heads": size("attention.head_count")?,
        "out_hidden_size": size("projection_dim")?,
        "patch_size": size("patch_size")?,
        "spatial_merge_size": file.metadata.size("clip.vision.spatial_merge_size")?.unwrap_or(2),
        "temporal_patch_size": 2,
        "in_channels": 3,
        "num_position_embeddings": places,
        "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": deepstack,
    }))
}

/// The `preprocessor_config.json`, as far as the file tells it.
pub(super) fn preprocessor_config(file: &File) -> Result<Value> {
    let metadata = &file.metadata;
    let mut config = json!({
        "patch_size": metadata.require_size("clip.vision.patch_size")?,
        "merge_size": metadata.size("clip.vision.spatial_merge_size")?.unwrap_or(2),
        "temporal_patch_size": 2,
    });
    for (ours, key) in [("image_mean", "clip.vision.image_mean"), ("image_std", "clip.vision.image_std")] {
        if let Some(numbers) = metadata.numbers(key, 3)? {
            config[ours] = numbers.into();
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let ours = |name: &str| original(name, &[1, 5]).map(|(name, _)| name);
        for (gguf, expected) in [
            ("v.patch_embd.bias", "model.visual.patch_embed.proj.bias"),
            ("v.post_ln.weight", "model.visual.merger.norm.weight"),
            ("mm.2.bias", "model.visual.merger.linear_fc2.bias"),
            ("v.blk.11.attn_out.weight", "model.visual.blocks.11.attn.proj.weight"),
            ("v.deepstack.5.fc2.bias", "model.visual.deepstack_merger_list.1.linear_fc2.bias"),
        ] {
            assert_eq!(ours(gguf).as_deref(), Some(expected));
        }
        for name in
            ["v.blk.0.attn_q.weight", "v.deepstack.2.fc1.bias", "mm.1.bias", "v.blk.x.ln1.bias", SECOND_FRAME]
        {
            assert_eq!(ours(name), None, "{name}");
        }
    }
}
