//! The keys and values that stand before the tensors.
//!
//! Arrays and strings are kept as the part of the file they stand in, and read when they are asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::cursor::{Cursor, Read};
use crate::checkpoint::json::quote;
use crate::error::{Error, Result};
use crate::tensor::Bytes;

/// Most keys of a file.
const MAX_KEYS: u64 = 1 << 16;
/// Longest key, in bytes, as the format has it.
const MAX_KEY: usize = (1 << 16) - 1;
/// Most elements of an array; the largest vocabularies have 2^18. A sparse file can hold billions of empty strings, and walking
/// over them would take minutes.
const MAX_ELEMENTS: u64 = 1 << 24;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of so many bytes; whether it is signed.
    Integer {
        size: u64,
        signed: bool,
    },
    Float {
        size: u64,
    },
    Bool,
    String,
}

impl Kind {
    fn from_code(code: u32, what: &str) -> Read<Self> {
        Ok(match code {
            0 | 2 | 4 | 10 => Self::Integer { size: [1, 2, 4, 0, 0, 8][code as usize / 2], signed: false },
            1 | 3 | 5 | 11 => Self::Integer { size: [1, 2, 4, 0, 0, 8][code as usize / 2], signed: true },
            6 => Self::Float { size: 4 },
            7 => Self::Bool,
            8 => Self::String,
            9 => return Err(format!("{what} is an array of arrays, which is not supported")),
            12 => Self::Float { size: 8 },
            _ => return Err(format!("{what} has the unknown type {code}")),
        })
    }

    /// Bytes of a value whose length does not vary.
    fn size(self) -> Option<u64> {
        match self {
            Self::Integer { size, .. } | Self::Float { size } => Some(size),
            Self::Bool => Some(1),
            Self::String => None,
        }
    }

    /// Reads one value.
    fn read<'a>(self, cursor: &mut Cursor<'a>, what: &str) -> Read<Scalar<'a>> {
        let Some(size) = self.size() else {
            return Ok(Scalar::String(cursor.string(what)?));
        };
        let bytes = cursor.take(size, what)?;
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(word);
        let unused = 64 - 8 * size;
        Ok(match self {
            Self::Integer { signed: true, .. } => {
                Scalar::Integer(i128::from((bits << unused) as i64 >> unused))
            }
            Self::Integer { .. } | Self::String => Scalar::Integer(i128::from(bits)),
            Self::Float { size: 4 } => Scalar::Float(f64::from(f32::from_bits(bits as u32))),
            Self::Float { .. } => Scalar::Float(f64::from_bits(bits)),
            Self::Bool => Scalar::Bool(bits != 0),
        })
    }
}

/// One value that is not an array.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scalar<'a> {
    Integer(i128),
    Float(f64),
    Bool(bool),
    String(&'a [u8]),
}

impl Scalar<'_> {
    fn size(self) -> Option<usize> {
        match self {
            Self::Integer(value) => usize::try_from(value).ok(),
            _ => None,
        }
    }
}

/// Where a value stands.
#[derive(Clone, Debug)]
struct Place {
    kind: Kind,
    /// Elements, of an array.
    count: Option<u64>,
    range: Range<usize>,
}

/// All keys of a file.
#[derive(Clone)]
pub struct Metadata {
    path: PathBuf,
    bytes: Bytes,
    places: BTreeMap<String, Place>,
}

impl Metadata {
    /// Reads `count` keys and their values, and moves `cursor` behind them.
    pub(super) fn read(path: &Path, bytes: &Bytes, cursor: &mut Cursor<'_>, count: u64) -> Result<Self> {
        let mut places = BTreeMap::new();
        if count > MAX_KEYS {
            return Err(Error::file(path, format!("claims {count} metadata keys, the limit is {MAX_KEYS}")));
        }
        for index in 0..count {
            let what = format!("metadata key {index} of {count}");
            let key = cursor.name(MAX_KEY, &what).map_err(|reason| Error::file(path, reason))?;
            let place = Place::read(cursor, &format!("metadata '{}'", quote(key)))
                .map_err(|reason| Error::file(path, reason))?;
            if places.insert(key.to_owned(), place).is_some() {
                return Err(Error::file(path, format!("metadata '{}' stands twice", quote(key))));
            }
        }
        Ok(Self { path: path.to_owned(), bytes: bytes.clone(), places })
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An [`Error::File`] about the value of `key`.
    pub fn error(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("metadata '{key}': {reason}"))
    }

    /// Whether there is such a key.
    pub fn contains(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// A size or number of things; one element or an array of equal ones (zeros aside).
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(place) = self.places.get(key) else { return Ok(None) };
        let mut found = 0;
        for scalar in self.scalars(key, place) {
            let value = scalar?.size().ok_or_else(|| self.error(key, "is not a whole number that fits"))?;
            if value != 0 && found != 0 && value != found {
                return Err(self.error(key, format!("differs between layers ({found} and {value})")));
            }
            found = found.max(value);
        }
        Ok(Some(found))
    }

