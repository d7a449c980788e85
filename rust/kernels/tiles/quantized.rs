//! One panel of quantised weights, or two, x a tile of tokens. Each 32-bit lane is one output row, so nothing is ever summed across lanes:
//!
//! ```text
//! acc[token] = 0                                                  16 lanes of f32
//! for each span of 128 columns:                                   the last one may be shorter
//!   sum[token] = 0
//!   for each block of 32 columns:
//!     w = eight vectors of 16 rows x 4 columns                    nibbles expanded once for the tile
//!     for each token: dot = sum of w x a, exact in i32, / 2^k     8 dot steps and a subtraction, see `activations`
//!                     if the block is asymmetric, of its nibbles: dot = fma(offset_w - 8, sum of a / 2^k, dot)
//!                     sum[token] = fma(dot, scale_w, sum[token])
//!   for each token: acc[token] = fma(sum[token], scale_a, acc[token])
//! if scales are multiples of units of the rows: acc[token] = acc[token] x unit
//! ```
//!
//! Weights of asymmetric blocks are (level + offset) x scale. Dot and sum are whole numbers of steps that f32 holds, so where offsets
//! are whole too, as the zero points of many files are, nothing is rounded but by the last two lines. The sum is taken from a multiple
//! that `Group` has anyway, so that symmetric products read no more than they would if there were no others.
//!
//! Each loop over blocks is a function of its own, by format and number of tokens, that all products share: [`Simd::apart`].
#![allow(unsafe_code, reason = "unchecked reads in the inner loop")]

use std::marker::PhantomData;

use super::super::activations::{Group, SPAN};
use super::super::lanes::{LANES, Op, Simd};
use super::super::pairs::Pair;
use super::super::prefetch;
use super::{Fetch, Panels, TileOut, TileRows};
use crate::weights::matrix::BLOCK_ROWS;
use crate::weights::{int4, int4_asym, int4_s8, int8};

/// Blocks from one that is used to one that is fetched: at full speed some 250 ns, which memory answers in.
const AHEAD: usize = 24;

/// A block format: where its weights stand, and which dot product they want.
pub trait Block {
    const BYTES: usize;
    /// Bytes of weights before the scales.
    const WEIGHTS: usize;
    /// Whether offsets follow the scales.
    const OFFSETS: bool;
    /// Whether weights are nibbles, else bytes.
    const NIBBLES: bool;
    /// Whether scales are signed bytes, multiples of the units of their rows, which stand behind the blocks of a panel; else f16.
    const UNITS: bool;
    /// Bytes of the units.
    const UNIT_BYTES: usize = if Self::UNITS { int4_s8::UNIT_BYTES } else { 0 };
    /// Bytes of a scale.
    const SCALE_BYTES: usize = if Self::UNITS { 1 } else { 2 };
    /// # Safety
    /// Each of `blocks` points to `BYTES` readable bytes.
    unsafe fn dots<S: Simd, const N: usize, const T: usize>(
        s: S,
        blocks: [*const u8; N],
        a: [&Group; T],
    ) -> [[S::I; T]; N];
}

pub(super) struct Int4;
impl Block for Int4 {
    const BYTES: usize = int4::BLOCK_BYTES;
    const WEIGHTS: usize = 256;
    const OFFSETS: bool = false;
    const NIBBLES: bool = true;
    const UNITS: bool = false;
    #[inline(always)]
    unsafe fn dots<S: Simd, const N: usize, const T: usize>(
        s: S,
        blocks: [*const u8; N],
        a: [&Group; T],
    ) -> [[S::I; T]; N] {
        // SAFETY: 256 of each block's bytes, by the contract.
        let blocks = blocks.map(|block| unsafe { &*block.cast::<[u8; 256]>() });
        s.blocks_u4(blocks, a.map(|a| &a.values), a.map(|a| a.start_u4))
    }
}

