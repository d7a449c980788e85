//! A checkpoint of random weights in given shapes, for measuring speed and memory without a trained one.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use memmap2::MmapMut;
use rand_core::Rng;
use rand_pcg::Pcg64Mcg;

use super::convert::file_metadata;
use super::int4_s8;
use super::matrix::{BLOCK_ROWS, Format, Matrix};
use super::names::{self, Source};
use super::recipe::{Recipe, Treatment};
use super::stored::{BlockEntry, block_shape};
use super::vision;
use crate::checkpoint::EMBEDDED_PREFIX;
use crate::checkpoint::writer::{Planned, Writer};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType};

/// Bytes drawn at a time, about.
const PIECE: usize = 1 << 20;

/// Writes a file of our own at `path`: the model of `config_json` with random weights in the formats of `recipe`.
///
/// The same seed gives the same file, and the same tensor in models that differ in nothing but their number of layers. A
/// piece of a tensor is in memory at a time, so a file may be far larger than the memory.
pub fn write_random(path: &Path, config_json: &[u8], recipe: &Recipe, seed: u64) -> Result<()> {
    let config = ModelConfig::parse(Path::new("config"), config_json)?;
    let mut plan = Plan { recipe, zeros: Bytes::new([]), tensors: BTreeMap::new() };
    names::load(&config.text, &mut plan)?;
    if let Some(vision) = &config.vision {
        vision::load(&vision.tower, &mut plan)?;
    }
    let mut tensors = plan.tensors;
    let name = format!("{EMBEDDED_PREFIX}config.json");
    let shape = vec![config_json.len()];
    let planned = Planned { name: name.clone(), dtype: DType::U8, shape };
    tensors.insert(name, Tensor { planned, blocks: None, content: Content::Given(config_json) });

    let blocks =
        tensors.iter_mut().filter_map(|(name, tensor)| Some((name.clone(), tensor.blocks.take()?))).collect();
    let planned = tensors.values().map(|tensor| tensor.planned.clone()).collect();
    let mut writer = Writer::create(path, planned, &file_metadata(&blocks, recipe))?;
    for planned in writer.order().to_vec() {
        let bytes = planned.nbytes().unwrap_or(0);
        Draw::new(seed, &planned.name).write(&tensors[&planned.name].content, bytes, &mut writer)?;
    }
    writer.finish()
}

/// One tensor of the file.
struct Tensor<'a> {
    planned: Planned,
    blocks: Option<BlockEntry>,
    content: Content<'a>,
}

/// What a tensor is filled with.
enum Content<'a> {
    /// Blocks of random levels, all with one scale, so that weights have variance 1 / cols.
    Blocks { format: Format, cols: usize },
    /// Numbers in -bound..bound.
    Numbers { dtype: DType, bound: f32 },
    /// These bytes.
    Given(&'a [u8]),
}

/// Notes each tensor that is asked for, and hands out zeros.
struct Plan<'a> {
    recipe: &'a Recipe,
    /// As many as the largest matrix so far has, of memory that is never touched.
    zeros: Bytes,
    tensors: BTreeMap<String, Tensor<'a>>,
}

impl Plan<'_> {
    fn keep(&mut self, name: &str, format: Format, shape: &[usize], bound: f32) {
        let name = if name == "lm_head.weight" { name.to_owned() } else { format!("model.{name}") };
        let (dtype, stored, blocks) = match (format.dtype(), block_shape(format, shape)) {
            (None, Some(stored)) => {
                let entry = BlockEntry { format: format.name().to_owned(), shape: shape.to_vec() };
                (DType::U8, stored, Some(entry))
            }
            (dtype, _) => (dtype.unwrap_or(DType::F32), shape.to_vec(), None),
        };
        let content = match &blocks {
            Some(_) => Content::Blocks { format, cols: shape.last().copied().unwrap_or(1) },
            None => Content::Numbers { dtype, bound },
        };
        let planned = Planned { name: name.clone(), dtype, shape: stored };
        self.tensors.insert(name, Tensor { planned, blocks, content });
    }

    /// The `count` matrices `[rows, cols]` of a tensor of this shape.
    fn matrices(
        &mut self,
        name: &str,
        shape: &[usize],
        [count, rows, cols]: [usize; 3],
    ) -> Result<Vec<Matrix>> {
        let format = match self.recipe.treatment(name, shape) {
            Treatment::Store(format) => format,
            Treatment::Keep => Format::F32,
        };
        let too_large = || Error::argument("config", format!("'{name}' {shape:?} is too large"));
        let bytes = format.bytes(rows, cols).ok_or_else(too_large)?;
        bytes.checked_mul(count).ok_or_else(too_large)?;
        self.keep(name, format, shape, (3.0 / cols as f32).sqrt());
        (0..count).map(|_| Matrix::new(format, rows, cols, self.zeros(bytes)?)).collect()
    }

    fn zeros(&mut self, bytes: usize) -> Result<Bytes> {
        if self.zeros.len() < bytes {
            let pages = MmapMut::map_anon(bytes).map_err(|_| Error::Memory { needed: bytes })?;
            self.zeros = Bytes::new(pages);
        }
        self.zeros.slice(0..bytes).ok_or(Error::Memory { needed: bytes })
    }
}

