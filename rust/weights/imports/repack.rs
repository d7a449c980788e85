//! Packed weights -> our blocks, or f32.
//!
//! ```text
//! for each block of 16 rows by 32 columns, each row of it alone, if its columns share one scale s and a zero point z or bias b:
//!     INT4, INT8        if all codes less z are levels:
//!                       levels = codes - z, scale = f16(s)                                     nothing is lost but what rounds s
//!     INT4 asymmetric   levels = codes - 8, scale = f16(s), offset = 8 - z, or f16(8 + b / s)  and b / s
//! else levels, scale and offset are searched, as for weights that were never quantised
//! ```
//!
//! 4-bit codes in groups of whole blocks become INT4 if all zero points are 8, or 7 where the scale then takes the other sign,
//! and asymmetric INT4 if not. Everything else becomes INT8: 8-bit codes, and what is off the grid, columns scattered over
//! groups (act-order) and FP8 for instance, for which INT8 adds an error of about 1 % of a weight, a tenth of what 4 bits cost
//! or a fifth of what FP8 does. MLX rounds bias and scale apart, so its zero point is off by up to a hundredth of a level: in a
//! symmetric format the scale is fitted to it, an offset holds it but for a few hundredths of that.
//!
//! Scales: f16 holds those stored in f16, and those stored in bf16 exactly down to 2^-14; smaller ones are rounded to multiples
//! of 2^-24.

use half::f16;

use super::packed::{Codes, Packed, Row};
use crate::error::Result;
use crate::large_pages;
use crate::threads::Pool;
use crate::weights::matrix::{self, BLOCK_COLS, BLOCK_ROWS, Format};
use crate::weights::quantize::{
    Affine, Levels, NotRepresentable, Scales, SquaredError, Tile, choose_levels, compare, convert_parallel,
    gather, limit, panels_mut,
};

impl Packed {
    /// The block format that holds it best.
    pub fn format(&self) -> Format {
        let four_bits = matches!(self.codes, Codes::Down(4) | Codes::Interleaved | Codes::Along(4));
        let cols = self.stored[2];
        let mut blocks = (0..cols).step_by(BLOCK_COLS);
        let whole = |first: usize| self.groups.of(first, (first + BLOCK_COLS).min(cols)).is_some();
        match four_bits && blocks.all(whole) {
            true if self.zeros_fit_int4() => Format::Int4,
            true => Format::Int4Asym,
            false => Format::Int8,
        }
    }

    /// All matrices in the format, one after another, and what that lost of the packed weights.
    ///
    /// # Errors
    /// If a weight is not finite or does not fit.
    ///
    /// # Panics
    /// If `format` is not the one of [`Self::format`], or f32.
    pub fn converted(&self, pool: &Pool, format: Format) -> Result<(Vec<u8>, SquaredError)> {
        assert!(format == self.format() || format == Format::F32);
        let [count, rows, cols] = self.matrices();
        let too_large = || self.error("its shape is too large");
        let bytes = format.bytes(rows, cols).ok_or_else(too_large)?;
        let mut out = large_pages::zeros(count.checked_mul(bytes).ok_or_else(too_large)?);
        let mut total = SquaredError::default();
        for (matrix, out) in out.chunks_exact_mut(bytes).enumerate() {
            total += self.convert_matrix(pool, matrix, format, out)?;
        }
        Ok((out, total))
    }

    fn convert_matrix(
        &self,
        pool: &Pool,
        matrix: usize,
        format: Format,
        out: &mut [u8],
    ) -> Result<SquaredError> {
        let [_, rows, cols] = self.matrices();
        convert_parallel(pool, format, [rows, cols], out, |range, out| {
            let chosen = range.map(|row| self.row(matrix, row)).collect();
            self.convert_rows(chosen, format, out)
        })
    }

