//! Asymmetric INT4 blocks: the levels of [`int4`](super::int4), with an f16 scale and an f16 offset for every row and group of
//! 32 columns.
//!
//! # Format
//!
//! A matrix `[N, K]` is cut as for [`int4`](super::int4): panels of 16 rows, in a panel blocks of 32 columns; the
//! bytes have the shape `[ceil(N/16), ceil(K/32), 320]`. A block is
//!
//! | bytes   | content                                                       |
//! |---------|---------------------------------------------------------------|
//! | 0..256  | the nibbles, as in INT4: level plus 8                         |
//! | 256..288| 16 scales, little-endian f16, one for each row of the panel   |
//! | 288..320| 16 offsets, the same                                          |
//!
//! The weight is `(level + offset) * scale`; INT4 is the case that all offsets are 0. Both may be negative. Rows beyond N
//! have level, scale and offset 0. Columns beyond K may have any level: no activation meets them.
//!
//! # Why
//!
//! What others store is `code * scale + minimum` (GGUF, MLX) or `(code - zero) * scale` (AWQ, GPTQ, compressed-tensors), with
//! codes from 0 to 15. Here, offset = 8 - zero or 8 + minimum / scale. Whole zero points are exact in f16, where
//! `zero * scale` would have to be rounded. A minimum is some -7.5 scales of most groups, so the offset is within one or two of
//! 0 and its f16 fine: rounding `minimum / scale` and not 8 more would lose a hundred times as much. The minimum itself would
//! be exact for `Q4_1` and MLX, but not for `Q4_K`, which has a product of f16 and 6 bits there, and not for the others.
//!
//! The kernel adds offset x sum of activations to the exact sum of level x activation, one multiply-add for a token and
//! block. A group whose weights are all the same has them as its scale, and levels of 1.

use super::int4::{NIBBLE_BYTES, read_half, read_levels, write_halves, write_nibbles};
use super::matrix::{BLOCK_COLS, BLOCK_ROWS, read_block_row};
use super::quantize::{Affine, Tile};

/// Where the offsets begin.
const OFFSETS_AT: usize = NIBBLE_BYTES + 2 * BLOCK_ROWS;

/// Bytes of one block of 16 rows x 32 columns: 256 of nibbles, then 16 f16 scales and 16 f16 offsets.
pub const BLOCK_BYTES: usize = OFFSETS_AT + 2 * BLOCK_ROWS;

/// Writes one block: whole `levels` in -8..=7, `[column][row]`, and the numbers of `affine`, each exactly an f16.
pub(super) fn write_block(levels: &Tile, affine: &Affine, block: &mut [u8]) {
    write_nibbles(levels, &mut block[..NIBBLE_BYTES]);
    write_halves(&affine.scales, &mut block[NIBBLE_BYTES..OFFSETS_AT]);
    write_halves(&affine.offsets, &mut block[OFFSETS_AT..]);
}

/// Row `row` of a matrix of `cols` columns as f32, `[cols]`.
///
/// # Panics
/// If `blocks` does not hold that row or `out` is not `[cols]`.
pub fn read_row(blocks: &[u8], cols: usize, row: usize, out: &mut [f32]) {
    read_block_row(blocks, BLOCK_BYTES, cols, row, out, read_group);
}

/// The 32 weights of row `r` of one block.
#[inline]
fn read_group(block: &[u8], r: usize) -> [f32; BLOCK_COLS] {
    let (scale, offset) = (read_half(&block[NIBBLE_BYTES..], r), read_half(&block[OFFSETS_AT..], r));
    read_levels(&block[..NIBBLE_BYTES], r).map(|level| (level + offset) * scale)
}
