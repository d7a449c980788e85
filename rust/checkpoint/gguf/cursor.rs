//! Numbers and strings read one after another from bytes that are not trusted.
//!
//! Nothing is reserved for what a length word claims: bytes are borrowed, and only if they are there.

use crate::checkpoint::json::quote;

/// Longest string, in bytes: chat templates have some thousands. A sparse file can hold one of gigabytes, and looking whether it
/// is text would take a minute.
const MAX_STRING: usize = 1 << 26;

/// A place in a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Why reading failed: one sentence without the file's name.
pub(super) type Read<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// Bytes before this place.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next `len` bytes, which hold `what`.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Read<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = usize::try_from(len).ok().and_then(|len| rest.get(..len)).ok_or_else(|| {
            format!(
                "{what} of {len} bytes at byte {} reaches beyond the file's {} bytes: truncated or damaged",
                self.at,
                self.bytes.len()
            )
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    pub(super) fn u32(&mut self, what: &str) -> Read<u32> {
        let mut word = [0; 4];
        word.copy_from_slice(self.take(4, what)?);
        Ok(u32::from_le_bytes(word))
    }

    pub(super) fn u64(&mut self, what: &str) -> Read<u64> {
        let mut word = [0; 8];
        word.copy_from_slice(self.take(8, what)?);
        Ok(u64::from_le_bytes(word))
    }

    /// The bytes of a string, whose length stands before it.
    pub(super) fn string(&mut self, what: &str) -> Read<&'a [u8]> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        if bytes.len() > MAX_STRING {
            return Err(format!("{what} has {len} bytes, the limit is {MAX_STRING}"));
        }
        Ok(bytes)
    }

    /// A string of at most `limit` bytes that may stand in a message: UTF-8 without control characters.
    pub(super) fn name(&mut self, limit: usize, what: &str) -> Read<&'a str> {
        let bytes = self.string(what)?;
        if bytes.len() > limit {
            return Err(format!("{what} has {} bytes, the limit is {limit}", bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8 text"))?;
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(format!("'{}' cannot be {what}", quote(text)));
        }
        Ok(text)
    }
}
