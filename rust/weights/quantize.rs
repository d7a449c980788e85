//! f32 weights -> any stored format.
//!
//! The block formats know a weight as `level * scale`, with one scale for a group: 32 columns of one row. For each
//! group the scale is searched that leaves the least sum of squared errors, with the scale already rounded to f16:
//!
//! ```text
//! extreme = the group's weight of largest absolute value
//! for each target level t in a fixed list:
//!     level[k]  = round(weight[k] * t / extreme), clamped             the extreme lands on t
//!     scale     = f16(sum(weight * level) / sum(level^2))             least squares for these levels
//!     keep the scale if sum((weight - level * scale)^2) is the least so far
//! levels are chosen anew for the scale that was kept
//! ```
//!
//! The list has every level an extreme can have, so a group that is a whole multiple of an f16 everywhere is
//! found exactly, and positions beyond the range, where clipping the extreme pays. All of it is plain f32 arithmetic
//! in one order on [`Tile`]s, a lane for each row: the same bits on every machine, and loops that compilers vectorise.

use half::{bf16, f16};

use super::matrix::{BLOCK_COLS, BLOCK_ROWS, Format};
use super::{int4, int8};

/// One number for each row of a block.
pub(super) type Lanes = [f32; BLOCK_ROWS];
/// The numbers of one block, `[column][row]`.
pub(super) type Tile = [Lanes; BLOCK_COLS];

/// The largest finite f16.
const MAX_SCALE: f32 = 65_504.0;
/// Up to this absolute value (half the smallest f16) level 0 is the nearest for every scale.
const NEGLIGIBLE: f32 = 1.0 / 33_554_432.0;

/// What the search knows of a block format.
struct Levels {
    lowest: f32,
    highest: f32,
    /// Where the group's extreme may land; the first of equally good ones wins.
    targets: &'static [f32],
}

/// Levels of [`int4`].
const INT4: Levels = Levels {
    lowest: -8.0,
    highest: 7.0,
    targets: &[-8.0, 7.0, -7.0, -7.5, 6.5, -8.5, 7.5, -6.5, -9.0, 6.0, 5.5, 5.0, 4.0, 3.0, 2.0, 1.0],
};
/// Levels of [`int8`].
const INT8: Levels = Levels { lowest: -127.0, highest: 127.0, targets: &[127.0] };

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
        Format::Int4 => {
            quantize_blocks::<{ int4::BLOCK_BYTES }>(&INT4, weights, cols, out, int4::write_block)
        }
        Format::Int8 => {
            quantize_blocks::<{ int8::BLOCK_BYTES }>(&INT8, weights, cols, out, int8::write_block)
        }
    }
    Ok(())
}

