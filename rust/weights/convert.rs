//! A checkpoint -> one file of our own format, tensor by tensor.
//!
//! The file is a safetensors container with the tensor names of the source; fused tensors come
//! [apart](super::fused). Its metadata are
//!
//! - `format` = `edgewise`, `format_version` = `1`,
//! - `recipe`: the recipe's JSON,
//! - `tensors`: which tensors are blocks, their format and shape (see [`stored`](super::stored)).
//!
//! Blocks of a GGUF file become what the recipe says; `keep` gives them the format of least loss (see [`gguf`](super::gguf)).
//! Tensors that are not blocks keep shape and a type that any safetensors reader knows. Side files (configuration,
//! tokenizer) stand inside as U8 tensors named `edgewise.files/<name>`.
//!
//! Large tensors go through in slices of rows. The destination is written whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::fused::{self, Part};
use super::matrix::{BLOCK_ROWS, Format};
use super::quantize::{Rows, SquaredError, matrices, quantize_parallel};
use super::recipe::{Recipe, Treatment};
use super::stored::{BlockEntry, TENSORS_KEY, block_shape};
use crate::checkpoint::writer::{Planned, Writer};
use crate::checkpoint::{Checkpoint, EMBEDDED_PREFIX, FORMAT, FORMAT_VERSION};
use crate::config::{DeltaConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorView};
use crate::threads::Pool;

/// The file written in a destination that is a folder.
const FILE_NAME: &str = "model.safetensors";
/// Weights converted between two calls of `progress`.
const SLICE_WEIGHTS: usize = 1 << 24;

/// Called with (source bytes done, source bytes in all, tensor); an error stops the conversion.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64, &str) -> Result<()>;

/// What a conversion did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file written.
    pub destination: PathBuf,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Bytes of the file written.
    pub bytes: u64,
    /// Time it took.
    pub seconds: f64,
    /// By name of format; element types that are not weights appear under their own name, such as `I64`.
    pub formats: BTreeMap<&'static str, Tally>,
}

/// The tensors of one format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How many.
    pub tensors: usize,
    /// Their bytes in the file written.
    pub bytes: u64,
    /// What storing them so lost.
    pub error: SquaredError,
}

/// How one tensor goes into the file.
enum Item {
    /// Numbers of the tensor, stored in the format.
    Weights(Part, Format),
    /// The tensor's bytes as they are: not numbers that a format could hold.
    Raw(Part),
    /// A side file.
    File(Vec<u8>),
}

/// Writes `source` in the formats that `recipe` asks for to `destination`, a file or an existing folder.
///
/// # Errors
/// A source of our own format, a destination that is part of the source, a tensor that is not floating point and
/// not kept, and the first weight that is not finite or does not fit its format: named with file, tensor, row and column.
pub fn quantize_checkpoint(
    source: &Checkpoint,
    destination: &Path,
    recipe: &Recipe,
    pool: &Pool,
    progress: Progress<'_>,
) -> Result<Report> {
    let begin = Instant::now();
    if source.is_native() {
        let reason =
            "is an edgewise file already; quantising it again would lose quality, start from the original";
        return Err(Error::file(source.path(), reason));
    }
    let items = plan(source, recipe)?;
    let destination = check_destination(source, &items, destination)?;
    let mut writer = Writer::create(&destination, planned(&items)?, &metadata(&items, recipe))?;
    let formats = write_items(&items, &mut writer, pool, progress)?;
    writer.finish()?;
    Ok(Report {
        source_bytes: items.values().map(Item::source_bytes).sum(),
        bytes: fs::metadata(&destination).map_err(|error| Error::io(&destination, error))?.len(),
        destination,
        seconds: begin.elapsed().as_secs_f64(),
        formats,
    })
}

