//! One GGUF file: what its tensors are and where they stand, checked against its length.
//!
//! ```text
//! "GGUF"  version u32 (2 or 3)  tensors u64  keys u64
//! keys:    name, type u32, value; strings have their length u64 before them, arrays type u32 and count u64
//! tensors: name, dimensions u32, that many u64 (the shortest stride first), type u32, offset u64
//! data:    begins at the next multiple of `general.alignment` (32 where it does not stand); offsets count from there
//! ```
//!
//! All is little endian. Nothing is allocated for what a count claims: every key and every tensor is read from bytes that are
//! there, and both counts have limits. Tensors may leave holes between them and may not overlap.
//!
//! Source: `docs/gguf.md` of the ggml repository.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::blocks::BlockType;
use super::cursor::{Cursor, Read};
use super::metadata::Metadata;
use crate::checkpoint::json::quote;
use crate::checkpoint::mmap;
use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType};

/// What a GGUF file begins with.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// Versions that are read; they differ in nothing that is read here.
const VERSIONS: Range<u32> = 2..4;
/// Most tensors of a file.
const MAX_TENSORS: u64 = 1 << 17;
/// Longest name of a tensor, in bytes; llama.cpp has 64.
const MAX_NAME: usize = 256;
/// Most dimensions of a tensor.
const MAX_RANK: u32 = 4;
/// Largest alignment of tensors.
const MAX_ALIGNMENT: usize = 1 << 20;
/// Alignment where the file does not say.
const ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// Where and how one tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Element or block type: known, or the name of one that edgewise does not read.
    pub dtype: std::result::Result<DType, String>,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Its bytes in the file; empty if the type is not read.
    pub range: Range<usize>,
}

/// One mapped file.
#[derive(Clone, Debug)]
pub struct File {
    /// The file.
    pub path: PathBuf,
    /// All of it.
    pub bytes: Bytes,
    /// Keys and values.
    pub metadata: Metadata,
    /// By name.
    pub tensors: BTreeMap<String, Entry>,
}

impl File {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, mmap::map(path)?)
    }

    /// Checks `bytes`, a whole file. `path` is for messages.
    pub fn parse(path: &Path, bytes: Bytes) -> Result<Self> {
        let fault = |reason| Error::file(path, reason);
        let mut cursor = Cursor::new(&bytes, 0);
        let [tensors, keys] = preamble(&mut cursor).map_err(fault)?;
        let metadata = Metadata::read(path, &bytes, &mut cursor, keys)?;
        let raw = raw_tensors(&mut cursor, tensors).map_err(fault)?;
        let data = data_start(&metadata, cursor.at())?;
        let alignment = alignment(&metadata)?;
        let mut tensors = BTreeMap::new();
        for (name, raw) in raw {
            let entry = raw.check(data, alignment, bytes.len());
            let entry = entry.map_err(|reason| Error::tensor(path, name, reason))?;
            if tensors.insert(name.to_owned(), entry).is_some() {
                return Err(Error::tensor(path, name, "stands in the file twice"));
            }
        }
        check_overlap(path, &tensors)?;
        Ok(Self { path: path.to_owned(), bytes: bytes.clone(), metadata, tensors })
    }
}

/// Whether a file that begins with `bytes` calls itself GGUF.
pub fn is_gguf(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The number of tensors and of keys.
fn preamble(cursor: &mut Cursor<'_>) -> Read<[u64; 2]> {
    let magic = cursor.take(4, "the beginning")?;
    if magic != MAGIC {
        return Err("does not begin with 'GGUF'".to_owned());
    }
    let version = cursor.u32("the version")?;
    if !VERSIONS.contains(&version) {
        let swapped = VERSIONS.contains(&version.swap_bytes());
        let hint = if swapped { "; the file is big-endian" } else { "" };
        return Err(format!("GGUF version {version} is not supported; known: 2, 3{hint}"));
    }
    Ok([cursor.u64("the number of tensors")?, cursor.u64("the number of metadata keys")?])
}

fn alignment(metadata: &Metadata) -> Result<usize> {
    let alignment = metadata.size(ALIGNMENT_KEY)?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let reason = format!("{alignment} is not a power of two up to {MAX_ALIGNMENT}");
        return Err(metadata.error(ALIGNMENT_KEY, reason));
    }
    Ok(alignment)
}

/// Where the data begin in a file whose header ends at `end`.
fn data_start(metadata: &Metadata, end: usize) -> Result<usize> {
    let start = end.checked_next_multiple_of(alignment(metadata)?);
    start.ok_or_else(|| Error::file(metadata.path(), "its header is too long"))
}

