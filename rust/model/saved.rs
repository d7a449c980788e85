//! A sequence in a file: its tokens, its pictures as the model sees them, and the state after them.
//!
//! A safetensors file; docs/format.md lists its metadata and tensors.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::fingerprint::Digest;
use super::vision::{Features, Grid};
use super::{DeltaState, Engine, LayerState, Span, State};
use crate::checkpoint::safetensors::SafeTensors;
use crate::checkpoint::writer::{Planned, Writer};
use crate::error::{Error, Result};
use crate::kernels::conv::TAIL;
use crate::kernels::delta_chunks::CHUNK;
use crate::kernels::kv_cache::{KvCache, PAGE};
use crate::kernels::lanes::LANES;
use crate::tensor::{Bytes, DType};

const FORMAT: &str = "edgewise-sequence";
const VERSION: &str = "2";

/// What a file holds, or is to hold.
#[derive(Debug)]
pub struct Saved {
    /// All tokens.
    pub ids: Vec<u32>,
    /// The pictures among them, in order.
    pub media: Vec<SavedMedium>,
    /// The state after the last token.
    pub state: State,
}

/// A picture of a saved sequence.
#[derive(Clone, Debug)]
pub struct SavedMedium {
    /// Where it stands, and what the model sees of it.
    pub span: Span,
    /// Of its pixels.
    pub digest: [u8; 16],
}

/// An entry of `media` in the metadata.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    /// Index of the first token.
    start: usize,
    /// Rows of patches.
    rows: usize,
    /// Columns of patches.
    columns: usize,
    /// Two hexadecimal digits a byte.
    digest: String,
}

impl Saved {
    /// Writes a file, whole or not at all. `fingerprint` is the engine's.
    pub fn write(&self, fingerprint: &str, path: &Path) -> Result<()> {
        let mut plan = Plan::default();
        self.list(&mut plan);
        let media = serde_json::to_string(&self.media.iter().map(SavedMedium::place).collect::<Vec<_>>())
            .map_err(|error| Error::file(path, error.to_string()))?;
        let tokens = self.ids.len().to_string();
        let metadata = BTreeMap::from(
            [
                ("format", FORMAT),
                ("format_version", VERSION),
                ("fingerprint", fingerprint),
                ("checksum", &plan.checksum(&tokens, &media)),
                ("tokens", &tokens),
                ("media", &media),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let tensors = plan.0.iter().map(|(tensor, _)| tensor.clone()).collect();
        let mut writer = Writer::create(path, tensors, &metadata)?;
        let order: Vec<String> = writer.order().iter().map(|tensor| tensor.name.clone()).collect();
        let data: BTreeMap<&str, &Data<'_>> =
            plan.0.iter().map(|(tensor, data)| (tensor.name.as_str(), data)).collect();
        for name in &order {
            data[name.as_str()].each_piece(&mut |bytes| writer.write(bytes))?;
        }
        writer.finish()
    }

    fn list<'a>(&'a self, plan: &mut Plan<'a>) {
        let ids = self.ids.iter().flat_map(|&id| id.to_le_bytes()).collect();
        plan.add("token_ids".to_owned(), DType::I32, vec![self.ids.len()], Data::Bytes(ids));
        let hidden = &self.state.last_hidden;
        plan.floats("last_hidden".to_owned(), vec![hidden.len()], hidden);
        for (i, layer) in self.state.layers.iter().enumerate() {
            match layer {
                LayerState::GatedDelta(delta) => {
                    let recent = delta.recent_of_heads(self.state.recent_tokens());
                    let shape = vec![recent.len(), recent.first().map_or(0, |head| head.len())];
                    let (tail, memory) = (&delta.conv_tail, &delta.memory);
                    plan.floats(format!("layers.{i}.conv_tail"), vec![TAIL, tail.len() / TAIL], tail);
                    plan.floats(format!("layers.{i}.memory"), vec![memory.len() / LANES, LANES], memory);
                    plan.add(format!("layers.{i}.recent"), DType::F32, shape, Data::Rows(recent));
                }
                LayerState::Attention(cache) => {
                    let shape = vec![cache.pages().count(), cache.page_bytes()];
                    plan.add(format!("layers.{i}.kv_pages"), DType::U8, shape, Data::Pages(cache));
                }
            }
        }
        for (j, medium) in self.media.iter().enumerate() {
            let features = &medium.span.features;
            let shape = |rows: &[f32]| vec![features.tokens(), rows.len() / features.tokens()];
            let embeddings = &features.embeddings;
            plan.floats(format!("media.{j}.embeddings"), shape(embeddings), embeddings);
            for (k, rows) in features.deepstack.iter().enumerate() {
                plan.floats(format!("media.{j}.deepstack.{k}"), shape(rows), rows);
            }
        }
    }

    /// Reads the file at `path`, which must have been written with a model of this `fingerprint`.
    pub fn read(engine: &Engine, fingerprint: &str, path: &Path) -> Result<Self> {
        let file = SafeTensors::open(path)?;
        let mut reader = Reader::new(&file, fingerprint)?;
        let tokens = reader.tokens(engine)?;
        let ids = reader.ids(tokens, engine.model.config.vocab_size)?;
        let state = reader.state(engine, tokens)?;
        let media = reader.media(engine)?;
        reader.check_sum()?;
        let mut saved = Self { ids, media, state };
        let spans: Vec<Span> = saved.media.iter().map(|medium| medium.span.clone()).collect();
        let prompt = engine.prompt(&saved.ids, &spans).map_err(|error| reader.fault(error.to_string()))?;
        prompt.pass(0..tokens).positions(&mut saved.state.next_position, &mut Vec::new());
        Ok(saved)
    }
}

impl SavedMedium {
    fn place(&self) -> Place {
        let grid = self.span.features.grid;
        let digest = format!("{:032x}", u128::from_be_bytes(self.digest));
        Place { start: self.span.start, rows: grid.rows(), columns: grid.columns(), digest }
    }
}

/// The elements of a tensor to be written.
enum Data<'a> {
    Bytes(Vec<u8>),
    Floats(&'a [f32]),
    Rows(Vec<&'a [f32]>),
    Pages(&'a KvCache),
}

impl Data<'_> {
    /// Calls `take` with the bytes, in the pieces that the checksum is made of.
    fn each_piece(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            Self::Bytes(bytes) => take(bytes),
            Self::Floats(numbers) => take(&bytes_of(numbers)),
            Self::Rows(rows) => take(&bytes_of(&rows.concat())),
            Self::Pages(cache) => cache.pages().try_for_each(take),
        }
    }
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Tensors to be written, in the order of the checksum.
#[derive(Default)]
struct Plan<'a>(Vec<(Planned, Data<'a>)>);

