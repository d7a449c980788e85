//! A checkpoint of random weights in given shapes, for measuring speed and memory without a trained one.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use super::convert::file_metadata;
use super::matrix::{BLOCK_ROWS, Format, Matrix};
use super::names::{self, Source};
use super::recipe::{Recipe, Treatment};
use super::stored::{BlockEntry, block_shape};
use super::{int4, int8, vision};
use crate::checkpoint::EMBEDDED_PREFIX;
use crate::checkpoint::writer::{Planned, Writer};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType};

/// Writes a file of our own at `path`: the model of `config_json` with random weights in the formats of `recipe`. The same
/// seed gives the same file. All tensors are held in memory until they are written.
pub fn write_random(path: &Path, config_json: &[u8], recipe: &Recipe, seed: u64) -> Result<()> {
    let config = ModelConfig::parse(Path::new("config"), config_json)?;
    let mut source =
        RandomSource { recipe, rng: Pcg64Mcg::new(u128::from(seed) << 1 | 1), tensors: BTreeMap::new() };
    names::load(&config.text, &mut source)?;
    if let Some(vision) = &config.vision {
        vision::load(&vision.tower, &mut source)?;
    }
    let mut tensors = source.tensors;
    let name = format!("{EMBEDDED_PREFIX}config.json");
    let shape = vec![config_json.len()];
    let planned = Planned { name: name.clone(), dtype: DType::U8, shape };
    tensors.insert(name, Drawn { planned, blocks: None, data: Bytes::new(config_json.to_vec()) });

    let blocks =
        tensors.iter_mut().filter_map(|(name, drawn)| Some((name.clone(), drawn.blocks.take()?))).collect();
    let planned = tensors.values().map(|drawn| drawn.planned.clone()).collect();
    let mut writer = Writer::create(path, planned, &file_metadata(&blocks, recipe))?;
    for planned in writer.order().to_vec() {
        writer.write(&tensors[&planned.name].data)?;
    }
    writer.finish()
}

/// One tensor of the file.
struct Drawn {
    planned: Planned,
    blocks: Option<BlockEntry>,
    data: Bytes,
}

/// Draws tensors in the order they are asked for, and keeps them by name.
struct RandomSource<'a> {
    recipe: &'a Recipe,
    rng: Pcg64Mcg,
    tensors: BTreeMap<String, Drawn>,
}

impl RandomSource<'_> {
    /// Uniform in -1..1.
    fn uniform(&mut self) -> f32 {
        (self.rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn keep(&mut self, name: &str, format: Format, shape: &[usize], data: Bytes) {
        let name = if name == "lm_head.weight" { name.to_owned() } else { format!("model.{name}") };
        let (dtype, stored, blocks) = match (format.dtype(), block_shape(format, shape)) {
            (None, Some(stored)) => {
                let entry = BlockEntry { format: format.name().to_owned(), shape: shape.to_vec() };
                (DType::U8, stored, Some(entry))
            }
            (dtype, _) => (dtype.unwrap_or(DType::F32), shape.to_vec(), None),
        };
        let planned = Planned { name: name.clone(), dtype, shape: stored };
        self.tensors.insert(name, Drawn { planned, blocks, data });
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
        let size = format.dtype().map_or(4, DType::size);
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

impl Source for RandomSource<'_> {
    fn matrix(&mut self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix> {
        let format = match self.recipe.treatment(name, &[rows, cols]) {
            Treatment::Store(format) => format,
            Treatment::Keep => Format::F32,
        };
        let bytes = format
            .bytes(rows, cols)
            .ok_or_else(|| Error::argument("config", format!("'{name}' [{rows}, {cols}] is too large")))?;
        let mut data = vec![0; bytes];
        match format {
            Format::Int4 => self.fill_blocks(&mut data, int4::BLOCK_BYTES, cols, INT4_DEVIATION),
            Format::Int8 => {
                self.fill_blocks(&mut data, int8::BLOCK_BYTES, cols, INT8_DEVIATION);
                clamp_int8(&mut data);
            }
            Format::F32 | Format::F16 | Format::BF16 => self.fill_dense(format, &mut data, cols),
        }
        let data = Bytes::new(data);
        self.keep(name, format, &[rows, cols], data.clone());
        Matrix::new(format, rows, cols, data)
    }

    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let spread = if name.contains("conv1d") { 0.5 } else { 0.1 };
        let vector: Vec<f32> = (0..shape.iter().product()).map(|_| spread * self.uniform()).collect();
        let data: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.keep(name, Format::F32, shape, Bytes::new(data));
        Ok(vector)
    }
}

/// Standard deviation of a uniform nibble.
const INT4_DEVIATION: f32 = 4.6;
/// Standard deviation of a uniform byte.
const INT8_DEVIATION: f32 = 73.3;

/// -128 is not a value of the format.
fn clamp_int8(data: &mut [u8]) {
    for block in data.chunks_exact_mut(int8::BLOCK_BYTES) {
        for byte in &mut block[..int8::BLOCK_BYTES - 2 * BLOCK_ROWS] {
            *byte = (*byte as i8).max(-127) as u8;
        }
    }
}
