//! JSON from files that are not trusted: what `serde_json` accepts, minus repeated keys.
//!
//! `serde_json` bounds the nesting (128 levels) and refuses numbers out of range. It keeps the last of two
//! equal keys without a word; here that is an error, since two readers of such a file could see two different
//! models.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Longest part of a file's own text that a message repeats, in characters.
const QUOTE_LIMIT: usize = 200;

/// Parses any JSON value; the error says what is wrong and at which line and column.
pub(crate) fn parse(json: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice::<Strict>(json) {
        Ok(Strict(value)) => Ok(value),
        Err(error) => Err(describe(json, &error)),
    }
}

/// Parses JSON of a known form; the error says what is wrong and at which line and column.
pub(crate) fn parse_as<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| describe(json, &error))
}

/// Why `json` could not be parsed, in one line of bounded length.
pub(crate) fn describe(json: &[u8], error: &serde_json::Error) -> String {
    let mut reason = error.to_string();
    if reason.chars().count() > QUOTE_LIMIT {
        reason = format!("{} at line {} column {}", quote(&reason), error.line(), error.column());
    }
    if error.is_syntax() && mentions_non_finite(json) {
        reason += " (NaN and Infinity are not JSON numbers)";
    }
    quote_controls(&reason)
}

fn mentions_non_finite(json: &[u8]) -> bool {
    [&b"NaN"[..], b"Infinity"].iter().any(|word| json.windows(word.len()).any(|part| part == *word))
}

/// `text` for a message: control characters escaped, at most [`QUOTE_LIMIT`] characters.
pub(crate) fn quote(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTE_LIMIT).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    quote_controls(&short)
}

fn quote_controls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A JSON object whose keys are all different.
#[derive(Debug)]
pub(crate) struct UniqueMap<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueMapVisitor(PhantomData))
    }
}

struct UniqueMapVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueMapVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value().map_err(|error| within(&key, &error))?;
            if map.contains_key(&key) {
                return Err(repeated(&key));
            }
            map.insert(key, value);
        }
        Ok(UniqueMap(map))
    }
}

/// `error` with the key it happened under in front.
fn within<E: de::Error>(key: &str, error: &E) -> E {
    E::custom(format_args!("'{}': {error}", quote(key)))
}

/// The error for a key that stands twice in one object.
pub(crate) fn repeated<E: de::Error>(key: &str) -> E {
    E::custom(format_args!("'{}' stands twice in one object", quote(key)))
}

/// Any JSON value without repeated keys at any depth.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(repeated(&key));
            }
            let Strict(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(json: &str) -> String {
        parse(json.as_bytes()).unwrap_err()
    }

    #[test]
    fn keeps_every_kind_of_value() {
        let json = r#"{"b":[null,true,-1,18446744073709551615,0.5,"x\n"],"a":{}}"#;
        let expected: Value = serde_json::from_str(json).unwrap();
        assert_eq!(parse(json.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn refuses_repeated_keys_at_any_depth() {
        assert!(reason(r#"{"a":1,"a":1}"#).contains("'a' stands twice"));
        assert!(reason(r#"{"x":[{"deep":1,"deep":2}]}"#).contains("'deep' stands twice"));
        assert!(
            parse_as::<UniqueMap<String>>(br#"{"k":"v","k":"v"}"#).unwrap_err().contains("'k' stands twice")
        );
    }

    #[test]
    fn names_the_key_of_a_wrong_value() {
        let reason = parse_as::<UniqueMap<String>>(br#"{"good":"v","bad":3}"#).unwrap_err();
        assert!(reason.starts_with("'bad': invalid type: integer `3`, expected a string"), "{reason}");
        assert_eq!(reason.matches("column").count(), 1, "{reason}");
    }

    #[test]
    fn refuses_nan_and_infinity_with_a_hint() {
        for json in [r#"{"a":NaN}"#, r#"{"a":Infinity}"#, r#"{"a":-Infinity}"#] {
            assert!(reason(json).contains("NaN and Infinity are not JSON numbers"), "{json}");
        }
        assert!(reason("{").contains("EOF") && !reason("{").contains("NaN"));
        assert!(reason(r#"{"a":1e999}"#).contains("out of range"));
    }

    #[test]
    fn refuses_deep_nesting() {
        assert!(reason(&"[".repeat(100_000)).contains("recursion limit"));
        assert!(reason(&r#"{"a":"#.repeat(100_000)).contains("recursion limit"));
    }

    #[test]
    fn messages_are_short_and_printable() {
        let json = format!(r#"{{"a":"{}"}}"#, "\\u001b[31m".repeat(10_000));
        let reason = parse_as::<BTreeMap<String, u64>>(json.as_bytes()).unwrap_err();
        assert!(reason.chars().count() < 2 * QUOTE_LIMIT && reason.contains("line 1 column"), "{reason}");
        assert!(!quote("a\u{1b}[31mb").contains('\u{1b}'));
        assert!(quote(&"é".repeat(500)).chars().count() <= QUOTE_LIMIT + 3);
    }
}