impl<'a> Plan<'a> {
    fn add(&mut self, name: String, dtype: DType, shape: Vec<usize>, data: Data<'a>) {
        self.0.push((Planned { name, dtype, shape }, data));
    }

    fn floats(&mut self, name: String, shape: Vec<usize>, numbers: &'a [f32]) {
        self.add(name, DType::F32, shape, Data::Floats(numbers));
    }

    fn checksum(&self, tokens: &str, media: &str) -> String {
        let mut digest = Digest::new();
        digest.add(tokens.as_bytes());
        digest.add(media.as_bytes());
        for (_, data) in &self.0 {
            let all = data.each_piece(&mut |bytes| {
                digest.add(bytes);
                Ok(())
            });
            debug_assert!(all.is_ok(), "taking in bytes cannot fail");
        }
        digest.text()
    }
}

/// Reads a file in the order of the checksum.
struct Reader<'a> {
    file: &'a SafeTensors,
    digest: Digest,
}

impl<'a> Reader<'a> {
    /// Refuses what is no sequence of the model.
    fn new(file: &'a SafeTensors, fingerprint: &str) -> Result<Self> {
        let reader = Self { file, digest: Digest::new() };
        let find = |key: &str| file.header().metadata().get(key).map(String::as_str);
        if find("format") != Some(FORMAT) {
            return Err(reader.fault("is not a saved sequence"));
        }
        if find("format_version") != Some(VERSION) {
            let found = find("format_version").unwrap_or("none").escape_debug();
            let reason = format!("has format_version '{found}', this version of edgewise reads '{VERSION}'");
            return Err(reader.fault(reason));
        }
        if find("fingerprint") != Some(fingerprint) {
            let reason = "was saved with another model, other weights or another kv_dtype";
            return Err(reader.fault(reason));
        }
        Ok(reader)
    }

    fn fault(&self, reason: impl Into<String>) -> Error {
        Error::file(self.file.path(), reason)
    }