/// A tensor as it stands in the file.
struct RawTensor {
    /// The shortest stride first.
    dims: Vec<u64>,
    code: u32,
    offset: u64,
}

fn raw_tensors<'a>(cursor: &mut Cursor<'a>, count: u64) -> Read<Vec<(&'a str, RawTensor)>> {
    if count > MAX_TENSORS {
        return Err(format!("claims {count} tensors, the limit is {MAX_TENSORS}"));
    }
    let mut raw = Vec::new();
    for index in 0..count {
        let name = cursor.name(MAX_NAME, &format!("the name of tensor {index} of {count}"))?;
        let what = format!("the entry of tensor '{}'", quote(name));
        let rank = cursor.u32(&what)?;
        if rank > MAX_RANK {
            return Err(format!("tensor '{}': has {rank} dimensions, more than {MAX_RANK}", quote(name)));
        }
        let dims = (0..rank).map(|_| cursor.u64(&what)).collect::<Read<_>>()?;
        raw.push((name, RawTensor { dims, code: cursor.u32(&what)?, offset: cursor.u64(&what)? }));
    }
    Ok(raw)
}

impl RawTensor {
    /// Checks one tensor alone, in a file of `size` bytes whose data begin at `data`.
    fn check(self, data: usize, alignment: usize, size: usize) -> Read<Entry> {
        let too_large = || format!("its shape {:?} is too large", self.dims);
        let mut shape = self.dims.iter().rev().map(|&dim| usize::try_from(dim));
        let shape: Vec<usize> =
            shape.by_ref().collect::<std::result::Result<_, _>>().map_err(|_| too_large())?;
        if shape.is_empty() || shape.contains(&0) {
            return Err(format!("its shape {:?} holds nothing", self.dims));
        }
        let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).ok_or_else(too_large)?;
        let start = usize::try_from(self.offset).ok().and_then(|offset| data.checked_add(offset));
        let start = start.ok_or_else(|| format!("its offset {} is too large", self.offset))?;
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(format!("its offset {} is not a multiple of the alignment {alignment}", self.offset));
        }
        let dtype = type_of(self.code);
        let bytes = match &dtype {
            Ok(dtype) => bytes_of(*dtype, &shape, elements)?.ok_or_else(too_large)?,
            Err(_) => 0,
        };
        let end = start.checked_add(bytes).ok_or_else(too_large)?;
        if end > size {
            return Err(format!(
                "its data end at byte {end}, the file has {size} bytes: the file is truncated or damaged"
            ));
        }
        Ok(Entry { dtype, shape, range: start..end })
    }
}

/// Bytes of so many elements; `None` if that overflows, an error if rows are no whole blocks.
fn bytes_of(dtype: DType, shape: &[usize], elements: usize) -> Read<Option<usize>> {
    let DType::Block(block) = dtype else { return Ok(elements.checked_mul(dtype.size())) };
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(block.weights()) {
        let (name, len) = (block.name(), block.weights());
        return Err(format!("its rows of {row} are not whole blocks of {len}, as {name} needs"));
    }
    Ok((elements / block.weights()).checked_mul(block.bytes()))
}

/// The type with this code, or the name of one that is not read.
fn type_of(code: u32) -> std::result::Result<DType, String> {
    const OTHERS: [(u32, &str); 23] = [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
        (41, "Q1_0"),
    ];
    Ok(match code {
        0 => DType::F32,
        1 => DType::F16,
        30 => DType::BF16,
        2 => DType::Block(BlockType::Q4_0),
        3 => DType::Block(BlockType::Q4_1),
        6 => DType::Block(BlockType::Q5_0),
        7 => DType::Block(BlockType::Q5_1),
        8 => DType::Block(BlockType::Q8_0),
        12 => DType::Block(BlockType::Q4_K),
        13 => DType::Block(BlockType::Q5_K),
        14 => DType::Block(BlockType::Q6_K),
        20 => DType::Block(BlockType::IQ4_NL),
        23 => DType::Block(BlockType::IQ4_XS),
        _ => {
            let known = OTHERS.iter().find(|(other, _)| *other == code);
            return Err(known.map_or_else(|| format!("number {code}"), |(_, name)| (*name).to_owned()));
        }
    })
}

/// No byte may belong to two tensors.
fn check_overlap(path: &Path, tensors: &BTreeMap<String, Entry>) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().filter(|(_, entry)| !entry.range.is_empty()).collect();
    order.sort_by_key(|(_, entry)| entry.range.start);
    for pair in order.windows(2) {
        let [(before, first), (name, second)] = pair else { continue };
        if second.range.start < first.range.end {
            return Err(Error::tensor(path, name, format!("its data overlap those of '{before}'")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
