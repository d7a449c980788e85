//! Recipes: which tensor is stored in which format.
//!
//! A recipe is an ordered table of name patterns; the first that matches a tensor's name decides. It is text a user
//! can read and change:
//!
//! ```json
//! {"name": "mine", "rules": [["*norm*", "f32"], ["*in_proj_a*", "int8"], ["*pos_embed*", "keep"], ["*", "int4_s8"]]}
//! ```
//!
//! `*` stands for any characters, also none. `keep` leaves a tensor's type as it is. The last pattern must be `*`, so
//! that every tensor is decided by something the reader sees. Blocks hold matrices: where a rule asks for `int4_s8`, `int4`,
//! `int4_asym` or `int8`, tensors of one dimension (biases, norms) are stored as `f32`.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::matrix::Format;
use crate::checkpoint::json;
use crate::error::{Error, Result};

/// Longest recipe file read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What happens to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It keeps its type.
    Keep,
    /// It is stored in this format.
    Store(Format),
}

impl Treatment {
    /// The name used in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Store(format) => format.name(),
        }
    }

    /// The format in which a tensor is stored that the checkpoint has in `source`. Levels that have f16 scales already, as others
    /// quantised them, keep those where scales of 8 bits are asked for: so nothing is rounded.
    pub fn format(self, source: Format) -> Format {
        match self {
            Self::Keep => source,
            Self::Store(Format::Int4S8) if source == Format::Int4 => source,
            Self::Store(format) => format,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        if name == "keep" { Some(Self::Keep) } else { Format::from_name(name).map(Self::Store) }
    }
}

/// An ordered table of patterns and treatments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    name: String,
    /// Ends with the pattern `*`.
    rules: Vec<(String, Treatment)>,
}

/// Rules of a built-in recipe.
type Rules = &'static [(&'static str, &'static str)];

/// Small or sensitive: the whole model feels an error here, and f32 costs nothing.
const SMALL: Rules = &[("*norm*", "f32"), ("*conv1d*", "f32"), ("*A_log", "f32"), ("*dt_bias", "f32")];
/// What decides over decay, routing and vision stays at 8 bits; position embeddings are read row by row as they are.
const SENSITIVE: Rules = &[
    ("*visual*pos_embed*", "keep"),
    ("*visual*", "int8"),
    ("*in_proj_a*", "int8"),
    ("*in_proj_b*", "int8"),
    ("*.mlp.gate.weight", "int8"),
    ("*shared_expert_gate*", "int8"),
    ("*mtp.fc*", "int8"),
];
/// The delta rule feeds its own output back through the state, so errors of these projections add up over a text;
/// other engines' 4-bit conversions of them have failed.
const DELTA_AND_HEAD: Rules = &[
    ("*in_proj_qkv*", "int8"),
    ("*in_proj_z*", "int8"),
    ("*linear_attn.out_proj*", "int8"),
    ("*embed_tokens*", "int8"),
    ("*lm_head*", "int8"),
];

/// The built-in recipes.
const BUILT_IN: [(&str, &[Rules]); 7] = [
    ("int4", &[SMALL, SENSITIVE, &[("*", "int4_s8")]]),
    ("careful", &[SMALL, SENSITIVE, DELTA_AND_HEAD, &[("*", "int4_s8")]]),
    ("int8", &[SMALL, &[("*visual*pos_embed*", "keep"), ("*", "int8")]]),
    ("bf16", &[SMALL, &[("*bias", "f32"), ("*", "bf16")]]),
    ("f16", &[SMALL, &[("*bias", "f32"), ("*", "f16")]]),
    ("f32", &[&[("*", "f32")]]),
    ("keep", &[&[("*", "keep")]]),
];

/// The JSON form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    name: String,
    rules: Vec<(String, String)>,
}