    fn metadata(&self, key: &str) -> Result<&'a str> {
        let value = self.file.header().metadata().get(key);
        value.map(String::as_str).ok_or_else(|| self.fault(format!("has no '{key}' in its metadata")))
    }

    fn tokens(&mut self, engine: &Engine) -> Result<usize> {
        let text = self.metadata("tokens")?;
        self.digest.add(text.as_bytes());
        self.digest.add(self.metadata("media")?.as_bytes());
        let tokens = text.parse().map_err(|_| self.fault("'tokens' in its metadata is not a number"))?;
        let limit = engine.model.config.max_position_embeddings;
        if tokens > limit { Err(Error::Context { needed: tokens, limit }) } else { Ok(tokens) }
    }

    /// The elements of a tensor, which must be of this type and shape.
    fn tensor(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<Bytes> {
        let error = |reason: String| Error::tensor(self.file.path(), name, reason);
        let view = self.file.get(name)?.ok_or_else(|| error("is missing".to_owned()))?;
        if view.dtype != dtype || view.shape != shape {
            let (found, wanted) = (view.dtype.name(), dtype.name());
            return Err(error(format!("is {found} {:?}, expected {wanted} {shape:?}", view.shape)));
        }
        Ok(view.bytes)
    }

    fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let bytes = self.tensor(name, DType::F32, shape)?;
        self.digest.add(&bytes);
        Ok(bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect())
    }

    fn ids(&mut self, tokens: usize, vocab_size: usize) -> Result<Vec<u32>> {
        let bytes = self.tensor("token_ids", DType::I32, &[tokens])?;
        self.digest.add(&bytes);
        let ids: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|&id| u32::from_le_bytes(id)).collect();
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(id) => Err(self.fault(format!("holds token {id}, outside the vocabulary of {vocab_size}"))),
            None => Ok(ids),
        }
    }

    /// The state, but for the next position.
    fn state(&mut self, engine: &Engine, tokens: usize) -> Result<State> {
        let mut state = engine.state();
        let hidden = if tokens == 0 { 0 } else { engine.model.config.hidden_size };
        state.len = tokens;
        state.last_hidden = self.floats("last_hidden", &[hidden])?;
        let fresh = state.fresh_deltas()?;
        for (i, (layer, fresh)) in state.layers.iter_mut().zip(fresh).enumerate() {
            match layer {
                LayerState::GatedDelta(delta) => {
                    let mut fresh = fresh.expect("there is one for each");
                    self.delta(i, tokens % CHUNK, &mut fresh)?;
                    *delta = Arc::new(fresh);
                }
                LayerState::Attention(cache) => {
                    let shape = [tokens.div_ceil(PAGE), cache.page_bytes()];
                    let bytes = self.tensor(&format!("layers.{i}.kv_pages"), DType::U8, &shape)?;
                    bytes.chunks_exact(cache.page_bytes()).for_each(|page| self.digest.add(page));
                    cache.restore(tokens, &bytes)?;
                }
            }
        }
        Ok(state)
    }

    /// The state of a delta layer with so many recent tokens.
    fn delta(&mut self, layer: usize, recent: usize, delta: &mut DeltaState) -> Result<()> {
        let tail = [TAIL, delta.conv_tail.len() / TAIL];
        delta.conv_tail.copy_from_slice(&self.floats(&format!("layers.{layer}.conv_tail"), &tail)?);
        let memory = [delta.memory.len() / LANES, LANES];
        delta.memory.copy_from_slice(&self.floats(&format!("layers.{layer}.memory"), &memory)?);
        let heads = delta.recent_of_heads_mut(recent);
        let width = heads.first().map_or(0, |head| head.len());
        let recent = self.floats(&format!("layers.{layer}.recent"), &[heads.len(), width])?;
        for (i, head) in heads.into_iter().enumerate() {
            head.copy_from_slice(&recent[i * width..(i + 1) * width]);
        }
        Ok(())
    }

    fn media(&mut self, engine: &Engine) -> Result<Vec<SavedMedium>> {
        let places: Vec<Place> = serde_json::from_str(self.metadata("media")?)
            .map_err(|error| self.fault(format!("'media' in its metadata: {error}")))?;
        let medium = |(j, place): (usize, &Place)| self.medium(engine, j, place);
        places.iter().enumerate().map(medium).collect()
    }

    fn medium(&mut self, engine: &Engine, j: usize, place: &Place) -> Result<SavedMedium> {
        let tower = engine.vision().map_err(|_| self.fault("holds images, the model has no vision tower"))?;
        let config = &tower.config;
        let grid = Grid::new(config, place.rows, place.columns)
            .map_err(|error| self.fault(format!("'media' in its metadata: {error}")))?;
        let shape = [grid.tokens(), engine.model.config.hidden_size];
        let embeddings = self.floats(&format!("media.{j}.embeddings"), &shape)?;
        let deepstack = (0..config.deepstack_layers.len())
            .map(|k| self.floats(&format!("media.{j}.deepstack.{k}"), &shape))
            .collect::<Result<_>>()?;
        let digest = digest(&place.digest)
            .ok_or_else(|| self.fault("a digest in its metadata is not 32 hexadecimal digits"))?;
        let features = Arc::new(Features { grid, embeddings, deepstack });
        Ok(SavedMedium { span: Span { start: place.start, features }, digest })
    }

    fn check_sum(&self) -> Result<()> {
        if self.metadata("checksum")? == self.digest.text() {
            return Ok(());
        }
        Err(self.fault("is damaged: its contents do not have the checksum that it names"))
    }
}

/// The bytes of 32 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 16]> {
    let number = u128::from_str_radix(text, 16).ok()?;
    (text.len() == 32 && !text.starts_with('+')).then(|| number.to_be_bytes())
}
