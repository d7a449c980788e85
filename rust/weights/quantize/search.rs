//! The search for levels and scales.
//!
//! Symmetric block formats know a weight as `level * scale`, with one scale for a group: 32 columns of one row. For each
//! group the scale is searched that leaves the least sum of squared errors, with the scale already rounded as it is stored:
//!
//! ```text
//! extreme = the group's weight of largest absolute value
//! for each target t in a fixed list:
//!     level[k]  = round(weight[k] * t / extreme), clamped             the extreme lands on t
//!     scale     = f16(sum(weight * level) / sum(level^2))             least squares for these levels
//!     keep the scale if sum((weight - level * scale)^2) is the least so far
//! levels are chosen anew for the scale that was kept
//! ```
//!
//! INT4 has one level more below zero than above, so its targets are negative: the scale takes the other sign
//! of the extreme. Targets beyond -8 clip the extreme, which often pays. On normally distributed weights,
//! steps of a quarter leave 0.1 % more squared error than steps of a twentieth, and 27 % less than `absmax / 7`;
//! INT8 loses 18 % less than `absmax / 127`. Whole targets down to -1 find groups that are multiples of some f16
//! and store them exactly.
//!
//! Where scales are whole multiples of a unit of the row, they are rounded to those in place of f16, and for a small
//! multiple, which may be far from the scale that levels were chosen for, levels are chosen anew before its error is taken.
//!
//! Asymmetric ones are searched in `asymmetric`. All of it is plain f32 arithmetic in one order on tiles with a lane for each
//! row: the same bits on every machine, and loops that compilers vectorise without being told to.

use super::super::matrix::{BLOCK_COLS, BLOCK_ROWS, Format};
use super::super::{int4, int4_asym, int4_s8, int8};
use super::asymmetric;

/// One number for each row of a block.
pub(in crate::weights) type Lanes = [f32; BLOCK_ROWS];
/// The numbers of one block, `[column][row]`.
pub(in crate::weights) type Tile = [Lanes; BLOCK_COLS];

/// The largest finite f16.
const MAX_SCALE: f32 = 65_504.0;
/// One over the smallest f16 above 0. No group needs a finer scale than there is, and no finer multiple of a unit is looked for;
/// it also keeps infinity out.
pub(super) const MAX_INVERSE: f32 = 16_777_216.0;

/// What the levels of a block's rows mean: weight = (level + offset) * scale.
#[derive(Clone, Copy, Debug)]
pub(in crate::weights) struct Affine {
    pub(in crate::weights) scales: Lanes,
    /// Zeros in symmetric formats.
    pub(in crate::weights) offsets: Lanes,
    /// What scales are multiples of; zeros where they are f16.
    pub(in crate::weights) units: Lanes,
}

impl Affine {
    pub(in crate::weights) const ZERO: Self =
        Self { scales: [0.0; BLOCK_ROWS], offsets: [0.0; BLOCK_ROWS], units: [0.0; BLOCK_ROWS] };
}

/// Which scales the rows of a panel can have.
#[derive(Clone, Copy, Debug)]
pub(in crate::weights) enum Scales {
    /// Any finite f16.
    Halves,
    /// A unit of the row, -127 to 127 times.
    Multiples(Lanes),
}

/// The level on which the largest scale of a row puts the row's largest weight. The search may want a larger scale still, for that
/// one group; a smaller level here would make the scales of all others coarser.
pub(super) const HIGHEST: f32 = 7.0;
/// The largest multiple of a unit.
const MOST: f32 = 127.0;
/// A row of less has no unit, and becomes zeros. Smaller groups than f16 has scales for do so in any case.
const TINY: f32 = 1e-30;

impl Scales {
    /// Those of a panel `[up to 16, cols]` of weights; the largest puts a row's largest weight on level `highest`.
    pub(super) fn of(levels: &Levels, panel: &[f32], cols: usize, highest: f32) -> Self {
        if !levels.units {
            return Self::Halves;
        }
        let mut units = [0.0; BLOCK_ROWS];
        for (unit, row) in units.iter_mut().zip(panel.chunks_exact(cols)) {
            let absmax = row.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
            *unit = if absmax > TINY { absmax / (highest * MOST) } else { 0.0 };
        }
        Self::Multiples(units)
    }

    /// Units to be written behind the blocks of the panel, if it has any.
    pub(super) const fn units(&self) -> Option<&Lanes> {
        match self {
            Self::Halves => None,
            Self::Multiples(units) => Some(units),
        }
    }

    /// In which rows rounding may have moved a scale so far that other levels are nearer: half a unit is much of a few.
    fn few_units(&self, rounded: &Lanes) -> [bool; BLOCK_ROWS] {
        const FEW: f32 = 32.0;
        let units = self.units().unwrap_or(&Affine::ZERO.units);
        std::array::from_fn(|r| rounded[r].abs() < FEW * units[r])
    }

