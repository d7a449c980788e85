//! GGUF, the files of llama.cpp, read as if they were the checkpoint that they were made from.
//!
//! - `file`: one file, checked; `metadata`: its keys; `split`: models in several files; `blocks`: what the bytes of a tensor mean.
//! - `architecture`: the `config.json`; `tokenizer`: the `tokenizer.json`.
//! - `names`: the table of names and of what is ordered differently; `order`: tensors as the original has them.
//!
//! A file is whole by itself: nothing beside it is looked at. Layers that predict further tokens appear as the original's `mtp.`
//! tensors, which a conversion keeps and the engine does not look at. The vision tower, which GGUF has in a file of its own
//! (`mmproj`), is not read.

mod architecture;
pub mod blocks;
mod cursor;
mod file;
mod metadata;
mod names;
mod order;
mod split;
mod tokenizer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use self::architecture::Facts;
use self::file::{Entry, File};
use self::metadata::Metadata;
use self::names::Change;
pub use self::order::Tensor;
use super::json::quote;
use crate::error::{Error, Result};
use crate::tensor::TensorView;

pub use self::file::{MAGIC, is_gguf};

/// Most tensors of the original checkpoint, experts counted one by one.
const MAX_TENSORS: usize = 1 << 20;
/// Tokens that end a text in every model of these families, as llama.cpp has it.
const END_TOKENS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// Where a tensor of the original checkpoint is found.
#[derive(Clone, Debug)]
struct Place {
    /// Place of its file.
    file: usize,
    /// Its name in the file.
    gguf: String,
    change: Change,
    /// Its place in a stack.
    index: Option<usize>,
}

/// A model in GGUF files.
#[derive(Clone)]
pub struct Model {
    files: Vec<File>,
    facts: Facts,
    config: String,
    places: BTreeMap<String, Place>,
}

impl Model {
    /// Opens the file at `path` and, if it is one of several, the others.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(split::open_all(path)?)
    }

    fn new(files: Vec<File>) -> Result<Self> {
        let metadata = &files[0].metadata;
        let entry = |name: &str| files.iter().find_map(|file| file.tensors.get(name));
        let (config, facts) = architecture::read(metadata, &entry)?;
        let places = places(&files, &facts)?;
        let config = complete(config, metadata)?.to_string();
        Ok(Self { config, facts, places, files })
    }

    /// The names of all tensors in the original checkpoint.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.places.keys()
    }

    /// The tensor that has this name in the original checkpoint.
    ///
    /// # Errors
    /// If its type is not read, or its shape is none that the original's could have become.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(place) = self.places.get(name) else { return Ok(None) };
        let file = &self.files[place.file];
        let view = view(file, &place.gguf)?;
        let view = match place.index {
            None => view,
            Some(index) => order::of_stack(&view, index)
                .ok_or_else(|| view.error(format!("has no matrix {index} in its stack")))?,
        };
        Tensor::new(name.to_owned(), view, place.change, &self.facts).map(Some)
    }

    /// Bytes in the file of the tensor that has this name in the original checkpoint; 0 if there is none.
    pub fn nbytes(&self, name: &str) -> u64 {
        let entry = self.places.get(name).and_then(|place| {
            let entry = self.files[place.file].tensors.get(&place.gguf)?;
            let parts = if place.index.is_some() { entry.shape[0] } else { 1 };
            Some(entry.range.len() as u64 / parts as u64)
        });
        entry.unwrap_or(0)
    }

    /// The side files that [`Self::side_file`] gives.
    pub fn side_file_names(&self) -> Vec<&'static str> {
        let metadata = self.metadata();
        let mut names = vec!["config.json"];
        if tokenizer::is_there(metadata) {
            names.extend(["generation_config.json", "tokenizer.json", "tokenizer_config.json"]);
        }
        if metadata.contains("tokenizer.chat_template") {
            names.push("chat_template.jinja");
        }
        names
    }

    /// A file of the original checkpoint, made from the metadata; `None` if they say nothing about it.
    pub fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if !self.side_file_names().contains(&name) {
            return Ok(None);
        }
        let metadata = self.metadata();
        let text = match name {
            "config.json" => self.config.clone(),
            "generation_config.json" => generation_config(metadata)?.to_string(),
            "tokenizer.json" => tokenizer::json(metadata)?,
            "tokenizer_config.json" => tokenizer_config(metadata)?.to_string(),
            _ => metadata.text("tokenizer.chat_template")?.unwrap_or_default().to_owned(),
        };
        Ok(Some(text.into_bytes()))
    }

    /// The files the model consists of.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|file| &file.path)
    }

    fn metadata(&self) -> &Metadata {
        &self.files[0].metadata
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("tensors", &self.places.len()).finish_non_exhaustive()
    }
}