pub(super) struct Int4S8;
impl Block for Int4S8 {
    const BYTES: usize = int4_s8::BLOCK_BYTES;
    const WEIGHTS: usize = Int4::WEIGHTS;
    const OFFSETS: bool = false;
    const NIBBLES: bool = true;
    const UNITS: bool = true;
    #[inline(always)]
    unsafe fn dots<S: Simd, const N: usize, const T: usize>(
        s: S,
        blocks: [*const u8; N],
        a: [&Group; T],
    ) -> [[S::I; T]; N] {
        // SAFETY: the same nibbles.
        unsafe { Int4::dots(s, blocks, a) }
    }
}

pub(super) struct Int4Asym;
impl Block for Int4Asym {
    const BYTES: usize = int4_asym::BLOCK_BYTES;
    const WEIGHTS: usize = Int4::WEIGHTS;
    const OFFSETS: bool = true;
    const NIBBLES: bool = true;
    const UNITS: bool = false;
    #[inline(always)]
    unsafe fn dots<S: Simd, const N: usize, const T: usize>(
        s: S,
        blocks: [*const u8; N],
        a: [&Group; T],
    ) -> [[S::I; T]; N] {
        // SAFETY: 256 of each block's bytes, by the contract.
        let blocks = blocks.map(|block| unsafe { &*block.cast::<[u8; 256]>() });
        s.blocks_u4(blocks, a.map(|a| &a.values), a.map(|a| a.base.to_bits().cast_signed()))
    }
}

pub(super) struct Int8;
impl Block for Int8 {
    const BYTES: usize = int8::BLOCK_BYTES;
    const WEIGHTS: usize = 512;
    const OFFSETS: bool = false;
    const NIBBLES: bool = false;
    const UNITS: bool = false;
    #[inline(always)]
    unsafe fn dots<S: Simd, const N: usize, const T: usize>(
        s: S,
        blocks: [*const u8; N],
        a: [&Group; T],
    ) -> [[S::I; T]; N] {
        // SAFETY: 512 of each block's bytes, by the contract.
        let blocks = blocks.map(|block| unsafe { &*block.cast::<[u8; 512]>() });
        s.blocks_i8(blocks, a.map(|a| &a.values), a.map(Group::start_i8::<S>))
    }
}

/// What one panel of quantised weights x `T` tokens is computed from.
pub struct QuantizedTile<'a, const T: usize> {
    /// `[blocks]`, and the units of formats that have them
    pub weights: &'a [u8],
    /// `[tokens][blocks]`
    pub rows: [&'a [Group]; T],
    /// `[blocks, ceil(tokens / 2)]`; none if tokens are fewer than [`Simd::PAIRS`].
    pub pairs: &'a [Pair],
    /// What else to fetch.
    pub fetch: Fetch<'a>,
}

/// One panel of a quantised matrix x the tokens of `rows`.
#[inline(always)]
pub(super) fn quantized_panel<S: Simd, B: Block>(
    s: S,
    weights: Panels<'_>,
    panel: usize,
    rows: &TileRows<'_>,
    fetch: Fetch<'_>,
    out: &mut TileOut,
) {
    let count = rows.places.count;
    // Whole pairs: the last token of an odd number is computed twice, so that there are fewer loops to compile.
    let tokens = if count < S::PAIRS { count } else { count.next_multiple_of(2) };
    macro_rules! tile {
        ($tokens:literal) => {
            s.apart(OnePanel::<B, $tokens> {
                weights: &weights,
                panel,
                rows,
                fetch: &fetch,
                out,
                block: PhantomData,
            })
        };
    }
    match tokens {
        1 => tile!(1),
        2 => tile!(2),
        3 if S::TILE > 2 && S::PAIRS > 3 => tile!(3),
        4 if S::TILE > 2 => tile!(4),
        5 if S::TILE > 4 && S::PAIRS > 5 => tile!(5),
        6 if S::TILE > 4 => tile!(6),
        7 if S::TILE > 4 && S::PAIRS > 7 => tile!(7),
        8 if S::TILE > 4 => tile!(8),
        10 if S::TILE > 8 => tile!(10),
        12 if S::TILE > 8 => tile!(12),
        count => panic!("a tile of {count} tokens"),
    }
    clear_missing_rows(weights, panel, &mut out[..count]);
}

