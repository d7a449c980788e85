//! GGUF, the files of llama.cpp, read as if they were the checkpoint that they were made from.
//!
//! - `file`: one file, checked; `metadata`: its keys; `split`: models in several files; `blocks`: what the bytes of a tensor mean.
//! - `architecture`: the `config.json`; `tokenizer`: the `tokenizer.json`.
//! - `names`: the table of names and of what is ordered differently; `order`: tensors as the original has them.
//!
//! - `vision`: the vision tower, which stands in a file of its own.
//!
//! Nothing beside a file is looked at but one: if exactly one file with `mmproj` in its name stands there, and the architecture has
//! vision towers, that is the model's. Layers that predict further tokens appear as the original's `mtp.` tensors, which a
//! conversion keeps and the engine does not look at.

mod architecture;
pub mod blocks;
mod cursor;
mod file;
mod metadata;
mod names;
mod order;
mod split;
mod tokenizer;
mod vision;

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
    /// The vision file, if there is one, is the last.
    files: Vec<File>,
    /// Place of the vision file.
    vision: Option<usize>,
    facts: Facts,
    config: String,
    places: BTreeMap<String, Place>,
}

impl Model {
    /// Opens the file at `path` and, if it is one of several, the others.
    pub fn open(path: &Path) -> Result<Self> {
        let mut files = split::open_all(path)?;
        let entry = |name: &str| files.iter().find_map(|file| file.tensors.get(name));
        let (mut config, facts) = architecture::read(&files[0].metadata, &entry)?;
        let mut places = places(&files, &facts)?;
        let mut vision = None;
        if let Some(path) = vision_path(path, &config)? {
            let file = vision::open(&path)?;
            let deepstack = vision::deepstack(&file.metadata)?;
            config = vision::whole_config(config, &files[0].metadata, &file, &deepstack)?;
            places = beside_vision(places);
            add_vision(&mut places, &file, files.len(), &deepstack)?;
            vision = Some(files.len());
            files.push(file);
        }
        let config = complete(config, &files[0].metadata)?.to_string();
        Ok(Self { files, vision, facts, config, places })
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
        let name = name.to_owned();
        if place.change == Change::Frames {
            return Tensor::of_frames(name, view, self::view(file, vision::SECOND_FRAME)?).map(Some);
        }
        Tensor::new(name, view, place.change, &self.facts).map(Some)
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
        if self.vision.is_some() {
            names.push("preprocessor_config.json");
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
            "preprocessor_config.json" => {
                let file = self.vision.map(|vision| &self.files[vision]);
                file.map(vision::preprocessor_config).transpose()?.unwrap_or_default().to_string()
            }
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

/// The vision file beside the model at `path`, if its architecture has towers.
fn vision_path(path: &Path, config: &Map<String, Value>) -> Result<Option<PathBuf>> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if model_type.ends_with("_text") { vision::beside(path) } else { Ok(None) }
}

/// The names that tensors of a text model have beside a tower.
fn beside_vision(places: BTreeMap<String, Place>) -> BTreeMap<String, Place> {
    let rename = |name: String| match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name,
    };
    places.into_iter().map(|(name, place)| (rename(name), place)).collect()
}

/// Adds the tensors of a vision file, which is at place `number` of the files.
fn add_vision(
    places: &mut BTreeMap<String, Place>,
    file: &File,
    number: usize,
    deepstack: &[usize],
) -> Result<()> {
    for gguf in file.tensors.keys().filter(|name| *name != vision::SECOND_FRAME) {
        let error = |reason: &str| Error::tensor(&file.path, &quote(gguf), reason);
        let (name, change) = vision::original(gguf, deepstack)
            .ok_or_else(|| error("is none that a vision tower of these families is known to have"))?;
        places.insert(name, Place { file: number, gguf: gguf.clone(), change, index: None });
    }
    Ok(())
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
    let mut config = json!({"tokenizer_class": tokenizer::class(metadata)?, "add_prefix_space": false});
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
