//! The innermost part of all matrix products: one panel of 16 weight rows, or two, x a tile of tokens.
//!
//! **Quantised weights.** Each 32-bit lane is one output row, so nothing is ever summed across lanes:
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
//! **Dense weights** (f32, f16, bf16) are row-major as in the checkpoint: lanes run along the columns, sixteen partial sums
//! folded by the fixed tree. Four rows and up to four tokens share their loads.
//!
//! What a token's result is does not depend on the tile it is computed in, nor on where its activations stand.
#![allow(unsafe_code, reason = "unchecked reads in the two inner loops")]

use super::activations::{Group, SPAN};
use super::elements::{Bf16, Element, F16, F32};
use super::lanes::{LANES, Simd};
use super::math::padded;
use super::pairs::{Pair, Pairs, Sums};
use super::prefetch::{self, Reads};
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS, Format, Matrix};
use crate::weights::{int4, int4_asym, int4_s8, int8};

/// The most tokens of a tile, on any tier.
pub(super) const MAX_TILE: usize = if cfg!(target_arch = "aarch64") { 12 } else { 8 };
/// Blocks from one that is used to one that is fetched: at full speed some 250 ns, which memory answers in.
const AHEAD: usize = 24;
/// Rows of dense weights that share their activations' loads.
const DENSE_ROWS: usize = 4;

/// The results of a tile of one panel: for each token 16 rows.
pub type TileOut = [[f32; LANES]; MAX_TILE];
/// A tile of zeros.
pub(super) const NO_TILE: TileOut = [[0.0; LANES]; MAX_TILE];

/// A matrix as panels of 16 rows, the last of which may have fewer.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
    /// Bytes of a panel.
    size: usize,
}

impl<'a> Panels<'a> {
    /// The panels of `matrix`.
    pub(super) fn new(matrix: &'a Matrix) -> Self {
        let (format, rows, cols) = (matrix.format(), matrix.rows(), matrix.cols());
        let size = format.panel_bytes(cols).expect("a matrix that is there has a size");
        Self { format, rows, cols, bytes: matrix.bytes(), size }
    }

    /// Whether they are of blocks.
    pub(super) fn quantized(&self) -> bool {
        self.format.is_quantized()
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(BLOCK_ROWS)
    }

    /// Bytes of one.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The stored bytes of panel `panel`; none if there is no such panel.
    #[inline(always)]
    pub(super) fn bytes(&self, panel: usize) -> &'a [u8] {
        let end = self.bytes.len();
        &self.bytes[(panel * self.size).min(end)..((panel + 1) * self.size).min(end)]
    }

    /// How many rows panel `panel` has.
    #[inline(always)]
    fn height(&self, panel: usize) -> usize {
        BLOCK_ROWS.min(self.rows - panel * BLOCK_ROWS)
    }
}

/// Rows of activations, in the forms that weights need: f32, and INT8 for quantised ones.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// `[rows, at least cols]`
    pub(super) dense: &'a [f32],
    /// From one row of `dense` to the next.
    pub(super) dense_stride: usize,
    /// `[rows, at least ceil(cols / 32)]`
    pub(super) groups: &'a [Group],
    /// From one row of `groups` to the next.
    pub(super) group_stride: usize,
}

impl<'a> Rows<'a> {
    /// The first `blocks` groups of row `row`.
    #[inline(always)]
    fn groups(&self, row: usize, blocks: usize) -> &'a [Group] {
        &self.groups[row * self.group_stride..][..blocks]
    }
}

/// Which rows a tile reads.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    /// The tile's first row, or the place of its number in the list.
    pub(super) first: usize,
    /// Tokens of the tile.
    pub(super) count: usize,
    /// Numbers of rows; none if they follow each other.
    pub(super) list: Option<&'a [u32]>,
}

impl Places<'_> {
    /// The row of token `t` of the tile.
    #[inline(always)]
    fn row(&self, t: usize) -> usize {
        self.list.map_or(self.first + t, |list| list[self.first + t] as usize)
    }
}

