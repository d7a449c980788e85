//! The search for levels, scales and offsets of asymmetric blocks.
//!
//! ```text
//! low, high = the group's least and greatest weight, middle = (low + high) / 2
//! for each width in a fixed list:                                     in how many steps low and high are apart
//!     level[k]  = round((weight[k] - middle) width / (high - low) + half), clamped
//!     scale     = f16(covariance(weight, level) / variance(level))    least squares for these levels
//!     offset    = f16(mean(weight) / scale - mean(level))
//!     keep both if sum((weight - (level + offset) scale)^2) is the least so far
//! levels are chosen anew for the scale and offset that were kept
//! ```
//!
//! `half` puts the middle into the middle of the levels, or `low` on a level if the width leaves room: so whole widths find
//! groups that are on a grid of some f16, and store them exactly. Widths above 15 clip both ends. Sums are of weights less
//! `middle`, so that a group far from 0 loses no precision. A group of equal weights starts and ends with `scale = weight`.

use super::super::matrix::{BLOCK_COLS, BLOCK_ROWS};
use super::search::{Affine, INT4_ASYM, Lanes, MAX_INVERSE, Tile, round_to_f16, round_to_level};

/// Steps between the lowest and the highest level.
const STEPS: f32 = 15.0;

/// As [`choose_levels`](super::choose_levels), with offsets.
pub(super) fn choose_levels(tile: &mut Tile) -> Affine {
    let best = search(tile);
    let inverse = best.scales.map(|scale| if scale == 0.0 { 0.0 } else { 1.0 / scale });
    for lanes in tile {
        for r in 0..BLOCK_ROWS {
            lanes[r] = round_to_level(&INT4_ASYM, lanes[r] * inverse[r] - best.offsets[r]);
        }
    }
    best
}

/// For each row the scale and offset with the least squared error among the candidates.
fn search(tile: &Tile) -> Affine {
    let range = Range::of(tile);
    let mut best = Affine { scales: means(tile).map(round_to_f16), ..Affine::ZERO };
    let mut least = squared_error(tile, &[[1.0; BLOCK_ROWS]; BLOCK_COLS], &best);
    for &width in INT4_ASYM.targets {
        let rounded = range.levels(tile, width);
        let found = fit(tile, &range.middle, &rounded);
        let error = squared_error(tile, &rounded, &found);
        for r in 0..BLOCK_ROWS {
            let better = error[r] < least[r];
            best.scales[r] = if better { found.scales[r] } else { best.scales[r] };
            best.offsets[r] = if better { found.offsets[r] } else { best.offsets[r] };
            least[r] = if better { error[r] } else { least[r] };
        }
    }
    best
}

/// Where each row's weights lie.
pub(super) struct Range {
    /// Between the least and the greatest.
    middle: Lanes,
    /// From the one to the other.
    spread: Lanes,
}

impl Range {
    pub(super) fn of(tile: &Tile) -> Self {
        let (low, high) = ends(tile);
        let (mut middle, mut spread) = ([0.0; BLOCK_ROWS], [0.0; BLOCK_ROWS]);
        for r in 0..BLOCK_ROWS {
            middle[r] = 0.5 * low[r] + 0.5 * high[r];
            spread[r] = high[r] - low[r];
        }
        Self { middle, spread }
    }

    /// The nearest levels where `width` steps make the spread.
    pub(super) fn levels(&self, tile: &Tile, width: f32) -> Tile {
        let inverse = self.spread.map(|spread| (width / spread).min(MAX_INVERSE));
        let start = 0.5 * width.min(STEPS) + INT4_ASYM.lowest;
        let mut levels = *tile;
        for lanes in &mut levels {
            for r in 0..BLOCK_ROWS {
                lanes[r] = round_to_level(&INT4_ASYM, (lanes[r] - self.middle[r]) * inverse[r] + start);
            }
        }
        levels
    }
}

/// Each row's least and greatest weight.
fn ends(tile: &Tile) -> (Lanes, Lanes) {
    let (mut low, mut high) = (tile[0], tile[0]);
    for lanes in tile {
        for r in 0..BLOCK_ROWS {
            low[r] = if lanes[r] < low[r] { lanes[r] } else { low[r] };
            high[r] = if lanes[r] > high[r] { lanes[r] } else { high[r] };
        }
    }
    (low, high)
}

/// Each row's mean.
fn means(tile: &Tile) -> Lanes {
    let mut sums = [0.0; BLOCK_ROWS];
    for lanes in tile {
        for r in 0..BLOCK_ROWS {
            sums[r] += lanes[r];
        }
    }
    sums.map(|sum| sum / BLOCK_COLS as f32)
}

/// What suits these levels best.
fn fit(tile: &Tile, middle: &Lanes, rounded: &Tile) -> Affine {
    let [mut sums, mut levels, mut products, mut squares] = [[0.0; BLOCK_ROWS]; 4];
    for (lanes, rounded) in tile.iter().zip(rounded) {
        for r in 0..BLOCK_ROWS {
            let (weight, level) = (lanes[r] - middle[r], rounded[r]);
            sums[r] += weight;
            levels[r] += level;
            products[r] += weight * level;
            squares[r] += level * level;
        }
    }
    let count = BLOCK_COLS as f32;
    let mut found = Affine { scales: [0.0; BLOCK_ROWS], ..Affine::ZERO };
    for r in 0..BLOCK_ROWS {
        let covariance = count * products[r] - sums[r] * levels[r];
        let variance = count * squares[r] - levels[r] * levels[r];
        let scale = if variance > 0.0 { round_to_f16(covariance / variance) } else { 0.0 };
        let constant = (sums[r] - scale * levels[r]) / count + middle[r];
        found.scales[r] = scale;
        found.offsets[r] = if scale == 0.0 { 0.0 } else { round_to_f16(constant / scale) };
    }
    found
}

/// Sum of `(weight - (level + offset) * scale)^2` of each row.
fn squared_error(tile: &Tile, rounded: &Tile, affine: &Affine) -> Lanes {
    let mut sum = [0.0; BLOCK_ROWS];
    for (lanes, rounded) in tile.iter().zip(rounded) {
        for r in 0..BLOCK_ROWS {
            let error = lanes[r] - (rounded[r] + affine.offsets[r]) * affine.scales[r];
            sum[r] += error * error;
        }
    }
    sum
}