    /// The nearest scales that there are. None but 0 becomes 0 for being less than a unit.
    pub(super) fn round(&self, scales: &Lanes) -> Lanes {
        match self {
            Self::Halves => scales.map(round_to_f16),
            Self::Multiples(units) => {
                let mut rounded = [0.0; BLOCK_ROWS];
                for r in 0..BLOCK_ROWS {
                    let multiple = (scales[r] / units[r]).abs().round_ties_even().clamp(1.0, MOST);
                    let there = scales[r] != 0.0 && units[r] > 0.0;
                    rounded[r] = if there { multiple.copysign(scales[r]) * units[r] } else { 0.0 };
                }
                rounded
            }
        }
    }
}

/// What the search, and whoever has levels already, know of a block format.
pub(in crate::weights) struct Levels {
    pub(in crate::weights) lowest: f32,
    pub(in crate::weights) highest: f32,
    /// Whether a group has an offset.
    pub(in crate::weights) asymmetric: bool,
    /// Whether scales are multiples of a unit of the row, else f16.
    pub(in crate::weights) units: bool,
    /// Where the group's extreme may land, or in how many steps its extremes may be apart; the first of equally good ones wins.
    pub(super) targets: &'static [f32],
    /// Writes a block of whole levels.
    pub(in crate::weights) write: fn(&Tile, &Affine, &mut [u8]),
}

/// Levels of [`int4`](super::int4).
pub(in crate::weights) const INT4: Levels = Levels {
    lowest: -8.0,
    highest: 7.0,
    asymmetric: false,
    units: false,
    targets: &[
        -8.0, -7.75, -8.25, -7.5, -8.5, -7.25, -8.75, -7.0, -9.0, -6.75, -6.5, -6.25, -6.0, -5.0, -4.0, -3.0,
        -2.0, -1.0,
    ],
    write: int4::write_block,
};
/// Levels of [`int4_s8`](super::int4_s8).
pub(in crate::weights) const INT4_S8: Levels = Levels { units: true, write: int4_s8::write_block, ..INT4 };
/// Levels of [`int4_asym`](super::int4_asym).
pub(in crate::weights) const INT4_ASYM: Levels = Levels {
    lowest: -8.0,
    highest: 7.0,
    asymmetric: true,
    units: false,
    targets: &[
        15.0, 14.75, 15.25, 14.5, 15.5, 14.25, 15.75, 14.0, 16.0, 16.5, 17.0, 13.0, 12.0, 11.0, 10.0, 9.0,
        8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0,
    ],
    write: int4_asym::write_block,
};
/// Levels of [`int8`](super::int8).
pub(in crate::weights) const INT8: Levels = Levels {
    lowest: -127.0,
    highest: 127.0,
    asymmetric: false,
    units: false,
    targets: &[127.0, 126.0, 125.0, 124.0, 123.0, 122.0, 121.0, 120.0],
    write: int8::write_block,
};

impl Levels {
    /// Those of a block format.
    pub(in crate::weights) const fn of(format: Format) -> Option<&'static Self> {
        match format {
            Format::Int4 => Some(&INT4),
            Format::Int4Asym => Some(&INT4_ASYM),
            Format::Int4S8 => Some(&INT4_S8),
            Format::Int8 => Some(&INT8),
            Format::F32 | Format::F16 | Format::BF16 => None,
        }
    }

    /// The largest absolute value that the format holds. The extreme of a symmetric one can always take the lowest level; in an
    /// asymmetric one both extremes may be as large.
    pub(super) const fn limit(&self) -> f32 {
        if self.asymmetric { self.highest * MAX_SCALE } else { -self.lowest * MAX_SCALE }
    }
}

/// Replaces the weights of a block by their levels, and returns what these mean, each scale one of `scales` and offsets f16.
pub(in crate::weights) fn choose_levels(levels: &Levels, scales: &Scales, tile: &mut Tile) -> Affine {
    if levels.asymmetric {
        return asymmetric::choose_levels(tile);
    }
    let units = *scales.units().unwrap_or(&Affine::ZERO.units);
    let scales = best_scales(levels, scales, tile);
    *tile = nearest_levels(levels, tile, &inverses(&scales));
    Affine { scales, units, ..Affine::ZERO }
}

/// One over each scale; 0 for 0.
fn inverses(scales: &Lanes) -> Lanes {
    scales.map(|scale| if scale == 0.0 { 0.0 } else { 1.0 / scale })
}

