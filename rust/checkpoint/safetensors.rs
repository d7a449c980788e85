//! The safetensors container: one file of named tensors.
//!
//! ```text
//! bytes 0..8        n, the header's length, u64 little endian
//! bytes 8..8+n      JSON: { "name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..,
//!                           "__metadata__": {"key": "value", ..} }, padded with spaces
//! bytes 8+n..       the tensors' elements, little endian, row-major; offsets count from 8+n
//! ```
//!
//! Everything is checked once, before any tensor is handed out: the tensors follow each other without hole or
//! overlap and cover the data exactly, and each one's range is as long as its type and shape say.
//!
//! Types edgewise does not read (`F8_E5M2`, `BOOL`, ...) do not make a file unusable: such a tensor is
//! listed, and asking for it is an error that names tensor and type. A checkpoint may hold them where the
//! model never looks.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};

use super::json::{self, UniqueMap, quote};
use super::mmap;
use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType, TensorView};

/// Longest header read or written, in bytes.
pub const MAX_HEADER: usize = 100_000_000;
/// Longest tensor name read or written, in bytes.
pub const MAX_NAME: usize = 1024;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 32;
/// Bytes of the header's length word.
pub(super) const LENGTH_WORD: usize = 8;
/// The header's one key that is not a tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// What one file holds, checked against its length.
#[derive(Clone, Debug)]
pub struct Header {
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// Where and how one tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Element type: known, or the name of one that edgewise does not read.
    pub dtype: std::result::Result<DType, String>,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The elements' bytes in the file.
    pub range: Range<usize>,
}

impl Header {
    /// Parses and checks the header of `file`, a whole safetensors file. `path` is for messages only.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        let text = header_text(path, file)?;
        let raw = RawHeader::parse(path, text)?;
        let data = LENGTH_WORD + text.len()..file.len();
        let mut tensors = BTreeMap::new();
        for (name, raw) in raw.tensors {
            let entry = raw.check(&data).map_err(|reason| Error::tensor(path, &name, reason))?;
            tensors.insert(name, entry);
        }
        check_cover(path, &tensors, &data)?;
        Ok(Self { tensors, metadata: raw.metadata })
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> &BTreeMap<String, Entry> {
        &self.tensors
    }

    /// The free text beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

/// The header's JSON text, with its padding.
fn header_text<'a>(path: &Path, file: &'a [u8]) -> Result<&'a [u8]> {
    let fault = |reason: String| Error::file(path, reason + foreign_format(file));
    let Some((word, rest)) = file.split_first_chunk::<LENGTH_WORD>() else {
        return Err(fault(format!("has {} bytes, too few for a safetensors file", file.len())));
    };
    let length = u64::from_le_bytes(*word);
    if length > MAX_HEADER as u64 {
        return Err(fault(format!("header length {length} is above the limit of {MAX_HEADER}")));
    }
    let Some(text) = rest.get(..length as usize) else {
        let size = file.len();
        return Err(fault(format!(
            "header length {length} reaches beyond the file's {size} bytes: truncated, or of another format"
        )));
    };
    if text.first() != Some(&b'{') {
        return Err(fault("header does not begin with '{'".to_owned()));
    }
    if std::str::from_utf8(text).is_err() {
        return Err(fault("header is not UTF-8 text".to_owned()));
    }
    Ok(text)
}

/// What a file that is not safetensors looks like instead: a hint to append to the error.
fn foreign_format(file: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 5] = [
        (b"version https://git-lfs", "; it is a Git LFS pointer: fetch the real file with `git lfs pull`"),
        (b"GGUF", "; it is a GGUF file"),
        (b"PK\x03\x04", "; it is a zip archive, perhaps a PyTorch checkpoint"),
        (b"{", "; it looks like JSON"),
        (b"<", "; it looks like a web page"),
    ];
    KNOWN.iter().find(|(start, _)| file.starts_with(start)).map_or("", |(_, hint)| hint)
}

/// The tensors must follow each other from the first byte of `data` to the last.
fn check_cover(path: &Path, tensors: &BTreeMap<String, Entry>, data: &Range<usize>) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut end = data.start;
    for (name, Entry { range, .. }) in order {
        if range.start != end {
            let fault =
                if range.start < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(Error::tensor(path, name, format!("its data {fault}")));
        }
        end = range.end;
    }
    if end != data.end {
        let (covered, size) = (end - data.start, data.len());
        return Err(Error::file(path, format!("holds {size} bytes of data, its tensors cover {covered}")));
    }
    Ok(())
}

/// Refuses tensor names that could not be stored, or shown in a message.
pub(super) fn check_name(name: &str) -> std::result::Result<(), String> {
    if name.len() > MAX_NAME {
        return Err(format!("the name has {} bytes, the limit is {MAX_NAME}", name.len()));
    }
    if name == METADATA_KEY || name.chars().any(char::is_control) {
        return Err(format!("'{}' cannot name a tensor", quote(name)));
    }
    Ok(())
}

