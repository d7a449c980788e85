//! The tokenizer of a GGUF file as the `tokenizer.json` that gives the same ids.
//!
//! `tokenizer.ggml.tokens` lists all tokens by id, `token_type` tells ordinary ones from added ones, `merges` is the table of
//! byte-level BPE, and `pre` names the rule by which a text is cut before. Tokens of type unused fill the vocabulary up and are
//! left out. Added tokens are special if they are of type control; llama.cpp's converter makes all that are written `<|..|>` so.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::metadata::Metadata;
use crate::checkpoint::json::quote;
use crate::error::Result;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// Types of tokens, as llama.cpp numbers them.
const NORMAL: usize = 1;
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;
const UNUSED: usize = 5;

/// Switches by which a file asks for tokens around each text. Here none are added.
const AROUND: [&str; 2] = ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"];

/// How a text is cut into words, and what was done to it before.
struct Cut {
    /// In [`PRE`].
    name: &'static str,
    /// The class that the original's `tokenizer_config.json` names.
    class: &'static str,
    normalizer: Option<&'static str>,
    /// Each cuts what the one before it left whole.
    regexes: &'static [&'static str],
}

const CUTS: [Cut; 3] = [
    Cut {
        name: "qwen2",
        class: "Qwen2Tokenizer",
        normalizer: Some("NFC"),
        regexes: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    },
    Cut {
        name: "qwen35",
        class: "Qwen2Tokenizer",
        normalizer: Some("NFC"),
        regexes: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    },
    // GPT-2's rule, with every digit a word of its own before.
    Cut {
        name: "smollm",
        class: "GPT2Tokenizer",
        normalizer: None,
        regexes: &[r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
    },
];

/// Whether the file has a tokenizer.
pub(super) fn is_there(metadata: &Metadata) -> bool {
    metadata.contains(TOKENS)
}

/// The `tokenizer.json`.
///
/// # Errors
/// If the tokenizer is of another kind, or its tables do not fit together.
pub(super) fn json(metadata: &Metadata) -> Result<String> {
    let mut vocabulary = String::new();
    let mut added: Vec<Value> = Vec::new();
    for token in tokens(metadata)? {
        let (id, text, kind) = token?;
        match kind {
            UNUSED => {}
            NORMAL => push(&mut vocabulary, &format!("{}:{id}", Value::from(text))),
            CONTROL | USER_DEFINED => {
                // In the vocabulary too, so that its id does not depend on how many come before.
                push(&mut vocabulary, &format!("{}:{id}", Value::from(text)));
                added.push(json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind == CONTROL,
                }));
            }
            other => {
                return Err(metadata.error(TYPES, format!("element {id} is {other}, which is not supported")));
            }
        }
    }
    for key in AROUND {
        if metadata.flag(key)? == Some(true) {
            return Err(metadata.error(key, "true is not supported: nothing is added to a text"));
        }
    }
    let merges = merges(metadata)?;
    let settings = settings(cut(metadata)?);
    let added = Value::from(added);
    Ok(format!(
        "{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":{added},{settings},\"model\":{{\
         \"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,\
         \"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,\
         \"vocab\":{{{vocabulary}}},\"merges\":[{merges}]}}}}"
    ))
}

/// Id, text and type of each token.
fn tokens(metadata: &Metadata) -> Result<impl Iterator<Item = Result<(usize, &str, usize)>>> {
    let texts = metadata.texts(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS))?;
    let kinds = metadata.each_size(TYPES)?.ok_or_else(|| metadata.missing(TYPES))?;
    if metadata.count(TOKENS) != metadata.count(TYPES) {
        return Err(metadata.error(TYPES, "has not as many elements as there are tokens"));
    }
    Ok(texts.zip(kinds).enumerate().map(|(id, (text, kind))| Ok((id, text?, kind?))))
}

/// The text of the token with this id.
pub(super) fn token(metadata: &Metadata, id: usize) -> Result<Option<&str>> {
    metadata.texts(TOKENS)?.and_then(|mut texts| texts.nth(id)).transpose()
}

/// The id of the token written so.
pub(super) fn id(metadata: &Metadata, written: &str) -> Result<Option<usize>> {
    for (id, text) in metadata.texts(TOKENS)?.into_iter().flatten().enumerate() {
        if text? == written {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The ids of control tokens written so, in the order of the file.
pub(super) fn control_ids(metadata: &Metadata, written: &[&str]) -> Result<Vec<usize>> {
    let mut ids = Vec::new();
    for token in tokens(metadata)? {
        let (id, text, kind) = token?;
        if kind == CONTROL && written.contains(&text) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The table of merges, as it stands in the JSON list.
fn merges(metadata: &Metadata) -> Result<String> {
    let mut out = String::new();
    let merges = metadata.texts(MERGES)?.ok_or_else(|| metadata.missing(MERGES))?;
    for (i, merge) in merges.enumerate() {
        let Some((left, right)) = merge?.split_once(' ') else {
            return Err(metadata.error(MERGES, format!("element {i} is no pair")));
        };
        push(&mut out, &format!("[{},{}]", Value::from(left), Value::from(right)));
    }
    Ok(out)
}

/// The class that runs the tokenizer in the original code, if it is of a known kind.
pub(super) fn class(metadata: &Metadata) -> Result<Option<&'static str>> {
    let name = metadata.text(PRE)?;
    Ok(CUTS.iter().find(|cut| Some(cut.name) == name).map(|cut| cut.class))
}

/// How a text is cut.
fn cut(metadata: &Metadata) -> Result<&'static Cut> {
    match metadata.text(MODEL)? {
        Some("gpt2") => {}
        other => {
            let other = quote(other.unwrap_or_default());
            return Err(metadata.error(MODEL, format!("'{other}' is not supported; known: gpt2")));
        }
    }
    let name = metadata.text(PRE)?.ok_or_else(|| metadata.missing(PRE))?;
    CUTS.iter().find(|cut| cut.name == name).ok_or_else(|| {
        let known = CUTS.each_ref().map(|cut| cut.name).join(", ");
        metadata.error(PRE, format!("'{}' is not supported; known: {known}", quote(name)))
    })
}

/// What stands around the model: normalisation, cuts, and bytes written as characters.
fn settings(cut: &Cut) -> String {
    let byte_level = |prefix: bool, trim: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex});
    let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let steps: Vec<Value> = cut.regexes.iter().map(split).chain([byte_level(false, true, false)]).collect();
    let mut out = String::new();
    for (key, value) in [
        ("normalizer", cut.normalizer.map_or(Value::Null, |kind| json!({"type": kind}))),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": steps})),
        ("post_processor", byte_level(true, false, true)),
        ("decoder", byte_level(true, true, true)),
    ] {
        push(&mut out, &format!("\"{key}\":{value}"));
    }
    out
}

/// Appends an element of a JSON list or object.
fn push(out: &mut String, element: &str) {
    let comma = if out.is_empty() { "" } else { "," };
    let _ = write!(out, "{comma}{element}");
}
