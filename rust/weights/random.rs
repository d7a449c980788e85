//! Random weights of given shapes, for measuring speed and memory without a checkpoint.

use half::{bf16, f16};
use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use super::names::Source;
use super::matrix::{BLOCK_ROWS, Format, Matrix};
use super::{int4, int8};
use crate::error::{Error, Result};
use crate::tensor::Bytes;

/// Draws tensors in the order they are asked for. The same seed gives the same model.
pub struct RandomSource<F> {
    format_of: F,
    rng: Pcg64Mcg,
}

impl<F: Fn(&str, [usize; 2]) -> Format> RandomSource<F> {
    /// Weights in the format that `format_of` gives a name and shape.
    pub fn new(format_of: F, seed: u64) -> Self {
        Self { format_of, rng: Pcg64Mcg::new(u128::from(seed) << 1 | 1) }
    }

    /// Uniform in -1..1.
    fn uniform(&mut self) -> f32 {
        (self.rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Blocks of random steps, all with one scale, so that weights have variance 1 / cols.
    fn fill_blocks(&mut self, data: &mut [u8], block: usize, cols: usize, step_deviation: f32) {
        let scale = f16::from_f32(1.0 / (step_deviation * (cols as f32).sqrt())).to_le_bytes();
        for block in data.chunks_exact_mut(block) {
            let (weights, scales) = block.split_at_mut(block.len() - 2 * BLOCK_ROWS);
            self.rng.fill_bytes(weights);
            scales.as_chunks_mut::<2>().0.fill(scale);
        }
    }

    fn fill_dense(&mut self, format: Format, data: &mut [u8], cols: usize) {
        let bound = (3.0 / cols as f32).sqrt();
        let size = format.dtype().map_or(4, crate::tensor::DType::size);
        for out in data.chunks_exact_mut(size) {
            let x = bound * self.uniform();
            match format {
                Format::F16 => out.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
                Format::BF16 => out.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
                _ => out.copy_from_slice(&x.to_le_bytes()),
            }
        }
    }
}

impl<F: Fn(&str, [usize; 2]) -> Format> Source for RandomSource<F> {
    fn matrix(&mut self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix> {
        let format = (self.format_of)(name, [rows, cols]);
        let bytes = format
            .bytes(rows, cols)
            .ok_or_else(|| Error::argument("config", format!("'{name}' [{rows}, {cols}] is too large")))?;
        let mut data = vec![0; bytes];
        match format {
            Format::Int4 => self.fill_blocks(&mut data, int4::BLOCK_BYTES, cols, 4.6),
            Format::Int8 => {
                self.fill_blocks(&mut data, int8::BLOCK_BYTES, cols, 73.3);
                clamp_int8(&mut data);
            }
            _ => self.fill_dense(format, &mut data, cols),
        }
        Matrix::new(format, rows, cols, Bytes::new(data))
    }

    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let spread = if name.contains("conv1d") { 0.5 } else { 0.1 };
        Ok((0..shape.iter().product()).map(|_| spread * self.uniform()).collect())
    }
}

/// -128 is not a value of the format.
fn clamp_int8(data: &mut [u8]) {
    for block in data.chunks_exact_mut(int8::BLOCK_BYTES) {
        for byte in &mut block[..int8::BLOCK_BYTES - 2 * BLOCK_ROWS] {
            *byte = (*byte as i8).max(-127) as u8;
        }
    }
}
