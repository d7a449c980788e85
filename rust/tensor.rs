//! Number types of stored tensors, and byte views that keep their file or buffer alive.

use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::Arc;

use crate::checkpoint::gguf::blocks::BlockType;
use crate::checkpoint::mmap::Mapping;
use crate::error::{Error, Result};

/// Element types a safetensors file can hold that edgewise reads or passes through, and blocks of GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// 8-bit unsigned; also the container of our own block formats.
    U8,
    /// 8-bit signed.
    I8,
    /// 8-bit floating point of 4 exponent and 3 fraction bits, without infinities (`e4m3fn`).
    F8E4M3,
    /// 32-bit signed.
    I32,
    /// 32-bit unsigned.
    U32,
    /// 64-bit signed.
    I64,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Blocks of quantised weights, as GGUF files have them: each row of a tensor is whole blocks.
    Block(BlockType),
}

impl DType {
    /// Bytes of one element; of one block for a block type.
    pub const fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::F8E4M3 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
            Self::Block(block) => block.bytes(),
        }
    }

    /// Bytes of so many elements, which are whole blocks for a block type.
    pub const fn nbytes(self, elements: usize) -> usize {
        match self {
            Self::Block(block) => elements / block.weights() * block.bytes(),
            _ => elements * self.size(),
        }
    }

    /// The name used in safetensors headers, or that of a block type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E4M3 => "F8_E4M3",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::I64 => "I64",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::Block(block) => block.name(),
        }
    }

    /// The type with this safetensors name, if edgewise knows it.
    pub fn from_name(name: &str) -> Option<Self> {
        const ALL: [DType; 10] = [
            DType::U8,
            DType::I8,
            DType::F8E4M3,
            DType::I32,
            DType::U32,
            DType::I64,
            DType::F16,
            DType::BF16,
            DType::F32,
            DType::F64,
        ];
        ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

/// Shared, immutable bytes: a part of a mapped file or of a buffer, kept alive by this view. Cheap to clone.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Buffer(Arc<dyn AsRef<[u8]> + Send + Sync>),
    File(Arc<Mapping>),
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let range = 0..owner.as_ref().len();
        Self { owner: Owner::Buffer(Arc::new(owner)), range }
    }

    /// All bytes of a mapped file.
    pub(crate) fn of_file(file: Arc<Mapping>) -> Self {
        Self { range: 0..file.bytes().len(), owner: Owner::File(file) }
    }

    /// The mapped file that these bytes are part of, if they are, and where they stand in it.
    pub(crate) fn in_file(&self) -> Option<(&Arc<Mapping>, Range<usize>)> {
        match &self.owner {
            Owner::Buffer(_) => None,
            Owner::File(file) => Some((file, self.range.clone())),
        }
    }

    /// A part of these bytes, or `None` if it reaches outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: self.owner.clone(), range: start..start + range.len() })
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let all = match &self.owner {
            Owner::Buffer(buffer) => (**buffer).as_ref(),
            Owner::File(file) => file.bytes(),
        };
        &all[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

/// One stored tensor, checked: `bytes.len()` equals the product of `shape` times the element size.
#[derive(Clone, Debug)]
pub struct TensorView {
    /// The file it stands in, for messages.
    pub path: PathBuf,
    /// Its name in that file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The elements, little endian, at any alignment.
    pub bytes: Bytes,
}

impl TensorView {
    /// An [`Error::Tensor`] about this tensor.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::tensor(&self.path, &self.name, reason)
    }

    /// All elements widened to f32. Only floating-point tensors can be read so.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.shape.iter().product()];
        self.read_f32(0, &mut out)?;
        Ok(out)
    }

    /// `out.len()` elements from element `start` on, widened to f32.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) -> Result<()> {
        if !widen(self.dtype, &self.bytes, start, out) {
            return Err(self.error(format!("cannot read {} as floating point", self.dtype.name())));
        }
        Ok(())
    }
}

/// Widens `out.len()` little-endian elements from element `start` on; false if `dtype` is an integer type or f64.
///
/// # Panics
/// If the elements reach outside `bytes`.
pub fn widen(dtype: DType, bytes: &[u8], start: usize, out: &mut [f32]) -> bool {
    if let DType::Block(block) = dtype {
        block.read(bytes, start, out);
        return true;
    }
    let size = dtype.size();
    let bytes = &bytes[start * size..(start + out.len()) * size];
    match dtype {
        DType::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        DType::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        DType::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        _ => return false,
    }
    true
}
