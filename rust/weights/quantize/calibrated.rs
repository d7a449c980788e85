//! The search for levels, scales and offsets of 4 bits where it is known what the weights will be multiplied with.
//!
//! Of a group of 32 columns with moments M (S in [`moments`](crate::weights::moments)) and a row's weights w:
//!
//! ```text
//! loss(levels, scale, offset) = e^T M e,  e = w - (levels + offset) * scale
//! for each start: what the plain search gives, and w rounded for each of a few scales (and the range's middle as offset)
//!     ROUNDS times:
//!         scale and offset = least squares for these levels, rounded  scale = levels^T M w / levels^T M levels without offsets
//!         for each column k: the whole step of level[k] that loses least, all others being as they are
//!                            = round((M e)[k] / (scale M[k][k])), clamped
//!     keep all if the loss is the least so far
//! w of the columns behind += F e
//! ```
//!
//! A step never adds to the loss, and the plain search's answer is among the candidates: so in M's measure no group gets worse. An
//! error in one column is made up for by its neighbours whose inputs go along with its own, and what is left by the groups behind.
//! Steps of one column at a time are coordinate descent.
//!
//! Plain f32 arithmetic in one order with a lane for each row: the same bits on every machine.

use super::super::matrix::{BLOCK_COLS, BLOCK_ROWS, Format};
use super::super::moments::{Group, GroupMoments, Moments, SPAN};
use super::search::{Affine, Lanes, Levels, Scales, Tile, choose_levels, round_to_f16, round_to_level};
use super::{asymmetric, gather, panels_mut, search, write_units};

/// Where the group's extreme may land at the start.
const TARGETS: [f32; 6] = [-8.0, -7.5, -8.5, -7.0, -9.0, -6.5];
/// In how many steps the group's extremes may be apart at the start, where there is an offset.
const WIDTHS: [f32; 5] = [15.0, 14.0, 16.0, 13.0, 17.0];
/// As `search::HIGHEST`. Errors that are handed on make weights larger, and groups want larger scales than by squares: with 7 levels
/// lost 1.04 to 1.25 times as much on texts that calibration did not see (demo model).
const HIGHEST: f32 = 5.0;
/// Groups of a span.
const GROUPS: usize = SPAN / BLOCK_COLS;
/// Rounds of scale and levels from each start.
const ROUNDS: usize = 3;

/// The levels of `format` if they are searched here.
pub(super) fn levels(format: Format) -> Option<&'static Levels> {
    Levels::of(format).filter(|_| matches!(format, Format::Int4 | Format::Int4Asym | Format::Int4S8))
}

/// As `quantize_rows`, with the moments of the `cols` columns. The weights are finite and fit the format.
pub(super) fn quantize_rows(
    format: Format,
    levels: &Levels,
    moments: &Moments,
    weights: &[f32],
    cols: usize,
    out: &mut [u8],
) {
    assert_eq!(moments.cols(), cols, "moments are those of the columns");
    let block_bytes = format.block_bytes();
    let mut span = [[[0.0; BLOCK_ROWS]; BLOCK_COLS]; GROUPS];
    for (panel, out) in weights.chunks(BLOCK_ROWS * cols).zip(panels_mut(format, cols, out)) {
        let scales = Scales::of(levels, panel, cols, HIGHEST);
        let parts =
            write_units(&scales, out).chunks_mut(GROUPS * block_bytes).zip(moments.groups().chunks(GROUPS));
        for (i, (out, groups)) in parts.enumerate() {
            let tiles = &mut span[..groups.len()];
            for (j, tile) in tiles.iter_mut().enumerate() {
                gather(panel, cols, i * SPAN + j * BLOCK_COLS, tile);
            }
            quantize_span(levels, &scales, groups, tiles, out.chunks_exact_mut(block_bytes));
        }
    }
}

/// Writes the blocks of one panel and span, one after another, and hands the errors on.
fn quantize_span<'a>(
    format: &Levels,
    scales: &Scales,
    groups: &[Group],
    mut tiles: &mut [Tile],
    blocks: impl Iterator<Item = &'a mut [u8]>,
) {
    for (group, out) in groups.iter().zip(blocks) {
        let Some((tile, behind)) = tiles.split_first_mut() else { return };
        let Found { levels, affine, .. } = search(format, scales, &group.moments, tile);
        (format.write)(&levels, &affine, out);
        for (weights, levels) in tile.iter_mut().zip(&levels) {
            for r in 0..BLOCK_ROWS {
                weights[r] -= (levels[r] + affine.offsets[r]) * affine.scales[r];
            }
        }
        for (weights, feedback) in behind.as_flattened_mut().iter_mut().zip(&group.feedback) {
            for (&factor, error) in feedback.iter().zip(&*tile) {
                for r in 0..BLOCK_ROWS {
                    weights[r] += factor * error[r];
                }
            }
        }
        tiles = behind;
    }
}

