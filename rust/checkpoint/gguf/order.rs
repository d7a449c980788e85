//! Tensors of a GGUF file in the order and with the numbers of the original checkpoint.
//!
//! What has to be undone is told in [`names`](super::names). Rows are moved as bytes, whatever their type. Columns are moved as
//! bytes where heads are whole blocks; else the tensor is widened to f32, which holds every block type's numbers exactly.

use std::ops::Range;

use super::architecture::{AttentionHeads, DeltaHeads, Facts};
use super::names::Change;
use crate::error::Result;
use crate::tensor::{Bytes, DType, TensorView};

/// One tensor of the original checkpoint.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name in the original checkpoint.
    name: String,
    /// As the file has it; of a stack, its own part.
    view: TensorView,
    undo: Undo,
}

/// What has to be done to a tensor of the file.
#[derive(Clone, Debug)]
enum Undo {
    Nothing,
    /// Only the shape differs.
    Shape(Vec<usize>),
    /// 1 is subtracted.
    Norm,
    /// Rows are taken in this order.
    Rows {
        shape: Vec<usize>,
        rows: Vec<Range<usize>>,
    },
    /// The same, and then `ln(-x)`.
    Decay {
        rows: Vec<Range<usize>>,
    },
    /// Columns are taken in this order.
    Columns {
        columns: Vec<Range<usize>>,
    },
    /// Each patch of the first frame is followed by that of the second, for each channel.
    Frames {
        second: TensorView,
    },
}

impl Tensor {
    /// The tensor `view` of a file, which has been changed so.
    ///
    /// # Errors
    /// If its shape is none that could have been changed so.
    pub(super) fn new(name: String, view: TensorView, change: Change, facts: &Facts) -> Result<Self> {
        let undo = Undo::of(&view, change, facts)?;
        Ok(Self { name, view, undo })
    }

    /// The convolution over two frames, cut into `first` and `second`.
    pub(super) fn of_frames(name: String, first: TensorView, second: TensorView) -> Result<Self> {
        if first.shape.len() != 4 || first.shape != second.shape {
            let reason = format!("has shape {:?}, that of the first frame {:?}", second.shape, first.shape);
            return Err(second.error(reason));
        }
        Ok(Self { name, view: first, undo: Undo::Frames { second } })
    }

    /// Its name in the original checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tensor as the file has it.
    pub fn origin(&self) -> &TensorView {
        &self.view
    }

    /// Its shape in the original checkpoint.
    pub fn shape(&self) -> Vec<usize> {
        match &self.undo {
            Undo::Shape(shape) | Undo::Rows { shape, .. } => shape.clone(),
            Undo::Frames { .. } => frames_shape(&self.view),
            Undo::Nothing | Undo::Norm | Undo::Decay { .. } | Undo::Columns { .. } => self.view.shape.clone(),
        }
    }

    /// Its numbers under the file's name: mapped ones, or moved into memory.
    pub fn load(&self) -> Result<TensorView> {
        let view = &self.view;
        match &self.undo {
            Undo::Nothing => Ok(view.clone()),
            Undo::Shape(shape) => Ok(TensorView { shape: shape.clone(), ..view.clone() }),
            Undo::Norm => Ok(of_numbers(view, view.to_f32()?.into_iter().map(|x| x - 1.0))),
            Undo::Rows { shape, rows } => {
                let bytes = Bytes::new(gather(&view.bytes, view.shape[0], rows));
                Ok(TensorView { shape: shape.clone(), bytes, ..view.clone() })
            }
            Undo::Decay { rows } => decay(view, rows),
            Undo::Columns { columns } => move_columns(view, columns),
            Undo::Frames { second } => frames(view, second),
        }
    }
}

