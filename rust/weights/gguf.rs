//! Blocks of GGUF files in our formats.
//!
//! | type                       | format | what is added                                                             |
//! |----------------------------|--------|---------------------------------------------------------------------------|
//! | `Q4_0`                     | INT4   | nothing: 32 levels of 4 bits and an f16 scale are what both hold          |
//! | `Q8_0`, `Q5_0`, `IQ4_NL`   | INT8   | nothing: every level is one of INT8, the scale is the same f16            |
//! | `IQ4_XS`                   | INT8   | rounding of the scale to f16, 2^-12 of a weight at most                   |
//! | `Q4_1`                     | INT4 asymmetric | rounding of `minimum / scale + 8` to f16                         |
//! | `Q4_K`                     | INT4 asymmetric | the same, and rounding of the scale to f16                       |
//! | others                     | INT8   | rounding to 8 bits with the scale of least squared error (see `quantize`) |
//!
//! On normally distributed weights that llama.cpp quantised, the last row adds a relative squared error of 1.9e-5 to `Q5_1`
//! (which has 1.4e-3 itself) and `Q5_K` (1.3e-3), 1.8e-5 to `Q6_K` (3.2e-4); rounding adds 3e-8 to `IQ4_XS`, 5e-8 to `Q4_K`
//! (which has 5.1e-3 itself) and 6e-9 to `Q4_1` (6.1e-3). A recipe of INT4 would add 5e-3 to 7e-3 to all but `Q4_0`.
//!
//! `Q4_1` and `Q4_K` tell a minimum beside the scale; it becomes an offset in steps of the scale, as
//! [`int4_asym`](super::int4_asym) says. `Q5_1` and `Q5_K` do too, but have 5 bits: INT8 keeps what they say. Level -128 of
//! `Q8_0`, which llama.cpp never writes and INT8 has no room for, is rounded as others are.

use half::f16;

use super::matrix::{BLOCK_COLS, BLOCK_ROWS, Format};
use super::quantize::{Affine, Levels, Rows, SquaredError, Tile, panels_mut};
use crate::checkpoint::gguf::blocks::{BlockType, GROUP, Line};
use crate::tensor::DType;

/// The format that holds numbers of this type as they are, or for blocks the smallest one that hardly adds to their error;
/// `None` if they are not weights.
pub fn natural_format(dtype: DType) -> Option<Format> {
    match dtype {
        DType::Block(BlockType::Q4_0) => Some(Format::Int4),
        DType::Block(BlockType::Q4_1 | BlockType::Q4_K) => Some(Format::Int4Asym),
        DType::Block(_) => Some(Format::Int8),
        _ => Format::ALL.into_iter().find(|format| format.dtype() == Some(dtype)),
    }
}

/// Whether blocks of this type keep their levels in `format`, if these fit.
pub(super) fn keeps_levels(dtype: DType, format: Format) -> bool {
    matches!(dtype, DType::Block(block) if block.has_levels()) && natural_format(dtype) == Some(format)
}

/// Moves levels and scales to `out` without rounding a weight anew, and tells what that lost; `None` if format, levels or scales
/// do not allow that, with `out` unspecified.
///
/// # Panics
/// If `source` reaches outside its tensor or `out` is not of [`Format::bytes`].
pub(super) fn repack(format: Format, source: Rows<'_>, out: &mut [u8]) -> Option<SquaredError> {
    let DType::Block(block) = source.view.dtype else { return None };
    let levels = Levels::of(format)?;
    if !keeps_levels(source.view.dtype, format) {
        return None;
    }
    let block_bytes = format.block_bytes();
    let (mut tile, mut affine) = ([[0.0; BLOCK_ROWS]; BLOCK_COLS], Affine::ZERO);
    let mut error = SquaredError::default();
    for (panel, out) in panels_mut(format, source.cols, out).enumerate() {
        for (column, out) in out.chunks_exact_mut(block_bytes).enumerate() {
            error += gather(block, levels, source, [panel * BLOCK_ROWS, column], &mut tile, &mut affine)?;
            (levels.write)(&tile, &affine, out);
        }
    }
    Some(error)
}

