//! INT8 blocks: 8-bit weights with one f16 scale for every row and group of 32 columns.
//!
//! # Format
//!
//! A matrix `[N, K]` is cut as for [`int4`](super::int4): panels of 16 rows, in a panel blocks of 32 columns; the
//! bytes have the shape `[ceil(N/16), ceil(K/32), 544]`. A block is
//!
//! | bytes   | content                                                       |
//! |---------|---------------------------------------------------------------|
//! | 0..512  | eight byte vectors of 64, the levels                          |
//! | 512..544| 16 scales, little-endian f16, one for each row of the panel   |
//!
//! Byte vector `j` (0..8) holds at `64*j + 4*r + c`, for row `r` (0..16) and `c` (0..4), the level of row `r` and
//! column `4*j + c` of the block, a signed byte from -127 to 127. The weight is `level * scale`, exact in f32 (8
//! bits times 11). A scale may be negative. Rows beyond N have levels and scale 0, columns beyond K level 0.
//!
//! # Why
//!
//! The order is that of INT4 with its nibbles unfolded: each 32-bit lane is one row and four consecutive columns.
//! Level -128 is never written: AVX2 multiplies unsigned by signed bytes only, so its kernel moves the weight's
//! sign over to the activation and multiplies by the absolute value, whose pairwise sums must stay inside 16 bits:
//! 2 x 127 x 127 does (32,258), 2 x 128 x 128 would not. It also makes the range symmetric.

use super::int4::{read_half, write_halves};
use super::matrix::{BLOCK_COLS, BLOCK_ROWS, read_block_row};
use super::quantize::{Affine, Tile};

/// Bytes of the levels, which stand before the scales.
const LEVEL_BYTES: usize = BLOCK_ROWS * BLOCK_COLS;

/// Bytes of one block of 16 rows x 32 columns: 512 of int8, then 16 f16 scales.
pub const BLOCK_BYTES: usize = LEVEL_BYTES + 2 * BLOCK_ROWS;

/// Writes one block: whole `levels` in -127..=127, `[column][row]`, and the scales of `affine`, each exactly an f16.
pub(super) fn write_block(levels: &Tile, affine: &Affine, block: &mut [u8]) {
    let (bytes, tail) = block.split_at_mut(LEVEL_BYTES);
    for (j, vector) in bytes.chunks_exact_mut(4 * BLOCK_ROWS).enumerate() {
        for c in 0..4 {
            let column = &levels[4 * j + c];
            for r in 0..BLOCK_ROWS {
                vector[4 * r + c] = (column[r] as i32).to_le_bytes()[0];
            }
        }
    }
    write_halves(&affine.scales, tail);
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
    let scale = read_half(&block[LEVEL_BYTES..], r);
    let mut group = [0.0; BLOCK_COLS];
    for j in 0..8 {
        for c in 0..4 {
            let level = i8::from_le_bytes([block[4 * (BLOCK_ROWS * j + r) + c]]);
            group[4 * j + c] = f32::from(level) * scale;
        }
    }
    group
}
