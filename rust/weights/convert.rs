//! A checkpoint -> one file of our own format, tensor by tensor.
//!
//! The file is a safetensors container with the tensor names of the source; fused tensors come
//! [apart](super::fused). Its metadata are
//!
//! - `format` = `edgewise`, `format_version` = `1`,
//! - `recipe`: the recipe's JSON,
//! - `tensors`: which tensors are blocks, their format and shape (see [`stored`](super::stored)).
//!
//! Blocks of a GGUF file become what the recipe says; `keep` gives them the format of least loss (see `weights/gguf.rs`).
//! Tensors that are not blocks keep shape and a type that any safetensors reader knows. Side files (configuration,
//! tokenizer) stand inside as U8 tensors named `edgewise.files/<name>`.
//!
//! Weights that another program packed ([`imports`](super::imports)) are either converted by the recipe, from the numbers they stand
//! for, or keep their own levels in the blocks that hold them best.
//!
//! Large tensors go through in slices of rows. The destination is written whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::fused::{self, Part};
use super::gguf;
use super::imports::{Imports, Name, Packed};
use super::matrix::{BLOCK_ROWS, Format};
use super::moments::{InputStatistics, Moments};
use super::quantize::{Rows, SquaredError, has_calibrated_levels, matrices, quantize_parallel_for};
use super::recipe::{Recipe, Treatment};
use super::stored::{BlockEntry, TENSORS_KEY, block_shape};
use crate::checkpoint::writer::{Planned, Writer};
use crate::checkpoint::{Checkpoint, EMBEDDED_PREFIX, FORMAT, FORMAT_VERSION};
use crate::config::{DeltaConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType, TensorView};
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
    /// Of how many it was known what they meet.
    pub calibrated: usize,
}

/// How one tensor goes into the file.
enum Item {
    /// Numbers of the tensor, stored in the format.
    Weights(Part, Format),
    /// The tensor's bytes as they are: not numbers that a format could hold.
    Raw(Part),
    /// What another program packed.
    Packed(PackedItem),
    /// A side file.
    File(Vec<u8>),
}

/// A packed matrix. Scales and zero points are read again when it is written: for all matrices at once they may be many.
struct PackedItem {
    /// The tensor that holds its codes.
    origin: TensorView,
    shape: Vec<usize>,
    source_bytes: usize,
    format: Format,
}

/// What becomes of weights that another program packed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PackedAs {
    /// Blocks with their own levels.
    Themselves,
    /// What the recipe says.
    Recipe,
}

/// Writes `source`, which another program quantised, to `destination`, a file or an existing folder: what is in a GGUF file by
/// the recipe `keep`; packed weights in the blocks that hold them best, and what stands beside them in INT8 or, where it is
/// small, f32.
///
/// # Errors
/// As [`quantize_checkpoint`], and a source that is neither a GGUF file nor has packed weights.
pub fn repack_checkpoint(
    source: &Checkpoint,
    destination: &Path,
    pool: &Pool,
    progress: Progress<'_>,
) -> Result<Report> {
    let recipe = if source.gguf().is_some() { Recipe::KEEP } else { Recipe::BESIDE_PACKED };
    let recipe = Recipe::by_name_or_file(recipe)?;
    convert(source, destination, &recipe, PackedAs::Themselves, None, pool, progress)
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
    convert(source, destination, recipe, PackedAs::Recipe, None, pool, progress)
}

/// As [`quantize_checkpoint`]; INT4 levels are those that lose least on the text that `statistics` were taken from.
///
/// # Errors
/// Also statistics of a model with other shapes.
pub fn quantize_calibrated(
    source: &Checkpoint,
    destination: &Path,
    recipe: &Recipe,
    statistics: &InputStatistics,
    pool: &Pool,
    progress: Progress<'_>,
) -> Result<Report> {
    convert(source, destination, recipe, PackedAs::Recipe, Some(statistics), pool, progress)
}