    /// Rows as they will stand under each other.
    fn convert_rows(&self, rows: Vec<Row>, format: Format, out: &mut [u8]) -> Result<SquaredError> {
        let cols = self.stored[2];
        let mut codes = vec![0; rows.len() * cols];
        let mut values = vec![0.0; rows.len() * cols];
        let each = codes.chunks_exact_mut(cols).zip(values.chunks_exact_mut(cols));
        for (row, (codes, values)) in rows.iter().zip(each) {
            self.read_codes(*row, codes);
            self.values(*row, codes, values);
            self.check(format, *row, values)?;
        }
        let panel = BLOCK_ROWS * cols;
        let panels = rows.chunks(BLOCK_ROWS).zip(codes.chunks(panel).zip(values.chunks(panel)));
        match Levels::of(format) {
            Some(levels) => {
                for ((rows, (codes, values)), out) in panels.zip(panels_mut(format, cols, out)) {
                    Panel { packed: self, rows, codes, values }.write(levels, format.block_bytes(), out);
                }
            }
            None => {
                for (out, value) in out.chunks_exact_mut(4).zip(&values) {
                    out.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        let mut stored = vec![0.0; cols];
        let mut total = SquaredError::default();
        for (row, values) in values.chunks_exact(cols).enumerate() {
            matrix::read_row(format, out, cols, row, &mut stored);
            total += compare(values, &stored);
        }
        Ok(total)
    }

    /// The first weight of a row that is not finite or too large.
    fn check(&self, format: Format, row: Row, values: &[f32]) -> Result<()> {
        let limit = limit(format);
        match values.iter().position(|value| value.abs() > limit || value.is_nan()) {
            None => Ok(()),
            Some(column) => {
                let bad = NotRepresentable { row: row.index, column, value: values[column] };
                Err(self.error(bad.to_string()))
            }
        }
    }
}

/// Up to 16 rows that share blocks: codes and values `[rows, cols]`.
struct Panel<'a> {
    packed: &'a Packed,
    rows: &'a [Row],
    codes: &'a [i16],
    values: &'a [f32],
}

impl Panel<'_> {
    fn write(&self, levels: &Levels, block_bytes: usize, out: &mut [u8]) {
        let mut tile = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
        for (block, out) in out.chunks_exact_mut(block_bytes).enumerate() {
            let affine = self.block(levels, block, &mut tile);
            (levels.write)(&tile, &affine, out);
        }
    }

    /// Levels of one block and what they mean.
    fn block(&self, levels: &Levels, block: usize, tile: &mut Tile) -> Affine {
        let cols = self.packed.stored[2];
        let first = block * BLOCK_COLS;
        let end = (first + BLOCK_COLS).min(cols);
        let mut on_grid = [None; BLOCK_ROWS];
        if let Some(group) = self.packed.groups.of(first, end)
            && self.packed.codes != Codes::Float8
        {
            for (r, row) in self.rows.iter().enumerate() {
                let range = r * cols + first..r * cols + end;
                on_grid[r] = if levels.asymmetric {
                    self.on_asymmetric_grid(*row, group)
                } else {
                    self.on_grid(levels, *row, group, range)
                };
            }
        }
        let mut affine = Affine::ZERO;
        if on_grid[..self.rows.len()].iter().any(Option::is_none) {
            gather(self.values, cols, first, tile);
            affine = choose_levels(levels, &Scales::Halves, tile);
        } else {
            *tile = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
        }
        for (r, found) in on_grid.into_iter().enumerate() {
            if let Some(OnGrid { zero, sign, scale, offset }) = found {
                (affine.scales[r], affine.offsets[r]) = (scale, offset);
                for (lanes, &code) in tile.iter_mut().zip(&self.codes[r * cols + first..r * cols + end]) {
                    lanes[r] = f32::from(sign * (code - zero));
                }
            }
        }
        affine
    }

    /// How the codes of a group become levels of [`int4_asym`](crate::weights::int4_asym): all of them do, if scale and offset
    /// are numbers of f16.
    fn on_asymmetric_grid(&self, row: Row, group: usize) -> Option<OnGrid> {
        let (zero, scale) = self.packed.grid(row, group);
        let offset = match self.packed.bias(row, group) {
            None => 8.0 - f32::from(zero),
            Some(bias) => 8.0 + bias / scale,
        };
        let [scale, offset] = [scale, offset].map(|x| f16::from_f32(x).to_f32());
        let fits = scale.is_finite() && offset.is_finite();
        fits.then_some(OnGrid { zero: 8, sign: 1, scale, offset })
    }

    /// How the codes at `range` become levels of a symmetric format, if they can.
    fn on_grid(
        &self,
        levels: &Levels,
        row: Row,
        group: usize,
        range: std::ops::Range<usize>,
    ) -> Option<OnGrid> {
        let (zero, scale) = self.packed.grid(row, group);
        let codes = &self.codes[range.clone()];
        let (least, most) =
            codes.iter().fold((i16::MAX, i16::MIN), |(least, most), &c| (least.min(c), most.max(c)));
        let (least, most) = (f32::from(least - zero), f32::from(most - zero));
        let sign = if levels.lowest <= least && most <= levels.highest {
            1
        } else if levels.lowest <= -most && -least <= levels.highest {
            -1
        } else {
            return None;
        };
        let scale = match self.packed.biases {
            None => scale,
            Some(_) => fitted(codes, zero, &self.values[range])?,
        };
        let scale = f16::from_f32(f32::from(sign) * scale).to_f32();
        scale.is_finite().then_some(OnGrid { zero, sign, scale, offset: 0.0 })
    }
}

/// How codes become levels: level = sign * (code - zero), weight = (level + offset) * scale.
#[derive(Clone, Copy)]
struct OnGrid {
    zero: i16,
    sign: i16,
    scale: f32,
    offset: f32,
}

/// The scale of least squared error for levels `codes - zero`.
fn fitted(codes: &[i16], zero: i16, values: &[f32]) -> Option<f32> {
    let (mut products, mut squares) = (0.0, 0.0);
    for (&code, value) in codes.iter().zip(values) {
        let level = f32::from(code - zero);
        products += value * level;
        squares += level * level;
    }
    (squares > 0.0).then(|| products / squares)
}
