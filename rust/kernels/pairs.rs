//! Rows of activations two by two, as products of 8-bit matrices take them.
//!
//! Such a product multiplies two rows of weights with two tokens over eight columns, so it wants the two tokens' columns in
//! one register. They are brought together once for a tile and serve all panels that it is multiplied with.

use std::cell::Cell;

use super::activations::Group;
use crate::weights::matrix::BLOCK_COLS;

/// Groups of two tokens, `a` and `b`.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// What sums of nibbles start from, or what offsets multiply, as [`Sums`] has it: of a, b, a, b.
    pub starts: [u32; 4],
    /// Eight columns of a and the same of b, four times.
    pub values: [[[i8; 8]; 2]; BLOCK_COLS / 8],
    /// [`Group::base`] of a, b, a, b.
    pub bases: [f32; 4],
    /// Scales of a, b, a, b.
    pub scales: [f32; 4],
}

/// What the bits of [`Pair::starts`] are.
#[derive(Clone, Copy, Debug)]
pub enum Sums {
    /// [`Group::start_u4`], from which sums of products start.
    Integers,
    /// -8 x the sum / 2^k in f32, which offsets of asymmetric weights multiply.
    Floats,
}

impl Pair {
    #[inline(always)]
    fn new(a: &Group, b: &Group, sums: Sums) -> Self {
        let (bases, scales) = ([a.base, b.base], [a.scale, b.scale]);
        let starts = [a, b].map(|group| {
            let bits = group.start_u4.cast_unsigned();
            match sums {
                Sums::Integers => bits,
                Sums::Floats => (f32::from_bits(bits) - group.base).to_bits(),
            }
        });
        let mut values = [[[0; 8]; 2]; BLOCK_COLS / 8];
        let columns = a.values.as_chunks().0.iter().zip(b.values.as_chunks().0);
        for (values, (a, b)) in values.iter_mut().zip(columns) {
            *values = [*a, *b];
        }
        Self {
            bases: [bases[0], bases[1], bases[0], bases[1]],
            scales: [scales[0], scales[1], scales[0], scales[1]],
            starts: [starts[0], starts[1], starts[0], starts[1]],
            values,
        }
    }
}

thread_local! {
    /// Room for the pairs of one tile: it grows to the widest matrix and is not given back.
    static ROOM: Cell<Vec<Pair>> = const { Cell::new(Vec::new()) };
}

/// The pairs of a tile, `[blocks, pairs]`, in the thread's room for them.
#[derive(Debug)]
pub struct Pairs(Vec<Pair>);

impl Pairs {
    /// No pairs.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Pairs the first `blocks` groups of `tokens` rows: `row(t)` is the row of token t. The last of an odd number is
    /// paired with itself.
    pub fn new<'a>(tokens: usize, blocks: usize, sums: Sums, row: impl Fn(usize) -> &'a [Group]) -> Self {
        let count = tokens.div_ceil(2);
        let mut pairs = ROOM.take();
        pairs.clear();
        pairs.reserve(blocks * count);
        for b in 0..blocks {
            pairs.extend((0..count).map(|p| {
                let (even, odd) = (2 * p, (2 * p + 1).min(tokens - 1));
                Pair::new(&row(even)[b], &row(odd)[b], sums)
            }));
        }
        Self(pairs)
    }

    /// `[blocks, pairs]`
    pub fn all(&self) -> &[Pair] {
        &self.0
    }
}

impl Drop for Pairs {
    fn drop(&mut self) {
        if self.0.capacity() > 0 {
            ROOM.set(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_stand_block_by_block() {
        let group = |token: i8, block: i8| {
            let values = std::array::from_fn(|i| 10 * token + block + i as i8);
            let mut group = Group { values, ..Group::default() };
            group.set(f32::from(token), i32::from(block), i32::from(block));
            group
        };
        let rows: Vec<[Group; 2]> = (0..3).map(|token| [group(token, 0), group(token, 1)]).collect();
        for sums in [Sums::Integers, Sums::Floats] {
            let pairs = Pairs::new(3, 2, sums, |t| &rows[t]);
            assert_eq!(pairs.all().len(), 4);
            let last = pairs.all()[3];
            assert_eq!(
                last.scales.map(f32::to_bits),
                [2.0_f32; 4].map(f32::to_bits),
                "the third token is paired with itself"
            );
            let other = pairs.all()[2];
            assert_eq!(other.scales.map(f32::to_bits), [0.0_f32, 1.0, 0.0, 1.0].map(f32::to_bits));
            assert_eq!(other.values[1], [[9, 10, 11, 12, 13, 14, 15, 16], [19, 20, 21, 22, 23, 24, 25, 26]]);
            assert_eq!(other.bases.map(f32::to_bits), [6_291_456.0_f32; 4].map(f32::to_bits));
            let start = match sums {
                Sums::Integers => 6_291_456.0_f32.to_bits() - 8,
                Sums::Floats => (-4.0_f32).to_bits(),
            };
            assert_eq!(other.starts, [start; 4]);
        }
        // The room is taken again, and holds nothing of before.
        assert_eq!(Pairs::new(1, 1, Sums::Integers, |_| &rows[1]).all().len(), 1);
        assert_eq!(Pairs::none().all().len(), 0);
    }
}