/// Two panels of a quantised matrix x the tokens of `rows`.
#[inline(always)]
pub(super) fn quantized_double<S: Simd, B: Block>(
    s: S,
    weights: Panels<'_>,
    panel: usize,
    rows: &TileRows<'_>,
    fetch: Fetch<'_, 2>,
    out: &mut [TileOut; 2],
) {
    let count = rows.places.count;
    macro_rules! tile {
        ($tokens:literal) => {
            s.apart(TwoPanels::<B, $tokens> {
                weights: &weights,
                panel,
                rows,
                fetch: &fetch,
                out,
                block: PhantomData,
            })
        };
    }
    match count {
        // More tokens than a tile of one panel has, cut evenly, are never fewer.
        4 if S::DOUBLE_TILE > 3 => tile!(4),
        5 if S::DOUBLE_TILE > 4 => tile!(5),
        6 if S::DOUBLE_TILE > 5 => tile!(6),
        count => panic!("a tile of two panels and {count} tokens"),
    }
    clear_missing_rows(weights, panel + 1, &mut out[1][..count]);
}

/// A file may hold anything in rows that the matrix does not have.
#[inline(always)]
fn clear_missing_rows(weights: Panels<'_>, panel: usize, out: &mut [[f32; LANES]]) {
    let height = weights.height(panel);
    if height < BLOCK_ROWS {
        for out in out {
            out[height..].fill(0.0);
        }
    }
}

/// One panel x `T` tokens. Handed over by reference: a call for a panel is not to copy what is the same for all.
struct OnePanel<'a, B, const T: usize> {
    weights: &'a Panels<'a>,
    panel: usize,
    rows: &'a TileRows<'a>,
    fetch: &'a Fetch<'a>,
    out: &'a mut TileOut,
    block: PhantomData<B>,
}

impl<B: Block, const T: usize> Op for OnePanel<'_, B, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.rows.groups(*self.weights);
        let weights = self.weights.bytes(self.panel);
        assert_eq!(weights.len(), rows[0].len() * B::BYTES + B::UNIT_BYTES);
        let tile = QuantizedTile { weights, rows, pairs: self.rows.pairs.all(), fetch: *self.fetch };
        s.tile::<B, T>(tile, self.out);
    }
}

/// Two panels x `T` tokens.
struct TwoPanels<'a, B, const T: usize> {
    weights: &'a Panels<'a>,
    /// The first of them.
    panel: usize,
    rows: &'a TileRows<'a>,
    fetch: &'a Fetch<'a, 2>,
    out: &'a mut [TileOut; 2],
    block: PhantomData<B>,
}

impl<B: Block, const T: usize> Op for TwoPanels<'_, B, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weights, panel, rows, fetch, out, .. } = self;
        let panels = [weights.bytes(panel), weights.bytes(panel + 1)];
        by_blocks::<S, B, 2, T>(s, panels, &rows.groups(*weights), *fetch, out);
    }
}

/// `N` panels x `T` tokens, block by block. See the pseudo-code at the top.
#[inline(always)]
pub fn by_blocks<S: Simd, B: Block, const N: usize, const T: usize>(
    s: S,
    weights: [&[u8]; N],
    rows: &[&[Group]; T],
    fetch: Fetch<'_, N>,
    out: &mut [TileOut],
) {
    let blocks = rows[0].len();
    assert_eq!(out.len(), N);
    assert!(weights.iter().all(|weights| weights.len() == blocks * B::BYTES + B::UNIT_BYTES));
    assert!(rows.iter().all(|row| row.len() == blocks));
    let mut acc = [[s.splat(0.0); T]; N];
    let mut first = 0;
    while first < blocks {
        let last = blocks.min(first + SPAN);
        let mut sums = [[s.splat(0.0); T]; N];
        for b in first..last {
            ask_for::<B, N, T>(&weights, fetch, b + AHEAD.min(blocks));
            // SAFETY: each panel holds `blocks` blocks and each row as many groups, asserted above.
            unsafe { add_block::<S, B, N, T>(s, &weights, rows, b, &mut sums) };
        }
        for t in 0..T {
            // SAFETY: as above.
            let scale = s.splat(unsafe { rows[t].get_unchecked(first) }.scale);
            for n in 0..N {
                acc[n][t] = s.fma(sums[n][t], scale, acc[n][t]);
            }
        }
        first = last;
    }
    for n in 0..N {
        if B::UNITS {
            // SAFETY: behind the blocks stand the units, of the size asserted above.
            let units = s.load_f32_bytes(unsafe { &*weights[n].as_ptr().add(blocks * B::BYTES).cast() });
            for t in 0..T {
                acc[n][t] = s.mul(acc[n][t], units);
            }
        }
        for t in 0..T {
            s.store(acc[n][t], &mut out[n][t]);
        }
    }
}

