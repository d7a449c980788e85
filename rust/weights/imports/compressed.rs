//! compressed-tensors: integers packed into words (`pack-quantized`) or one a byte (`int-quantized`), and FP8
//! (`float-quantized`). For `bits` of 4 or 8 and f = 32 / bits fields in a word:
//!
//! | tensor              | shape                   | content                                                       |
//! |---------------------|-------------------------|---------------------------------------------------------------|
//! | `weight_packed`     | i32 `[N, ceil(K / f)]`  | field i of word k is the level of column f k + i, plus half the range |
//! | `weight_shape`      | int `[2]`               | N, K                                                          |
//! | `weight_zero_point` | i32 `[ceil(N / f), G]`  | field i of word n is the zero point of row f n + i, plus half the range; i8 beside `weight`; missing if symmetric |
//! | `weight`            | i8 or f8 `[N, K]`       | in place of the first two                                     |
//! | `weight_scale`      | see [`Strategy`]        | `[1]`, `[N, 1]`, `[N, G]` or a number for each block          |
//! | `weight_g_idx`      | i32 `[K]`               | the group of each column (act-order); consecutive if missing or -1 |

use super::Module;
use super::gptq::listed;
use super::packed::{Codes, Groups, Packed, Zeros};
use super::packed::{expect_shape, expect_type, field, matrix_shape, read_scales, word};
use crate::config::{Scheme, Strategy};
use crate::error::Result;
use crate::tensor::{DType, TensorView};

/// Reads `module`, which must be packed by one of `schemes`.
pub(super) fn open(module: &Module<'_>, schemes: &[Scheme]) -> Result<Packed> {
    match module.get("weight_packed")? {
        Some(codes) => open_words(module, codes, schemes),
        None => open_bytes(module, module.require("weight")?, schemes),
    }
}

fn open_words(module: &Module<'_>, codes: TensorView, schemes: &[Scheme]) -> Result<Packed> {
    expect_type(&codes, &[DType::I32])?;
    let (stored, zeros) = (matrix_shape(&codes)?, module.get("weight_zero_point")?);
    let shape = read_shape(&module.require("weight_shape")?)?;
    let scales = module.require("weight_scale")?;
    let fits = |scheme: &Scheme| {
        !scheme.float
            && stored == [shape[0], (shape[1] * scheme.bits).div_ceil(32)]
            && scheme.symmetric == zeros.is_none()
    };
    let scheme = choose(&codes, &scales, shape, schemes, fits)?;
    let layout = Layout::new(scheme.strategy, shape);
    let middle = 1 << (scheme.bits - 1);
    let zeros = match zeros {
        None => Zeros::Same(middle),
        Some(zeros) => Zeros::Each(packed_zeros(&zeros, shape[0], scheme.bits, layout.groups)?),
    };
    layout.packed(module, codes, &scales, Codes::Along(scheme.bits), zeros)
}

fn open_bytes(module: &Module<'_>, codes: TensorView, schemes: &[Scheme]) -> Result<Packed> {
    expect_type(&codes, &[DType::I8, DType::F8E4M3])?;
    let (shape, scales) = (matrix_shape(&codes)?, module.require("weight_scale")?);
    let float = codes.dtype == DType::F8E4M3;
    let scheme = choose(&codes, &scales, shape, schemes, |scheme| scheme.float == float && scheme.bits == 8)?;
    let layout = Layout::new(scheme.strategy, shape);
    let zeros = match module.get("weight_zero_point")?.filter(|_| !scheme.symmetric) {
        None => Zeros::Same(0),
        Some(zeros) => {
            expect_type(&zeros, &[DType::I8])?;
            expect_shape(&zeros, &scales.shape)?;
            Zeros::Each(zeros.bytes.iter().map(|&b| i16::from(i8::from_le_bytes([b]))).collect())
        }
    };
    layout.packed(module, codes, &scales, if float { Codes::Float8 } else { Codes::Bytes }, zeros)
}