/// The largest absolute value that `format` holds.
fn limit(format: Format) -> f32 {
    match format {
        Format::F32 => f32::MAX,
        Format::F16 => f32::from_bits(f16::MAX.to_f32().to_bits() + 0xfff),
        Format::BF16 => f32::from_bits(bf16::MAX.to_f32().to_bits() + 0x7fff),
        Format::Int4 => -INT4.lowest * MAX_SCALE,
        Format::Int8 => INT8.highest * MAX_SCALE,
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
fn quantize_blocks<const BLOCK_BYTES: usize>(
    levels: &Levels,
    weights: &[f32],
    cols: usize,
    out: &mut [u8],
    write_block: impl Fn(&Tile, &Lanes, &mut [u8]),
) {
    let panel_bytes = cols.div_ceil(BLOCK_COLS) * BLOCK_BYTES;
    let mut tile = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
    for (panel, out) in weights.chunks(BLOCK_ROWS * cols).zip(out.chunks_exact_mut(panel_bytes)) {
        for (block, out) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            gather(panel, cols, block * BLOCK_COLS, &mut tile);
            let scales = best_scales(levels, &tile);
            let inverse = scales.map(|scale| if scale == 0.0 { 0.0 } else { 1.0 / scale });
            round_to_levels(levels, &inverse, &mut tile);
            write_block(&tile, &scales, out);
        }
    }
}

/// Copies the block that begins at `column` out of a panel `[up to 16, cols]`, zeros beyond its edges.
fn gather(panel: &[f32], cols: usize, column: usize, tile: &mut Tile) {
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

/// For each row the f16 scale with the least squared error among the candidates; 0 where nothing beats zeros.
fn best_scales(levels: &Levels, tile: &Tile) -> Lanes {
    let extremes = extremes(tile);
    let mut best = [0.0; BLOCK_ROWS];
    let mut least = squared_error(tile, &[[0.0; BLOCK_ROWS]; BLOCK_COLS], &best);
    let mut rounded = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
    for &target in levels.targets {
        let inverse = extremes.map(|w| if w.abs() > NEGLIGIBLE { target / w } else { 0.0 });
        let scale = refine(levels, tile, &inverse, &mut rounded);
        let error = squared_error(tile, &rounded, &scale);
        for r in 0..BLOCK_ROWS {
            let better = error[r] < least[r];
            best[r] = if better { scale[r] } else { best[r] };
            least[r] = if better { error[r] } else { least[r] };
        }
    }
    best
}

/// Each row's weight of largest absolute value, the first of equals.
fn extremes(tile: &Tile) -> Lanes {
    let mut extremes = [0.0_f32; BLOCK_ROWS];
    for lanes in tile {
        for r in 0..BLOCK_ROWS {
            extremes[r] = if lanes[r].abs() > extremes[r].abs() { lanes[r] } else { extremes[r] };
        }
    }
    extremes
}

/// Rounds to the levels given by the inverse scales, and returns the f16 scales that suit these levels best.
fn refine(levels: &Levels, tile: &Tile, inverse: &Lanes, rounded: &mut Tile) -> Lanes {
    let mut products = [0.0; BLOCK_ROWS];
    let mut squares = [0.0; BLOCK_ROWS];
    for (lanes, rounded) in tile.iter().zip(rounded) {
        for r in 0..BLOCK_ROWS {
            let level = round_to_level(levels, lanes[r] * inverse[r]);
            rounded[r] = level;
            products[r] += lanes[r] * level;
            squares[r] += level * level;
        }
    }
    let mut scales = [0.0; BLOCK_ROWS];
    for r in 0..BLOCK_ROWS {
        scales[r] = if squares[r] > 0.0 { round_to_f16(products[r] / squares[r]) } else { 0.0 };
    }
    scales
}

/// Sum of `(weight - level * scale)^2` of each row.
fn squared_error(tile: &Tile, rounded: &Tile, scale: &Lanes) -> Lanes {
    let mut sum = [0.0; BLOCK_ROWS];
    for (lanes, rounded) in tile.iter().zip(rounded) {
        for r in 0..BLOCK_ROWS {
            let error = lanes[r] - rounded[r] * scale[r];
            sum[r] += error * error;
        }
    }
    sum
}

/// The nearest level, ties to even, for `|x|` below 2^22.
#[inline(always)]
fn round_to_level(levels: &Levels, x: f32) -> f32 {
    // Beside 1.5 * 2^23 an f32 has no room for a fraction: adding rounds. Unlike `round_ties_even`, this
    // vectorises on the oldest x86.
    const SHIFT: f32 = 12_582_912.0;
    (x.clamp(levels.lowest, levels.highest) + SHIFT) - SHIFT
}

/// The nearest finite f16, ties to even, as f32. As arithmetic it vectorises; `half`'s conversion does not.
#[inline(always)]
fn round_to_f16(x: f32) -> f32 {
    const SMALLEST_NORMAL: f32 = 1.0 / 16_384.0;
    let bits = x.to_bits();
    let normal = f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff);
    // From 0.5 to 1 an f32 steps by 2^-24, as the subnormal f16 do.
    let subnormal = (x + 0.75) - 0.75;
    let rounded = if x.abs() < SMALLEST_NORMAL { subnormal } else { normal };
    rounded.clamp(-MAX_SCALE, MAX_SCALE)
}

/// Replaces every weight by its level.
fn round_to_levels(levels: &Levels, inverse: &Lanes, tile: &mut Tile) {
    for lanes in tile {
        for r in 0..BLOCK_ROWS {
            lanes[r] = round_to_level(levels, lanes[r] * inverse[r]);
        }
    }
}
