//! From a path to an [`Engine`]: configuration, weights in the formats asked for, tier and threads.

use std::path::Path;

use super::vision::VisionTower;
use super::{Engine, Model};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::kv_cache::KvType;
use crate::memory::available_bytes;
use crate::tensor::Bytes;
use crate::threads::StandardFloat;
use crate::weights::matrix::{Format, Matrix};
use crate::weights::names::{self, Source};
use crate::weights::quantize::quantize_tensor;
use crate::weights::recipe::Recipe;
use crate::weights::stored::{Loader, Stored, Unpacked};
use crate::weights::vision;

/// In which formats the weights are held.
#[derive(Clone, Debug)]
pub enum Precision {
    /// As a file of our own stores them; what another program quantised, as a GGUF file or packed, in the formats that hold it
    /// best, and what stands beside packed weights in INT8; any other checkpoint by the default recipe.
    Auto,
    /// Exactly the checkpoint's values: unquantised tensors as they stand, blocks widened to f32.
    Exact,
    /// All matrices as bf16.
    Bf16,
    /// By a recipe.
    Recipe(Recipe),
}

/// How to open a checkpoint.
#[derive(Clone, Debug)]
pub struct Options {
    /// Formats of the weights.
    pub precision: Precision,
    /// Number type of the KV cache; by default f32 beside exact weights, else f16.
    pub kv_type: Option<KvType>,
    /// By how much to extend the context through YaRN, in a model whose configuration does not.
    pub yarn_factor: Option<f64>,
    /// Whether chosen experts are asked for from disk before they are used; by default where the checkpoint is larger than the
    /// memory there is.
    pub prefetch: Option<bool>,
    /// See [`Engine::use_large_pages`].
    pub large_pages: Option<bool>,
}

impl Options {
    /// Options from the names users give: `dtype` is auto, f32, bf16, int8 or int4; `kv_dtype` auto, f32, f16, bf16 or int8; `recipe` the
    /// name or file of a recipe, with `dtype` auto.
    pub fn parse(dtype: &str, kv_dtype: &str, recipe: Option<&str>) -> Result<Self> {
        if recipe.is_some() && dtype != "auto" {
            return Err(Error::argument(
                "recipe",
                format!("it decides the formats, so dtype cannot be '{dtype}'"),
            ));
        }
        let precision = match (dtype, recipe) {
            (_, Some(recipe)) => Precision::Recipe(Recipe::by_name_or_file(recipe)?),
            ("auto", None) => Precision::Auto,
            ("f32", None) => Precision::Exact,
            ("bf16", None) => Precision::Bf16,
            ("int8" | "int4", None) => Precision::Recipe(Recipe::by_name_or_file(dtype)?),
            _ => {
                return Err(Error::argument(
                    "dtype",
                    format!("'{dtype}' is not one of auto, f32, bf16, int8, int4"),
                ));
            }
        };
        let kv_type = KvType::ALL.into_iter().find(|kv_type| kv_type.name() == kv_dtype);
        if kv_type.is_none() && kv_dtype != "auto" {
            let names = KvType::ALL.map(KvType::name).join(", ");
            let reason = format!("'{kv_dtype}' is not one of auto, {names}");
            return Err(Error::argument("kv_dtype", reason));
        }
        Ok(Self { precision, kv_type, yarn_factor: None, prefetch: None, large_pages: None })
    }

