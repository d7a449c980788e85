//! The learned positions: a square table, stretched over the grid of patches by bilinear interpolation.
//!
//! The corners of the table lie on the corners of the grid, whatever its shape.

use super::grid::Grid;
use crate::config::VisionConfig;
use crate::kernels::Cpu;
use crate::weights::matrix::Matrix;

/// Patches of one work item.
const GRAIN: usize = 32;

/// x += positions, `x` `[patches, width]`.
pub fn add(cpu: &Cpu, config: &VisionConfig, table: &Matrix, grid: Grid, x: &mut [f32]) {
    let side = config.position_side;
    let rows = taps(grid.rows(), side);
    let columns = taps(grid.columns(), side);
    let width = config.hidden_size;
    cpu.rows(x, width, GRAIN, |patches, x| {
        let mut position = vec![0.0; width];
        for (patch, x) in patches.zip(x.chunks_exact_mut(width)) {
            let (row, column) = grid.place(patch);
            for (tap, weight) in corners(&rows[row], &columns[column], side) {
                table.read_row(tap, &mut position);
                for (x, position) in x.iter_mut().zip(&position) {
                    *x += weight * position;
                }
            }
        }
    });
}

/// The two places of the table's side next to a place of the grid, and how near the second is, 0 to 1.
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

/// One tap for each of `count` places spread evenly from the first to the last of `side`.
fn taps(count: usize, side: usize) -> Vec<Tap> {
    let last = side - 1;
    let step = if count > 1 { last as f32 / (count - 1) as f32 } else { 0.0 };
    let tap = |i: usize| {
        // From the nearer end, as the model code spreads them.
        let at = if 2 * i < count { step * i as f32 } else { last as f32 - step * (count - 1 - i) as f32 };
        let low = (at as usize).min(last);
        Tap { low, high: (low + 1).min(last), weight: at - low as f32 }
    };
    (0..count).map(tap).collect()
}

/// Rows of the table around a place of the grid, with their weights.
fn corners(row: &Tap, column: &Tap, side: usize) -> [(usize, f32); 4] {
    let (down, right) = (row.weight, column.weight);
    [
        (row.low * side + column.low, (1.0 - down) * (1.0 - right)),
        (row.low * side + column.high, (1.0 - down) * right),
        (row.high * side + column.low, down * (1.0 - right)),
        (row.high * side + column.high, down * right),
    ]
}