/// All that goes into the file, by name.
fn plan(source: &Checkpoint, recipe: &Recipe) -> Result<BTreeMap<String, Item>> {
    let delta = delta_shapes(source)?;
    let mut items = BTreeMap::new();
    for name in source.names() {
        for part in Part::all(source, name, delta.as_ref())? {
            let (name, treatment) = (part.name().to_owned(), recipe.treatment(part.name(), &part.shape()));
            items.insert(name, Item::new(part, treatment)?);
        }
    }
    if items.is_empty() {
        return Err(Error::file(source.path(), "holds no tensors"));
    }
    for name in source.side_file_names() {
        if let Some(bytes) = source.side_file(&name)? {
            items.insert(format!("{EMBEDDED_PREFIX}{name}"), Item::File(bytes));
        }
    }
    Ok(items)
}

/// The shapes of the model's delta layers, if its configuration is there and tells them: what fused tensors come apart by.
fn delta_shapes(source: &Checkpoint) -> Result<Option<DeltaConfig>> {
    if !source.names().any(fused::is_fused) {
        return Ok(None);
    }
    Ok(ModelConfig::read(source)?.text.delta)
}

impl Item {
    fn new(part: Part, treatment: Treatment) -> Result<Self> {
        let (dtype, own) = (part.origin().dtype, part.format());
        match (treatment, own) {
            // Storing a type as itself changes nothing, but finds numbers that are not finite.
            (Treatment::Keep, Some(own)) => Ok(Self::Weights(part, own)),
            (Treatment::Keep, None) => Ok(Self::Raw(part)),
            (Treatment::Store(format), Some(_)) => Ok(Self::Weights(part, format)),
            (Treatment::Store(format), None) => {
                let (dtype, format) = (dtype.name(), format.name());
                let reason = format!("is {dtype}, it cannot be stored as {format}; give it the rule 'keep'");
                Err(part.origin().error(reason))
            }
        }
    }

    fn part(&self) -> Option<&Part> {
        match self {
            Self::Weights(part, _) | Self::Raw(part) => Some(part),
            Self::File(_) => None,
        }
    }

    fn source_bytes(&self) -> u64 {
        self.part().map_or(0, |part| part.nbytes() as u64)
    }

    fn planned(&self, name: &str) -> Result<Planned> {
        let (dtype, shape) = match self {
            Self::Weights(part, format) => {
                if let Some(dtype) = format.dtype() {
                    (dtype, part.shape())
                } else {
                    let shape = block_shape(*format, &part.shape());
                    (DType::U8, shape.ok_or_else(|| part.origin().error("its shape is too large"))?)
                }
            }
            Self::Raw(part) => (part.origin().dtype, part.shape()),
            Self::File(bytes) => (DType::U8, vec![bytes.len()]),
        };
        Ok(Planned { name: name.to_owned(), dtype, shape })
    }

    /// The entry of the table of block tensors, if it is one.
    fn block_entry(&self) -> Option<BlockEntry> {
        match self {
            Self::Weights(part, format) if format.is_quantized() => {
                Some(BlockEntry { format: format.name().to_owned(), shape: part.shape() })
            }
            _ => None,
        }
    }
}

fn planned(items: &BTreeMap<String, Item>) -> Result<Vec<Planned>> {
    items.iter().map(|(name, item)| item.planned(name)).collect()
}

fn metadata(items: &BTreeMap<String, Item>, recipe: &Recipe) -> BTreeMap<String, String> {
    let table = items.iter().filter_map(|(name, item)| Some((name.clone(), item.block_entry()?))).collect();
    file_metadata(&table, recipe)
}

