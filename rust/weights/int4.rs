//! INT4 blocks: 4-bit weights with one f16 scale for every row and group of 32 columns.
//!
//! # Format
//!
//! A matrix `[N, K]` is cut into panels of 16 rows, a panel into blocks of 32 columns. Panels follow one
//! another, and within a panel its blocks, so the bytes have the shape `[ceil(N/16), ceil(K/32), 288]`. A block is
//!
//! | bytes   | content                                                       |
//! |---------|---------------------------------------------------------------|
//! | 0..256  | four byte vectors of 64, the nibbles                          |
//! | 256..288| 16 scales, little-endian f16, one for each row of the panel   |
//!
//! Byte vector `j` (0..4) holds at `64*j + 4*r + c`, for row `r` (0..16) and `c` (0..4), two weights of row `r`:
//!
//! - low nibble: column `4*j + c` of the block,
//! - high nibble: column `4*(j + 4) + c`, that is 16 columns further.
//!
//! A nibble is the weight's level plus 8, unsigned; levels run from -8 to 7. The weight is `level * scale`, which
//! is exact in f32 (4 bits times 11). A scale may be negative: whichever sign the group's largest weight has, it
//! can take the level -8. Rows beyond N have nibbles of 8 (level 0) and scale 0, columns beyond K nibbles of 8.
//!
//! # Why
//!
//! Each 32-bit lane of a byte vector is one row and four consecutive columns, so that four int8 activations,
//! broadcast to all lanes, meet 16 rows in one dot-product instruction and no sum across lanes is ever needed: one
//! step of AVX-512 VNNI, two of AVX2, four of NEON `sdot`. Low and high nibbles are 16 columns apart, so
//! one mask and one shift give two ready vectors. Unsigned nibbles are what the unsigned x signed instructions
//! of x86 take; the 8 is taken back with the sum of the group's activations. Groups of 32 are what survives in
//! the delta-rule projections; a scale costs half a bit for each weight.

use half::f16;

use super::matrix::{BLOCK_COLS, BLOCK_ROWS, read_block_row};
use super::quantize::{Affine, Lanes, Tile};

/// Bytes of the nibbles, which stand before the scales.
pub(super) const NIBBLE_BYTES: usize = BLOCK_ROWS * BLOCK_COLS / 2;
/// Columns between the two weights that share a byte.
const HALF: usize = BLOCK_COLS / 2;
/// What is added to a level to store it.
const OFFSET: i32 = 8;

/// Bytes of one block of 16 rows x 32 columns: 256 of nibbles, then 16 f16 scales.
pub const BLOCK_BYTES: usize = NIBBLE_BYTES + 2 * BLOCK_ROWS;

/// Writes one block: whole `levels` in -8..=7, `[column][row]`, and the scales of `affine`, each exactly an f16.
pub(super) fn write_block(levels: &Tile, affine: &Affine, block: &mut [u8]) {
    let (nibbles, tail) = block.split_at_mut(NIBBLE_BYTES);
    write_nibbles(levels, nibbles);
    write_halves(&affine.scales, tail);
}

/// Writes whole `levels` in -8..=7, `[column][row]`, as the 256 bytes that begin a block.
pub(super) fn write_nibbles(levels: &Tile, nibbles: &mut [u8]) {
    for (j, vector) in nibbles.chunks_exact_mut(4 * BLOCK_ROWS).enumerate() {
        for c in 0..4 {
            let (low, high) = (&levels[4 * j + c], &levels[4 * j + c + HALF]);
            for r in 0..BLOCK_ROWS {
                vector[4 * r + c] = ((low[r] as i32 + OFFSET) | ((high[r] as i32 + OFFSET) << 4)) as u8;
            }
        }
    }
}

/// Writes 16 f16 numbers, one for each row.
pub(super) fn write_halves(numbers: &Lanes, out: &mut [u8]) {
    for (out, &number) in out.chunks_exact_mut(2).zip(numbers) {
        out.copy_from_slice(&f16::from_f32(number).to_le_bytes());
    }
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
    let scale = read_half(&block[NIBBLE_BYTES..], r);
    read_levels(block, r).map(|level| level * scale)
}

/// The 32 levels of row `r` of the block that begins with these nibbles.
#[inline]
pub(super) fn read_levels(nibbles: &[u8], r: usize) -> [f32; BLOCK_COLS] {
    let mut levels = [0.0; BLOCK_COLS];
    for j in 0..4 {
        for c in 0..4 {
            let byte = i32::from(nibbles[4 * (BLOCK_ROWS * j + r) + c]);
            levels[4 * j + c] = ((byte & 15) - OFFSET) as f32;
            levels[4 * j + c + HALF] = ((byte >> 4) - OFFSET) as f32;
        }
    }
    levels
}

/// Number `r` of f16 numbers.
#[inline]
pub(super) fn read_half(halves: &[u8], r: usize) -> f32 {
    f16::from_le_bytes([halves[2 * r], halves[2 * r + 1]]).to_f32()
}
