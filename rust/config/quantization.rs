//! What `quantization_config` says of weights that another program has packed.
//!
//! Shapes of the packed tensors tell bits and groups by themselves for most methods; the configuration must agree, be it by
//! its own numbers or by those of an override for some modules. What shapes cannot tell (the offset of zero points, the order
//! within words, the size of a block) stands here alone.
//!
//! Sources: the configurations that `AutoGPTQ` and `GPTQModel`, `AutoAWQ`, compressed-tensors, transformers (`FineGrainedFP8Config`)
//! and mlx-lm write.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::fields::{Fields, MAX_SIZE, describe};
use super::parse_root;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::json::quote;
use crate::error::{Error, Result};

/// Where the settings stand.
const KEY: &str = "quantization_config";
/// Where MLX puts the same once more.
const MLX_KEY: &str = "quantization";
/// Methods that are read, as `quant_method` names them; MLX names none.
const METHODS: [&str; 4] = ["gptq", "awq", "compressed-tensors", "fp8"];
/// Bits of a packed integer that are read.
const BITS: [usize; 2] = [4, 8];

/// How the weights of a checkpoint are packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    /// By which program's rules.
    pub method: Method,
    /// Modules said to be left unpacked, as the configuration lists them: names, parts of names or patterns.
    pub ignored: Vec<String>,
    /// The dotted name of that list.
    pub ignored_key: String,
}

/// The rules of a method.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// GPTQ as `AutoGPTQ` and `GPTQModel` store it.
    Gptq {
        /// What is added to a stored zero point: 1, but 0 in `gptq_v2`.
        zero_offset: u8,
        /// What modules may be packed in.
        grids: Vec<Grid>,
    },
    /// AWQ in the order of its GEMM kernel.
    Awq {
        /// What modules are packed in.
        grid: Grid,
    },
    /// compressed-tensors: schemes for groups of modules.
    CompressedTensors(Vec<Scheme>),
    /// FP8 (E4M3).
    Fp8 {
        /// Rows and columns that share a scale; `None` where it is one for the matrix.
        block: Option<[usize; 2]>,
    },
    /// MLX in its affine mode.
    Mlx {
        /// Where no other stands.
        grid: Grid,
        /// By module; `None` for one left unpacked.
        modules: BTreeMap<String, Option<Grid>>,
    },
}

/// Bits of a weight, and how many columns share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// 4 or 8.
    pub bits: usize,
    /// Or [`WHOLE_ROW`].
    pub group: usize,
}

/// All columns of a row share a scale.
pub const WHOLE_ROW: usize = usize::MAX;

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group {
            WHOLE_ROW => write!(f, "{} bits with one group a row", self.bits),
            group => write!(f, "{} bits in groups of {group}", self.bits),
        }
    }
}

/// What some modules' weights are in compressed-tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Whether numbers are FP8 (E4M3), else integers.
    pub float: bool,
    /// Bits of a number.
    pub bits: usize,
    /// Whether zero is level 0.
    pub symmetric: bool,
    /// What shares a scale.
    pub strategy: Strategy,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The matrix.
    Tensor,
    /// A row.
    Channel,
    /// So many columns of a row.
    Group(usize),
    /// Rows by columns.
    Block([usize; 2]),
}

impl Quantization {
    /// What the `config.json` of a checkpoint says; `None` if it says nothing, is not there, or the checkpoint is of our own
    /// format.
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        if checkpoint.is_native() {
            return Ok(None);
        }
        let Some(json) = checkpoint.side_file("config.json")? else { return Ok(None) };
        let path = checkpoint.path().join("config.json");
        let root = parse_root(&path, &json)?;
        Self::parse(&path, &root)
    }

    /// The same of a parsed `config.json`.
    pub(super) fn parse(path: &Path, root: &Value) -> Result<Option<Self>> {
        let outer = Fields::new(path, root)?;
        let found = [Some(&outer), outer.object("text_config")?.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|fields| settings(fields).transpose());
        found.transpose()?.as_ref().map(method).transpose()
    }
}

/// The object of settings in `fields`, if there is one.
fn settings<'a>(fields: &Fields<'a>) -> Result<Option<Fields<'a>>> {
    Ok(match fields.object(KEY)? {
        Some(settings) => Some(settings),
        None => fields.object(MLX_KEY)?,
    })
}

