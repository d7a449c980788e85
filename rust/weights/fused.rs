//! Tensors that some checkpoints hold fused, taken apart: Qwen3-Next's projections of the delta layers.
//!
//! Qwen3.5 has one matrix for queries, keys and values (`in_proj_qkv`: all query heads, then all key heads, then all value
//! heads), and one each for the output gate `z`, the rate `b` and the decay `a`. Qwen3-Next has two, in which everything
//! that belongs to one key head stands together (r value heads share a key head):
//!
//! ```text
//! in_proj_qkvz  for each key head: its query, its key, its r values, their r gates    [Hk (2 Dk + 2 r Dv), H]
//! in_proj_ba    for each key head: r rates, r decays                                  [Hk 2 r, H]
//! ```
//!
//! The kernels want Qwen3.5's order, so rows are gathered once: when a checkpoint is converted, whose file then has the
//! separate tensors, or when it is opened as it is.
//!
//! A GGUF file has other orders, which `checkpoint::gguf` takes back; what it gives is a part too, read when it is loaded.
//!
//! Source: `fix_query_key_value_ordering` in the Qwen3-Next model code.

use std::ops::Range;

use super::gguf::natural_format;
use super::matrix::Format;
use crate::checkpoint::{Checkpoint, gguf};
use crate::config::DeltaConfig;
use crate::error::Result;
use crate::tensor::{Bytes, TensorView};

/// What a fused tensor is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    QueryKeyValue,
    Gate,
    Rate,
    Decay,
}

const QKVZ: &str = "linear_attn.in_proj_qkvz.weight";
const BA: &str = "linear_attn.in_proj_ba.weight";

/// Every piece: the name it has alone, and the fused tensor it stands in.
const PIECES: [(&str, &str, Piece); 4] = [
    ("linear_attn.in_proj_qkv.weight", QKVZ, Piece::QueryKeyValue),
    ("linear_attn.in_proj_z.weight", QKVZ, Piece::Gate),
    ("linear_attn.in_proj_b.weight", BA, Piece::Rate),
    ("linear_attn.in_proj_a.weight", BA, Piece::Decay),
];

/// Whether the tensor of this name is a fused one.
pub fn is_fused(name: &str) -> bool {
    PIECES.iter().any(|(_, fused, _)| name.ends_with(fused))
}

/// The names of the pieces of the fused tensor of this name; none if it is not one.
pub(super) fn pieces(name: &str) -> impl Iterator<Item = String> {
    PIECES.iter().filter_map(move |(alone, fused, _)| Some(format!("{}{alone}", name.strip_suffix(fused)?)))
}

/// The fused tensor that holds the piece of this name, the rows the piece takes of it, in order, and how many rows it has.
pub(super) fn place_of(name: &str, delta: &DeltaConfig) -> Option<(String, Vec<usize>, usize)> {
    PIECES.iter().find_map(|(alone, fused, piece)| {
        let stem = name.strip_suffix(alone)?;
        let (runs, all) = rows(*piece, delta);
        Some((format!("{stem}{fused}"), runs.into_iter().flatten().collect(), all))
    })
}

/// Whether the tensor of this name is a part of a fused one that another program packed: all of theirs begin as its module does.
pub(super) fn is_packed(name: &str) -> bool {
    [QKVZ, BA].iter().any(|fused| name.contains(fused.trim_end_matches("weight")))
}

/// A tensor as the model wants it: one of the checkpoint, or rows of one.
#[derive(Clone, Debug)]
pub struct Part {
    view: TensorView,
    taken: Taken,
}

/// What is taken of a tensor.
#[derive(Clone, Debug)]
enum Taken {
    /// All of it.
    All,
    /// These rows, under this name.
    Rows(String, Vec<Range<usize>>),
    /// What a GGUF file has in another order.
    Gguf(gguf::Tensor),
}

impl Part {
    /// The tensor `name` of `checkpoint`, alone or as rows of a fused one.
    ///
    /// # Errors
    /// If there is neither, or the fused one has other rows than `delta` says.
    pub fn find(checkpoint: &Checkpoint, name: &str, delta: Option<&DeltaConfig>) -> Result<Self> {
        let fused = PIECES.iter().find_map(|(alone, fused, piece)| {
            Some((format!("{}{fused}", name.strip_suffix(alone)?), *piece, delta?))
        });
        match fused {
            Some((fused, piece, delta)) if !checkpoint.contains(name) && checkpoint.contains(&fused) => {
                Self::piece(checkpoint.require(&fused)?, name.to_owned(), piece, delta)
            }
            _ => Self::whole(checkpoint, name),
        }
    }

    /// What the tensor `name` of `checkpoint` gives: itself, or its pieces.
    pub fn all(checkpoint: &Checkpoint, name: &str, delta: Option<&DeltaConfig>) -> Result<Vec<Self>> {
        let whole = Self::whole(checkpoint, name)?;
        let Some(delta) = delta else { return Ok(vec![whole]) };
        let pieces = PIECES.iter().filter_map(|(alone, fused, piece)| {
            Some((format!("{}{alone}", name.strip_suffix(fused)?), *piece))
        });
        let parts: Vec<_> = pieces
            .map(|(name, piece)| Self::piece(whole.view.clone(), name, piece, delta))
            .collect::<Result<_>>()?;
        Ok(if parts.is_empty() { vec![whole] } else { parts })
    }