/// Levels of group `column` of 16 rows from `first` on and what they mean, zeros beyond the last row, and what is lost; `None` if
/// they do not fit.
fn gather(
    block: BlockType,
    format: &Levels,
    source: Rows<'_>,
    [first, column]: [usize; 2],
    tile: &mut Tile,
    affine: &mut Affine,
) -> Option<SquaredError> {
    if source.rows - first < BLOCK_ROWS {
        *tile = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
        *affine = Affine::ZERO;
    }
    let mut levels = [0; GROUP];
    let mut error = SquaredError::default();
    for r in 0..BLOCK_ROWS.min(source.rows - first) {
        let at = source.start + (first + r) * source.cols + column * GROUP;
        let index = at / block.weights();
        let bytes = &source.view.bytes[index * block.bytes()..(index + 1) * block.bytes()];
        let line = block.levels(bytes, at % block.weights() / GROUP, &mut levels)?;
        let (scale, offset) = if format.asymmetric { recentre(line, &mut levels) } else { (line.scale, 0.0) };
        (affine.scales[r], affine.offsets[r]) = (round_to_f16(scale), round_to_f16(offset));
        if !affine.scales[r].is_finite() || !affine.offsets[r].is_finite() || levels.contains(&i8::MIN) {
            return None;
        }
        error += lost(&levels, [scale, offset], [affine.scales[r], affine.offsets[r]]);
        for (lanes, level) in tile.iter_mut().zip(levels) {
            lanes[r] = f32::from(level);
        }
    }
    Some(error)
}

/// Makes levels 0 to 15 those of [`int4_asym`](super::int4_asym), and returns the group's scale and offset.
fn recentre(line: Line, levels: &mut [i8; GROUP]) -> (f32, f32) {
    if line.scale == 0.0 {
        // All weights are the minimum.
        *levels = [1; GROUP];
        return (line.minimum, 0.0);
    }
    *levels = levels.map(|level| level - 8);
    (line.scale, line.minimum / line.scale + 8.0)
}