fn method(fields: &Fields) -> Result<Quantization> {
    let name = fields.text("quant_method")?;
    let (method, ignored_key) = match name {
        Some("gptq") => (gptq(fields)?, "modules_to_not_convert"),
        Some("awq") => (awq(fields)?, "modules_to_not_convert"),
        Some("compressed-tensors") => (compressed_tensors(fields)?, "ignore"),
        Some("fp8") if fields.get("ignored_layers").is_some() => (fp8(fields)?, "ignored_layers"),
        Some("fp8") => (fp8(fields)?, "modules_to_not_convert"),
        None if fields.get("bits").is_some() && fields.get("group_size").is_some() => {
            (mlx(fields)?, "modules_to_not_convert")
        }
        name => {
            let (name, known) = (name.unwrap_or("unknown"), METHODS.join(", "));
            let reason = format!(
                "weights quantised by '{}' are not supported; known: {known}, and MLX's affine mode; else use the original",
                quote(name)
            );
            return Err(fields.error("quant_method", reason));
        }
    };
    let ignored = fields.list(ignored_key)?.unwrap_or_default();
    let ignored = ignored.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Quantization { method, ignored, ignored_key: fields.name(ignored_key) })
}

/// An error unless the entry is one of `known` or absent.
fn expect(fields: &Fields, key: &str, known: &[&str]) -> Result<()> {
    match fields.text(key)? {
        Some(found) if !known.contains(&found) => {
            let reason = format!("'{}' is not supported; known: {}", quote(found), known.join(", "));
            Err(fields.error(key, reason))
        }
        _ => Ok(()),
    }
}

fn bits(fields: &Fields, key: &str) -> Result<Option<usize>> {
    let bits = fields.optional_size(key, 64)?;
    match bits {
        Some(bits) if !BITS.contains(&bits) => {
            Err(fields.error(key, format!("{bits} is not supported; known: 4, 8")))
        }
        bits => Ok(bits),
    }
}

/// Columns that share a scale; -1 is all of them.
fn group_size(fields: &Fields, key: &str) -> Result<Option<usize>> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    match value.as_i64() {
        Some(-1) => Ok(Some(WHOLE_ROW)),
        Some(size) if size > 0 && size as usize <= MAX_SIZE => Ok(Some(size as usize)),
        _ => Err(fields.error(key, format!("must be a whole number above 0 or -1, not {}", describe(value)))),
    }
}

fn grid(fields: &Fields) -> Result<Grid> {
    let bits = fields.require("bits", bits(fields, "bits")?)?;
    let group = fields.require("group_size", group_size(fields, "group_size")?)?;
    Ok(Grid { bits, group })
}

fn gptq(fields: &Fields) -> Result<Method> {
    for key in ["checkpoint_format", "format"] {
        expect(fields, key, &["gptq", "gptq_v2"])?;
    }
    expect(fields, "pack_dtype", &["int32"])?;
    let format = match fields.text("checkpoint_format")? {
        Some(format) => Some(format),
        None => fields.text("format")?,
    };
    let default = grid(fields)?;
    let mut grids = vec![default];
    if let Some(overrides) = fields.object("dynamic")? {
        for pattern in overrides.keys() {
            // `-:` excludes modules; they stand unpacked. Its value may be anything.
            if !pattern.starts_with("-:")
                && let Some(entry) = overrides.object(pattern)?
            {
                let bits = bits(&entry, "bits")?.unwrap_or(default.bits);
                let group = group_size(&entry, "group_size")?.unwrap_or(default.group);
                grids.push(Grid { bits, group });
            }
        }
    }
    Ok(Method::Gptq { zero_offset: u8::from(format != Some("gptq_v2")), grids })
}

fn awq(fields: &Fields) -> Result<Method> {
    expect(fields, "version", &["gemm", "GEMM"])?;
    if fields.flag("zero_point")? == Some(false) {
        return Err(fields.error("zero_point", "false is not supported"));
    }
    let grid = grid(fields)?;
    if grid.bits != 4 {
        return Err(fields.error("bits", format!("{} is not supported; known: 4", grid.bits)));
    }
    Ok(Method::Awq { grid })
}