    /// All of the tensor `name`.
    fn whole(checkpoint: &Checkpoint, name: &str) -> Result<Self> {
        match checkpoint.gguf().map(|model| model.tensor(name)).transpose()?.flatten() {
            Some(tensor) => Ok(Self { view: tensor.origin().clone(), taken: Taken::Gguf(tensor) }),
            None => Ok(Self { view: checkpoint.require(name)?, taken: Taken::All }),
        }
    }

    fn piece(view: TensorView, name: String, piece: Piece, delta: &DeltaConfig) -> Result<Self> {
        let (rows, all) = rows(piece, delta);
        match view.shape[..] {
            [found, _] if found == all => Ok(Self { view, taken: Taken::Rows(name, rows) }),
            _ => Err(view.error(format!("has shape {:?}, the model needs {all} rows", view.shape))),
        }
    }

    /// The name it has in the model.
    pub fn name(&self) -> &str {
        match &self.taken {
            Taken::All => &self.view.name,
            Taken::Rows(name, _) => name,
            Taken::Gguf(tensor) => tensor.name(),
        }
    }

    /// The tensor it stands in.
    pub fn origin(&self) -> &TensorView {
        &self.view
    }

    /// Its shape.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.view.shape.clone();
        match &self.taken {
            Taken::All => {}
            Taken::Rows(_, rows) => shape[0] = rows.iter().map(Range::len).sum(),
            Taken::Gguf(tensor) => shape = tensor.shape(),
        }
        shape
    }

    /// The format that holds its numbers as they are, or that of least loss for blocks of GGUF; `None` if they are integers.
    pub fn format(&self) -> Option<Format> {
        natural_format(self.view.dtype)
    }

    /// How many bytes of the checkpoint it has.
    pub fn nbytes(&self) -> usize {
        self.view.dtype.nbytes(self.shape().iter().product())
    }

    /// Its numbers: mapped ones, or gathered into memory.
    pub fn load(&self) -> Result<TensorView> {
        let (name, rows) = match &self.taken {
            Taken::All => return Ok(self.view.clone()),
            Taken::Gguf(tensor) => return tensor.load(),
            Taken::Rows(name, rows) => (name, rows),
        };
        let row_bytes = self.view.bytes.len() / self.view.shape[0].max(1);
        let shape = self.shape();
        let mut bytes = Vec::with_capacity(shape[0] * row_bytes);
        for rows in rows {
            bytes.extend_from_slice(&self.view.bytes[rows.start * row_bytes..rows.end * row_bytes]);
        }
        let (path, dtype) = (self.view.path.clone(), self.view.dtype);
        Ok(TensorView { path, name: name.clone(), dtype, shape, bytes: Bytes::new(bytes) })
    }
}

/// The rows of a piece in its fused tensor, in order, and how many rows that has in all.
fn rows(piece: Piece, delta: &DeltaConfig) -> (Vec<Range<usize>>, usize) {
    let values = delta.value_heads / delta.key_heads;
    let (key, value) = (delta.key_dim, values * delta.value_dim);
    let (group, runs) = match piece {
        Piece::QueryKeyValue => (2 * (key + value), vec![(0, key), (key, key), (2 * key, value)]),
        Piece::Gate => (2 * (key + value), vec![(2 * key + value, value)]),
        Piece::Rate => (2 * values, vec![(0, values)]),
        Piece::Decay => (2 * values, vec![(values, values)]),
    };
    let of_heads = |(start, len): (usize, usize)| {
        (0..delta.key_heads).map(move |head| head * group + start..head * group + start + len)
    };
    (runs.into_iter().flat_map(of_heads).collect(), delta.key_heads * group)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> DeltaConfig {
        DeltaConfig { key_heads: 2, value_heads: 4, key_dim: 16, value_dim: 32, conv_kernel: 4 }
    }

    #[test]
    fn each_row_goes_to_one_piece() {
        for fused in [[Piece::QueryKeyValue, Piece::Gate], [Piece::Rate, Piece::Decay]] {
            let pieces = fused.map(|piece| rows(piece, &shapes()));
            assert_eq!(pieces[0].1, pieces[1].1);
            let mut taken: Vec<_> = pieces.iter().flat_map(|(rows, _)| rows.clone()).flatten().collect();
            taken.sort_unstable();
            assert_eq!(taken, (0..pieces[0].1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn heads_are_gathered_by_what_they_are() {
        let (qkv, all) = rows(Piece::QueryKeyValue, &shapes());
        assert_eq!(all, 2 * (16 + 16 + 64 + 64));
        assert_eq!(qkv, [0..16, 160..176, 16..32, 176..192, 32..96, 192..256]);
        assert_eq!(rows(Piece::Gate, &shapes()).0, [96..160, 256..320]);
        assert_eq!(rows(Piece::Rate, &shapes()).0, [0..2, 4..6]);
        assert_eq!(rows(Piece::Decay, &shapes()).0, [2..4, 6..8]);
    }
}