    /// Number type of the KV cache.
    pub fn kv_type(&self) -> KvType {
        let default = if matches!(self.precision, Precision::Exact) { KvType::F32 } else { KvType::Bf16 };
        self.kv_type.unwrap_or(default)
    }
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Opened {
    /// Ready to compute.
    pub engine: Engine,
    /// For the files beside the tensors.
    pub checkpoint: Checkpoint,
    /// The parsed `config.json`, with the context that the options ask for.
    pub config: ModelConfig,
}

/// Called with (bytes done, bytes in all, tensor); an error stops the work.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64, &str) -> Result<()>;

/// Opens the folder or file `path`.
pub fn open(path: &Path, options: &Options, cpu: Cpu, progress: Progress<'_>) -> Result<Opened> {
    let _standard = StandardFloat::enter();
    let checkpoint = Checkpoint::open(path)?;
    let mut config = ModelConfig::read(&checkpoint)?;
    if let Some(factor) = options.yarn_factor {
        config.text.extend(factor)?;
    }
    if checkpoint.is_native() && matches!(options.precision, Precision::Bf16 | Precision::Recipe(_)) {
        let reason = "an edgewise file is opened as it is stored (auto) or widened (f32); for other formats quantise the \
                      original checkpoint";
        return Err(Error::argument("dtype", reason));
    }
    let mut source = CheckpointSource::new(&checkpoint, &config, &options.precision, &cpu, &mut *progress)?;
    let mut weights = names::load(&config.text, &mut source)?;
    let vision = match &config.vision {
        Some(vision) if checkpoint.names().any(is_vision) => Some(VisionTower {
            config: vision.tower.clone(),
            tokens: vision.tokens.clone(),
            weights: vision::load(&vision.tower, &mut source)?,
        }),
        // A text model that was cut out of a larger one often keeps its configuration.
        _ => None,
    };
    let total = source.total;
    let exceeds_memory = || available_bytes().is_some_and(|bytes| checkpoint.nbytes() > bytes);
    weights.set_prefetch(options.prefetch.unwrap_or_else(exceeds_memory));
    let model = Model { config: config.text.clone(), weights, vision };
    let mut engine = Engine::new(model, cpu, options.kv_type());
    engine.use_large_pages(options.large_pages, &mut || progress(total, total, "large pages"))?;
    Ok(Opened { engine, checkpoint, config })
}

/// Prefix of the vision tower's tensors before [`vision::PREFIX`].
const VISION_PREFIX: &str = "model.";
/// Prefixes of the text model's tensors: beside a vision tower, and alone.
const PREFIXES: [&str; 2] = ["model.language_model.", "model."];

struct CheckpointSource<'a> {
    loader: Loader<'a>,
    precision: &'a Precision,
    /// For weights whose format `precision` leaves open.
    default: Recipe,
    cpu: &'a Cpu,
    prefix: &'static str,
    done: u64,
    total: u64,
    progress: Progress<'a>,
}

impl<'a> CheckpointSource<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        config: &'a ModelConfig,
        precision: &'a Precision,
        cpu: &'a Cpu,
        progress: Progress<'a>,
    ) -> Result<Self> {
        let prefix = PREFIXES.into_iter().find(|prefix| {
            let name = format!("{prefix}embed_tokens.weight");
            checkpoint.names().any(|found| found == name)
        });
        let prefix = prefix.ok_or_else(|| {
            let names = PREFIXES.map(|prefix| format!("'{prefix}embed_tokens.weight'")).join(" nor ");
            Error::file(checkpoint.path(), format!("holds neither {names}"))
        })?;
        let loader = Loader::new(checkpoint)?.with_delta(config.text.delta.as_ref());
        let unpacked = match precision {
            Precision::Auto => Unpacked::Blocks,
            Precision::Exact | Precision::Bf16 => Unpacked::Floats,
            Precision::Recipe(recipe) => Unpacked::By(recipe),
        };
        let loader = loader.with_imports(&cpu.pool, unpacked)?;
        let default = if loader.has_imports() { Recipe::BESIDE_PACKED } else { Recipe::DEFAULT };
        let source = Self {
            loader,
            precision,
            default: Recipe::by_name_or_file(default)?,
            cpu,
            prefix,
            done: 0,
            total: 0,
            progress,
        };
        let mut total = 0;
        for name in checkpoint.names().filter(|name| source.is_text(name) || is_vision(name)) {
            total += checkpoint.tensor_nbytes(name);
        }
        Ok(Self { total, ..source })
    }

    fn is_text(&self, name: &str) -> bool {
        name == "lm_head.weight"
            || name.strip_prefix(self.prefix).is_some_and(|rest| {
                ["embed_tokens.", "layers.", "norm."].iter().any(|part| rest.starts_with(part))
            })
    }

    fn full_name(&self, name: &str) -> String {
        match name {
            "lm_head.weight" => name.to_owned(),
            _ if name.starts_with(vision::PREFIX) => format!("{VISION_PREFIX}{name}"),
            _ => format!("{}{name}", self.prefix),
        }
    }

    /// The format in which a stored matrix is to be held.
    fn target(&self, name: &str, stored: &Stored) -> Format {
        let by = |recipe: &Recipe| recipe.treatment(name, &stored.shape).format(stored.format);
        match self.precision {
            Precision::Auto if self.keeps_formats(stored) => stored.format,
            Precision::Auto => by(&self.default),
            Precision::Exact if stored.format.is_quantized() => Format::F32,
            Precision::Exact => stored.format,
            Precision::Bf16 => Format::BF16,
            Precision::Recipe(recipe) => by(recipe),
        }
    }

    /// The matrices of a stored tensor in the format they are to be held in.
    fn held(&mut self, name: &str, stored: &Stored) -> Result<Vec<Matrix>> {
        let [count, rows, cols] = stored.matrices;
        if stored.is_foreign() {
            return self.translated(name, stored);
        }
        let matrices = (0..count).map(|i| stored.matrix(i)).collect::<Result<Vec<_>>>()?;
        let scanned = stored.format.is_quantized() && is_scanned(name);
        if scanned && matrices.iter().any(|matrix| !matrix.is_finite()) {
            return Err(stored.view.error("a scale or unit is NaN or infinite"));
        }
        let target = self.target(name, stored);
        let matrices = if target == stored.format {
            matrices
        } else {
            split(target, [count, rows, cols], self.converted(stored, &matrices, target)?)?
        };
        self.finished(stored.source_bytes, name)?;
        Ok(matrices)
    }

    /// The matrices of a tensor whose bytes are in no format of ours.
    fn translated(&mut self, name: &str, stored: &Stored) -> Result<Vec<Matrix>> {
        let target = self.target(name, stored);
        let data = quantize_tensor(&self.cpu.pool, &stored.view, target)?;
        self.finished(stored.source_bytes, name)?;
        split(target, stored.matrices, data)
    }

    /// Whether a tensor stays, by default, in the format that the checkpoint gives it. Blocks do so also where another program
    /// packed the weights: theirs is then the one that holds them best.
    fn keeps_formats(&self, stored: &Stored) -> bool {
        let checkpoint = self.loader.checkpoint();
        checkpoint.is_native() || checkpoint.gguf().is_some() || stored.format.is_quantized()
    }

    /// The bytes of `matrices`, which `stored` holds, in another format.
    fn converted(&self, stored: &Stored, matrices: &[Matrix], target: Format) -> Result<Vec<u8>> {
        if stored.format.is_quantized() {
            let rows = matrices.iter().flat_map(Matrix::to_f32);
            return Ok(rows.flat_map(f32::to_le_bytes).collect());
        }
        quantize_tensor(&self.cpu.pool, &stored.view, target)
    }

    fn finished(&mut self, bytes: usize, name: &str) -> Result<()> {
        self.done += bytes as u64;
        (self.progress)(self.done.min(self.total), self.total, name)
    }
}