impl Undo {
    fn of(view: &TensorView, change: Change, facts: &Facts) -> Result<Self> {
        let shape = &view.shape;
        let with_one = |at: usize| {
            let mut shape = shape.clone();
            shape.insert(at.min(shape.len()), 1);
            shape
        };
        // Without tiled heads, or with as many value heads as key heads, every head is at its place.
        let tiled = facts.tiled.filter(|heads| heads.values != heads.keys);
        let undo = match (change, tiled) {
            (Change::Norm, _) if facts.norms_plus_one => Self::Norm,
            (Change::OneRow, _) if shape.len() == 1 => Self::Shape(with_one(0)),
            (Change::Convolution, None) if shape.len() == 2 => Self::Shape(with_one(1)),
            (Change::Convolution, Some(heads)) if shape.len() == 2 => {
                Self::Rows { shape: with_one(1), rows: query_key_value_rows(view, heads)? }
            }
            (Change::QueryKeyValueRows, Some(heads)) => {
                Self::Rows { shape: shape.clone(), rows: query_key_value_rows(view, heads)? }
            }
            (Change::ValueRows, Some(heads)) => Self::Rows {
                shape: shape.clone(),
                rows: value_heads(view, shape[0], 0, heads, heads.value_dim)?,
            },
            (Change::ValueHeads, Some(heads)) => {
                Self::Rows { shape: shape.clone(), rows: value_heads(view, shape[0], 0, heads, 1)? }
            }
            (Change::Decay, Some(heads)) => Self::Decay { rows: value_heads(view, shape[0], 0, heads, 1)? },
            (Change::Decay, None) => Self::Decay { rows: std::iter::once(0..shape[0]).collect() },
            (Change::ValueColumns, Some(heads)) => {
                let columns = shape.last().copied().unwrap_or(0);
                Self::Columns { columns: value_heads(view, columns, 0, heads, heads.value_dim)? }
            }
            (Change::QueryRows | Change::KeyRows, _) => match facts.paired {
                Some(AttentionHeads { queries, keys, dim }) => {
                    let heads = if change == Change::QueryRows { queries } else { keys };
                    Self::Rows { shape: shape.clone(), rows: unpaired_rows(view, heads, dim)? }
                }
                None => Self::Nothing,
            },
            _ => Self::Nothing,
        };
        Ok(undo)
    }
}

/// Rows of queries and keys as they are, then value heads in the original order.
fn query_key_value_rows(view: &TensorView, heads: DeltaHeads) -> Result<Vec<Range<usize>>> {
    let before = heads.keys.saturating_mul(heads.key_dim).saturating_mul(2);
    let mut rows = Vec::new();
    rows.push(0..before);
    rows.extend(value_heads(view, view.shape[0], before, heads, heads.value_dim)?);
    Ok(rows)
}

/// The places, in the original order, of value heads of `unit` rows (or columns) each behind `before` others. All of them are `all`.
fn value_heads(
    view: &TensorView,
    all: usize,
    before: usize,
    heads: DeltaHeads,
    unit: usize,
) -> Result<Vec<Range<usize>>> {
    let expected = heads.values.checked_mul(unit).and_then(|values| values.checked_add(before));
    if expected != Some(all) {
        let (values, shape) = (heads.values, &view.shape);
        let reason = format!("has shape {shape:?}, which does not hold {values} value heads of {unit}");
        return Err(view.error(reason));
    }
    let shared = heads.values / heads.keys;
    let place = |head: usize| before + unit * (head % shared * heads.keys + head / shared);
    Ok((0..heads.values).map(|head| place(head)..place(head) + unit).collect())
}

/// The places, in the original order, of the rows of heads in which the two that turn together stand beside each other.
fn unpaired_rows(view: &TensorView, heads: usize, dim: usize) -> Result<Vec<Range<usize>>> {
    if heads.checked_mul(dim) != Some(view.shape[0]) {
        let reason = format!("has shape {:?}, which does not hold {heads} heads of {dim}", view.shape);
        return Err(view.error(reason));
    }
    let place = |row: usize| row / dim * dim + row % dim % (dim / 2) * 2 + row % dim / (dim / 2);
    Ok((0..view.shape[0]).map(|row| place(row)..place(row) + 1).collect())
}

/// Copies parts of `bytes`, which are `count` equal units, in the given order.
fn gather(bytes: &[u8], count: usize, order: &[Range<usize>]) -> Vec<u8> {
    let unit = bytes.len() / count.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for range in order {
        out.extend_from_slice(&bytes[range.start * unit..range.end * unit]);
    }
    out
}

/// A tensor like `view`, of these numbers in f32.
fn of_numbers(view: &TensorView, numbers: impl Iterator<Item = f32>) -> TensorView {
    let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
    TensorView { dtype: DType::F32, bytes: Bytes::new(bytes), ..view.clone() }
}

fn decay(view: &TensorView, rows: &[Range<usize>]) -> Result<TensorView> {
    let stored = view.to_f32()?;
    if let Some(i) = stored.iter().position(|&x| x >= 0.0 || !x.is_finite()) {
        return Err(view.error(format!("element {i} is {}, not a number below 0 as -e^A_log is", stored[i])));
    }
    let ordered = rows.iter().flat_map(|range| &stored[range.clone()]);
    Ok(of_numbers(view, ordered.map(|&x| libm::logf(-x))))
}

fn move_columns(view: &TensorView, columns: &[Range<usize>]) -> Result<TensorView> {
    let width = view.shape.last().copied().unwrap_or(1);
    let block = match view.dtype {
        DType::Block(block) => block.weights(),
        _ => 1,
    };
    let whole =
        columns.iter().all(|range| range.start.is_multiple_of(block) && range.len().is_multiple_of(block));
    let view = if whole { view.clone() } else { of_numbers(view, view.to_f32()?.into_iter()) };
    let block = if whole { block } else { 1 };
    let order: Vec<_> = columns.iter().map(|range| range.start / block..range.end / block).collect();
    let rows = view.shape.iter().product::<usize>() / width;
    let row_bytes = view.bytes.len() / rows.max(1);
    let moved: Vec<u8> =
        view.bytes.chunks_exact(row_bytes).flat_map(|row| gather(row, width / block, &order)).collect();
    Ok(TensorView { bytes: Bytes::new(moved), ..view })
}