/// The metadata of a file of our own with these block tensors.
pub(super) fn file_metadata(
    blocks: &BTreeMap<String, BlockEntry>,
    recipe: &Recipe,
) -> BTreeMap<String, String> {
    let entries = [
        ("format", FORMAT.to_owned()),
        ("format_version", FORMAT_VERSION.to_owned()),
        ("recipe", recipe.to_json()),
        (TENSORS_KEY, serde_json::json!(blocks).to_string()),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The file to write; refuses one that would replace or hide a part of the source.
fn check_destination(
    source: &Checkpoint,
    items: &BTreeMap<String, Item>,
    destination: &Path,
) -> Result<PathBuf> {
    let is_folder = destination.is_dir();
    let file = if is_folder { destination.join(FILE_NAME) } else { destination.to_owned() };
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(Error::file(&file, format!("there is no folder '{}' to write to", folder.display())));
    }
    if is_folder && same_place(folder, source.path()) {
        return Err(Error::file(&file, "would stand in for the source in its own folder; give another one"));
    }
    let mut parts = items.values().filter_map(|item| Some(item.part()?.origin().path.as_path()));
    let side_files = source.side_file_names();
    let mut sides = side_files.iter().map(|name| source_folder(source).join(name));
    if parts.any(|part| same_place(part, &file)) || sides.any(|side| same_place(&side, &file)) {
        return Err(Error::file(&file, "is a part of the source; give another destination"));
    }
    Ok(file)
}

fn source_folder(source: &Checkpoint) -> &Path {
    if source.path().is_dir() { source.path() } else { source.path().parent().unwrap_or(Path::new("")) }
}

/// Whether both exist and are the same file or folder.
fn same_place(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Writes everything in the writer's order.
fn write_items(
    items: &BTreeMap<String, Item>,
    writer: &mut Writer,
    pool: &Pool,
    progress: Progress<'_>,
) -> Result<BTreeMap<&'static str, Tally>> {
    let total = items.values().map(Item::source_bytes).sum();
    let mut done = 0;
    let mut formats = BTreeMap::<_, Tally>::new();
    for planned in writer.order().to_vec() {
        let Some(item) = items.get(&planned.name) else { continue };
        let (before, size) = (done, item.source_bytes());
        // A tensor may be larger in memory than in the file it comes from.
        let mut advance = |part: usize, of: usize| {
            done = before + (u128::from(size) * part as u128 / of.max(1) as u128) as u64;
            progress(done, total, &planned.name)
        };
        let (kind, error) = match item {
            Item::Weights(part, format) => {
                (format.name(), write_weights(&part.load()?, *format, writer, pool, &mut advance)?)
            }
            Item::Raw(part) => {
                let view = part.load()?;
                writer.write(&view.bytes)?;
                advance(1, 1)?;
                (view.dtype.name(), SquaredError::default())
            }
            Item::File(bytes) => {
                writer.write(bytes)?;
                continue;
            }
        };
        let tally = formats.entry(kind).or_default();
        tally.tensors += 1;
        tally.bytes += planned.nbytes().unwrap_or(0) as u64;
        tally.error += error;
    }
    Ok(formats)
}

/// Writes one tensor, matrix after matrix, in slices of whole panels; calls `advance` with how many weights are done, and of
/// how many.
fn write_weights(
    view: &TensorView,
    format: Format,
    writer: &mut Writer,
    pool: &Pool,
    advance: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<SquaredError> {
    let too_large = || view.error("its shape is too large");
    let [count, rows, cols] = matrices(&view.shape).ok_or_else(too_large)?;
    let mut total = SquaredError::default();
    if count * rows * cols == 0 {
        return Ok(total);
    }
    let slice = (SLICE_WEIGHTS / BLOCK_ROWS / cols).max(1) * BLOCK_ROWS;
    let mut out = Vec::new();
    for matrix in 0..count {
        for first in (0..rows).step_by(slice) {
            let start = (matrix * rows + first) * cols;
            let part = Rows { view, start, rows: slice.min(rows - first), cols };
            out.resize(format.bytes(part.rows, cols).ok_or_else(too_large)?, 0);
            total += quantize_parallel(pool, format, part, &mut out)?;
            writer.write(&out)?;
            advance(start + part.rows * cols, count * rows * cols)?;
        }
    }
    Ok(total)
}