/// Matrices `[count, rows, cols]` that stand one after another in `data`.
fn split(format: Format, [count, rows, cols]: [usize; 3], data: Vec<u8>) -> Result<Vec<Matrix>> {
    let data = Bytes::new(data);
    let bytes = data.len() / count.max(1);
    let part = |i| data.slice(i * bytes..(i + 1) * bytes).unwrap_or_else(|| data.clone());
    (0..count).map(|i| Matrix::new(format, rows, cols, part(i))).collect()
}

/// Whether the scales of a tensor in block format are read when it is opened.
///
/// Those of the tower and of experts are left alone until an image comes or a token is sent there, which may never happen
/// or would not fit into memory; what comes of them is checked.
fn is_scanned(name: &str) -> bool {
    !is_vision(name) && !name.contains(".experts.")
}

fn is_vision(name: &str) -> bool {
    name.strip_prefix(VISION_PREFIX).is_some_and(|name| name.starts_with(vision::PREFIX))
}

impl Source for CheckpointSource<'_> {
    fn has(&self, name: &str) -> bool {
        self.loader.checkpoint().contains(&self.full_name(name))
    }

    fn stack(&mut self, name: &str, shape: [usize; 3]) -> Result<Vec<Matrix>> {
        let name = self.full_name(name);
        let stored = self.loader.stored(&name)?;
        stored.expect(&shape)?;
        self.held(&name, &stored)
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let name = self.full_name(name);
        let stored = self.loader.stored(&name)?;
        stored.expect_matrix(shape)?;
        let matrix = self.held(&name, &stored)?.pop();
        matrix.ok_or_else(|| stored.view.error("holds no matrix"))
    }

    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = self.full_name(name);
        let bytes = self.loader.stored(&name)?.source_bytes;
        let vector = self.loader.vector(&name, shape)?;
        if let Some(i) = vector.iter().position(|x| !x.is_finite()) {
            let stored = self.loader.stored(&name)?;
            return Err(stored.view.error(format!("element {i} is {}", vector[i])));
        }
        self.finished(bytes, &name)?;
        Ok(vector)
    }
}