/// Bytes of a tensor; `None` if that overflows. Counts a dimension of zero as one while it looks for
/// overflow, so that the product of any of the dimensions fits too.
pub(super) fn tensor_bytes(dtype: DType, shape: &[usize]) -> Option<usize> {
    let bytes = shape.iter().try_fold(dtype.size(), |size, &dim| size.checked_mul(dim.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { bytes })
}

/// The header as it stands in the file.
#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawEntry>,
    metadata: BTreeMap<String, String>,
    /// The key being read, for messages.
    current: String,
}

impl RawHeader {
    fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let mut header = Self::default();
        let mut json = serde_json::Deserializer::from_slice(text);
        let read = de::Deserializer::deserialize_map(&mut json, HeaderVisitor(&mut header));
        read.and_then(|()| json.end()).map_err(|error| {
            let reason = format!("header: {}", json::describe(text, &error));
            match header.current.as_str() {
                "" => Error::file(path, reason),
                METADATA_KEY => {
                    Error::file(path, format!("header: {METADATA_KEY}: {}", json::describe(text, &error)))
                }
                name => Error::tensor(path, &quote(name), reason),
            }
        })?;
        Ok(header)
    }
}

/// Fills a [`RawHeader`].
struct HeaderVisitor<'a>(&'a mut RawHeader);

impl<'de> Visitor<'de> for HeaderVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<(), A::Error> {
        let header = self.0;
        let mut has_metadata = false;
        while let Some(key) = access.next_key::<String>()? {
            header.current.clone_from(&key);
            if key == METADATA_KEY {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(json::repeated(&key));
                }
                header.metadata = access.next_value::<UniqueMap<String>>()?.0;
            } else {
                check_name(&key).map_err(de::Error::custom)?;
                let entry = access.next_value()?;
                if header.tensors.insert(key, entry).is_some() {
                    return Err(json::repeated(&header.current));
                }
            }
            header.current.clear();
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object of dtype, shape and data_offsets")]
struct RawEntry {
    dtype: String,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    /// Checks one tensor alone. `data` is the part of the file behind the header.
    fn check(self, data: &Range<usize>) -> std::result::Result<Entry, String> {
        let (begin, end) = self.data_offsets;
        if begin > end {
            return Err(format!("its data_offsets [{begin}, {end}] run backwards"));
        }
        if end > data.len() as u64 {
            return Err(format!(
                "its data ends at byte {end}, the file holds {} bytes of data: the file is truncated",
                data.len()
            ));
        }
        let range = data.start + begin as usize..data.start + end as usize;
        let dims = self.shape.iter().map(|&dim| usize::try_from(dim));
        let shape: Vec<usize> = dims.collect::<std::result::Result<_, _>>().map_err(|_| self.too_large())?;
        let dtype = DType::from_name(&self.dtype).ok_or_else(|| quote(&self.dtype));
        if let Ok(dtype) = dtype {
            let expected = tensor_bytes(dtype, &shape).ok_or_else(|| self.too_large())?;
            if expected != range.len() {
                let (name, stored) = (dtype.name(), range.len());
                return Err(format!(
                    "shape {shape:?} of {name} needs {expected} bytes, its data has {stored}"
                ));
            }
        }
        Ok(Entry { dtype, shape, range })
    }

    fn too_large(&self) -> String {
        format!("shape {:?} is too large", self.shape)
    }
}

/// Reads a shape without following a hostile one into memory.
fn shape<'de, D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u64>, D::Error> {
    deserializer.deserialize_seq(ShapeVisitor)
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> std::result::Result<Vec<u64>, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = access.next_element()? {
            if dims.len() == MAX_RANK {
                return Err(de::Error::custom(format_args!("shape has more than {MAX_RANK} dimensions")));
            }
            dims.push(dim);
        }
        Ok(dims)
    }
}

/// One mapped safetensors file.
#[derive(Clone)]
pub struct SafeTensors {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
}

impl SafeTensors {
    /// Maps and checks the file at `path`, whatever its name.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = mmap::map(path)?;
        let header = Header::parse(path, &bytes)?;
        Ok(Self { path: path.to_owned(), bytes, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The tensor with this name. A type edgewise does not read is an error.
    pub fn get(&self, name: &str) -> Result<Option<TensorView>> {
        let Some(entry) = self.header.tensors.get(name) else {
            return Ok(None);
        };
        let error = |reason: String| Error::tensor(&self.path, name, reason);
        let dtype =
            entry.dtype.as_ref().map_err(|foreign| error(format!("its type {foreign} is not supported")))?;
        let bytes =
            self.bytes.slice(entry.range.clone()).ok_or_else(|| error("lies outside the file".to_owned()))?;
        Ok(Some(TensorView {
            path: self.path.clone(),
            name: name.to_owned(),
            dtype: *dtype,
            shape: entry.shape.clone(),
            bytes,
        }))
    }
}

impl fmt::Debug for SafeTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.header.tensors.len();
        f.debug_struct("SafeTensors")
            .field("path", &self.path)
            .field("tensors", &tensors)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