impl Recipe {
    /// The recipe used where none is asked for.
    pub const DEFAULT: &'static str = "int4";
    /// The recipe for tensors that another program left as they were while it packed others: it had its reasons.
    pub const BESIDE_PACKED: &'static str = "int8";
    /// The recipe that leaves every type as it is, and holds the blocks of a GGUF file in the formats of least loss.
    pub const KEEP: &'static str = "keep";

    /// Names of the built-in recipes.
    pub fn built_in() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|&(name, _)| name)
    }

    /// The built-in recipe of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        let &(name, parts) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name)?;
        let rules = parts.iter().flat_map(|part| part.iter());
        let rules =
            rules.map(|&(pattern, treatment)| Some((pattern.to_owned(), Treatment::from_name(treatment)?)));
        Some(Self { name: name.to_owned(), rules: rules.collect::<Option<_>>()? })
    }

    /// A built-in recipe, or else the one in the JSON file at this path.
    pub fn by_name_or_file(name: &str) -> Result<Self> {
        if let Some(recipe) = Self::by_name(name) {
            return Ok(recipe);
        }
        let path = Path::new(name);
        let size = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            _ => {
                let known = Self::built_in().collect::<Vec<_>>().join(", ");
                let reason =
                    format!("'{}' is neither a built-in recipe ({known}) nor a file", json::quote(name));
                return Err(Error::argument("recipe", reason));
            }
        };
        if size > MAX_FILE {
            return Err(Error::file(
                path,
                format!("a recipe of {size} bytes is above the limit of {MAX_FILE}"),
            ));
        }
        let text = fs::read(path).map_err(|source| Error::io(path, source))?;
        Self::from_json(&text).map_err(|reason| Error::file(path, format!("not a recipe: {reason}")))
    }

    /// Parses the JSON form; the error is one sentence without a file's name.
    pub fn from_json(text: &[u8]) -> std::result::Result<Self, String> {
        let Text { name, rules } = json::parse_as(text)?;
        let rules = rules.into_iter().enumerate().map(|(i, (pattern, treatment))| {
            parse_rule(pattern, &treatment).map_err(|reason| format!("rule {}: {reason}", i + 1))
        });
        let rules = rules.collect::<std::result::Result<Vec<_>, _>>()?;
        match rules.iter().position(|(pattern, _)| pattern == "*") {
            Some(i) if i + 1 == rules.len() => Ok(Self { name, rules }),
            Some(i) => {
                Err(format!("rule {}: everything matches '*', so the rules after it have no effect", i + 1))
            }
            None => Err("the last rule must have the pattern '*', for all other tensors".to_owned()),
        }
    }

    /// The JSON form, in one line.
    pub fn to_json(&self) -> String {
        let rules: Vec<_> = self.rules.iter().map(|(pattern, t)| [pattern.as_str(), t.name()]).collect();
        serde_json::json!({ "name": self.name, "rules": rules }).to_string()
    }

    /// The recipe's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What happens to the tensor of this name and shape.
    pub fn treatment(&self, name: &str, shape: &[usize]) -> Treatment {
        let rule = self.rules.iter().find(|(pattern, _)| matches(pattern, name));
        match rule.map_or(Treatment::Keep, |&(_, treatment)| treatment) {
            Treatment::Store(format) if format.is_quantized() && shape.len() < 2 => {
                Treatment::Store(Format::F32)
            }
            treatment => treatment,
        }
    }
}

/// The table, one rule a line.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rules.iter().map(|(pattern, _)| pattern.chars().count()).max().unwrap_or(0);
        write!(f, "recipe {}", self.name)?;
        for (pattern, treatment) in &self.rules {
            write!(f, "\n  {pattern:width$}  {}", treatment.name())?;
        }
        Ok(())
    }
}

fn parse_rule(pattern: String, treatment: &str) -> std::result::Result<(String, Treatment), String> {
    if pattern.is_empty() {
        return Err("the pattern is empty".to_owned());
    }
    let unknown = || {
        let known = Format::ALL.map(Format::name).join(", ");
        format!("'{}' is not one of {known}, keep", json::quote(treatment))
    };
    Ok((pattern, Treatment::from_name(treatment).ok_or_else(unknown)?))
}

