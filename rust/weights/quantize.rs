//! f32 weights -> any stored format: row by row, panel by panel, or a whole tensor on all threads.
//!
//! The choice of levels and scales for the block formats is in `search` and `asymmetric`, and in `calibrated` where it is known
//! what the weights meet.

mod asymmetric;
mod calibrated;
mod search;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};

use self::search::HIGHEST;
pub(super) use self::search::{Affine, Lanes, Levels, Scales, Tile, choose_levels};
use super::matrix::{BLOCK_COLS, BLOCK_ROWS, Format};
use super::moments::Moments;
use super::{gguf, int4_s8, matrix};
use crate::error::Error;
use crate::large_pages;
use crate::tensor::TensorView;
use crate::threads::Pool;

/// A weight the format cannot hold: not a number, infinite or too large.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotRepresentable {
    /// Its row.
    pub row: usize,
    /// Its column.
    pub column: usize,
    /// The weight.
    pub value: f32,
}

impl std::fmt::Display for NotRepresentable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { row, column, value } = self;
        let why = if value.is_finite() { "is too large for the format" } else { "is not a finite number" };
        write!(f, "the weight {value:e} at row {row}, column {column} {why}")
    }
}

impl std::error::Error for NotRepresentable {}

/// Stores `weights` `[rows, cols]` in `format`. The padding of the last panel is written too.
///
/// Panels of 16 rows are independent: a matrix may be stored panel by panel, in any order, with the same bytes.
///
/// # Errors
/// The first weight, in row-major order, that the format cannot hold; `out` is then unspecified.
///
/// # Panics
/// If `weights` is not `[rows, cols]` or `out` not of [`Format::bytes`].
pub fn quantize_rows(
    format: Format,
    weights: &[f32],
    rows: usize,
    cols: usize,
    out: &mut [u8],
) -> Result<(), NotRepresentable> {
    assert_eq!(Some(weights.len()), rows.checked_mul(cols), "weights are not [rows, cols]");
    assert_eq!(Some(out.len()), format.bytes(rows, cols), "out has the wrong size");
    if weights.is_empty() {
        return Ok(());
    }
    check(format, weights, cols)?;
    match format {
        Format::F32 => narrow(weights, out, f32::to_le_bytes),
        Format::F16 => narrow(weights, out, |w| f16::from_f32(w).to_le_bytes()),
        Format::BF16 => narrow(weights, out, |w| bf16::from_f32(w).to_le_bytes()),
        Format::Int4 | Format::Int4Asym | Format::Int4S8 | Format::Int8 => {
            quantize_blocks(format, weights, cols, out);
        }
    }
    Ok(())
}

/// As [`quantize_rows`] for formats of 4 bits: the levels that lose least where the weights meet inputs of these moments.
fn quantize_rows_for(
    format: Format,
    levels: &Levels,
    moments: &Moments,
    weights: &[f32],
    cols: usize,
    out: &mut [u8],
) -> Result<(), NotRepresentable> {
    check(format, weights, cols)?;
    calibrated::quantize_rows(format, levels, moments, weights, cols, out);
    Ok(())
}

/// Whether the levels of this format depend on moments, where there are some.
pub(super) fn has_calibrated_levels(format: Format) -> bool {
    calibrated::levels(format).is_some()
}

/// What storing lost, and of how much.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SquaredError {
    /// Sum of `(weight - stored)^2`.
    pub lost: f64,
    /// Sum of `weight^2`.
    pub of: f64,
}

impl SquaredError {
    /// The part lost; 0 if there was nothing.
    pub fn relative(self) -> f64 {
        if self.of > 0.0 { self.lost / self.of } else { 0.0 }
    }
}

impl std::ops::AddAssign for SquaredError {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.of += other.of;
    }
}

/// A block of consecutive elements of a tensor, read as rows.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The tensor.
    pub view: &'a TensorView,
    /// The element the rows begin with.
    pub start: usize,
    /// How many rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

/// Stores a tensor in `format`: the matrices of [`matrices`] one after another.
///
/// # Errors
/// Names the tensor, and the row and column of the first weight that the format cannot hold.
pub fn quantize_tensor(pool: &Pool, view: &TensorView, format: Format) -> Result<Vec<u8>, Error> {
    let too_large = || view.error(format!("shape {:?} is too large", view.shape));
    let [stack, rows, cols] = matrices(&view.shape).ok_or_else(too_large)?;
    let bytes = format.bytes(rows, cols).ok_or_else(too_large)?;
    let mut out = large_pages::zeros(stack.checked_mul(bytes).ok_or_else(too_large)?);
    for (i, out) in out.chunks_exact_mut(bytes.max(1)).enumerate() {
        quantize_parallel(pool, format, Rows { view, start: i * rows * cols, rows, cols }, out)?;
    }
    Ok(out)
}

