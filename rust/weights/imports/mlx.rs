//! MLX in its affine mode, for `bits` of 4 or 8 and f = 32 / bits fields in a word:
//!
//! | tensor   | shape            | content                                         |
//! |----------|------------------|-------------------------------------------------|
//! | `weight` | u32 `[N, K / f]` | field i of word k is the code of column f k + i |
//! | `scales` | `[N, G]`         | may be negative                                 |
//! | `biases` | `[N, G]`         | the weight of code 0                            |
//!
//! The program that writes this rounds so that 0 is on the grid: before both were rounded, the bias was a whole multiple of the
//! scale. That multiple is taken for the zero point where a symmetric format is to hold the codes.

use super::Module;
use super::packed::{Codes, Groups, Packed, Zeros, expect_shape, expect_type, matrix_shape, read_scales};
use crate::config::Grid;
use crate::error::Result;
use crate::tensor::DType;

/// Farthest a bias may be from a multiple of its scale, in scales: 15 of them, rounded to bf16, are off by no more.
const TOLERANCE: f32 = 1.0 / 32.0;
/// Stands for no zero point: no code less it is a level.
const NONE: i16 = 16_000;

/// Reads `module`, packed in `grid`.
pub(super) fn open(module: &Module<'_>, grid: Grid) -> Result<Packed> {
    let (codes, scales, biases) =
        (module.require("weight")?, module.require("scales")?, module.require("biases")?);
    expect_type(&codes, &[DType::U32])?;
    let [rows, words] = matrix_shape(&codes)?;
    let cols = words * (32 / grid.bits);
    let groups = cols.div_ceil(grid.group);
    expect_shape(&scales, &[rows, groups])?;
    expect_shape(&biases, &[rows, groups])?;
    let (scales, biases) = (read_scales(&scales)?, read_scales(&biases)?);
    let zeros = scales.iter().zip(&biases).map(|(&scale, &bias)| zero_point(scale, bias)).collect();
    Ok(Packed {
        name: module.weight(),
        stacked: false,
        stored: [1, rows, cols],
        codes: Codes::Along(grid.bits),
        groups: Groups::Even(grid.group),
        row_block: 1,
        group_count: groups,
        scales,
        zeros: Zeros::Each(zeros),
        biases: Some(biases),
        taken: None,
        view: codes,
    })
}

/// The code whose weight is nearest to 0, or [`NONE`] if 0 is not on the grid.
fn zero_point(scale: f32, bias: f32) -> i16 {
    let zero = (-bias / scale).round();
    let exact = (bias + zero * scale).abs() <= TOLERANCE * scale.abs();
    if exact && zero.abs() < 1000.0 { zero as i16 } else { NONE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_points_are_whole_multiples_or_none() {
        assert_eq!(zero_point(0.5, -4.0), 8);
        assert_eq!(zero_point(-0.5, 4.01), 8);
        assert_eq!(zero_point(0.5, -4.2), NONE);
        assert_eq!(zero_point(0.0, 0.0), NONE);
        assert_eq!(zero_point(1e-9, 1.0), NONE);
    }
}