/// Whether `name` matches a pattern in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(first) else {
        return false;
    };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    // Leftmost matches leave the most room for what follows, so no choice needs to be taken back.
    for part in middle.split('*') {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_with_f16_scales_keep_them() {
        let [s8, halves, wide] = [Format::Int4S8, Format::Int4, Format::Int8].map(Treatment::Store);
        assert_eq!(s8.format(Format::Int4), Format::Int4);
        for source in [Format::F32, Format::BF16, Format::Int8, Format::Int4Asym, Format::Int4S8] {
            assert_eq!(s8.format(source), Format::Int4S8, "{source:?}");
        }
        assert_eq!(halves.format(Format::BF16), Format::Int4);
        assert_eq!(wide.format(Format::Int4), Format::Int8);
        assert_eq!(Treatment::Keep.format(Format::Int4), Format::Int4);
    }

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("*", ""),
            ("*", "a"),
            ("a", "a"),
            ("a*", "a"),
            ("*a", "a"),
            ("*a*", "a"),
            ("a*b", "ab"),
            ("a*b", "axb"),
            ("a**b", "ab"),
            ("*a*a*", "aa"),
            ("*ab*b", "abb"),
            ("*norm*", "model.norm.weight"),
            ("a*bc*c", "abcc"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "a"), ("a", ""), ("a", "ab"), ("a*a", "a"), ("*a*a*", "a"), ("*ab*b", "ab"), ("a*b", "abc")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    /// Tries every split.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|i| naive(rest, &name[i..])),
            Some((c, rest)) => name.split_first().is_some_and(|(n, name)| n == c && naive(rest, name)),
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_every_split_does(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &name), naive(pattern.as_bytes(), name.as_bytes()));
        }
    }

    #[test]
    fn built_in_recipes_survive_json() {
        for name in Recipe::built_in() {
            let recipe = Recipe::by_name(name).unwrap();
            assert_eq!(recipe.name(), name);
            assert_eq!(Recipe::from_json(recipe.to_json().as_bytes()).unwrap(), recipe);
        }
        assert!(Recipe::by_name(Recipe::DEFAULT).is_some());
    }

    #[test]
    fn built_in_choices() {
        let cases = [
            ("model.language_model.embed_tokens.weight", 2, ["int4_s8", "int8", "int8", "bf16", "keep"]),
            ("lm_head.weight", 2, ["int4_s8", "int8", "int8", "bf16", "keep"]),
            ("model.layers.0.input_layernorm.weight", 1, ["f32", "f32", "f32", "f32", "keep"]),
            ("model.layers.0.linear_attn.A_log", 1, ["f32", "f32", "f32", "f32", "keep"]),
            ("model.layers.0.linear_attn.dt_bias", 1, ["f32", "f32", "f32", "f32", "keep"]),
            ("model.layers.0.linear_attn.conv1d.weight", 3, ["f32", "f32", "f32", "f32", "keep"]),
            ("model.layers.0.linear_attn.in_proj_qkv.weight", 2, ["int4_s8", "int8", "int8", "bf16", "keep"]),
            ("model.layers.0.linear_attn.in_proj_z.weight", 2, ["int4_s8", "int8", "int8", "bf16", "keep"]),
            ("model.layers.0.linear_attn.in_proj_a.weight", 2, ["int8", "int8", "int8", "bf16", "keep"]),
            ("model.layers.0.linear_attn.in_proj_b.weight", 2, ["int8", "int8", "int8", "bf16", "keep"]),
            ("model.layers.0.linear_attn.out_proj.weight", 2, ["int4_s8", "int8", "int8", "bf16", "keep"]),
            ("model.layers.0.self_attn.q_proj.weight", 2, ["int4_s8", "int4_s8", "int8", "bf16", "keep"]),
            ("model.layers.0.mlp.gate_proj.weight", 2, ["int4_s8", "int4_s8", "int8", "bf16", "keep"]),
            ("model.layers.0.mlp.gate.weight", 2, ["int8", "int8", "int8", "bf16", "keep"]),
            ("model.layers.0.mlp.shared_expert_gate.weight", 2, ["int8", "int8", "int8", "bf16", "keep"]),
            ("model.layers.0.mlp.experts.gate_up_proj", 3, ["int4_s8", "int4_s8", "int8", "bf16", "keep"]),
            ("model.visual.blocks.0.attn.qkv.weight", 2, ["int8", "int8", "int8", "bf16", "keep"]),
            ("model.visual.blocks.0.attn.qkv.bias", 1, ["f32", "f32", "f32", "f32", "keep"]),
            ("model.visual.patch_embed.proj.weight", 5, ["int8", "int8", "int8", "bf16", "keep"]),
            ("model.visual.pos_embed.weight", 2, ["keep", "keep", "keep", "bf16", "keep"]),
            ("mtp.fc.weight", 2, ["int8", "int8", "int8", "bf16", "keep"]),
            ("mtp.layers.0.self_attn.q_proj.weight", 2, ["int4_s8", "int4_s8", "int8", "bf16", "keep"]),
        ];
        for (tensor, rank, expected) in cases {
            for (recipe, expected) in ["int4", "careful", "int8", "bf16", "keep"].into_iter().zip(expected) {
                let found = Recipe::by_name(recipe).unwrap().treatment(tensor, &[64; 5][..rank]);
                assert_eq!(found.name(), expected, "{recipe} {tensor}");
            }
        }
    }

    #[test]
    fn display_is_a_table() {
        let text = r#"{"name": "t", "rules": [["*norm*", "f32"], ["*", "int4"]]}"#;
        let recipe = Recipe::from_json(text.as_bytes()).unwrap();
        assert_eq!(recipe.to_string(), "recipe t\n  *norm*  f32\n  *       int4");
    }

    #[test]
    fn faulty_recipes_are_explained() {
        for (text, reason) in [
            ("", "EOF while parsing"),
            ("[]", "invalid"),
            (r#"{"name": "t"}"#, "missing field `rules`"),
            (r#"{"name": "t", "rules": [["*", "int4"]], "more": 1}"#, "unknown field `more`"),
            (r#"{"name": "t", "rules": [["*"]]}"#, "invalid length 1"),
            (r#"{"name": "t", "rules": [["*", 4]]}"#, "invalid type"),
            (
                r#"{"name": "t", "rules": [["a", "keep"], ["*", "int5"]]}"#,
                "rule 2: 'int5' is not one of f32, f16",
            ),
            (r#"{"name": "t", "rules": [["", "int4"]]}"#, "rule 1: the pattern is empty"),
            (r#"{"name": "t", "rules": []}"#, "the last rule must have the pattern '*'"),
            (r#"{"name": "t", "rules": [["a", "int4"]]}"#, "the last rule must have the pattern '*'"),
            (r#"{"name": "t", "rules": [["*", "int4"], ["a", "f32"]]}"#, "rule 1: everything matches"),
        ] {
            let found = Recipe::from_json(text.as_bytes()).unwrap_err();
            assert!(found.contains(reason), "{text}: {found}");
        }
    }

    #[test]
    fn by_name_or_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        fs::write(&path, r#"{"name": "mine", "rules": [["*", "int8"]]}"#).unwrap();
        assert_eq!(Recipe::by_name_or_file(path.to_str().unwrap()).unwrap().name(), "mine");
        assert_eq!(Recipe::by_name_or_file("careful").unwrap().name(), "careful");
        fs::write(&path, "{").unwrap();
        let message = Recipe::by_name_or_file(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(message.contains("r.json: not a recipe: EOF"), "{message}");
        let message = Recipe::by_name_or_file("int5").unwrap_err().to_string();
        assert!(
            message.starts_with("recipe: 'int5' is neither a built-in recipe (int4, careful,"),
            "{message}"
        );
    }
}