impl Source for Plan<'_> {
    /// Whatever may stand stacked does.
    fn has(&self, _: &str) -> bool {
        true
    }

    fn stack(&mut self, name: &str, shape: [usize; 3]) -> Result<Vec<Matrix>> {
        self.matrices(name, &shape, shape)
    }

    fn matrix(&mut self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix> {
        let mut matrices = self.matrices(name, &[rows, cols], [1, rows, cols])?;
        matrices.pop().ok_or_else(|| Error::argument("config", "a count of matrices is 0"))
    }

    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.keep(name, Format::F32, shape, if name.contains("conv1d") { 0.5 } else { 0.1 });
        Ok(vec![0.0; shape.iter().product()])
    }
}

/// The random numbers of one tensor.
struct Draw(Pcg64Mcg);

impl Draw {
    /// Begins at a place that depends on the seed and the tensor's name (hashed by FNV-1a, 128 bits).
    fn new(seed: u64, name: &str) -> Self {
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let hash = |hash: u128, byte: u8| (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        Self(Pcg64Mcg::new(seed.to_le_bytes().into_iter().chain(name.bytes()).fold(BASIS, hash)))
    }

    /// Writes a tensor of `bytes` bytes.
    fn write(mut self, content: &Content<'_>, bytes: usize, writer: &mut Writer) -> Result<()> {
        let unit = match content {
            Content::Given(given) => return writer.write(given),
            Content::Blocks { format, cols } if format.unit_bytes() > 0 => {
                format.panel_bytes(*cols).unwrap_or(bytes)
            }
            Content::Blocks { format, .. } => format.block_bytes(),
            Content::Numbers { dtype, .. } => dtype.size(),
        };
        let size = (PIECE / unit).max(1) * unit;
        let mut buffer = vec![0; size.min(bytes)];
        let mut left = bytes;
        while left > 0 {
            let piece = &mut buffer[..left.min(size)];
            match content {
                Content::Blocks { format: Format::Int4S8, cols } => self.fill_panels(piece, *cols),
                Content::Blocks { format, cols } => self.fill_blocks(*format, piece, *cols),
                Content::Numbers { dtype, bound } => self.fill_numbers(*dtype, piece, *bound),
                Content::Given(_) => {}
            }
            writer.write(piece)?;
            left -= piece.len();
        }
        Ok(())
    }

    fn fill_blocks(&mut self, format: Format, data: &mut [u8], cols: usize) {
        let deviation = if format == Format::Int8 { INT8_DEVIATION } else { INT4_DEVIATION };
        let scale = f16::from_f32(1.0 / (deviation * (cols as f32).sqrt())).to_le_bytes();
        for block in data.chunks_exact_mut(format.block_bytes()) {
            let (weights, halves) = block.split_at_mut(format.level_bytes());
            self.0.fill_bytes(weights);
            if format == Format::Int8 {
                clamp_int8(weights);
            }
            let (scales, offsets) = halves.split_at_mut(2 * BLOCK_ROWS);
            scales.as_chunks_mut::<2>().0.fill(scale);
            offsets.as_chunks_mut::<2>().0.fill(INT4_CENTRE.to_le_bytes());
        }
    }

    /// Panels of [`int4_s8`].
    fn fill_panels(&mut self, data: &mut [u8], cols: usize) {
        let unit = 1.0 / (INT4_DEVIATION * (cols as f32).sqrt()) / f32::from(SCALE);
        let size = Format::Int4S8.panel_bytes(cols).expect("the panels are there");
        for panel in data.chunks_exact_mut(size) {
            let (blocks, units) = panel.split_at_mut(size - int4_s8::UNIT_BYTES);
            for block in blocks.chunks_exact_mut(int4_s8::BLOCK_BYTES) {
                let (levels, scales) = block.split_at_mut(Format::Int4S8.level_bytes());
                self.0.fill_bytes(levels);
                scales.fill(SCALE.cast_unsigned());
            }
            units.as_chunks_mut().0.fill(unit.to_le_bytes());
        }
    }

    fn fill_numbers(&mut self, dtype: DType, data: &mut [u8], bound: f32) {
        for out in data.chunks_exact_mut(dtype.size()) {
            let x = bound * self.uniform();
            match dtype {
                DType::F16 => out.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
                DType::BF16 => out.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
                _ => out.copy_from_slice(&x.to_le_bytes()),
            }
        }
    }

    /// Uniform in -1..1.
    fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Standard deviation of a uniform nibble.
const INT4_DEVIATION: f32 = 4.6;
/// The scale of all groups where scales are multiples of a unit.
const SCALE: i8 = 100;
/// What makes the mean of nibbles 0, where there is an offset.
const INT4_CENTRE: f16 = f16::from_f32_const(0.5);
/// Standard deviation of a uniform byte.
const INT8_DEVIATION: f32 = 73.3;

/// -128 is not a value of the format.
fn clamp_int8(weights: &mut [u8]) {
    for byte in weights {
        *byte = (*byte as i8).max(-127) as u8;
    }
}
