//! INT4 blocks with scales of 8 bits: the levels of [`int4`](super::int4), a whole number for every row and group of 32 columns
//! as its scale, and an f32 for every row that says what these numbers are multiples of.
//!
//! # Format
//!
//! A matrix `[N, K]` is cut as for [`int4`](super::int4): panels of 16 rows, in a panel blocks of 32 columns. A panel is its
//! blocks, one after another, and then its units; panels follow one another, so the bytes have the shape
//! `[ceil(N/16), 272 * ceil(K/32) + 64]`. A block is
//!
//! | bytes   | content                                                       |
//! |---------|---------------------------------------------------------------|
//! | 0..256  | the nibbles, as in INT4: level plus 8                         |
//! | 256..272| 16 scales, signed bytes, one for each row of the panel        |
//!
//! and behind the blocks of a panel stand
//!
//! | bytes   | content                                                       |
//! |---------|---------------------------------------------------------------|
//! | 0..64   | 16 units, little-endian f32, one for each row of the panel    |
//!
//! The weight is `(level * scale) * unit`, of which the first product is exact. Rows beyond N have level 0, scale 0 and unit 0,
//! columns beyond K level 0. A matrix without columns has no bytes.
//!
//! # Why
//!
//! Writing a token reads all weights, so a bit less for each is speed. A scale of 16 bits takes half a bit of each weight, one of
//! 8 bits a quarter: 4.25 bits in place of 4.5, for 0.2 to 0.3 % more squared error (`docs/quantisation.md`), where groups of
//! 64 with f16 scales, which are as small, would leave 28 to 39 % more. Scales of a row lie close together, the largest at
//! one to three times the median, so that steps of 1/127 of about the largest are fine enough; a row of which one group is twenty times
//! as large as the others still leaves those five or six steps. That is the limit: a weight 60 times the deviation of its row's others
//! makes these lose 1.2 times as much as with f16, one of 300 times 1.6 times, one of 1,500 times spoils them. A recipe that says `int4`
//! holds such a tensor.
//!
//! The unit is multiplied with once for a row, when all blocks are summed, so that a block takes no more multiplications than with an
//! f16 (and some more conversions). Units stand behind the blocks because they are read last: weights stay one stream of memory,
//! read in order.

use super::int4::{NIBBLE_BYTES, read_levels, write_nibbles};
use super::matrix::{BLOCK_COLS, BLOCK_ROWS, Format};
use super::quantize::{Affine, Lanes, Tile};

/// Bytes of one block of 16 rows x 32 columns: 256 of nibbles, then 16 scales of a byte.
pub const BLOCK_BYTES: usize = NIBBLE_BYTES + BLOCK_ROWS;
/// Bytes of the units that stand behind the blocks of a panel.
pub const UNIT_BYTES: usize = 4 * BLOCK_ROWS;

/// Writes one block: whole `levels` in -8..=7, `[column][row]`, and the scales of `affine`, each -127 to 127 times its row's unit.
pub(super) fn write_block(levels: &Tile, affine: &Affine, block: &mut [u8]) {
    let (nibbles, scales) = block.split_at_mut(NIBBLE_BYTES);
    write_nibbles(levels, nibbles);
    for (r, out) in scales.iter_mut().enumerate() {
        let unit = affine.units[r];
        let scale = if unit == 0.0 { 0.0 } else { (affine.scales[r] / unit).round_ties_even() };
        *out = (scale as i8).cast_unsigned();
    }
}

/// Writes the units of a panel's rows behind its blocks.
pub(super) fn write_units(units: &Lanes, out: &mut [u8]) {
    for (out, unit) in out.chunks_exact_mut(4).zip(units) {
        out.copy_from_slice(&unit.to_le_bytes());
    }
}

/// Row `row` of a matrix of `cols` columns as f32, `[cols]`.
///
/// # Panics
/// If `panels` does not hold that row or `out` is not `[cols]`.
pub fn read_row(panels: &[u8], cols: usize, row: usize, out: &mut [f32]) {
    assert_eq!(out.len(), cols);
    if cols == 0 {
        return;
    }
    let size = Format::Int4S8.panel_bytes(cols).expect("the panels are there");
    let (panel, r) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
    let (blocks, units) = panels[panel * size..(panel + 1) * size].split_at(size - UNIT_BYTES);
    let unit = f32::from_le_bytes(units.as_chunks().0[r]);
    for (block, out) in blocks.chunks_exact(BLOCK_BYTES).zip(out.chunks_mut(BLOCK_COLS)) {
        let scale = f32::from(block[NIBBLE_BYTES + r].cast_signed());
        let weights = read_levels(block, r).map(|level| level * scale * unit);
        out.copy_from_slice(&weights[..out.len()]);
    }
}