/// The scheme that fits the shapes of scales and codes `[rows, cols]`.
fn choose(
    codes: &TensorView,
    scales: &TensorView,
    shape: [usize; 2],
    schemes: &[Scheme],
    fits: impl Fn(&Scheme) -> bool,
) -> Result<Scheme> {
    let scaled = |scheme: &&Scheme| fits(scheme) && Layout::new(scheme.strategy, shape).fits(scales);
    schemes.iter().find(scaled).copied().ok_or_else(|| {
        let (dtype, stored, scales) = (codes.dtype.name(), &codes.shape, &scales.shape);
        codes.error(format!(
            "{dtype} {stored:?} with scales {scales:?} for a matrix {shape:?} is not what any entry of config_groups describes"
        ))
    })
}

/// How scales lie over a matrix `[rows, cols]`.
pub(super) struct Layout {
    shape: [usize; 2],
    /// Rows and columns that share a scale.
    block: [usize; 2],
    groups: usize,
}

impl Layout {
    pub(super) fn new(strategy: Strategy, shape: [usize; 2]) -> Self {
        let [rows, cols] = shape;
        let block = match strategy {
            Strategy::Tensor => [rows, cols],
            Strategy::Channel => [1, cols],
            Strategy::Group(size) => [1, size],
            Strategy::Block(block) => block,
        };
        Self { shape, block, groups: cols.div_ceil(block[1]) }
    }

    /// Whether scales have the shape it needs; a single one may have any number of dimensions.
    fn fits(&self, scales: &TensorView) -> bool {
        let blocks = self.shape[0].div_ceil(self.block[0]);
        let single = blocks * self.groups == 1 && scales.shape.iter().product::<usize>() == 1;
        single || scales.shape == [blocks, self.groups]
    }

    /// The matrix that `module` holds.
    pub(super) fn packed(
        self,
        module: &Module<'_>,
        codes: TensorView,
        scales: &TensorView,
        kind: Codes,
        zeros: Zeros,
    ) -> Result<Packed> {
        let Self { shape: [rows, cols], block, groups } = self;
        if !self.fits(scales) {
            return Err(scales.error(format!(
                "has shape {:?}, the matrix [{rows}, {cols}] has {} by {groups} blocks of {block:?}",
                scales.shape,
                rows.div_ceil(block[0])
            )));
        }
        let list = module.get("weight_g_idx")?;
        let columns = match list {
            Some(list) if !is_unset(&list) => listed(&list, cols, groups, block[1])?,
            _ => Groups::Even(block[1]),
        };
        Ok(Packed {
            name: module.weight(),
            stacked: false,
            stored: [1, rows, cols],
            codes: kind,
            groups: columns,
            row_block: block[0],
            group_count: groups,
            scales: read_scales(scales)?,
            zeros,
            biases: None,
            taken: None,
            view: codes,
        })
    }
}

/// Whether a list of groups was never filled in.
fn is_unset(list: &TensorView) -> bool {
    list.dtype == DType::I32 && list.bytes.as_chunks::<4>().0.iter().any(|b| i32::from_le_bytes(*b) == -1)
}

/// Zero points `[ceil(rows / f), groups]` as `[rows, groups]`.
fn packed_zeros(view: &TensorView, rows: usize, bits: usize, groups: usize) -> Result<Vec<i16>> {
    expect_type(view, &[DType::I32])?;
    expect_shape(view, &[(rows * bits).div_ceil(32), groups])?;
    let fields = 32 / bits;
    let zero = |row: usize, group: usize| {
        field(word(&view.bytes, row / fields * groups + group), row % fields, bits)
    };
    Ok((0..rows).flat_map(|row| (0..groups).map(move |group| zero(row, group))).collect())
}

/// `[rows, cols]` from a tensor of two whole numbers.
fn read_shape(view: &TensorView) -> Result<[usize; 2]> {
    expect_type(view, &[DType::I64, DType::I32])?;
    expect_shape(view, &[2])?;
    let size = |i: usize| {
        let bytes = &view.bytes[i * view.dtype.size()..(i + 1) * view.dtype.size()];
        let sign = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let value = bytes.iter().rev().fold(0u64, |value, &b| value << 8 | u64::from(b));
        usize::try_from(value).ok().filter(|&size| !sign && size > 0 && size <= MAX_SIZE)
    };
    let sizes = size(0).zip(size(1));
    sizes.map(|(rows, cols)| [rows, cols]).ok_or_else(|| view.error("is not the shape of a matrix"))
}

/// Beyond this, products with the number of bits could overflow.
const MAX_SIZE: usize = 1 << 32;
