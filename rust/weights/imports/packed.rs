//! One weight matrix, or a stack of them, as another program packed it.
//!
//! All integer formats say the same: a weight is `(code - zero) * scale`, with a zero point and a scale for each row and group
//! of columns; MLX says `code * scale + bias`. They differ in where a code stands. Scales and zero points are small (one for 32
//! weights or more), so they are read into memory in one order; codes stay where they are mapped.

use half::f16;

use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType, TensorView};

/// How the codes of a row are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// `[cols * bits / 32, rows]` words, each with consecutive columns of one row (GPTQ).
    Down(usize),
    /// `[cols, rows / 8]` words of eight rows each, in AWQ's order.
    Interleaved,
    /// `[rows, ceil(cols * bits / 32)]` words, each with consecutive columns (compressed-tensors, MLX).
    Along(usize),
    /// `[rows, cols]` signed bytes.
    Bytes,
    /// `[rows, cols]` FP8 (E4M3); a code is the number's bits.
    Float8,
}

/// In which nibble of its word AWQ stores each of eight rows.
const AWQ_NIBBLES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Word `index` of little-endian `bytes`.
#[inline]
pub(super) fn word(bytes: &[u8], index: usize) -> u32 {
    let b = &bytes[4 * index..4 * index + 4];
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

/// The unsigned field `index` of `bits` bits in a word.
#[inline]
pub(super) fn field(word: u32, index: usize, bits: usize) -> i16 {
    (word >> (index * bits) & ((1 << bits) - 1)) as i16
}

/// Field `index` of AWQ's words.
#[inline]
pub(super) fn awq_field(word: u32, index: usize) -> i16 {
    field(word, AWQ_NIBBLES[index], 4)
}

impl Codes {
    /// The codes of row `row` of `[rows, cols]`.
    fn read(self, bytes: &[u8], rows: usize, row: usize, out: &mut [i16]) {
        let cols = out.len();
        match self {
            Self::Down(bits) => {
                for (i, out) in out.chunks_mut(32 / bits).enumerate() {
                    unpack(word(bytes, i * rows + row), bits, out);
                }
            }
            Self::Along(bits) => {
                let words = (cols * bits).div_ceil(32);
                for (i, out) in out.chunks_mut(32 / bits).enumerate() {
                    unpack(word(bytes, row * words + i), bits, out);
                }
            }
            Self::Interleaved => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = awq_field(word(bytes, i * (rows / 8) + row / 8), row % 8);
                }
            }
            Self::Bytes => {
                for (out, &byte) in out.iter_mut().zip(&bytes[row * cols..]) {
                    *out = i16::from(i8::from_le_bytes([byte]));
                }
            }
            Self::Float8 => {
                for (out, &byte) in out.iter_mut().zip(&bytes[row * cols..]) {
                    *out = i16::from(byte);
                }
            }
        }
    }
}

/// The first fields of a word.
#[inline]
fn unpack(word: u32, bits: usize, out: &mut [i16]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = field(word, i, bits);
    }
}

/// Which group of columns a column belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Groups {
    /// So many consecutive columns each.
    Even(usize),
    /// As listed, one for each column (`g_idx`).
    Listed(Vec<u32>),
}

impl Groups {
    /// The group that columns `first..end` share, if they share one.
    pub(super) fn of(&self, first: usize, end: usize) -> Option<usize> {
        match self {
            Self::Even(size) => (first / size == (end - 1) / size).then_some(first / size),
            Self::Listed(list) => {
                let group = list[first];
                list[first..end].iter().all(|&g| g == group).then_some(group as usize)
            }
        }
    }
}

/// What a code has added to it before it is scaled, with its sign changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Zeros {
    /// One for all.
    Same(i16),
    /// By row and group.
    Each(Vec<i16>),
}

