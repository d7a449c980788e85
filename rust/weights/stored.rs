//! Tensors of a checkpoint -> typed weights, with every shape checked.
//!
//! In a Hugging Face folder the format of a tensor is its element type; in a GGUF file the one that holds its blocks. In a file
//! of our own, block formats stand in tensors of type U8 and shape `[.., panels, blocks, block bytes]`, or `[.., panels, panel bytes]`
//! where units stand behind the blocks, and the metadata entry `tensors` says what each one holds:
//!
//! ```json
//! {"model.embed_tokens.weight": {"format": "int4", "shape": [640, 192]}}
//! ```
//!
//! `shape` is the shape in the original checkpoint. How it becomes matrices is said at [`matrices`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fused::Part;
use super::imports::{Imports, Packed};
use super::matrix::{BLOCK_COLS, BLOCK_ROWS, Format, Matrix};
use super::quantize::matrices;
use super::recipe::Recipe;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::json::{self, UniqueMap};
use crate::config::DeltaConfig;
use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType, TensorView};
use crate::threads::Pool;

/// The metadata key of the table of block tensors.
pub const TENSORS_KEY: &str = "tensors";

/// One entry of the table of block tensors.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlockEntry {
    pub(super) format: String,
    pub(super) shape: Vec<usize>,
}

/// A tensor with its format: checked that its bytes are as many as format and shape need.
#[derive(Clone, Debug)]
pub struct Stored {
    /// How its numbers are stored.
    pub format: Format,
    /// Its shape as the model knows it.
    pub shape: Vec<usize>,
    /// The matrices it holds: `[count, rows, cols]`.
    pub matrices: [usize; 3],
    /// Where its bytes are.
    pub view: TensorView,
    /// How many bytes of the checkpoint it was made from.
    pub source_bytes: usize,
}

/// Reads weights from a checkpoint.
#[derive(Debug)]
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    /// Name -> format and shape of each block tensor.
    blocks: BTreeMap<String, (Format, Vec<usize>)>,
    /// How fused tensors come apart.
    delta: Option<&'a DeltaConfig>,
    /// Weights that another program packed.
    imports: Option<Unpacking<'a>>,
}

/// What is made of weights that another program packed.
#[derive(Debug)]
struct Unpacking<'a> {
    imports: Imports<'a>,
    pool: &'a Pool,
    held: Unpacked<'a>,
}

/// What weights that another program packed become.
#[derive(Clone, Copy, Debug)]
pub enum Unpacked<'a> {
    /// The blocks that hold them best.
    Blocks,
    /// f32, for whatever is made of that.
    Floats,
    /// The blocks that hold them best where this recipe agrees, else f32, for what it says.
    By(&'a Recipe),
}

impl Unpacked<'_> {
    fn format(self, packed: &Packed) -> Format {
        let best = packed.format();
        let agrees = match self {
            Self::Blocks => true,
            Self::Floats => false,
            Self::By(recipe) => recipe.treatment(packed.name(), &packed.shape()).format(best) == best,
        };
        if agrees { best } else { Format::F32 }
    }
}

impl<'a> Loader<'a> {
    /// Reads the table of block tensors, if the checkpoint is of our own format.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        let blocks = if checkpoint.is_native() { read_table(checkpoint)? } else { BTreeMap::new() };
        Ok(Self { checkpoint, blocks, delta: None, imports: None })
    }

    /// The same for a checkpoint whose configuration may tell of packed weights, which become what `held` says.
    pub fn with_imports(self, pool: &'a Pool, held: Unpacked<'a>) -> Result<Self> {
        let imports = Imports::read(self.checkpoint, self.delta)?;
        Ok(Self { imports: imports.map(|imports| Unpacking { imports, pool, held }), ..self })
    }

    /// Whether the checkpoint's weights may be packed by another program.
    pub fn has_imports(&self) -> bool {
        self.imports.is_some()
    }

    /// The same for a model with delta layers of these shapes, whose projections may stand fused.
    #[must_use]
    pub fn with_delta(self, delta: Option<&'a DeltaConfig>) -> Self {
        Self { delta, ..self }
    }

    /// The checkpoint read from.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The tensor of this name, which must be there, with its format.
    pub fn stored(&self, name: &str) -> Result<Stored> {
        if let Some(unpacking) = &self.imports
            && let Some(packed) = unpacking.imports.find(name)?
        {
            return unpacking.stored(&packed);
        }
        match self.blocks.get(name) {
            Some((format, shape)) => Stored::blocks(self.checkpoint.require(name)?, *format, shape.clone()),
            None => Stored::part(&Part::find(self.checkpoint, name, self.delta)?),
        }
    }

    /// A tensor that is one matrix `[rows, cols]`; a convolution counts as `[out, everything else]`.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let stored = self.stored(name)?;
        stored.expect_matrix(shape)?;
        stored.matrix(0)
    }

    /// A tensor that is a stack of matrices `[count, rows, cols]`, such as the experts of a layer.
    pub fn stack(&self, name: &str, shape: [usize; 3]) -> Result<Vec<Matrix>> {
        let stored = self.stored(name)?;
        stored.expect(&shape)?;
        (0..shape[0]).map(|i| stored.matrix(i)).collect()
    }

    /// A tensor of exactly this shape as f32, row-major, whatever its format.
    pub fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let stored = self.stored(name)?;
        stored.expect(shape)?;
        if !stored.format.is_quantized() || stored.is_foreign() {
            return stored.view.to_f32();
        }
        let mut out = Vec::new();
        for i in 0..stored.matrices[0] {
            out.extend(stored.matrix(i)?.to_f32());
        }
        Ok(out)
    }
}