    /// As [`Self::size`], for a key that must be there.
    pub fn require_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// The sizes of an array of at most `limit`.
    pub fn sizes(&self, key: &str, limit: u64) -> Result<Option<Vec<usize>>> {
        let Some(place) = self.array(key, limit)? else { return Ok(None) };
        let value = |scalar: Result<Scalar<'_>>| {
            scalar?
                .size()
                .ok_or_else(|| self.error(key, "has an element that is not a whole number that fits"))
        };
        self.scalars(key, place).map(value).collect::<Result<_>>().map(Some)
    }

    /// The truth values of an array of at most `limit`; integers count as true unless 0.
    pub fn flags(&self, key: &str, limit: u64) -> Result<Option<Vec<bool>>> {
        let Some(place) = self.array(key, limit)? else { return Ok(None) };
        let value = |scalar: Result<Scalar<'_>>| match scalar? {
            Scalar::Bool(value) => Ok(value),
            Scalar::Integer(value) => Ok(value != 0),
            _ => Err(self.error(key, "has an element that is neither true nor false")),
        };
        self.scalars(key, place).map(value).collect::<Result<_>>().map(Some)
    }

    /// The finite numbers of an array of at most `limit`.
    pub fn numbers(&self, key: &str, limit: u64) -> Result<Option<Vec<f64>>> {
        let Some(place) = self.array(key, limit)? else { return Ok(None) };
        let value = |scalar| self.as_number(key, scalar?);
        self.scalars(key, place).map(value).collect::<Result<_>>().map(Some)
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.scalar(key)?.map(|scalar| self.as_number(key, scalar)).transpose()
    }

    /// As [`Self::number`], for a key that must be there.
    pub fn require_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.scalar(key)? {
            None => Ok(None),
            Some(Scalar::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.error(key, "is not true or false")),
        }
    }

    /// A text.
    pub fn text<'a>(&'a self, key: &'a str) -> Result<Option<&'a str>> {
        match self.scalar(key)? {
            None => Ok(None),
            Some(Scalar::String(bytes)) => {
                std::str::from_utf8(bytes).map(Some).map_err(|_| self.error(key, "is not UTF-8 text"))
            }
            Some(_) => Err(self.error(key, "is not a string")),
        }
    }

    /// The texts of an array, one after another.
    pub fn texts<'a>(&'a self, key: &'a str) -> Result<Option<impl Iterator<Item = Result<&'a str>>>> {
        let Some(place) = self.array(key, u64::MAX)? else { return Ok(None) };
        Ok(Some(self.scalars(key, place).enumerate().map(move |(i, scalar)| {
            match scalar? {
                Scalar::String(bytes) => std::str::from_utf8(bytes)
                    .map_err(|_| self.error(key, format!("element {i} is not UTF-8 text"))),
                _ => Err(self.error(key, "is not an array of strings")),
            }
        })))
    }

    /// The sizes of an array, one after another.
    pub fn each_size<'a>(
        &'a self,
        key: &'a str,
    ) -> Result<Option<impl Iterator<Item = Result<usize>> + use<'a>>> {
        let Some(place) = self.array(key, u64::MAX)? else { return Ok(None) };
        Ok(Some(self.scalars(key, place).map(move |scalar| {
            scalar?.size().ok_or_else(|| self.error(key, "is not an array of whole numbers"))
        })))
    }

    /// How many elements an array has.
    pub fn count(&self, key: &str) -> Option<u64> {
        self.places.get(key)?.count
    }

    /// The error for a key that is not there.
    pub fn missing(&self, key: &str) -> Error {
        self.error(key, "is missing")
    }

    fn as_number(&self, key: &str, scalar: Scalar<'_>) -> Result<f64> {
        match scalar {
            Scalar::Float(value) if value.is_finite() => Ok(value),
            Scalar::Integer(value) => Ok(value as f64),
            _ => Err(self.error(key, "is not a finite number")),
        }
    }

    /// The value of a key, which must not be an array.
    fn scalar<'a>(&'a self, key: &'a str) -> Result<Option<Scalar<'a>>> {
        match self.places.get(key) {
            None => Ok(None),
            Some(Place { count: Some(_), .. }) => Err(self.error(key, "is an array")),
            Some(place) => self.scalars(key, place).next().transpose(),
        }
    }

    /// The place of an array of at most `limit` elements.
    fn array(&self, key: &str, limit: u64) -> Result<Option<&Place>> {
        match self.places.get(key) {
            None => Ok(None),
            Some(place) => match place.count {
                None => Err(self.error(key, "is not an array")),
                Some(count) if count > limit => {
                    Err(self.error(key, format!("has {count} elements, the limit is {limit}")))
                }
                Some(_) => Ok(Some(place)),
            },
        }
    }

    /// The values that stand at `place`.
    fn scalars<'a>(
        &'a self,
        key: &'a str,
        place: &Place,
    ) -> impl Iterator<Item = Result<Scalar<'a>>> + use<'a> {
        let mut cursor = Cursor::new(&self.bytes[..place.range.end], place.range.start);
        let kind = place.kind;
        (0..place.count.unwrap_or(1))
            .map(move |_| kind.read(&mut cursor, key).map_err(|reason| self.error(key, reason)))
    }
}

impl Place {
    /// Walks over one value.
    fn read(cursor: &mut Cursor<'_>, what: &str) -> Read<Self> {
        const ARRAY: u32 = 9;
        let code = cursor.u32(what)?;
        if code != ARRAY {
            let kind = Kind::from_code(code, what)?;
            let start = cursor.at();
            kind.read(cursor, what)?;
            return Ok(Self { kind, count: None, range: start..cursor.at() });
        }
        let kind = Kind::from_code(cursor.u32(what)?, what)?;
        let count = cursor.u64(what)?;
        let start = cursor.at();
        if count > MAX_ELEMENTS {
            return Err(format!("{what} claims {count} elements, the limit is {MAX_ELEMENTS}"));
        }
        match kind.size() {
            Some(size) => {
                cursor.take(count * size, what)?;
            }
            None => {
                for _ in 0..count {
                    cursor.string(what)?;
                }
            }
        }
        Ok(Self { kind, count: Some(count), range: start..cursor.at() })
    }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata")
            .field("path", &self.path)
            .field("keys", &self.places.len())
            .finish_non_exhaustive()
    }
}
