//! Packed weights -> our blocks, or f32.
//!
//! ```text
//! for each block of 16 rows by 32 columns, each row of it alone:
//!     on the grid if its 32 columns share one scale s and one zero point z, and all its codes less z are levels:
//!         levels = codes - z, scale = f16(s)                        nothing is lost but what rounds s
//!     else levels and scale are searched, as for weights that were never quantised
//! ```
//!
//! A matrix becomes INT4 if all of its 4-bit codes are on that grid: groups of whole blocks, and zero points of 8, or of 7 where
//! the scale then takes the other sign. Everything else becomes INT8: 4-bit codes with other zero points, whose levels from -15
//! to 15 are exact there; 8-bit codes; and what is off the grid, columns scattered over groups (act-order) and FP8 for
//! instance, for which INT8 adds an error of about 1 % of a weight, a tenth of what 4 bits cost or a fifth of what FP8 does.
//! MLX rounds bias and scale apart, so its grid is off by up to a hundredth of a level; the scale is fitted to it.
//!
//! Scales: f16 holds those stored in f16, and those stored in bf16 exactly down to 2^-14; smaller ones are rounded to multiples
//! of 2^-24.

use half::f16;

use super::packed::{Codes, Packed, Row};
use crate::error::Result;
use crate::threads::Pool;
use crate::weights::matrix::{self, BLOCK_COLS, BLOCK_ROWS, Format};
use crate::weights::quantize::{
    INT4, INT8, Lanes, Levels, NotRepresentable, SquaredError, Tile, choose_levels, compare,
    convert_parallel, gather, limit,
};
use crate::weights::{int4, int8};

impl Packed {
    /// The block format that holds it best.
    pub fn format(&self) -> Format {
        let four_bits = matches!(self.codes, Codes::Down(4) | Codes::Interleaved | Codes::Along(4));
        let cols = self.stored[2];
        let mut blocks = (0..cols).step_by(BLOCK_COLS);
        let whole = |first: usize| self.groups.of(first, (first + BLOCK_COLS).min(cols)).is_some();
        if four_bits && self.zeros_fit_int4() && blocks.all(whole) { Format::Int4 } else { Format::Int8 }
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
        let mut out = vec![0; count.checked_mul(bytes).ok_or_else(too_large)?];
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
        match format {
            Format::Int4 | Format::Int8 => {
                let bytes = cols.div_ceil(BLOCK_COLS) * format.block_bytes();
                for ((rows, (codes, values)), out) in panels.zip(out.chunks_exact_mut(bytes)) {
                    Panel { packed: self, rows, codes, values }.write(format, out);
                }
            }
            _ => {
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
    fn write(&self, format: Format, out: &mut [u8]) {
        let levels = if format == Format::Int4 { &INT4 } else { &INT8 };
        let mut tile = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
        for (block, out) in out.chunks_exact_mut(format.block_bytes()).enumerate() {
            let scales = self.block(levels, block, &mut tile);
            if format == Format::Int4 {
                int4::write_block(&tile, &scales, out);
            } else {
                int8::write_block(&tile, &scales, out);
            }
        }
    }

    /// Levels and scales of one block.
    fn block(&self, levels: &Levels, block: usize, tile: &mut Tile) -> Lanes {
        let cols = self.packed.stored[2];
        let first = block * BLOCK_COLS;
        let end = (first + BLOCK_COLS).min(cols);
        let mut on_grid = [None; BLOCK_ROWS];
        if let Some(group) = self.packed.groups.of(first, end)
            && self.packed.codes != Codes::Float8
        {
            for (r, row) in self.rows.iter().enumerate() {
                on_grid[r] = self.on_grid(levels, *row, group, r * cols + first..r * cols + end);
            }
        }
        let mut scales = [0.0; BLOCK_ROWS];
        if on_grid[..self.rows.len()].iter().any(Option::is_none) {
            gather(self.values, cols, first, tile);
            scales = choose_levels(levels, tile);
        } else {
            *tile = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
        }
        for (r, found) in on_grid.into_iter().enumerate() {
            if let Some((zero, sign, scale)) = found {
                scales[r] = scale;
                for (lanes, &code) in tile.iter_mut().zip(&self.codes[r * cols + first..r * cols + end]) {
                    lanes[r] = f32::from(sign * (code - zero));
                }
            }
        }
        scales
    }

    /// Zero point, sign and scale with which the codes at `range` become levels, if they can.
    fn on_grid(
        &self,
        levels: &Levels,
        row: Row,
        group: usize,
        range: std::ops::Range<usize>,
    ) -> Option<(i16, i16, f32)> {
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
        scale.is_finite().then_some((zero, sign, scale))
    }
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
