//! FP8 (E4M3) with a scale for each block, as Qwen publishes it: `weight` f8 `[N, K]` and `weight_scale_inv`
//! `[ceil(N / 128), ceil(K / 128)]`, which a number is multiplied by. Without blocks one scale, then also named `weight_scale`,
//! is for the matrix. Stacks of experts have one dimension more, in front.

use super::Module;
use super::packed::{Codes, Groups, Packed, Zeros, expect_type, read_scales};
use crate::error::Result;
use crate::tensor::{DType, TensorView};

/// Reads the tensor `name` of `module`, whose scales are for blocks of `block` rows and columns.
pub(super) fn open(module: &Module<'_>, codes: TensorView, block: Option<[usize; 2]>) -> Result<Packed> {
    expect_type(&codes, &[DType::F8E4M3])?;
    let (stored, stacked) = match codes.shape[..] {
        [rows, cols] => ([1, rows, cols], false),
        [count, rows, cols] => ([count, rows, cols], true),
        _ => return Err(codes.error(format!("has shape {:?}, a matrix is needed", codes.shape))),
    };
    let [count, rows, cols] = stored;
    if count * rows * cols == 0 {
        return Err(codes.error("is empty"));
    }
    let inverse = format!("{}_scale_inv", codes.name);
    let scales = match module.checkpoint().get(&inverse)? {
        Some(scales) => scales,
        None if block.is_none() => module.checkpoint().require(&format!("{}_scale", codes.name))?,
        None => module.checkpoint().require(&inverse)?,
    };
    let [block_rows, block_cols] = block.unwrap_or([rows, cols]);
    let groups = cols.div_ceil(block_cols);
    let expected = [count, rows.div_ceil(block_rows), groups];
    let single = block.is_none() && scales.shape.iter().product::<usize>() == count;
    if !single && scales.shape != expected[usize::from(!stacked)..] {
        let (found, wanted) = (&scales.shape, &expected[usize::from(!stacked)..]);
        return Err(scales.error(format!(
            "has shape {found:?}, codes {:?} in blocks of [{block_rows}, {block_cols}] need {wanted:?}",
            codes.shape
        )));
    }
    Ok(Packed {
        name: codes.name.clone(),
        stacked,
        stored,
        codes: Codes::Float8,
        groups: Groups::Even(block_cols),
        row_block: block_rows,
        group_count: groups,
        scales: read_scales(&scales)?,
        zeros: Zeros::Same(0),
        biases: None,
        taken: None,
        view: codes,
    })
}