/// `[W, channels, 2, P, P]` of a frame's part `[W, channels, P, P]`.
fn frames_shape(view: &TensorView) -> Vec<usize> {
    let mut shape = view.shape.clone();
    shape.insert(2, 2);
    shape
}

fn frames(first: &TensorView, second: &TensorView) -> Result<TensorView> {
    let patch = first.shape[2] * first.shape[3];
    let (one, two) = (first.to_f32()?, second.to_f32()?);
    let patches = one.chunks_exact(patch).zip(two.chunks_exact(patch));
    let numbers = patches.flat_map(|(one, two)| one.iter().chain(two)).copied();
    Ok(TensorView { shape: frames_shape(first), ..of_numbers(first, numbers) })
}

/// The part of a stack of `count` that is tensor `index`.
pub(super) fn of_stack(view: &TensorView, index: usize) -> Option<TensorView> {
    let (&count, shape) = view.shape.split_first()?;
    let bytes = view.bytes.len() / count;
    let part = view.bytes.slice(index.checked_mul(bytes)?..index.checked_add(1)?.checked_mul(bytes)?)?;
    Some(TensorView { shape: shape.to_vec(), bytes: part, ..view.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::gguf::blocks::BlockType;

    /// Two key heads of 1, six value heads of 2.
    const HEADS: DeltaHeads = DeltaHeads { keys: 2, values: 6, key_dim: 1, value_dim: 2 };

    fn facts() -> Facts {
        Facts { norms_plus_one: true, tiled: Some(HEADS), ..Facts::default() }
    }

    fn view(shape: &[usize], numbers: &[f32]) -> TensorView {
        let view = TensorView {
            path: "f".into(),
            name: "t".into(),
            dtype: DType::F32,
            shape: shape.to_vec(),
            bytes: Bytes::new(Vec::new()),
        };
        of_numbers(&view, numbers.iter().copied())
    }

    /// What llama.cpp's `_reorder_v_heads` makes of rows `[heads, unit]`: `reshape(keys, shared).swapaxes(0, 1)`.
    fn tiled(original: &[f32], unit: usize) -> Vec<f32> {
        let shared = HEADS.values / HEADS.keys;
        let mut out = Vec::new();
        for j in 0..shared {
            for k in 0..HEADS.keys {
                let head = k * shared + j;
                out.extend_from_slice(&original[head * unit..(head + 1) * unit]);
            }
        }
        out
    }

    fn count(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32 - 100.0).collect()
    }

    fn loaded(shape: &[usize], stored: &[f32], change: Change) -> (Vec<usize>, Vec<f32>) {
        let tensor = Tensor::new("n".into(), view(shape, stored), change, &facts()).unwrap();
        let loaded = tensor.load().unwrap();
        assert_eq!(loaded.shape, tensor.shape());
        (loaded.shape.clone(), loaded.to_f32().unwrap())
    }

    #[test]
    fn value_heads_go_back_to_their_key_heads() {
        let heads = count(6);
        assert_eq!(loaded(&[6], &tiled(&heads, 1), Change::ValueHeads), (vec![6], heads));
        let rows = count(12 * 3);
        assert_eq!(loaded(&[12, 3], &tiled(&rows, 6), Change::ValueRows), (vec![12, 3], rows));
    }

    #[test]
    fn queries_and_keys_stay() {
        let (before, values) = (count(4 * 3), count(12 * 3));
        let stored = [before.clone(), tiled(&values, 6)].concat();
        let original = [before, values].concat();
        assert_eq!(loaded(&[16, 3], &stored, Change::QueryKeyValueRows), (vec![16, 3], original.clone()));
        assert_eq!(loaded(&[16, 3], &stored, Change::Convolution), (vec![16, 1, 3], original));
    }

    #[test]
    fn columns_are_value_heads_too() {
        let (first, second) = (count(12), count(12));
        let stored = [tiled(&first, 2), tiled(&second, 2)].concat();
        assert_eq!(loaded(&[2, 12], &stored, Change::ValueColumns), (vec![2, 12], [first, second].concat()));
    }

    #[test]
    fn numbers_are_those_of_the_original() {
        assert_eq!(loaded(&[2], &[1.5, 0.25], Change::Norm), (vec![2], vec![0.5, -0.75]));
        assert_eq!(loaded(&[2], &[1.5, 0.25], Change::OneRow), (vec![1, 2], vec![1.5, 0.25]));
        let logs = [0.5_f32, -1.0, 0.0, 2.0, 1.0, -3.0];
        let stored: Vec<f32> = tiled(&logs, 1).iter().map(|x| -x.exp()).collect();
        let (_, found) = loaded(&[6], &stored, Change::Decay);
        assert!(found.iter().zip(logs).all(|(x, y)| (x - y).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn a_decay_that_grows_is_refused() {
        let tensor = Tensor::new(
            "n".into(),
            view(&[6], &[-1.0, -1.0, 0.5, -1.0, -1.0, -1.0]),
            Change::Decay,
            &facts(),
        );
        let message = tensor.unwrap().load().unwrap_err().to_string();
        assert_eq!(message, "f: tensor 't': element 2 is 0.5, not a number below 0 as -e^A_log is");
    }

    /// What llama.cpp's `permute` makes of rows `[heads, 2, dim / 2]`: `swapaxes(1, 2)`.
    fn paired(original: &[f32], dim: usize, width: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for head in original.chunks(dim * width) {
            for i in 0..dim / 2 {
                for half in 0..2 {
                    let row = half * dim / 2 + i;
                    out.extend_from_slice(&head[row * width..(row + 1) * width]);
                }
            }
        }
        out
    }

    #[test]
    fn rows_that_turn_together_go_back_to_their_halves() {
        let heads = AttentionHeads { queries: 3, keys: 2, dim: 6 };
        for (change, count_of) in [(Change::QueryRows, 3), (Change::KeyRows, 2)] {
            let rows = count(count_of * 6 * 2);
            let stored = view(&[count_of * 6, 2], &paired(&rows, 6, 2));
            let of = |paired| Tensor::new("n".into(), stored.clone(), change, &Facts { paired, ..facts() });
            assert_eq!(of(Some(heads)).unwrap().load().unwrap().to_f32().unwrap(), rows);
            // In other architectures they stand as they are.
            assert_eq!(of(None).unwrap().load().unwrap().bytes[..], stored.bytes[..]);
            let other = of(Some(AttentionHeads { dim: 4, ..heads })).unwrap_err().to_string();
            assert!(other.contains(&format!("which does not hold {count_of} heads of 4")), "{other}");
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        for (shape, change) in [
            (vec![11, 3], Change::ValueRows),
            (vec![5], Change::ValueHeads),
            (vec![15, 3], Change::QueryKeyValueRows),
            (vec![2, 13], Change::ValueColumns),
            (vec![7], Change::Decay),
        ] {
            let numbers = count(shape.iter().product());
            let message =
                Tensor::new("n".into(), view(&shape, &numbers), change, &facts()).unwrap_err().to_string();
            assert!(message.contains("which does not hold 6 value heads"), "{message}");
        }
    }

    #[test]
    fn blocks_are_moved_whole_or_widened() {
        let heads = DeltaHeads { keys: 1, values: 2, key_dim: 16, value_dim: 32 };
        // One key head: tiled order is the original one.
        assert_eq!(value_heads(&view(&[64], &[0.0; 64]), 64, 0, heads, 32).unwrap(), [0..32, 32..64]);
        for (kind, value_dim, dtype) in [
            (BlockType::Q8_0, 32, DType::Block(BlockType::Q8_0)),
            (BlockType::Q8_0, 16, DType::F32),
            (BlockType::Q4_K, 128, DType::F32),
        ] {
            let heads = DeltaHeads { keys: 2, values: 4, key_dim: 16, value_dim };
            let columns = (4 * value_dim).next_multiple_of(kind.weights());
            let heads = DeltaHeads { value_dim: columns / 4, ..heads };
            let bytes: Vec<u8> =
                (0..columns / kind.weights() * kind.bytes()).map(|i| (i * 7 % 100) as u8).collect();
            let stored = TensorView {
                dtype: DType::Block(kind),
                bytes: Bytes::new(bytes),
                ..view(&[1, columns], &[])
            };
            let facts = Facts { tiled: Some(heads), ..facts() };
            let tensor = Tensor::new("n".into(), stored.clone(), Change::ValueColumns, &facts).unwrap();
            let loaded = tensor.load().unwrap();
            assert_eq!(loaded.dtype, dtype, "{kind:?}");
            let (from, to) = (stored.to_f32().unwrap(), loaded.to_f32().unwrap());
            let unit = columns / 4;
            // Heads 0, 1 of key 0 stood at places 0 and 2.
            for (ours, theirs) in [0, 2, 1, 3].into_iter().enumerate() {
                let part = |x: &[f32], at: usize| {
                    x[at * unit..(at + 1) * unit].iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                };
                assert_eq!(part(&to, ours), part(&from, theirs), "{kind:?} {ours}");
            }
        }
    }
}