/// The matrices `[count, rows, cols]` that a tensor holds; `None` if the sizes overflow.
///
/// Three dimensions are a stack of matrices (experts, `[E, N, K]`), each padded to whole blocks for itself. More
/// are one convolution, `[out, everything else]`. Fewer than two are one row.
pub fn matrices(shape: &[usize]) -> Option<[usize; 3]> {
    let matrices = match *shape {
        [] => [1, 1, 1],
        [cols] => [1, 1, cols],
        [rows, cols] => [1, rows, cols],
        [count, rows, cols] => [count, rows, cols],
        [rows, ref rest @ ..] => [1, rows, rest.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?],
    };
    matrices.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    Some(matrices)
}

/// Weights of one work item: enough to make the overhead small, and little enough for the L2 cache.
const ITEM_WEIGHTS: usize = 1 << 16;

/// Stores `source` in `out` with all threads of `pool`, and measures what was lost.
///
/// The bytes and the measured error do not depend on the number of threads.
///
/// # Errors
/// Names the tensor, and the row and column of the first weight that the format cannot hold.
///
/// # Panics
/// If `source` reaches outside its tensor or `out` is not of [`Format::bytes`].
pub fn quantize_parallel(
    pool: &Pool,
    format: Format,
    source: Rows<'_>,
    out: &mut [u8],
) -> Result<SquaredError, Error> {
    quantize_parallel_for(pool, format, None, source, out)
}

/// As [`quantize_parallel`]; levels of 4 bits are those that lose least where the weights meet inputs of these moments.
///
/// # Panics
/// Also if the moments are not those of as many columns.
pub fn quantize_parallel_for(
    pool: &Pool,
    format: Format,
    moments: Option<&Moments>,
    source: Rows<'_>,
    out: &mut [u8],
) -> Result<SquaredError, Error> {
    let Rows { rows, cols, .. } = source;
    assert_eq!(Some(out.len()), format.bytes(rows, cols), "out has the wrong size");
    convert_parallel(pool, format, [rows, cols], out, |range, out| {
        let part = Rows { start: source.start + range.start * cols, rows: range.len(), ..source };
        quantize_item(format, moments, part, out)
    })
}

/// Makes a matrix `[rows, cols]` in `out` with all threads of `pool`: calls `convert(rows, out)` for runs of whole panels and adds
/// up what was lost, in order.
pub fn convert_parallel(
    pool: &Pool,
    format: Format,
    [rows, cols]: [usize; 2],
    out: &mut [u8],
    convert: impl Fn(Range<usize>, &mut [u8]) -> Result<SquaredError, Error> + Sync,
) -> Result<SquaredError, Error> {
    if out.is_empty() {
        return Ok(SquaredError::default());
    }
    let panels = (ITEM_WEIGHTS / BLOCK_ROWS / cols).max(1);
    let item_rows = (panels * BLOCK_ROWS).min(rows);
    let item_bytes = format.bytes(item_rows, cols).unwrap_or(out.len());
    let items: Vec<_> =
        out.chunks_mut(item_bytes).map(|out| Mutex::new((out, Ok(SquaredError::default())))).collect();
    pool.run(items.len(), &|i| {
        let first = i * item_rows;
        let mut item = items[i].lock().unwrap_or_else(PoisonError::into_inner);
        item.1 = convert(first..rows.min(first + item_rows), item.0);
    });
    let mut total = SquaredError::default();
    for item in items {
        total += item.into_inner().unwrap_or_else(PoisonError::into_inner).1?;
    }
    Ok(total)
}

/// Reads, stores, reads back and compares some rows.
fn quantize_item(
    format: Format,
    moments: Option<&Moments>,
    part: Rows<'_>,
    out: &mut [u8],
) -> Result<SquaredError, Error> {
    let Rows { view, start, rows, cols } = part;
    if let Some(error) = gguf::repack(format, part, out) {
        return Ok(error);
    }
    let mut weights = vec![0.0; rows * cols];
    view.read_f32(start, &mut weights)?;
    let done = match moments.zip(calibrated::levels(format)) {
        None => quantize_rows(format, &weights, rows, cols, out),
        Some((moments, levels)) => quantize_rows_for(format, levels, moments, &weights, cols, out),
    };
    done.map_err(|bad| view.error(NotRepresentable { row: start / cols + bad.row, ..bad }.to_string()))?;
    let mut total = SquaredError::default();
    let mut stored = vec![0.0; cols];
    for (row, weights) in weights.chunks_exact(cols).enumerate() {
        matrix::read_row(format, out, cols, row, &mut stored);
        total += compare(weights, &stored);
    }
    Ok(total)
}