/// Asks for block `block` of each panel, counted on behind its end into what is read next.
#[inline(always)]
fn ask_for<B: Block, const N: usize, const T: usize>(
    weights: &[&[u8]; N],
    fetch: Fetch<'_, N>,
    block: usize,
) {
    let Fetch::Then(then, reads) = fetch else { return };
    for n in 0..N {
        let blocks = (weights[n].len() - B::UNIT_BYTES) / B::BYTES;
        let (bytes, block) = if block < blocks { (weights[n], block) } else { (then[n], block - blocks) };
        prefetch::stream::<T>(bytes.as_ptr().wrapping_add(block * B::BYTES), B::BYTES, reads);
    }
}

/// Adds block `b` of each panel x group `b` of each row to `sums`, in units of the span's scale.
///
/// # Safety
/// Each panel has more than `b` blocks, each row more than `b` groups.
#[inline(always)]
unsafe fn add_block<S: Simd, B: Block, const N: usize, const T: usize>(
    s: S,
    weights: &[&[u8]; N],
    rows: &[&[Group]; T],
    b: usize,
    sums: &mut [[S::F; T]; N],
) {
    // SAFETY: by the contract.
    let mut a = [unsafe { rows[0].get_unchecked(b) }; T];
    for t in 1..T {
        // SAFETY: as above.
        a[t] = unsafe { rows[t].get_unchecked(b) };
    }
    // SAFETY: as above.
    let block = weights.map(|weights| unsafe { weights.as_ptr().add(b * B::BYTES) });
    // SAFETY: as above.
    let dots = unsafe { B::dots(s, block, a) };
    let mut affine = [(s.splat(0.0), s.splat(0.0)); N];
    for n in 0..N {
        // SAFETY: as above.
        affine[n] = unsafe { scales::<S, B>(s, block[n]) };
    }
    for t in 0..T {
        for n in 0..N {
            let mut dot = s.above(dots[n][t], a[t].base);
            let (scale, offset) = affine[n];
            if B::OFFSETS {
                dot = s.fma(offset, s.above(s.splat_i32(a[t].start_u4), a[t].base), dot);
            }
            sums[n][t] = s.fma(dot, scale, sums[n][t]);
        }
    }
}

/// A block's scales, in units where it has them, and what an asymmetric one's dots are corrected by: nibbles are levels + 8, and what is kept of the
/// activations' sum is -8 times of it.
///
/// # Safety
/// `block` points to `B::BYTES` readable bytes.
#[inline(always)]
unsafe fn scales<S: Simd, B: Block>(s: S, block: *const u8) -> (S::F, S::F) {
    // SAFETY: behind the weights stand as many scales as the block has rows, and offsets where it has them.
    unsafe {
        if B::UNITS {
            return (s.load_bytes(&*block.add(B::WEIGHTS).cast()), s.splat(0.0));
        }
        let halves = block.add(B::WEIGHTS).cast::<[u8; 32]>();
        let mut offset = s.splat(0.0);
        if B::OFFSETS {
            offset = s.mul(s.sub(s.load_f16(&*halves.add(1)), s.splat(8.0)), s.splat(-0.125));
        }
        (s.load_f16(&*halves), offset)
    }
}