impl Unpacking<'_> {
    fn stored(&self, packed: &Packed) -> Result<Stored> {
        let format = self.held.format(packed);
        let (bytes, _) = packed.converted(self.pool, format)?;
        let shape = packed.shape();
        let view = packed.model_view(DType::U8, Bytes::new(bytes));
        let stored = match block_shape(format, &shape) {
            Some(blocks) => Stored::blocks(TensorView { shape: blocks, ..view }, format, shape),
            None => Stored::plain(TensorView { dtype: DType::F32, shape, ..view }, format),
        }?;
        Ok(Stored { source_bytes: self.imports.source_bytes(packed), ..stored })
    }
}

impl Stored {
    /// A tensor whose element type is its format, or is to be converted to it.
    fn part(part: &Part) -> Result<Self> {
        let view = part.load()?;
        let format = part.format().ok_or_else(|| {
            view.error(format!(
                "is {}, weights must be F32, F16, BF16 or blocks of edgewise",
                view.dtype.name()
            ))
        })?;
        Ok(Self { source_bytes: part.nbytes(), ..Self::plain(view, format)? })
    }

    /// A tensor whose bytes are its elements, or blocks of a GGUF file.
    fn plain(view: TensorView, format: Format) -> Result<Self> {
        let matrices = matrices(&view.shape).ok_or_else(|| too_large(&view, &view.shape))?;
        let source_bytes = view.bytes.len();
        Ok(Self { format, shape: view.shape.clone(), matrices, view, source_bytes })
    }

    /// A tensor of blocks that stands for `shape`.
    fn blocks(view: TensorView, format: Format, shape: Vec<usize>) -> Result<Self> {
        let expected = block_shape(format, &shape).ok_or_else(|| too_large(&view, &shape))?;
        if view.dtype != DType::U8 || view.shape != expected {
            let (dtype, found, name) = (view.dtype.name(), &view.shape, format.name());
            let reason =
                format!("is {dtype} {found:?}, {name} of shape {shape:?} is stored as U8 {expected:?}");
            return Err(view.error(reason));
        }
        let matrices = matrices(&shape).ok_or_else(|| too_large(&view, &shape))?;
        let source_bytes = view.bytes.len();
        Ok(Self { format, shape, matrices, view, source_bytes })
    }

    /// Whether its bytes are not in its format yet: those of a GGUF file have to be converted to it.
    pub fn is_foreign(&self) -> bool {
        self.format.dtype() != Some(self.view.dtype) && self.view.dtype != DType::U8
    }

    /// An error unless this is one matrix `[rows, cols]`; a convolution counts as `[out, everything else]`.
    pub fn expect_matrix(&self, [rows, cols]: [usize; 2]) -> Result<()> {
        if self.matrices == [1, rows, cols] { Ok(()) } else { Err(self.mismatch(&[rows, cols])) }
    }

    /// An error unless its shape is exactly this.
    pub fn expect(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape { Ok(()) } else { Err(self.mismatch(shape)) }
    }

    /// Matrix `index` of the stack.
    pub fn matrix(&self, index: usize) -> Result<Matrix> {
        let [_, rows, cols] = self.matrices;
        let bytes = self.format.bytes(rows, cols).ok_or_else(|| too_large(&self.view, &self.shape))?;
        let start = index.checked_mul(bytes);
        let end = start.and_then(|start| start.checked_add(bytes));
        let data = start.zip(end).and_then(|(start, end)| self.view.bytes.slice(start..end));
        let data = data.ok_or_else(|| self.view.error(format!("has no matrix {index}")))?;
        Matrix::new(self.format, rows, cols, data).map_err(|error| self.view.error(error.to_string()))
    }

    fn mismatch(&self, expected: &[usize]) -> Error {
        self.view.error(format!("has shape {:?}, the model needs {expected:?}", self.shape))
    }
}

/// The U8 shape in which a block format stores a tensor of `shape`; `None` if it overflows or is no block format.
pub(super) fn block_shape(format: Format, shape: &[usize]) -> Option<Vec<usize>> {
    if !format.is_quantized() {
        return None;
    }
    let [count, rows, cols] = matrices(shape)?;
    count.checked_mul(format.bytes(rows, cols)?)?;
    let panels = rows.div_ceil(BLOCK_ROWS);
    let panel = match format.unit_bytes() {
        0 => vec![cols.div_ceil(BLOCK_COLS), format.block_bytes()],
        _ => vec![format.panel_bytes(cols)?],
    };
    let stack = (shape.len() == 3).then_some(count);
    Some(stack.into_iter().chain([panels]).chain(panel).collect())
}

/// The table of block tensors of a file of our own.
fn read_table(checkpoint: &Checkpoint) -> Result<BTreeMap<String, (Format, Vec<usize>)>> {
    let fault =
        |reason: String| Error::file(checkpoint.path(), format!("metadata '{TENSORS_KEY}': {reason}"));
    let text = checkpoint.metadata(TENSORS_KEY).ok_or_else(|| fault("is missing".to_owned()))?;
    let UniqueMap(table) = json::parse_as::<UniqueMap<BlockEntry>>(text.as_bytes()).map_err(fault)?;
    let entries = table.into_iter().map(|(name, BlockEntry { format, shape })| {
        let found = Format::from_name(&format).filter(|format| format.is_quantized());
        let found = found.ok_or_else(|| {
            let (name, format) = (json::quote(&name), json::quote(&format));
            fault(format!(
                "'{name}': '{format}' is not a block format of this version, int4, int4_s8, int4_asym or int8"
            ))
        })?;
        Ok((name, (found, shape)))
    });
    entries.collect()
}

fn too_large(view: &TensorView, shape: &[usize]) -> Error {
    view.error(format!("shape {shape:?} is too large"))
}