fn round_to_f16(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// What a group loses if the `stored` scale and offset stand for `exact` ones.
fn lost(levels: &[i8; GROUP], exact: [f32; 2], stored: [f32; 2]) -> SquaredError {
    let sum: i32 = levels.iter().map(|&level| i32::from(level)).sum();
    let squares: i32 = levels.iter().map(|&level| i32::from(level) * i32::from(level)).sum();
    let [exact, stored] =
        [exact, stored].map(|[scale, offset]| (f64::from(scale), f64::from(scale) * f64::from(offset)));
    // The sum of (scale x level + constant)^2.
    let line = |scale: f64, constant: f64| {
        let (sum, squares) = (f64::from(sum), f64::from(squares));
        squares * scale * scale + 2.0 * sum * scale * constant + GROUP as f64 * constant * constant
    };
    SquaredError { lost: line(exact.0 - stored.0, exact.1 - stored.1), of: line(exact.0, exact.1) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::safetensors::SafeTensors;
    use crate::tensor::{Bytes, TensorView};
    use crate::threads::Pool;
    use crate::weights::matrix::Matrix;
    use crate::weights::quantize::quantize_parallel;

    const COLS: usize = 256;

    /// The random blocks of `tests/golden/gguf` over and over, as rows of 256 weights.
    fn tensor(block: BlockType, rows: usize) -> TensorView {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/blocks.safetensors");
        let blocks =
            SafeTensors::open(&path).unwrap().get(&format!("{}.blocks", block.name())).unwrap().unwrap();
        let bytes = rows * COLS / block.weights() * block.bytes();
        let bytes: Vec<u8> = blocks.bytes.iter().copied().cycle().take(bytes).collect();
        TensorView {
            path,
            name: block.name().into(),
            dtype: DType::Block(block),
            shape: vec![rows, COLS],
            bytes: Bytes::new(bytes),
        }
    }

    /// The weights as stored, and the relative squared error that was measured.
    fn stored(view: &TensorView) -> (Matrix, f64) {
        let format = natural_format(view.dtype).unwrap();
        let rows = view.shape[0];
        let mut out = vec![0; format.bytes(rows, COLS).unwrap()];
        let source = Rows { view, start: 0, rows, cols: COLS };
        let error = quantize_parallel(&Pool::new(2), format, source, &mut out).unwrap();
        (Matrix::new(format, rows, COLS, Bytes::new(out)).unwrap(), error.relative())
    }

    #[test]
    fn what_is_said_to_be_exact_is_exact() {
        for block in [BlockType::Q4_0, BlockType::Q8_0, BlockType::Q5_0, BlockType::IQ4_NL] {
            // 21 rows: a panel and a part of one.
            let mut view = tensor(block, 21);
            if block == BlockType::Q8_0 {
                let bytes = view.bytes.iter().enumerate();
                let legal = |(i, &byte): (usize, &u8)| if i % 34 >= 2 && byte == 128 { 129 } else { byte };
                view.bytes = Bytes::new(bytes.map(legal).collect::<Vec<u8>>());
            }
            let (matrix, error) = stored(&view);
            assert_eq!(matrix.to_f32(), view.to_f32().unwrap(), "{block:?}");
            assert!(error == 0.0, "{block:?} {error}");
        }
    }

    /// Random bits are the hardest case: a minimum or a part's scale may be far from its neighbours'.
    #[test]
    fn what_is_rounded_loses_little() {
        for (block, limit) in [
            (BlockType::IQ4_XS, 1e-7),
            (BlockType::Q4_1, 1e-7),
            (BlockType::Q5_1, 3e-5),
            // The f16 of a scale and of an offset, each within 2^-11 of its number.
            (BlockType::Q4_K, 2e-7),
            (BlockType::Q5_K, 3e-5),
            (BlockType::Q6_K, 6e-5),
        ] {
            let (_, error) = stored(&tensor(block, 16));
            assert!(error > 0.0 && error < limit, "{block:?} {error:e}");
        }
    }

    /// Parts of `Q4_K` whose scale is 0, and their neighbours of larger ones.
    #[test]
    fn groups_without_a_scale_are_their_minimum() {
        let mut view = tensor(BlockType::Q4_K, 16);
        let mut bytes = view.bytes.to_vec();
        for block in bytes.chunks_exact_mut(144) {
            for part in [0, 1, 3] {
                block[4 + part] &= !63;
            }
        }
        view.bytes = Bytes::new(bytes);
        let (matrix, error) = stored(&view);
        assert!(error > 0.0 && error < 2e-7, "{error:e}");
        for (found, wanted) in matrix.to_f32().iter().zip(view.to_f32().unwrap()) {
            assert!((found - wanted).abs() <= 1e-3 * wanted.abs() + 1e-2, "{found} {wanted}");
        }
    }

    #[test]
    fn level_minus_128_is_rounded() {
        let mut bytes = vec![0; 8 * 34];
        for (i, block) in bytes.chunks_exact_mut(34).enumerate() {
            block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
            block[2..].fill(if i == 3 { 128 } else { 100 });
        }
        let view =
            TensorView { shape: vec![1, COLS], bytes: Bytes::new(bytes), ..tensor(BlockType::Q8_0, 1) };
        let (matrix, _) = stored(&view);
        let (weights, expected) = (matrix.to_f32(), view.to_f32().unwrap());
        assert!((expected[96] + 64.0).abs() < f32::EPSILON);
        assert!(weights.iter().zip(expected).all(|(x, y)| (x - y).abs() <= 0.01 * y.abs()), "{weights:?}");
    }

    #[test]
    fn a_scale_that_is_not_finite_is_named() {
        let mut bytes = tensor(BlockType::Q4_0, 4).bytes.to_vec();
        let at = 2 * (COLS / 32) * 18 + 18;
        bytes[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
        let view = TensorView { bytes: Bytes::new(bytes), ..tensor(BlockType::Q4_0, 4) };
        let mut out = vec![0; Format::Int4.bytes(4, COLS).unwrap()];
        let source = Rows { view: &view, start: 0, rows: 4, cols: COLS };
        let message =
            quantize_parallel(&Pool::new(1), Format::Int4, source, &mut out).unwrap_err().to_string();
        assert!(
            message.ends_with("tensor 'Q4_0': the weight NaN at row 2, column 32 is not a finite number"),
            "{message}"
        );
    }
}