/// Where each tensor of the original checkpoint is found.
fn places(files: &[File], facts: &Facts) -> Result<BTreeMap<String, Place>> {
    let mut places = BTreeMap::new();
    for (file, opened) in files.iter().enumerate() {
        for (gguf, entry) in &opened.tensors {
            let error = |reason: &str| Error::tensor(&opened.path, &quote(gguf), reason);
            let (name, change) = names::original(gguf, facts)
                .ok_or_else(|| error("is none that this architecture is known to have"))?;
            let indexes = match change {
                Change::Stack => stack(entry, facts).map_err(|reason| error(&reason))?.map(Some).collect(),
                _ => vec![None],
            };
            if places.len() + indexes.len() > MAX_TENSORS {
                return Err(error(&format!("makes more than {MAX_TENSORS} tensors")));
            }
            for index in indexes {
                let name = index.map_or(name.clone(), |index| name.replacen("{}", &index.to_string(), 1));
                let place = Place { file, gguf: gguf.clone(), change, index };
                if let Some(other) = places.insert(name, place) {
                    return Err(error(&format!("is the same as '{}'", quote(&other.gguf))));
                }
            }
        }
    }
    Ok(places)
}

/// The experts in a stack.
fn stack(entry: &Entry, facts: &Facts) -> std::result::Result<std::ops::Range<usize>, String> {
    match entry.shape[..] {
        [count, _, _] if count == facts.experts => Ok(0..count),
        _ => Err(format!("has shape {:?}, which is no stack of {} experts", entry.shape, facts.experts)),
    }
}

/// A tensor as the file has it.
fn view(file: &File, name: &str) -> Result<TensorView> {
    let error = |reason: String| Error::tensor(&file.path, name, reason);
    let entry = file.tensors.get(name).ok_or_else(|| error("is missing".to_owned()))?;
    let dtype =
        entry.dtype.as_ref().map_err(|foreign| error(format!("its type {foreign} is not supported")))?;
    let bytes =
        file.bytes.slice(entry.range.clone()).ok_or_else(|| error("lies outside the file".to_owned()))?;
    Ok(TensorView {
        path: file.path.clone(),
        name: name.to_owned(),
        dtype: *dtype,
        shape: entry.shape.clone(),
        bytes,
    })
}

/// Adds to a configuration the tokens that end a text.
fn complete(mut config: Map<String, Value>, metadata: &Metadata) -> Result<Value> {
    config.insert("eos_token_id".into(), end_tokens(metadata)?);
    Ok(Value::from(config))
}

/// The tokens that end a text, `null` if the file does not tell.
fn end_tokens(metadata: &Metadata) -> Result<Value> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ids.extend(metadata.size(key)?);
    }
    if tokenizer::is_there(metadata) {
        ids.extend(tokenizer::control_ids(metadata, &END_TOKENS)?);
    }
    let mut seen = Vec::new();
    for id in ids {
        if !seen.contains(&id) {
            seen.push(id);
        }
    }
    Ok(if seen.is_empty() { Value::Null } else { seen.into() })
}

/// Settings of sampling, where the file has them, and the tokens that end a text.
fn generation_config(metadata: &Metadata) -> Result<Value> {
    let mut config = Map::new();
    config.insert("eos_token_id".into(), end_tokens(metadata)?);
    for (ours, key) in [
        ("temperature", "general.sampling.temp"),
        ("top_p", "general.sampling.top_p"),
        ("min_p", "general.sampling.min_p"),
        ("repetition_penalty", "general.sampling.penalty_repeat"),
    ] {
        if let Some(value) = metadata.number(key)? {
            // As f32 it was written: 0.95 shall not become 0.949999988079071.
            config.insert(ours.into(), (value as f32).to_string().parse::<f64>().unwrap_or(value).into());
        }
    }
    if let Some(top_k) = metadata.size("general.sampling.top_k")? {
        config.insert("top_k".into(), top_k.into());
    }
    if ["temperature", "top_k", "top_p", "min_p"].iter().any(|key| config.contains_key(*key)) {
        config.insert("do_sample".into(), true.into());
    }
    Ok(config.into())
}

/// The names of special tokens.
fn tokenizer_config(metadata: &Metadata) -> Result<Value> {
    let mut config = json!({"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": false});
    for (ours, key) in [
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
        ("bos_token", "tokenizer.ggml.bos_token_id"),
    ] {
        if let Some(id) = metadata.size(key)? {
            let token = tokenizer::token(metadata, id)?;
            config[ours] =
                token.ok_or_else(|| metadata.error(key, format!("there is no token {id}")))?.into();
        }
    }
    Ok(config)
}
