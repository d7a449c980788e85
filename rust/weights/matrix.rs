//! A weight matrix in one of seven number formats, all read straight from mapped bytes.

use crate::checkpoint::mmap;
use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType, widen};
use crate::weights::{int4, int4_asym, int4_s8, int8};

/// How the numbers of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Row-major little-endian f32.
    F32,
    /// Row-major little-endian IEEE half precision.
    F16,
    /// Row-major little-endian bfloat16.
    BF16,
    /// Blocks of [`int8`].
    Int8,
    /// Blocks of [`int4`].
    Int4,
    /// Blocks of [`int4_asym`].
    Int4Asym,
    /// Blocks and units of [`int4_s8`].
    Int4S8,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 7] =
        [Self::F32, Self::F16, Self::BF16, Self::Int8, Self::Int4, Self::Int4Asym, Self::Int4S8];

    /// The name used in recipes, file metadata and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int4Asym => "int4_asym",
            Self::Int4S8 => "int4_s8",
        }
    }

    /// The format with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Whether activations are quantised to INT8 before they meet this format.
    pub const fn is_quantized(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4 | Self::Int4Asym | Self::Int4S8)
    }

    /// The element type of an unquantised format.
    pub const fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::Int8 | Self::Int4 | Self::Int4Asym | Self::Int4S8 => None,
        }
    }

    /// Bytes of 16 rows x 32 columns: a block of a quantised format.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Int4 => int4::BLOCK_BYTES,
            Self::Int4Asym => int4_asym::BLOCK_BYTES,
            Self::Int4S8 => int4_s8::BLOCK_BYTES,
            Self::Int8 => int8::BLOCK_BYTES,
            Self::F32 => 4 * BLOCK_ROWS * BLOCK_COLS,
            Self::F16 | Self::BF16 => 2 * BLOCK_ROWS * BLOCK_COLS,
        }
    }

    /// Bytes of a block's levels, before the numbers that say what they mean.
    pub(crate) const fn level_bytes(self) -> usize {
        match self {
            Self::Int4 | Self::Int8 => self.block_bytes() - 2 * BLOCK_ROWS,
            Self::Int4Asym => self.block_bytes() - 4 * BLOCK_ROWS,
            Self::Int4S8 => self.block_bytes() - BLOCK_ROWS,
            Self::F32 | Self::F16 | Self::BF16 => self.block_bytes(),
        }
    }

    /// Bytes that stand behind the blocks of a panel: the units of [`int4_s8`].
    pub const fn unit_bytes(self) -> usize {
        if matches!(self, Self::Int4S8) { int4_s8::UNIT_BYTES } else { 0 }
    }

    /// Bytes of 16 rows of `cols` columns; `None` if that overflows.
    pub fn panel_bytes(self, cols: usize) -> Option<usize> {
        match self.dtype() {
            None => {
                let blocks = cols.div_ceil(BLOCK_COLS).checked_mul(self.block_bytes())?;
                if cols == 0 { Some(0) } else { blocks.checked_add(self.unit_bytes()) }
            }
            Some(dtype) => cols.checked_mul(BLOCK_ROWS * dtype.size()),
        }
    }

    /// Bytes of a `[rows, cols]` matrix; `None` if that overflows.
    pub fn bytes(self, rows: usize, cols: usize) -> Option<usize> {
        match self.dtype() {
            None => rows.div_ceil(BLOCK_ROWS).checked_mul(self.panel_bytes(cols)?),
            Some(dtype) => rows.checked_mul(cols)?.checked_mul(dtype.size()),
        }
    }
}

/// Rows of a quantised block: one vector lane each.
pub const BLOCK_ROWS: usize = 16;
/// Columns of a quantised block: one scale each row.
pub const BLOCK_COLS: usize = 32;

/// Row `row` of stored `data` with `cols` columns as f32, `[cols]`.
pub(super) fn read_row(format: Format, data: &[u8], cols: usize, row: usize, out: &mut [f32]) {
    match format {
        Format::Int4 => int4::read_row(data, cols, row, out),
        Format::Int4Asym => int4_asym::read_row(data, cols, row, out),
        Format::Int4S8 => int4_s8::read_row(data, cols, row, out),
        Format::Int8 => int8::read_row(data, cols, row, out),
        Format::F32 | Format::F16 | Format::BF16 => {
            let dtype = format.dtype().unwrap_or(DType::F32);
            widen(dtype, data, row * cols, out);
        }
    }
}

/// As [`read_row`], for blocks of `bytes` bytes; `read_group` gives the 32 weights of a row of a block.
#[inline]
pub(super) fn read_block_row(
    blocks: &[u8],
    bytes: usize,
    cols: usize,
    row: usize,
    out: &mut [f32],
    read_group: impl Fn(&[u8], usize) -> [f32; BLOCK_COLS],
) {
    assert_eq!(out.len(), cols);
    let panel_bytes = cols.div_ceil(BLOCK_COLS) * bytes;
    let (panel, r) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
    let panel = &blocks[panel * panel_bytes..(panel + 1) * panel_bytes];
    for (block, out) in panel.chunks_exact(bytes).zip(out.chunks_mut(BLOCK_COLS)) {
        out.copy_from_slice(&read_group(block, r)[..out.len()]);
    }
}