/// Matrices `[count, rows, cols]`.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The tensor of codes.
    pub(super) view: TensorView,
    /// Its name in the model.
    pub(super) name: String,
    /// Whether it is a stack: three dimensions.
    pub(super) stacked: bool,
    /// `[count, rows, cols]` as they stand.
    pub(super) stored: [usize; 3],
    pub(super) codes: Codes,
    pub(super) groups: Groups,
    /// Rows that share scales.
    pub(super) row_block: usize,
    /// `[count, ceil(rows / row_block), groups]`, row-major.
    pub(super) scales: Vec<f32>,
    /// How many groups the columns have.
    pub(super) group_count: usize,
    pub(super) zeros: Zeros,
    /// As the scales: added in place of a zero point.
    pub(super) biases: Option<Vec<f32>>,
    /// The rows that make up the matrix, in order, if it is a part.
    pub(super) taken: Option<Vec<usize>>,
}

/// A row as it is packed.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// In the stack.
    pub(super) index: usize,
    /// Its scales begin here.
    scales: usize,
}

impl Packed {
    /// An error about the tensor of codes.
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        self.view.error(reason)
    }

    /// Its name in the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tensor of codes.
    pub fn origin(&self) -> &TensorView {
        &self.view
    }

    /// `[count, rows, cols]` of the matrices in the model.
    pub(super) fn matrices(&self) -> [usize; 3] {
        let [count, rows, cols] = self.stored;
        [count, self.taken.as_ref().map_or(rows, Vec::len), cols]
    }

    /// Its shape in the model.
    pub fn shape(&self) -> Vec<usize> {
        let [count, rows, cols] = self.matrices();
        if self.stacked { vec![count, rows, cols] } else { vec![rows, cols] }
    }

    /// Bytes that stand for it, under its name in the model; the shape is left to the caller.
    pub(in crate::weights) fn model_view(&self, dtype: DType, bytes: Bytes) -> TensorView {
        let (path, name) = (self.view.path.clone(), self.name.clone());
        TensorView { path, name, dtype, shape: Vec::new(), bytes }
    }

    /// Takes only these rows, in this order.
    pub(super) fn take(mut self, rows: Vec<usize>, all: usize, name: &str) -> Result<Self> {
        if self.stored[1] != all || self.stacked {
            return Err(self.error(format!("holds a matrix {:?}, the model needs {all} rows", self.shape())));
        }
        name.clone_into(&mut self.name);
        self.taken = Some(rows);
        Ok(self)
    }

    /// Row `row` of matrix `matrix`.
    pub(super) fn row(&self, matrix: usize, row: usize) -> Row {
        let row = self.taken.as_ref().map_or(row, |taken| taken[row]);
        let [_, rows, _] = self.stored;
        let blocks = rows.div_ceil(self.row_block);
        let scales = (matrix * blocks + row / self.row_block) * self.group_count;
        Row { index: matrix * rows + row, scales }
    }

    /// The codes of a row `[cols]`.
    pub(super) fn read_codes(&self, row: Row, out: &mut [i16]) {
        self.codes.read(&self.view.bytes, self.stored[0] * self.stored[1], row.index, out);
    }

    /// Zero point and scale of a group.
    pub(super) fn grid(&self, row: Row, group: usize) -> (i16, f32) {
        let scale = self.scales[row.scales + group];
        let zero = match &self.zeros {
            Zeros::Same(zero) => *zero,
            Zeros::Each(zeros) => zeros[row.scales + group],
        };
        (zero, scale)
    }

    /// What is added to the weights of a group, if that is how its zero point is told.
    pub(super) fn bias(&self, row: Row, group: usize) -> Option<f32> {
        Some(self.biases.as_ref()?[row.scales + group])
    }

    /// The weights of a row from its codes, `[cols]` both, with one rounding in f32 (two with biases).
    pub(super) fn values(&self, row: Row, codes: &[i16], out: &mut [f32]) {
        match &self.groups {
            Groups::Even(size) => {
                let groups = codes.chunks(*size).zip(out.chunks_mut(*size));
                for (group, (codes, out)) in groups.enumerate() {
                    self.group_values(row, group, codes, out);
                }
            }
            Groups::Listed(list) => {
                for ((&group, code), out) in list.iter().zip(codes).zip(out) {
                    let (code, out) = (std::slice::from_ref(code), std::slice::from_mut(out));
                    self.group_values(row, group as usize, code, out);
                }
            }
        }
    }

    fn group_values(&self, row: Row, group: usize, codes: &[i16], out: &mut [f32]) {
        let (zero, scale) = self.grid(row, group);
        if self.codes == Codes::Float8 {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = e4m3(code as u8) * scale;
            }
        } else if let Some(biases) = &self.biases {
            let bias = biases[row.scales + group];
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f32::from(code) * scale + bias;
            }
        } else {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = f32::from(code - zero) * scale;
            }
        }
    }

    /// Whether every zero point is one that symmetric 4-bit levels have, for codes of 4 bits.
    pub(super) fn zeros_fit_int4(&self) -> bool {
        let fits = |zero: i16| zero == 7 || zero == 8;
        match &self.zeros {
            Zeros::Same(zero) => fits(*zero),
            Zeros::Each(zeros) => zeros.iter().all(|&zero| fits(zero)),
        }
    }
}