/// For each row the scale with the least squared error among the candidates; 0 where nothing beats zeros.
fn best_scales(levels: &Levels, scales: &Scales, tile: &Tile) -> Lanes {
    let extremes = extremes(tile);
    let mut best = [0.0; BLOCK_ROWS];
    let mut least = squared_error(tile, &[[0.0; BLOCK_ROWS]; BLOCK_COLS], &best);
    let mut rounded = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
    for &target in levels.targets {
        let inverse = inverse_scales(&extremes, target);
        let scale = scales.round(&refine(levels, tile, &inverse, &mut rounded));
        let few = scales.few_units(&scale);
        if few.contains(&true) {
            let anew = nearest_levels(levels, tile, &inverses(&scale));
            for (rounded, anew) in rounded.iter_mut().zip(&anew) {
                for r in 0..BLOCK_ROWS {
                    rounded[r] = if few[r] { anew[r] } else { rounded[r] };
                }
            }
        }
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
pub(super) fn extremes(tile: &Tile) -> Lanes {
    let mut extremes = [0.0_f32; BLOCK_ROWS];
    for lanes in tile {
        for r in 0..BLOCK_ROWS {
            extremes[r] = if lanes[r].abs() > extremes[r].abs() { lanes[r] } else { extremes[r] };
        }
    }
    extremes
}

/// One over the scales with which the extremes land on `target`.
pub(super) fn inverse_scales(extremes: &Lanes, target: f32) -> Lanes {
    extremes.map(|w| (target / w).clamp(-MAX_INVERSE, MAX_INVERSE))
}

/// The levels nearest to weights, given the inverse scales.
pub(super) fn nearest_levels(levels: &Levels, tile: &Tile, inverse: &Lanes) -> Tile {
    let mut rounded = *tile;
    for lanes in &mut rounded {
        for r in 0..BLOCK_ROWS {
            lanes[r] = round_to_level(levels, lanes[r] * inverse[r]);
        }
    }
    rounded
}

/// Rounds to the levels given by the inverse scales, and returns the scales that suit these levels best.
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
        scales[r] = if squares[r] > 0.0 { products[r] / squares[r] } else { 0.0 };
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
pub(super) fn round_to_level(levels: &Levels, x: f32) -> f32 {
    // Beside 1.5 * 2^23 an f32 has no room for a fraction: adding rounds. Unlike `round_ties_even`, this
    // vectorises on the oldest x86.
    const SHIFT: f32 = 12_582_912.0;
    (x.clamp(levels.lowest, levels.highest) + SHIFT) - SHIFT
}

/// The nearest finite f16, ties to even, as f32. As arithmetic it vectorises; `half`'s conversion does not.
#[inline(always)]
pub(super) fn round_to_f16(x: f32) -> f32 {
    const SMALLEST_NORMAL: f32 = 1.0 / 16_384.0;
    let bits = x.to_bits();
    let normal = f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff);
    // From 0.5 to 1 an f32 steps by 2^-24, as the subnormal f16 do.
    let subnormal = (x + 0.75) - 0.75;
    let rounded = if x.abs() < SMALLEST_NORMAL { subnormal } else { normal };
    rounded.clamp(-MAX_SCALE, MAX_SCALE)
}

#[cfg(test)]
// Rounding has one right answer.
#[allow(clippy::float_cmp)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn f16_rounding_is_that_of_half() {
        let largest = f16::MAX.to_f32();
        for bits in (0..=largest.to_bits()).step_by(997) {
            let x = f32::from_bits(bits);
            assert_eq!(round_to_f16(x), f16::from_f32(x).to_f32(), "{x:e}");
            assert_eq!(round_to_f16(-x), -f16::from_f32(x).to_f32(), "{x:e}");
        }
    }

    #[test]
    fn f16_rounding_of_ties_and_their_neighbours() {
        for half_bits in 0..0x7bff_u16 {
            let (low, high) = (f16::from_bits(half_bits).to_f32(), f16::from_bits(half_bits + 1).to_f32());
            let tie = low.midpoint(high);
            for x in [low, tie.next_down(), tie, tie.next_up(), high] {
                assert_eq!(round_to_f16(x), f16::from_f32(x).to_f32(), "{x:e}");
            }
        }
    }

    #[test]
    fn f16_rounding_stays_finite() {
        for x in [65_504.0, 65_519.0, 65_520.0, 1e6] {
            assert_eq!(round_to_f16(x), MAX_SCALE);
            assert_eq!(round_to_f16(-x), -MAX_SCALE);
        }
    }

    #[test]
    fn levels_round_ties_to_even_inside_the_range() {
        for (x, level) in
            [(0.5, 0.0), (1.5, 2.0), (-2.5, -2.0), (6.9, 7.0), (7.6, 7.0), (-9.0, -8.0), (-0.3, 0.0)]
        {
            assert_eq!(round_to_level(&INT4, x), level, "{x}");
        }
    }
}