/// Weights `[rows, cols]`: `rows` output channels, `cols` input channels.
#[derive(Clone, Debug)]
pub struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    data: Bytes,
}

impl Matrix {
    /// A matrix over `data`, which must have exactly the size the format needs.
    pub fn new(format: Format, rows: usize, cols: usize, data: Bytes) -> Result<Self> {
        match format.bytes(rows, cols) {
            Some(bytes) if bytes == data.len() => Ok(Self { format, rows, cols, data }),
            _ => Err(Error::argument(
                "data",
                format!("{} bytes do not hold a [{rows}, {cols}] {} matrix", data.len(), format.name()),
            )),
        }
    }

    /// Rows `..rows` and the rest, over the same bytes.
    ///
    /// # Errors
    /// If `rows` is outside the matrix, or within a panel of a block format.
    pub fn split_rows(&self, rows: usize) -> Result<(Self, Self)> {
        let aligned = !self.format.is_quantized() || rows.is_multiple_of(BLOCK_ROWS);
        let bytes = self.format.bytes(rows, self.cols).filter(|_| aligned && rows <= self.rows);
        let halves =
            bytes.and_then(|at| Some((self.data.slice(0..at)?, self.data.slice(at..self.data.len())?)));
        let (top, bottom) = halves.ok_or_else(|| {
            let (all, format) = (self.rows, self.format.name());
            Error::argument("rows", format!("a {format} matrix of {all} rows cannot be split at row {rows}"))
        })?;
        Ok((
            Self::new(self.format, rows, self.cols, top)?,
            Self::new(self.format, self.rows - rows, self.cols, bottom)?,
        ))
    }

    /// How the numbers are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The same, and what keeps them alive.
    pub(crate) fn data(&self) -> &Bytes {
        &self.data
    }

    /// Stored bytes of one row, in a block format its share of them.
    pub fn row_bytes(&self) -> usize {
        self.data.len() / self.rows.max(1)
    }

    /// Multiplications and additions, counted apart, of this matrix with one token's activations.
    pub fn operations(&self) -> usize {
        2 * self.rows * self.cols
    }

    /// Begins to read the matrix from disk if it is mapped and not in memory; returns at once.
    pub fn will_need(&self) {
        mmap::will_need(&self.data);
    }

    /// Row `row` as f32, `[cols]`.
    ///
    /// # Panics
    /// If `row` is not below [`Self::rows`] or `out` is not `[cols]`.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols);
        read_row(self.format, &self.data, self.cols, row, out);
    }

    /// Whether the last `BYTES` bytes of every block are finite f16 numbers. Their number is known when this is compiled: that makes
    /// opening a file twice as fast.
    fn blocks_end_finite<const BYTES: usize>(&self) -> bool {
        let finite = |half: &[u8; 2]| u16::from_le_bytes(*half) & 0x7c00 != 0x7c00;
        let ends_finite = |block: &[u8]| {
            block.last_chunk::<BYTES>().is_some_and(|halves| halves.as_chunks::<2>().0.iter().all(finite))
        };
        self.data.chunks_exact(self.format.block_bytes()).all(ends_finite)
    }

    /// Whether the units of every panel are finite. Only one line of memory of each panel is read.
    fn units_are_finite(&self) -> bool {
        let finite = |unit: &[u8; 4]| f32::from_le_bytes(*unit).is_finite();
        let ends_finite = |panel: &[u8]| {
            panel
                .last_chunk::<{ int4_s8::UNIT_BYTES }>()
                .is_some_and(|units| units.as_chunks().0.iter().all(finite))
        };
        let size = self.format.panel_bytes(self.cols).unwrap_or(usize::MAX);
        self.data.is_empty() || self.data.chunks_exact(size).all(ends_finite)
    }

    /// Whether every number, or every scale, offset and unit of a block format, is finite.
    pub fn is_finite(&self) -> bool {
        let finite = |exponent: u16| move |b: &[u8; 2]| u16::from_le_bytes(*b) & exponent != exponent;
        match self.format {
            Format::F32 => self.data.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
            Format::F16 => self.data.as_chunks::<2>().0.iter().all(finite(0x7c00)),
            Format::BF16 => self.data.as_chunks::<2>().0.iter().all(finite(0x7f80)),
            Format::Int4 | Format::Int8 => self.blocks_end_finite::<{ 2 * BLOCK_ROWS }>(),
            Format::Int4Asym => self.blocks_end_finite::<{ 4 * BLOCK_ROWS }>(),
            Format::Int4S8 => self.units_are_finite(),
        }
    }

    /// All rows as f32, `[rows, cols]` row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, out) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            self.read_row(row, out);
        }
        out
    }
}