/// Levels and what they mean, with what they lose.
struct Found {
    levels: Tile,
    affine: Affine,
    loss: Lanes,
}

/// The best of all starts for each row.
fn search(format: &Levels, scales: &Scales, moments: &GroupMoments, weights: &Tile) -> Found {
    let mut levels = *weights;
    let affine = choose_levels(format, scales, &mut levels);
    let mut descent = Descent::new(format, scales, moments, weights, &levels, affine);
    let mut best = Found { levels, affine, loss: descent.loss() };
    descent.run(&mut best);
    let mut start =
        |levels: &Tile| Descent::new(format, scales, moments, weights, levels, Affine::ZERO).run(&mut best);
    if format.asymmetric {
        let range = asymmetric::Range::of(weights);
        for width in WIDTHS {
            start(&range.levels(weights, width));
        }
    } else {
        let extremes = search::extremes(weights);
        for target in TARGETS {
            let inverse = search::inverse_scales(&extremes, target);
            start(&search::nearest_levels(format, weights, &inverse));
        }
    }
    best
}

/// Levels on their way to less loss.
struct Descent<'a> {
    format: &'a Levels,
    scales: &'a Scales,
    moments: &'a GroupMoments,
    weights: &'a Tile,
    levels: Tile,
    affine: Affine,
    /// M w
    weighted: Tile,
    /// M levels
    weighted_levels: Tile,
    /// M 1: what an offset of 1 adds to them.
    weighted_ones: [f32; BLOCK_COLS],
}

impl<'a> Descent<'a> {
    fn new(
        format: &'a Levels,
        scales: &'a Scales,
        moments: &'a GroupMoments,
        weights: &'a Tile,
        levels: &Tile,
        affine: Affine,
    ) -> Self {
        let (weighted, weighted_levels) = (times(moments, weights), times(moments, levels));
        let weighted_ones = moments.map(|row| row.iter().sum());
        Self {
            format,
            scales,
            moments,
            weights,
            levels: *levels,
            affine,
            weighted,
            weighted_levels,
            weighted_ones,
        }
    }

    fn run(&mut self, best: &mut Found) {
        for _ in 0..ROUNDS {
            self.fit();
            self.keep(best);
            for k in 0..BLOCK_COLS {
                self.step(k);
            }
            self.keep(best);
        }
    }

    /// The scales and offsets that suit the levels best; scales are 0 where all levels are.
    fn fit(&mut self) {
        let [mut products, mut squares] = [[0.0; BLOCK_ROWS]; 2];
        for k in 0..BLOCK_COLS {
            for r in 0..BLOCK_ROWS {
                products[r] += self.levels[k][r] * self.weighted[k][r];
                squares[r] += self.levels[k][r] * self.weighted_levels[k][r];
            }
        }
        if self.format.asymmetric {
            self.fit_lines(&products, &squares);
            return;
        }
        let mut scales = [0.0; BLOCK_ROWS];
        for r in 0..BLOCK_ROWS {
            scales[r] = if squares[r] > 0.0 { products[r] / squares[r] } else { 0.0 };
        }
        self.affine.scales = self.scales.round(&scales);
    }

    /// Of `w = scale * levels + constant`, the constant being `scale * offset`. `products` are levels^T M w, `squares` levels^T M levels.
    fn fit_lines(&mut self, products: &Lanes, squares: &Lanes) {
        let [mut sums, mut levels] = [[0.0; BLOCK_ROWS]; 2];
        for k in 0..BLOCK_COLS {
            for r in 0..BLOCK_ROWS {
                sums[r] += self.weighted[k][r];
                levels[r] += self.weighted_levels[k][r];
            }
        }
        let count: f32 = self.weighted_ones.iter().sum();
        for r in 0..BLOCK_ROWS {
            let covariance = count * products[r] - sums[r] * levels[r];
            let variance = count * squares[r] - levels[r] * levels[r];
            let scale = if variance > 0.0 { round_to_f16(covariance / variance) } else { 0.0 };
            let constant = (sums[r] - scale * levels[r]) / count;
            self.affine.scales[r] = scale;
            self.affine.offsets[r] = if scale == 0.0 { 0.0 } else { round_to_f16(constant / scale) };
        }
    }