/// What is fetched from memory while a tile of quantised weights is computed. A tile of many tokens takes so long over a
/// block that the processor by itself does not look far enough ahead.
#[derive(Clone, Copy)]
pub enum Fetch<'a, const N: usize = 1> {
    /// Nothing: the panels were read just now, and with them what follows was fetched.
    Nothing,
    /// What comes up next in each panel, and behind its end the beginning of these bytes, the panel read next.
    Then([&'a [u8]; N], Reads),
}

/// Tokens of a tile at most while what it fetches is sure to be there when its turn comes, though no cache was to keep it: with
/// 8, such tiles are 1.01 to 1.03 times as fast, with 12, 0.93 to 0.96 times.
const QUICK: usize = 8;

impl<'a, const N: usize> Fetch<'a, N> {
    /// For tile `tile` of all those that read the same panels for `tokens` tokens, `most` each: the first one fetches for all.
    pub fn for_tile(tile: usize, tokens: usize, most: usize, then: [&'a [u8]; N]) -> Self {
        let reads = if tokens <= most.min(QUICK) { Reads::Once } else { Reads::Again };
        if tile == 0 { Self::Then(then, reads) } else { Self::Nothing }
    }
}

/// Cuts `tokens` into the fewest tiles of at most `most`, as even as can be: tile `i` of them.
#[inline(always)]
pub(super) fn even_part(tokens: usize, most: usize, i: usize) -> std::ops::Range<usize> {
    let parts = tokens.div_ceil(most);
    i * tokens / parts..(i + 1) * tokens / parts
}

/// The rows of a tile, made ready once for all panels that they are multiplied with.
pub(super) struct TileRows<'a> {
    input: Rows<'a>,
    places: Places<'a>,
    pairs: Pairs,
}

impl<'a> TileRows<'a> {
    /// The rows that `places` names, at most `S::TILE`, or `S::DOUBLE_TILE` for two panels, to be multiplied with panels of `weights`.
    ///
    /// # Panics
    /// If `input` does not hold these rows.
    #[inline(always)]
    pub(super) fn new<S: Simd>(weights: Panels<'_>, input: Rows<'a>, places: Places<'a>) -> Self {
        let pairs = if places.count >= S::PAIRS && weights.format.is_quantized() {
            let blocks = weights.cols.div_ceil(BLOCK_COLS);
            let sums = if weights.format == Format::Int4Asym { Sums::Floats } else { Sums::Integers };
            Pairs::new(places.count, blocks, sums, |t| input.groups(places.row(t), blocks))
        } else {
            Pairs::none()
        };
        Self { input, places, pairs }
    }

    /// The groups of `T` tokens, the last of which may be one that is there twice.
    #[inline(always)]
    fn groups<const T: usize>(&self, weights: Panels<'_>) -> [&'a [Group]; T] {
        let blocks = weights.cols.div_ceil(BLOCK_COLS);
        let mut groups = [&self.input.groups[..0]; T];
        for t in 0..T {
            groups[t] = self.input.groups(self.places.row(t.min(self.places.count - 1)), blocks);
        }
        groups
    }
}

/// Panel `panel` of `weights` x the tokens of `rows`, which were made for `weights`; rows that the matrix does not have are 0.
///
/// # Panics
/// If there is no such panel, or the rows are narrower than it.
#[inline(always)]
pub(super) fn panel_tile<S: Simd>(
    s: S,
    weights: Panels<'_>,
    panel: usize,
    rows: &TileRows<'_>,
    fetch: Fetch<'_>,
    out: &mut TileOut,
) {
    let (input, places) = (rows.input, rows.places);
    match weights.format {
        Format::Int4 => quantized_panel::<S, Int4>(s, weights, panel, rows, fetch, out),
        Format::Int4Asym => quantized_panel::<S, Int4Asym>(s, weights, panel, rows, fetch, out),
        Format::Int4S8 => quantized_panel::<S, Int4S8>(s, weights, panel, rows, fetch, out),
        Format::Int8 => quantized_panel::<S, Int8>(s, weights, panel, rows, fetch, out),
        Format::F32 => dense_panel::<S, F32>(s, weights, panel, input, places, out),
        Format::F16 => dense_panel::<S, F16>(s, weights, panel, input, places, out),
        Format::BF16 => dense_panel::<S, Bf16>(s, weights, panel, input, places, out),
    }
}

/// Panels `panel` and `panel + 1` of quantised weights x the tokens of `rows`: what [`panel_tile`] gives for each, on tiers that
/// have tiles of two.
///
/// # Panics
/// As [`panel_tile`], and if weights are dense.
#[inline(always)]
pub(super) fn double_tile<S: Simd>(
    s: S,
    weights: Panels<'_>,
    panel: usize,
    rows: &TileRows<'_>,
    fetch: Fetch<'_, 2>,
    out: &mut [TileOut; 2],
) {
    match weights.format {
        Format::Int4 => quantized_double::<S, Int4>(s, weights, panel, rows, fetch, out),
        Format::Int4Asym => quantized_double::<S, Int4Asym>(s, weights, panel, rows, fetch, out),
        Format::Int4S8 => quantized_double::<S, Int4S8>(s, weights, panel, rows, fetch, out),
        Format::Int8 => quantized_double::<S, Int8>(s, weights, panel, rows, fetch, out),
        Format::F32 | Format::F16 | Format::BF16 => panic!("tiles of two panels are of quantised weights"),
    }
}

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

struct Int4;
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

struct Int4S8;
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

struct Int4Asym;
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

struct Int8;
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
fn quantized_panel<S: Simd, B: Block>(
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
    match tokens {
        1 => quantized_rows::<S, B, 1>(s, weights, panel, rows, fetch, out),
        2 => quantized_rows::<S, B, 2>(s, weights, panel, rows, fetch, out),
        3 if S::TILE > 2 && S::PAIRS > 3 => quantized_rows::<S, B, 3>(s, weights, panel, rows, fetch, out),
        4 if S::TILE > 2 => quantized_rows::<S, B, 4>(s, weights, panel, rows, fetch, out),
        5 if S::TILE > 4 && S::PAIRS > 5 => quantized_rows::<S, B, 5>(s, weights, panel, rows, fetch, out),
        6 if S::TILE > 4 => quantized_rows::<S, B, 6>(s, weights, panel, rows, fetch, out),
        7 if S::TILE > 4 && S::PAIRS > 7 => quantized_rows::<S, B, 7>(s, weights, panel, rows, fetch, out),
        8 if S::TILE > 4 => quantized_rows::<S, B, 8>(s, weights, panel, rows, fetch, out),
        10 if S::TILE > 8 => quantized_rows::<S, B, 10>(s, weights, panel, rows, fetch, out),
        12 if S::TILE > 8 => quantized_rows::<S, B, 12>(s, weights, panel, rows, fetch, out),
        count => panic!("a tile of {count} tokens"),
    }
    clear_missing_rows(weights, panel, &mut out[..count]);
}

/// Two panels of a quantised matrix x the tokens of `rows`.
#[inline(always)]
fn quantized_double<S: Simd, B: Block>(
    s: S,
    weights: Panels<'_>,
    panel: usize,
    rows: &TileRows<'_>,
    fetch: Fetch<'_, 2>,
    out: &mut [TileOut; 2],
) {
    let count = rows.places.count;
    let panels = [weights.bytes(panel), weights.bytes(panel + 1)];
    match count {
        // More tokens than a tile of one panel has, cut evenly, are never fewer.
        4 if S::DOUBLE_TILE > 3 => by_blocks::<S, B, 2, 4>(s, panels, &rows.groups(weights), fetch, out),
        5 if S::DOUBLE_TILE > 4 => by_blocks::<S, B, 2, 5>(s, panels, &rows.groups(weights), fetch, out),
        6 if S::DOUBLE_TILE > 5 => by_blocks::<S, B, 2, 6>(s, panels, &rows.groups(weights), fetch, out),
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

/// One panel x `T` tokens.
#[inline(always)]
fn quantized_rows<S: Simd, B: Block, const T: usize>(
    s: S,
    weights: Panels<'_>,
    panel: usize,
    rows: &TileRows<'_>,
    fetch: Fetch<'_>,
    out: &mut TileOut,
) {
    let groups = rows.groups(weights);
    let weights = weights.bytes(panel);
    assert_eq!(weights.len(), groups[0].len() * B::BYTES + B::UNIT_BYTES);
    s.tile::<B, T>(QuantizedTile { weights, rows: groups, pairs: rows.pairs.all(), fetch }, out);
}

/// `N` panels x `T` tokens, block by block. See the pseudo-code above.
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

/// One panel of a dense matrix x the tokens of `places`.
#[inline(always)]
fn dense_panel<S: Simd, E: Element>(
    s: S,
    weights: Panels<'_>,
    panel: usize,
    input: Rows<'_>,
    places: Places<'_>,
    out: &mut TileOut,
) {
    let (rows, cols) = (weights.height(panel), weights.cols);
    let panel = weights.bytes(panel);
    let mut row = 0;
    while row < rows {
        let bytes = &panel[row * cols * E::SIZE..];
        if rows - row >= DENSE_ROWS {
            dense_tokens::<S, E, DENSE_ROWS>(s, bytes, cols, input, places, row, out);
            row += DENSE_ROWS;
        } else {
            dense_tokens::<S, E, 1>(s, bytes, cols, input, places, row, out);
            row += 1;
        }
    }
    out[..places.count].iter_mut().for_each(|out| out[rows..].fill(0.0));
}

/// `R` rows, which are rows `row..` of the panel and stand at the beginning of `weights`.
#[inline(always)]
fn dense_tokens<S: Simd, E: Element, const R: usize>(
    s: S,
    weights: &[u8],
    cols: usize,
    input: Rows<'_>,
    places: Places<'_>,
    row: usize,
    out: &mut TileOut,
) {
    let mut token = 0;
    while token < places.count {
        let left = places.count - token;
        let tile = if left >= 4 { 4 } else { left.min(2) };
        match tile {
            4 => dense_tile::<S, E, R, 4>(s, weights, cols, input, places, token, row, out),
            2 => dense_tile::<S, E, R, 2>(s, weights, cols, input, places, token, row, out),
            _ => dense_tile::<S, E, R, 1>(s, weights, cols, input, places, token, row, out),
        }
        token += tile;
    }
}

/// `R` rows x `T` tokens: one vector of partial sums each.
#[inline(always)]
fn dense_tile<S: Simd, E: Element, const R: usize, const T: usize>(
    s: S,
    weights: &[u8],
    cols: usize,
    input: Rows<'_>,
    places: Places<'_>,
    token: usize,
    row: usize,
    out: &mut TileOut,
) {
    let weights = &weights[..R * cols * E::SIZE];
    let mut x = [&input.dense[..0]; T];
    for t in 0..T {
        x[t] = &input.dense[places.row(token + t) * input.dense_stride..][..cols];
    }
    let mut acc = [[s.splat(0.0); T]; R];
    let whole = cols / LANES * LANES;
    let mut k = 0;
    while k < whole {
        // k + 16 <= cols, `weights` holds R rows of `cols` elements, and each of `x` is one of `cols`.
        let (mut w, mut a) = ([s.splat(0.0); R], [s.splat(0.0); T]);
        for r in 0..R {
            // SAFETY: as above.
            w[r] = unsafe { E::load(s, weights.as_ptr().add((r * cols + k) * E::SIZE)) };
        }
        for t in 0..T {
            // SAFETY: as above.
            a[t] = s.load(unsafe { &*x[t].as_ptr().add(k).cast() });
        }
        multiply(s, &mut acc, &w, &a);
        k += LANES;
    }
    if whole < cols {
        let tail = (cols - whole) * E::SIZE;
        let mut w = [s.splat(0.0); R];
        let mut a = [s.splat(0.0); T];
        for r in 0..R {
            let mut bytes = [0; 64];
            let start = (r * cols + whole) * E::SIZE;
            bytes[..tail].copy_from_slice(&weights[start..start + tail]);
            // SAFETY: 64 bytes hold 16 elements of any type.
            w[r] = unsafe { E::load(s, bytes.as_ptr()) };
        }
        for t in 0..T {
            a[t] = s.load(&padded(&x[t][whole..]));
        }
        multiply(s, &mut acc, &w, &a);
    }
    for t in 0..T {
        for r in 0..R {
            out[token + t][row + r] = s.sum(acc[r][t]);
        }
    }
}

#[inline(always)]
fn multiply<S: Simd, const R: usize, const T: usize>(
    s: S,
    acc: &mut [[S::F; T]; R],
    w: &[S::F; R],
    a: &[S::F; T],
) {
    for r in 0..R {
        for t in 0..T {
            acc[r][t] = s.fma(w[r], a[t], acc[r][t]);
        }
    }
}
