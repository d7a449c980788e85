//! Typed access to the entries of a JSON object, with errors that name the entry.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::json::quote;
use crate::error::{Error, Result};

/// Largest size that makes sense for one dimension of a model.
pub(super) const MAX_SIZE: usize = 1 << 24;

/// A JSON object and where it stands. A `null` entry counts as absent.
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Dotted name of the object with a dot behind it; empty for the outermost.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The outermost object of the file `path`.
    pub(super) fn new(path: &'a Path, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::file(path, "must hold a JSON object"))?;
        Ok(Self { path, prefix: String::new(), map })
    }

    /// The dotted name of the entry `key`.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// All entries, in the file's order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// The names of all entries, in the file's order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// An error about the entry `key`.
    pub(super) fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::config(self.path, &format!("{}{key}", self.prefix), reason)
    }

    /// The entry, or an error that it is missing.
    pub(super) fn require<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(key, "is missing"))
    }

    /// Any entry but `null`.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.error(key, format!("must be {wanted}, not {}", describe(value)))),
        }
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Self { path: self.path, prefix: format!("{}{key}.", self.prefix), map }))
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        self.typed(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number above 0", |value| value.as_f64().filter(|&x| x.is_finite() && x > 0.0))
    }

    /// A number of at least `min`.
    pub(super) fn at_least(&self, key: &str, min: f64) -> Result<Option<f64>> {
        let wanted = format!("a number of at least {min}");
        self.typed(key, &wanted, |value| value.as_f64().filter(|&x| x.is_finite() && x >= min))
    }

    /// A whole number from 1 to `max`, which may be absent.
    pub(super) fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let wanted = format!("a whole number from 1 to {max}");
        self.typed(key, &wanted, |value| {
            let size = usize::try_from(value.as_u64()?).ok()?;
            (1..=max).contains(&size).then_some(size)
        })
    }

    /// A whole number from 1 to `max`.
    pub(super) fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.require(key, self.optional_size(key, max)?)
    }
}

/// `value` for a message.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the text '{}'", quote(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