    /// Moves the levels of column `k` to where they lose least.
    fn step(&mut self, k: usize) {
        let mut steps = [0.0; BLOCK_ROWS];
        let mut moved = false;
        for r in 0..BLOCK_ROWS {
            let (level, scale) = (self.levels[k][r], self.affine.scales[r]);
            let gradient = self.weighted_error(k, r);
            // The limits keep what `round_to_level` can round, and 0 / 0 out.
            let step = if scale == 0.0 { 0.0 } else { gradient / (scale * self.moments[k][k]) };
            let new =
                round_to_level(self.format, (level + step).clamp(self.format.lowest, self.format.highest));
            steps[r] = new - level;
            moved |= steps[r] != 0.0;
            self.levels[k][r] = new;
        }
        if !moved {
            return;
        }
        for (weighted, &moment) in self.weighted_levels.iter_mut().zip(&self.moments[k]) {
            for r in 0..BLOCK_ROWS {
                weighted[r] += moment * steps[r];
            }
        }
    }

    /// `(M e)[k]` of row `r`.
    #[inline(always)]
    fn weighted_error(&self, k: usize, r: usize) -> f32 {
        let levels = self.weighted_levels[k][r] + self.affine.offsets[r] * self.weighted_ones[k];
        self.weighted[k][r] - self.affine.scales[r] * levels
    }

    /// `e^T M e` of each row.
    fn loss(&self) -> Lanes {
        let mut loss = [0.0; BLOCK_ROWS];
        for k in 0..BLOCK_COLS {
            for r in 0..BLOCK_ROWS {
                let level = self.levels[k][r] + self.affine.offsets[r];
                let error = self.weights[k][r] - level * self.affine.scales[r];
                loss[r] += error * self.weighted_error(k, r);
            }
        }
        loss
    }

    fn keep(&self, best: &mut Found) {
        let loss = self.loss();
        for r in 0..BLOCK_ROWS {
            if loss[r] < best.loss[r] {
                best.loss[r] = loss[r];
                best.affine.scales[r] = self.affine.scales[r];
                best.affine.offsets[r] = self.affine.offsets[r];
                for (best, levels) in best.levels.iter_mut().zip(&self.levels) {
                    best[r] = levels[r];
                }
            }
        }
    }
}