fn convert(
    source: &Checkpoint,
    destination: &Path,
    recipe: &Recipe,
    packed_as: PackedAs,
    statistics: Option<&InputStatistics>,
    pool: &Pool,
    progress: Progress<'_>,
) -> Result<Report> {
    let begin = Instant::now();
    if source.is_native() {
        let reason =
            "is an edgewise file already; quantising it again would lose quality, start from the original";
        return Err(Error::file(source.path(), reason));
    }
    let imports = read_imports(source)?;
    let items = plan(source, imports.as_ref(), recipe, packed_as)?;
    let quantised = source.gguf().is_some() || items.values().any(|item| matches!(item, Item::Packed(_)));
    if packed_as == PackedAs::Themselves && !quantised {
        let reason = "holds no weights that another program packed; quantise it";
        return Err(Error::file(source.path(), reason));
    }
    let destination = check_destination(source, &items, destination)?;
    let mut writer = Writer::create(&destination, planned(&items)?, &metadata(&items, recipe))?;
    let formats = write_items(&items, imports.as_ref(), statistics, &mut writer, pool, progress)?;
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
fn plan(
    source: &Checkpoint,
    imports: Option<&Imports<'_>>,
    recipe: &Recipe,
    packed_as: PackedAs,
) -> Result<BTreeMap<String, Item>> {
    let delta = delta_shapes(source)?;
    let mut items = BTreeMap::new();
    let plain = || source.names().map(|name| Name::Plain(name.to_owned())).collect();
    for name in imports.map_or_else(plain, Imports::names) {
        let name = match (name, imports) {
            (Name::Plain(name), _) => name,
            (Name::Packed(name), imports) => {
                if let Some((imports, packed)) = find_packed(imports, &name)? {
                    items.insert(name, Item::packed(imports, &packed, recipe, packed_as));
                }
                continue;
            }
        };
        for part in Part::all(source, &name, delta.as_ref())? {
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

/// The packed weights of `source`, if its configuration tells of any.
fn read_imports(source: &Checkpoint) -> Result<Option<Imports<'_>>> {
    Imports::read(source, delta_shapes(source)?.as_ref())
}

fn find_packed<'i, 'a>(
    imports: Option<&'i Imports<'a>>,
    name: &str,
) -> Result<Option<(&'i Imports<'a>, Packed)>> {
    let Some(imports) = imports else { return Ok(None) };
    Ok(imports.find(name)?.map(|packed| (imports, packed)))
}

/// The shapes of the model's delta layers, if its configuration is there and tells them: what fused tensors come apart by.
fn delta_shapes(source: &Checkpoint) -> Result<Option<DeltaConfig>> {
    let is_fused = |name: &str| fused::is_fused(name) || fused::is_packed(name);
    if !source.names().any(is_fused) {
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
            (Treatment::Store(_), Some(own)) => Ok(Self::Weights(part, treatment.format(own))),
            (Treatment::Store(format), None) => {
                let (dtype, format) = (dtype.name(), format.name());
                let reason = format!("is {dtype}, it cannot be stored as {format}; give it the rule 'keep'");
                Err(part.origin().error(reason))
            }
        }
    }

    fn packed(imports: &Imports<'_>, packed: &Packed, recipe: &Recipe, packed_as: PackedAs) -> Self {
        let shape = packed.shape();
        let treatment = match packed_as {
            PackedAs::Recipe => recipe.treatment(packed.name(), &shape),
            PackedAs::Themselves => Treatment::Keep,
        };
        let format = treatment.format(packed.format());
        let source_bytes = imports.source_bytes(packed);
        Self::Packed(PackedItem { origin: packed.origin().clone(), shape, source_bytes, format })
    }

    /// The tensor of the source that it comes from.
    fn origin(&self) -> Option<&TensorView> {
        match self {
            Self::Weights(part, _) | Self::Raw(part) => Some(part.origin()),
            Self::Packed(packed) => Some(&packed.origin),
            Self::File(_) => None,
        }
    }

    fn source_bytes(&self) -> u64 {
        match self {
            Self::Weights(part, _) | Self::Raw(part) => part.nbytes() as u64,
            Self::Packed(packed) => packed.source_bytes as u64,
            Self::File(_) => 0,
        }
    }

    /// Its format and shape, if it holds weights.
    fn weights(&self) -> Option<(Format, Vec<usize>)> {
        match self {
            Self::Weights(part, format) => Some((*format, part.shape())),
            Self::Packed(packed) => Some((packed.format, packed.shape.clone())),
            Self::Raw(_) | Self::File(_) => None,
        }
    }

    fn planned(&self, name: &str) -> Result<Planned> {
        let (dtype, shape) = match self {
            Self::Raw(part) => (part.origin().dtype, part.shape()),
            Self::File(bytes) => (DType::U8, vec![bytes.len()]),
            Self::Weights(..) | Self::Packed(_) => self.planned_weights(name)?,
        };
        Ok(Planned { name: name.to_owned(), dtype, shape })
    }

    fn planned_weights(&self, name: &str) -> Result<(DType, Vec<usize>)> {
        let too_large = || Error::argument(name, "its shape is too large");
        let (format, shape) = self.weights().ok_or_else(too_large)?;
        match format.dtype() {
            Some(dtype) => Ok((dtype, shape)),
            None => block_shape(format, &shape).map(|shape| (DType::U8, shape)).ok_or_else(too_large),
        }
    }

    /// What it meets, if its levels are to be searched and that is known.
    fn moments<'a>(
        &self,
        name: &str,
        statistics: Option<&'a InputStatistics>,
    ) -> Result<Option<&'a Moments>> {
        let weights = self.weights().filter(|(format, _)| has_calibrated_levels(*format));
        let Some((statistics, (_, shape))) = statistics.zip(weights) else { return Ok(None) };
        let [_, _, cols] = matrices(&shape).unwrap_or_default();
        statistics.find(name, cols)
    }

    /// The entry of the table of block tensors, if it is one.
    fn block_entry(&self) -> Option<BlockEntry> {
        let (format, shape) = self.weights().filter(|(format, _)| format.is_quantized())?;
        Some(BlockEntry { format: format.name().to_owned(), shape })
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
    let mut parts = items.values().filter_map(|item| Some(item.origin()?.path.as_path()));
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
    imports: Option<&Imports<'_>>,
    statistics: Option<&InputStatistics>,
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
        let mut moments = item.moments(&planned.name, statistics)?;
        let (kind, error) = match item {
            Item::Weights(part, format) => {
                let view = part.load()?;
                moments = moments.filter(|_| !gguf::keeps_levels(view.dtype, *format));
                (format.name(), write_weights(&view, *format, moments, writer, pool, &mut advance)?)
            }
            Item::Raw(part) => {
                let view = part.load()?;
                writer.write(&view.bytes)?;
                advance(1, 1)?;
                (view.dtype.name(), SquaredError::default())
            }
            Item::Packed(item) => {
                let Some((_, packed)) = find_packed(imports, &planned.name)? else { continue };
                let error = write_packed(&packed, item.format, moments, writer, pool)?;
                advance(1, 1)?;
                (item.format.name(), error)
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
        tally.calibrated += usize::from(moments.is_some());
    }
    Ok(formats)
}

/// Writes one packed tensor, with its own levels if its format is the one that holds them best.
fn write_packed(
    packed: &Packed,
    format: Format,
    moments: Option<&Moments>,
    writer: &mut Writer,
    pool: &Pool,
) -> Result<SquaredError> {
    let own = format == packed.format() || format == Format::F32;
    let (bytes, error) = packed.converted(pool, if own { format } else { Format::F32 })?;
    if own {
        writer.write(&bytes)?;
        return Ok(error);
    }
    let view = TensorView { shape: packed.shape(), ..packed.model_view(DType::F32, Bytes::new(bytes)) };
    write_weights(&view, format, moments, writer, pool, &mut |_, _| Ok(()))
}

/// Writes one tensor, matrix after matrix, in slices of whole panels; calls `advance` with how many weights are done, and of
/// how many.
fn write_weights(
    view: &TensorView,
    format: Format,
    moments: Option<&Moments>,
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
            total += quantize_parallel_for(pool, format, moments, part, &mut out)?;
            writer.write(&out)?;
            advance(start + part.rows * cols, count * rows * cols)?;
        }
    }
    Ok(total)
}
