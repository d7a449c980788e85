//! Names and layouts that checkpoints written by MLX's programs have, and those of the original beneath them.
//!
//! | MLX                                                 | here                                        |
//! |-----------------------------------------------------|---------------------------------------------|
//! | `language_model.model.X`, `language_model.lm_head.X` | `model.language_model.X`, `lm_head.X`       |
//! | `X.mlp.switch_mlp.up_proj.weight` `[E, N, K]`       | `X.mlp.experts.0.up_proj.weight` and so on  |
//! | `X.conv1d.weight` `[C, 4, 1]`                       | `[C, 1, 4]`                                 |
//! | norms around 1, in a hybrid model                   | around 0                                    |
//!
//! A convolution in that layout is what tells a hybrid model of MLX: it moved the axis and added 1 to the norms in one go. The
//! vision tower that mlx-vlm writes has other layouts and is left out: such a checkpoint is a model of text.
//!
//! Source: `sanitize` of `qwen3_5`, `qwen3_5_moe` and `qwen3_next` in mlx-lm.

use std::collections::BTreeMap;

use super::safetensors::{Entry, SafeTensors};
use crate::error::{Error, Result};
use crate::tensor::{Bytes, DType, TensorView};

/// A tensor under the name and in the layout of the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    /// Its name in the file.
    pub(super) original: String,
    change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// None but the name.
    Name,
    /// 1 is subtracted.
    ZeroCentred,
    /// The last two dimensions, one of which is 1, change places.
    LastTwo,
    /// One of so many slices of the first dimension.
    Slice(usize, usize),
}

/// Where MLX puts what is no vision tower in a model that sees.
const TEXT: &str = "language_model.";
const VISION: &str = "vision_tower.";
const CONVOLUTION: &str = ".conv1d.weight";
const EXPERTS: &str = ".mlp.switch_mlp.";
/// Most experts of a layer.
const MAX_EXPERTS: usize = 1 << 16;
/// The norms that a hybrid model has around 0.
const ZERO_CENTRED: [&str; 5] = [
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
];

/// All tensors of `files` by the names of the original, and the place of each one's file; `None` if MLX's programs did not
/// write them.
///
/// # Errors
/// If two tensors would have one name.
pub(super) fn aliases(files: &[SafeTensors]) -> Result<Option<BTreeMap<String, (usize, Alias)>>> {
    let all = || {
        let files = files.iter().enumerate();
        files.flat_map(|(i, file)| file.header().tensors().iter().map(move |(name, entry)| (i, name, entry)))
    };
    let hybrid = all().any(|(_, name, entry)| is_convolution(name, entry));
    let written_by_mlx = |name: &str| name.starts_with("language_model.model.") || name.contains(EXPERTS);
    if !hybrid && !all().any(|(_, name, _)| written_by_mlx(name)) {
        return Ok(None);
    }
    let mut found = BTreeMap::new();
    for (file, name, entry) in all().filter(|(_, name, _)| !name.starts_with(VISION)) {
        for (alias, change) in renamed(name, entry, hybrid) {
            let place = (file, Alias { original: name.clone(), change });
            if let Some((_, Alias { original, .. })) = found.insert(alias, place) {
                let reason = format!("stands for the same tensor as '{original}'");
                return Err(Error::tensor(files[file].path(), name, reason));
            }
        }
    }
    Ok(Some(found))
}

/// Whether this is a convolution with its channels last: `[C, taps, 1]`.
fn is_convolution(name: &str, entry: &Entry) -> bool {
    name.ends_with(CONVOLUTION) && matches!(entry.shape[..], [_, taps, 1] if taps > 1)
}

/// The names a tensor has in the original.
fn renamed(name: &str, entry: &Entry, hybrid: bool) -> Vec<(String, Change)> {
    let plain = match name.strip_prefix(TEXT) {
        Some(rest) => match rest.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => rest.to_owned(),
        },
        None => name.to_owned(),
    };
    if let (Some((layer, rest)), Some(&experts)) = (plain.split_once(EXPERTS), entry.shape.first())
        && entry.shape.len() == 3
        && (1..=MAX_EXPERTS).contains(&experts)
    {
        let expert = |i| (format!("{layer}.mlp.experts.{i}.{rest}"), Change::Slice(i, experts));
        return (0..experts).map(expert).collect();
    }
    let change = if is_convolution(name, entry) {
        Change::LastTwo
    } else if hybrid && entry.shape.len() == 1 && ZERO_CENTRED.iter().any(|norm| name.ends_with(norm)) {
        Change::ZeroCentred
    } else {
        Change::Name
    };
    vec![(plain, change)]
}

impl Alias {
    /// The tensor under the name `name`, from the one in the file.
    pub(super) fn apply(&self, name: &str, view: TensorView) -> Result<TensorView> {
        let view = TensorView { name: name.to_owned(), ..view };
        match self.change {
            Change::Name => Ok(view),
            Change::LastTwo => {
                let mut shape = view.shape.clone();
                let last = shape.len().saturating_sub(1);
                shape.swap(last, last.saturating_sub(1));
                Ok(TensorView { shape, ..view })
            }
            Change::ZeroCentred => {
                let values = view.to_f32()?.into_iter().flat_map(|value| (value - 1.0).to_le_bytes());
                let bytes = Bytes::new(values.collect::<Vec<_>>());
                Ok(TensorView { dtype: DType::F32, bytes, ..view })
            }
            Change::Slice(index, count) => {
                let size = view.bytes.len() / count;
                let bytes = view.bytes.slice(index * size..(index + 1) * size);
                let bytes = bytes.ok_or_else(|| view.error(format!("has no slice {index}")))?;
                Ok(TensorView { shape: view.shape[1..].to_vec(), bytes, ..view })
            }
        }
    }

    /// Bytes that the tensor takes of those of the one in the file.
    pub(super) fn nbytes(&self, bytes: usize) -> usize {
        match self.change {
            Change::Slice(_, count) => bytes / count,
            _ => bytes,
        }
    }
}