fn compressed_tensors(fields: &Fields) -> Result<Method> {
    let formats =
        ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense"];
    expect(fields, "format", &formats)?;
    if let Some(sparsity) = fields.object("sparsity_config")? {
        expect(&sparsity, "format", &["dense"])?;
    }
    if let Some(transforms) = fields.object("transform_config")?
        && transforms.object("config_groups")?.is_some_and(|groups| groups.keys().next().is_some())
    {
        return Err(fields.error("transform_config", "weights that were rotated are not supported"));
    }
    let groups = fields.require("config_groups", fields.object("config_groups")?)?;
    let mut schemes = Vec::new();
    for name in groups.keys() {
        let group = groups.object(name)?;
        if let Some(group) = &group {
            expect(group, "format", &formats)?;
            if let Some(weights) = group.object("weights")? {
                schemes.push(scheme(&weights)?);
            }
        }
    }
    Ok(Method::CompressedTensors(schemes))
}

fn scheme(fields: &Fields) -> Result<Scheme> {
    expect(fields, "type", &["int", "float"])?;
    let float = fields.text("type")? == Some("float");
    let bits = fields.require("num_bits", bits(fields, "num_bits")?)?;
    if float && bits != 8 {
        return Err(fields.error("num_bits", format!("{bits} of a float is not supported; known: 8")));
    }
    let group = group_size(fields, "group_size")?;
    let strategy = match fields.text("strategy")? {
        Some("tensor") => Strategy::Tensor,
        Some("channel") => Strategy::Channel,
        Some("group") => Strategy::Group(fields.require("group_size", group)?),
        Some("block") => Strategy::Block(
            block(fields, "block_structure")?
                .ok_or_else(|| fields.error("block_structure", "is missing, and the strategy is 'block'"))?,
        ),
        None => group.map_or(Strategy::Tensor, Strategy::Group),
        Some(other) => {
            let reason = format!("'{}' is not supported; known: tensor, channel, group, block", quote(other));
            return Err(fields.error("strategy", reason));
        }
    };
    Ok(Scheme { float, bits, symmetric: fields.flag("symmetric")?.unwrap_or(true), strategy })
}

fn fp8(fields: &Fields) -> Result<Method> {
    expect(fields, "fmt", &["e4m3", "float8_e4m3fn"])?;
    expect(fields, "scale_fmt", &["float"])?;
    Ok(Method::Fp8 { block: block(fields, "weight_block_size")? })
}

/// Two sizes, rows and columns.
fn block(fields: &Fields, key: &str) -> Result<Option<[usize; 2]>> {
    let Some(sizes) = fields.list(key)? else { return Ok(None) };
    let size = |value: &Value| {
        let size = usize::try_from(value.as_u64()?).ok()?;
        (1..=MAX_SIZE).contains(&size).then_some(size)
    };
    match sizes {
        [rows, cols] => size(rows).zip(size(cols)).map(|(rows, cols)| Some([rows, cols])),
        _ => None,
    }
    .ok_or_else(|| fields.error(key, "must be two whole numbers, rows and columns"))
}

fn mlx(fields: &Fields) -> Result<Method> {
    expect(fields, "mode", &["affine"])?;
    let mut modules = BTreeMap::new();
    for (name, value) in fields.entries() {
        match value {
            Value::Bool(packed) if name != "quant_method" => {
                modules.insert(name.clone(), packed.then(|| grid(fields)).transpose()?);
            }
            Value::Object(_) => {
                if let Some(entry) = fields.object(name)? {
                    expect(&entry, "mode", &["affine"])?;
                    modules.insert(name.clone(), Some(grid(&entry)?));
                }
            }
            _ => {}
        }
    }
    Ok(Method::Mlx { grid: grid(fields)?, modules })
}

/// Refuses, of a parsed `config.json`, what no reader is there for.
pub(super) fn check(path: &Path, root: &Value) -> Result<()> {
    Quantization::parse(path, root).map(|_| ())
}

impl Quantization {
    /// An error if the configuration says by its full name that `module`, which is packed, is not.
    pub fn check_packed(&self, path: &Path, module: &str) -> Result<()> {
        if self.ignored.iter().any(|ignored| ignored == module) {
            return Err(self.contradiction(path, module));
        }
        Ok(())
    }

    /// The error that the configuration lists `module` as not packed.
    pub fn contradiction(&self, path: &Path, module: &str) -> Error {
        let reason = format!("lists '{}', whose tensors are packed", quote(module));
        Error::config(path, &self.ignored_key, reason)
    }
}