/// The number of an E4M3 byte: sign, 4 bits of exponent (bias 7), 3 of fraction; only 0x7f and 0xff are NaN.
pub(super) fn e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    // Exponent and fraction stand one place too high in an f16, whose bias is 15: 2^8 makes up for it.
    let bits = u16::from(byte & 0x80) << 8 | u16::from(byte & 0x7f) << 7;
    f16::from_bits(bits).to_f32() * 256.0
}

/// Scales `[.., groups]` as f32, all of them finite.
pub(super) fn read_scales(view: &TensorView) -> Result<Vec<f32>> {
    let scales = view.to_f32()?;
    match scales.iter().position(|scale| !scale.is_finite()) {
        Some(i) => Err(view.error(format!("element {i} is {}", scales[i]))),
        None => Ok(scales),
    }
}

/// An error unless the tensor has one of these types.
pub(super) fn expect_type(view: &TensorView, types: &[DType]) -> Result<()> {
    if types.contains(&view.dtype) {
        return Ok(());
    }
    let wanted: Vec<_> = types.iter().map(|dtype| dtype.name()).collect();
    Err(view.error(format!("is {}, packed weights need {}", view.dtype.name(), wanted.join(" or "))))
}

/// The two sizes of a matrix, neither of them 0.
pub(super) fn matrix_shape(view: &TensorView) -> Result<[usize; 2]> {
    match view.shape[..] {
        [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
        _ => Err(view.error(format!("has shape {:?}, a matrix is needed", view.shape))),
    }
}

/// An error unless the tensor has this shape.
pub(super) fn expect_shape(view: &TensorView, shape: &[usize]) -> Result<()> {
    if view.shape == shape {
        return Ok(());
    }
    Err(view.error(format!("has shape {:?}, the codes beside it need {shape:?}", view.shape)))
}

/// `[groups, rows]` turned into `[rows, groups]`.
pub(super) fn transposed<T: Copy>(values: &[T], rows: usize) -> Vec<T> {
    let groups = values.len() / rows.max(1);
    (0..rows).flat_map(|row| (0..groups).map(move |group| values[group * rows + row])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: (-1)^s 2^(e - 7) (1 + f / 8), and without the 1 where e is 0.
    #[test]
    fn every_e4m3_byte() {
        for byte in 0..=255_u8 {
            let (exponent, fraction) = (i32::from(byte >> 3 & 15), f64::from(byte & 7) / 8.0);
            let magnitude = match exponent {
                15 if byte & 7 == 7 => f64::NAN,
                0 => fraction * 2f64.powi(-6),
                _ => (1.0 + fraction) * 2f64.powi(exponent - 7),
            };
            let wanted = if byte < 128 { magnitude } else { -magnitude } as f32;
            let found = e4m3(byte);
            assert!(found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(), "{byte:#x}");
        }
        assert_eq!(e4m3(0x7e).to_bits(), 448f32.to_bits());
    }

    #[test]
    fn groups_are_shared_or_not() {
        assert_eq!(Groups::Even(64).of(32, 64), Some(0));
        assert_eq!(Groups::Even(48).of(32, 64), None);
        assert_eq!(Groups::Listed(vec![2, 2, 1]).of(0, 2), Some(2));
        assert_eq!(Groups::Listed(vec![2, 2, 1]).of(0, 3), None);
    }

    #[test]
    fn transposing_is_by_rows() {
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 3), [1, 4, 2, 5, 3, 6]);
    }
}