/// M x.
fn times(moments: &GroupMoments, x: &Tile) -> Tile {
    let mut out = [[0.0; BLOCK_ROWS]; BLOCK_COLS];
    for (out, moments) in out.iter_mut().zip(moments) {
        for (&moment, x) in moments.iter().zip(x) {
            for r in 0..BLOCK_ROWS {
                out[r] += moment * x[r];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::search::{INT4, INT4_ASYM, INT4_S8};
    use super::*;
    use crate::weights::matrix::read_row;
    use crate::weights::quantize::matrices;

    const BOTH: [&Levels; 2] = [&INT4, &INT4_ASYM];
    const ALL: [&Levels; 3] = [&INT4, &INT4_ASYM, &INT4_S8];

    /// Those of a panel that has `tile` as its only block.
    fn scales_of(format: &Levels, tile: &Tile) -> Scales {
        let row = |r: usize| tile.iter().map(move |lanes| lanes[r]);
        Scales::of(format, &(0..BLOCK_ROWS).flat_map(row).collect::<Vec<_>>(), BLOCK_COLS, HIGHEST)
    }

    /// Numbers between -1 and 1, more of them near 0.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32
        };
        (0..count).map(|_| next() + next() - 1.0).collect()
    }

    /// Moments of `samples` inputs whose channels go along with each other.
    fn moments(samples: usize, seed: u32) -> GroupMoments {
        let mut sums = vec![0.0; SPAN * SPAN];
        for sample in 0..samples {
            let noise = numbers(BLOCK_COLS + 4, seed + 1000 * sample as u32);
            let x: Vec<f32> = (0..BLOCK_COLS)
                .map(|k| noise[k] * (1.0 + k as f32 / 8.0) + 3.0 * noise[32 + k % 4])
                .collect();
            for (i, sums) in sums.chunks_exact_mut(SPAN).take(BLOCK_COLS).enumerate() {
                for (sum, &x_j) in sums.iter_mut().zip(&x) {
                    *sum += f64::from(x[i]) * f64::from(x_j);
                }
            }
        }
        Moments::from_sums(BLOCK_COLS, &sums).unwrap().groups()[0].moments
    }

    fn tile(seed: u32) -> Tile {
        let numbers = numbers(BLOCK_COLS * BLOCK_ROWS, seed);
        std::array::from_fn(|k| std::array::from_fn(|r| numbers[k * BLOCK_ROWS + r]))
    }

    /// `e^T M e` of row `r`, by its definition in f64.
    fn loss(moments: &GroupMoments, weights: &Tile, levels: &Tile, affine: &Affine, r: usize) -> f64 {
        let level = |k: usize| f64::from(levels[k][r]) + f64::from(affine.offsets[r]);
        let error = |k: usize| f64::from(weights[k][r]) - level(k) * f64::from(affine.scales[r]);
        let mut sum = 0.0;
        for i in 0..BLOCK_COLS {
            for j in 0..BLOCK_COLS {
                sum += error(i) * f64::from(moments[i][j]) * error(j);
            }
        }
        sum
    }

    /// The least loss over all levels of the first four columns, each with the best of all scales, f16 or not.
    fn least(moments: &GroupMoments, weights: &Tile, r: usize) -> f64 {
        const COLS: usize = 4;
        let dot = |a: &[f64; COLS], b: &[f64; COLS]| {
            let row = |i: usize| (0..COLS).map(|j| f64::from(moments[i][j]) * b[j]).sum::<f64>();
            (0..COLS).map(|i| a[i] * row(i)).sum::<f64>()
        };
        let w: [f64; COLS] = std::array::from_fn(|k| f64::from(weights[k][r]));
        let all = dot(&w, &w);
        let mut least = all;
        for code in 0..1 << (4 * COLS) {
            let levels: [f64; COLS] = std::array::from_fn(|k| f64::from((code >> (4 * k)) & 15) - 8.0);
            let (product, square) = (dot(&levels, &w), dot(&levels, &levels));
            if square > 0.0 {
                least = least.min(all - product * product / square);
            }
        }
        least
    }

    #[test]
    fn close_to_the_best_of_all_levels_and_scales() {
        let (mut ratios, mut optimal) = (0.0, 0);
        for seed in 0..4 {
            let moments = moments(200, seed);
            let mut weights = tile(50 + seed);
            weights[4..].fill([0.0; BLOCK_ROWS]);
            let found = search(&INT4, &Scales::Halves, &moments, &weights);
            for r in 0..BLOCK_ROWS {
                let least = least(&moments, &weights, r);
                let reached = loss(&moments, &weights, &found.levels, &found.affine, r);
                // Rounding the scale to f16 may cost a little, and nothing beats the best.
                assert!(reached >= least * 0.999 - 1e-9, "seed {seed}, row {r}: {reached} below {least}");
                ratios += reached / least / 64.0;
                optimal += usize::from(reached < least * 1.01);
            }
        }
        eprintln!("{optimal} of 64 are the best, {ratios:.3} times the best loss in the mean");
        assert!(optimal >= 20 && ratios < 2.0, "{optimal} of 64 are the best, {ratios:.3} in the mean");
    }

    #[test]
    fn no_group_loses_more_than_by_the_plain_search() {
        for (seed, format) in (0..20).flat_map(|seed| ALL.map(|format| (seed, format))) {
            let (moments, weights) = (moments(40, seed), tile(seed));
            let scales = scales_of(format, &weights);
            let found = search(format, &scales, &moments, &weights);
            let mut plain = weights;
            let affine = choose_levels(format, &scales, &mut plain);
            let (mut all_found, mut all_plain) = (0.0, 0.0);
            for r in 0..BLOCK_ROWS {
                let of_found = loss(&moments, &weights, &found.levels, &found.affine, r);
                let of_plain = loss(&moments, &weights, &plain, &affine, r);
                assert!(of_found <= of_plain * 1.0001, "seed {seed}, row {r}: {of_found} {of_plain}");
                (all_found, all_plain) = (all_found + of_found, all_plain + of_plain);
            }
            assert!(all_found < 0.7 * all_plain, "seed {seed}: {all_found} {all_plain}");
        }
    }

    #[test]
    fn offsets_leave_less() {
        let (mut symmetric, mut asymmetric) = (0.0, 0.0);
        for seed in 0..20 {
            let (moments, weights) = (moments(40, seed), tile(seed));
            for (format, sum) in BOTH.into_iter().zip([&mut symmetric, &mut asymmetric]) {
                let found = search(format, &Scales::Halves, &moments, &weights);
                *sum += (0..BLOCK_ROWS)
                    .map(|r| loss(&moments, &weights, &found.levels, &found.affine, r))
                    .sum::<f64>();
            }
        }
        assert!(asymmetric < 0.9 * symmetric, "{asymmetric} {symmetric}");
    }

    #[test]
    fn levels_are_whole_and_in_range_and_scales_are_there() {
        for (seed, format) in (0..5).flat_map(|seed| ALL.map(|format| (seed, format))) {
            let weights = tile(seed).map(|lanes| lanes.map(|w| w * 10_f32.powi(10 * seed as i32 - 30)));
            let scales = scales_of(format, &weights);
            let found = search(format, &scales, &moments(40, seed), &weights);
            for level in found.levels.as_flattened() {
                assert!((-8.0..=7.0).contains(level) && level.fract() == 0.0, "{level}");
            }
            let Affine { scales: found, offsets, .. } = found.affine;
            assert_eq!(found.map(f32::to_bits), scales.round(&found).map(f32::to_bits));
            assert_eq!(offsets.map(f32::to_bits), Scales::Halves.round(&offsets).map(f32::to_bits));
        }
    }

    #[test]
    fn what_the_format_holds_stays() {
        let levels: Tile =
            std::array::from_fn(|k| std::array::from_fn(|r| ((k * 5 + r * 3) % 16) as f32 - 8.0));
        for (format, offset) in [(&INT4, 0.0), (&INT4_ASYM, 0.0), (&INT4_ASYM, 3.25)] {
            let weights = levels.map(|lanes| lanes.map(|level| (level + offset) * 0.375));
            let Found { levels, affine, .. } = search(format, &Scales::Halves, &moments(40, 1), &weights);
            for (levels, weights) in levels.iter().zip(&weights) {
                for r in 0..BLOCK_ROWS {
                    let weight = (levels[r] + affine.offsets[r]) * affine.scales[r];
                    // Two sums are rounded on the way to an offset.
                    let tolerance = if format.asymmetric { 1e-6 } else { 0.0 };
                    assert!((weight - weights[r]).abs() <= tolerance, "{weight} {}", weights[r]);
                }
            }
        }
    }

    fn write(format: Format, moments: &Moments, weights: &[f32], cols: usize, out: &mut [u8]) {
        quantize_rows(format, levels(format).unwrap(), moments, weights, cols, out);
    }

    #[test]
    fn zeros_and_edges() {
        let (rows, cols) = (3, 40);
        assert_eq!(matrices(&[rows, cols]), Some([1, rows, cols]));
        let moments = Moments::from_sums(cols, &vec![1.0; SPAN * SPAN]).unwrap();
        for format in [Format::Int4, Format::Int4Asym, Format::Int4S8] {
            let mut out = vec![1; format.bytes(rows, cols).unwrap()];
            write(format, &moments, &vec![0.0; rows * cols], cols, &mut out);
            let mut row = vec![1.0; cols];
            read_row(format, &out, cols, 2, &mut row);
            assert!(row.iter().all(|&w| w == 0.0));
        }
    }

    #[test]
    fn errors_are_handed_on_to_the_groups_behind() {
        const COLS: usize = 150;
        let mut sums = vec![0.0; COLS.div_ceil(SPAN) * SPAN * SPAN];
        let sample = |seed| {
            let noise = numbers(COLS + 8, seed);
            (0..COLS).map(|k| noise[k] + 2.0 * noise[COLS + k % 8]).collect()
        };
        let samples: Vec<Vec<f32>> = (9000..9400).map(sample).collect();
        for x in &samples {
            for i in 0..COLS {
                for j in i..COLS.min((i / SPAN + 1) * SPAN) {
                    sums[i / SPAN * SPAN * SPAN + i % SPAN * SPAN + j % SPAN] += f64::from(x[i] * x[j]);
                }
            }
        }
        let moments = Moments::from_sums(COLS, &sums).unwrap();
        let mut alone = moments.clone();
        alone.forget_feedback();
        let weights = numbers(20 * COLS, 5);
        for format in [Format::Int4, Format::Int4Asym, Format::Int4S8] {
            let error = |write: &dyn Fn(&mut [u8])| {
                let mut out = vec![0; format.bytes(20, COLS).unwrap()];
                write(&mut out);
                let (mut row, mut sum) = (vec![0.0; COLS], 0.0);
                for (r, weights) in weights.chunks_exact(COLS).enumerate() {
                    read_row(format, &out, COLS, r, &mut row);
                    for x in &samples {
                        let product: f64 =
                            (0..COLS).map(|k| f64::from(weights[k] - row[k]) * f64::from(x[k])).sum();
                        sum += product * product;
                    }
                }
                sum
            };
            let plain = error(&|out| super::super::quantize_rows(format, &weights, 20, COLS, out).unwrap());
            let without = error(&|out| write(format, &alone, &weights, COLS, out));
            let with = error(&|out| write(format, &moments, &weights, COLS, out));
            eprintln!("plain {plain:.4e}, calibrated {without:.4e}, with feedback {with:.4e}");
            assert!(without < 0.8 * plain && with < 0.8 * without, "{plain} {without} {with}");
        }
    }
}
