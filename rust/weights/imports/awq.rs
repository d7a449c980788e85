//! AWQ in the order of its GEMM kernel, which packs eight rows into a word, rows 0 to 7 into nibbles 0, 4, 1, 5, 2, 6, 3, 7:
//!
//! | tensor    | shape            | content                                |
//! |-----------|------------------|----------------------------------------|
//! | `qweight` | i32 `[K, N / 8]` | codes of eight rows in one column      |
//! | `qzeros`  | i32 `[G, N / 8]` | zero points of eight rows in one group |
//! | `scales`  | f16 `[G, N]`     |                                        |

use super::Module;
use super::packed::{Codes, Groups, Packed, Zeros, awq_field};
use super::packed::{expect_shape, expect_type, matrix_shape, read_scales, transposed, word};
use crate::config::Grid;
use crate::error::Result;
use crate::tensor::DType;

/// Reads `module`, packed in `grid`.
pub(super) fn open(module: &Module<'_>, grid: Grid) -> Result<Packed> {
    let (codes, scales, zeros) =
        (module.require("qweight")?, module.require("scales")?, module.require("qzeros")?);
    for words in [&codes, &zeros] {
        expect_type(words, &[DType::I32])?;
    }
    let [cols, words] = matrix_shape(&codes)?;
    let rows = words * 8;
    let groups = cols.div_ceil(grid.group);
    expect_shape(&zeros, &[groups, words])?;
    expect_shape(&scales, &[groups, rows])?;
    let zero = |row: usize, group: usize| awq_field(word(&zeros.bytes, group * words + row / 8), row % 8);
    let each = (0..rows).flat_map(|row| (0..groups).map(move |group| zero(row, group))).collect();
    Ok(Packed {
        name: module.weight(),
        stacked: false,
        stored: [1, rows, cols],
        codes: Codes::Interleaved,
        groups: Groups::Even(grid.group),
        row_block: 1,
        group_count: groups,
        scales: transposed(&read_scales(&scales)?, rows),
        zeros: Zeros::Each(each),
        biases: None,
        taken: None,
        view: codes,
    })
}
