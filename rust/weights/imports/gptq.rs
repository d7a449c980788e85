//! GPTQ, as `AutoGPTQ` and `GPTQModel` store it, for `bits` of 4 or 8 and f = 32 / bits fields in a word:
//!
//! | tensor    | shape              | content                                                            |
//! |-----------|--------------------|--------------------------------------------------------------------|
//! | `qweight` | i32 `[K / f, N]`   | field i of word k is the code of column f k + i                    |
//! | `qzeros`  | i32 `[G, N / f]`   | field i of word n is the zero point of row f n + i, less 1 (format `gptq`) or as it is (`gptq_v2`) |
//! | `scales`  | f16 `[G, N]`       |                                                                    |
//! | `g_idx`   | i32 `[K]`          | the group of each column; consecutive ones if it is missing        |
//!
//! With act-order (`desc_act`) columns were quantised by falling importance, so groups are scattered. Subtracting 1 from a zero
//! point of 0 leaves the largest field, which means 0 again.

use super::Module;
use super::packed::{Codes, Groups, Packed, Zeros};
use super::packed::{expect_shape, expect_type, field, matrix_shape, read_scales, transposed, word};
use crate::config::Grid;
use crate::error::Result;
use crate::tensor::{DType, TensorView};

/// Reads `module`, which must be packed in one of `grids`.
pub(super) fn open(module: &Module<'_>, zero_offset: u8, grids: &[Grid]) -> Result<Packed> {
    let (codes, scales, zeros) =
        (module.require("qweight")?, module.require("scales")?, module.require("qzeros")?);
    for words in [&codes, &zeros] {
        expect_type(words, &[DType::I32])?;
    }
    let ([words, rows], [groups, scale_rows]) = (matrix_shape(&codes)?, matrix_shape(&scales)?);
    if scale_rows != rows {
        expect_shape(&scales, &[groups, rows])?;
    }
    let fits = |grid: &&Grid| {
        let cols = words * (32 / grid.bits);
        cols.div_ceil(grid.group) == groups && zeros.shape == [groups, (rows * grid.bits).div_ceil(32)]
    };
    let Some(&Grid { bits, group }) = grids.iter().find(fits) else {
        let said: Vec<_> = grids.iter().map(Grid::to_string).collect();
        return Err(codes.error(format!(
            "shapes {:?} of codes, {:?} of scales and {:?} of zero points are not those of {}",
            codes.shape,
            scales.shape,
            zeros.shape,
            said.join(", nor of ")
        )));
    };
    let cols = words * (32 / bits);
    let groups = match module.get("g_idx")? {
        Some(list) => listed(&list, cols, groups, group)?,
        None => Groups::Even(group),
    };
    Ok(Packed {
        name: module.weight(),
        stacked: false,
        stored: [1, rows, cols],
        codes: Codes::Down(bits),
        groups,
        row_block: 1,
        group_count: scales.shape[0],
        scales: transposed(&read_scales(&scales)?, rows),
        zeros: Zeros::Each(zero_points(&zeros, rows, bits, i16::from(zero_offset))),
        biases: None,
        taken: None,
        view: codes,
    })
}

/// `[rows, groups]`
fn zero_points(view: &TensorView, rows: usize, bits: usize, offset: i16) -> Vec<i16> {
    let (fields, mask) = (32 / bits, (1 << bits) - 1);
    let (groups, words) = (view.shape[0], view.shape[1]);
    let zero = |group: usize, row: usize| {
        let word = word(&view.bytes, group * words + row / fields);
        (field(word, row % fields, bits) + offset) & mask
    };
    (0..rows).flat_map(|row| (0..groups).map(move |group| zero(group, row))).collect()
}

/// The list of each column's group; [`Groups::Even`] if it says no more than that.
pub(super) fn listed(view: &TensorView, cols: usize, groups: usize, even: usize) -> Result<Groups> {
    expect_type(view, &[DType::I32])?;
    expect_shape(view, &[cols])?;
    let list: Vec<_> = (0..cols).map(|i| word(&view.bytes, i)).collect();
    if let Some(i) = list.iter().position(|&group| group as usize >= groups) {
        let found = list[i].cast_signed();
        return Err(view.error(format!("column {i} is in group {found}, there are {groups}")));
    }
    let is_even = list.iter().enumerate().all(|(i, &group)| group as usize == i / even);
    Ok(if is_even { Groups::Even(even) } else { Groups::Listed(list) })
}