/// What `stored` loses of `weights`. Eight sums side by side, so that it vectorises.
pub(super) fn compare(weights: &[f32], stored: &[f32]) -> SquaredError {
    const SUMS: usize = 8;
    let (mut lost, mut of) = ([0.0_f64; SUMS], [0.0_f64; SUMS]);
    for (weights, stored) in weights.chunks(SUMS).zip(stored.chunks(SUMS)) {
        for (i, (&w, &s)) in weights.iter().zip(stored).enumerate() {
            let error = f64::from(w) - f64::from(s);
            lost[i] += error * error;
            of[i] += f64::from(w) * f64::from(w);
        }
    }
    SquaredError { lost: lost.iter().sum(), of: of.iter().sum() }
}

/// The largest absolute value that `format` holds.
pub(super) fn limit(format: Format) -> f32 {
    match format {
        Format::F32 => f32::MAX,
        Format::F16 => f32::from_bits(f16::MAX.to_f32().to_bits() + 0xfff),
        Format::BF16 => f32::from_bits(bf16::MAX.to_f32().to_bits() + 0x7fff),
        Format::Int4 | Format::Int4Asym | Format::Int4S8 | Format::Int8 => {
            Levels::of(format).map_or(0.0, Levels::limit)
        }
    }
}

/// Finds the first weight beyond the limit; a NaN compares as beyond it.
fn check(format: Format, weights: &[f32], cols: usize) -> Result<(), NotRepresentable> {
    let limit = limit(format);
    let fits = |w: &f32| w.abs() <= limit;
    // Without an early exit the sum vectorises; the position is looked up only when something is wrong.
    let fitting: usize =
        weights.chunks(4096).map(|w| w.iter().map(|w| u32::from(fits(w))).sum::<u32>() as usize).sum();
    if fitting == weights.len() {
        return Ok(());
    }
    let index = weights.iter().position(|w| !fits(w)).unwrap_or(0);
    Err(NotRepresentable { row: index / cols, column: index % cols, value: weights[index] })
}

/// Element by element, round to nearest even.
fn narrow<const N: usize>(weights: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
    for (out, &w) in out.chunks_exact_mut(N).zip(weights) {
        out.copy_from_slice(&convert(w));
    }
}

/// Panel by panel, block by block.
fn quantize_blocks(format: Format, weights: &[f32], cols: usize, out: &mut [u8]) {
    let levels = Levels::of(format).expect("block formats have levels");
    let mut tile = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
    for (panel, out) in weights.chunks(BLOCK_ROWS * cols).zip(panels_mut(format, cols, out)) {
        let scales = Scales::of(levels, panel, cols, HIGHEST);
        let blocks = write_units(&scales, out);
        for (block, out) in blocks.chunks_exact_mut(format.block_bytes()).enumerate() {
            gather(panel, cols, block * BLOCK_COLS, &mut tile);
            let affine = choose_levels(levels, &scales, &mut tile);
            (levels.write)(&tile, &affine, out);
        }
    }
}

/// The panels of a matrix of a block format, which has columns.
pub(super) fn panels_mut(format: Format, cols: usize, matrix: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    let bytes = format.panel_bytes(cols).expect("the matrix is there");
    matrix.chunks_exact_mut(bytes)
}

/// Writes the units of a panel, if it has any, and returns where its blocks go.
fn write_units<'a>(scales: &Scales, panel: &'a mut [u8]) -> &'a mut [u8] {
    let Some(units) = scales.units() else { return panel };
    let (blocks, out) = panel.split_at_mut(panel.len() - int4_s8::UNIT_BYTES);
    int4_s8::write_units(units, out);
    blocks
}

/// Copies the block that begins at `column` out of a panel `[up to 16, cols]`, zeros beyond its edges.
pub(super) fn gather(panel: &[f32], cols: usize, column: usize, tile: &mut Tile) {
    let width = BLOCK_COLS.min(cols - column);
    if width < BLOCK_COLS || panel.len() < BLOCK_ROWS * cols {
        *tile = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
    }
    for (r, row) in panel.chunks_exact(cols).enumerate() {
        for (lanes, &w) in tile.iter_mut().zip(&row[column..column + width]) {
            lanes[r] = w;
        }
    }
}
