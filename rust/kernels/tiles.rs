//! The innermost part of all matrix products: one panel of 16 weight rows x a tile of tokens.
//!
//! **Quantised weights.** Each 32-bit lane is one output row, so nothing is ever summed across lanes:
//!
//! ```text
//! acc[token] = 0                                                  16 lanes of f32
//! for each block of 32 columns:
//!   w = eight vectors of 16 rows x 4 columns                      nibbles expanded once for the tile
//!   for each token: dot = sum of w x a, exact in i32              8 dot steps
//!                   if the block is asymmetric, of its nibbles: dot = fma(offset_w - 8, sum of a, dot)
//!                   acc[token] = fma(dot, scale_w x scale_a, acc[token])
//! ```
//!
//! Weights of asymmetric blocks are (level + offset) x scale. Dot and sum are whole numbers that f32 holds, so where offsets are
//! whole too, as the zero points of many files are, nothing is rounded but by the last line. The sum is taken from a multiple that
//! `Group` has anyway, so that symmetric products read no more than they would if there were no others.
//!
//! **Dense weights** (f32, f16, bf16) are row-major as in the checkpoint: lanes run along the columns, sixteen partial sums
//! folded by the fixed tree. Four rows and up to four tokens share their loads.
//!
//! What a token's result is does not depend on the tile it is computed in, nor on where its activations stand.
#![allow(unsafe_code, reason = "unchecked reads in the two inner loops")]

use super::activations::Group;
use super::elements::{Bf16, Element, F16, F32};
use super::lanes::{LANES, Simd};
use super::math::padded;
use super::pairs::{Pair, Pairs, Sums};
use super::prefetch;
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS, Format, Matrix};
use crate::weights::{int4, int4_asym, int8};

/// The most tokens of a tile, on any tier.
pub(super) const MAX_TILE: usize = if cfg!(target_arch = "aarch64") { 12 } else { 8 };
/// Blocks from one that is used to one that is fetched: at full speed some 250 ns, which memory answers in.
const AHEAD: usize = 24;
/// Rows of dense weights that share their activations' loads.
const DENSE_ROWS: usize = 4;

/// The results of a tile: for each token 16 rows.
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
        let size = match format.dtype() {
            None => cols.div_ceil(BLOCK_COLS) * format.block_bytes(),
            Some(dtype) => BLOCK_ROWS * cols * dtype.size(),
        };
        Self { format, rows, cols, bytes: matrix.bytes(), size }
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
pub enum Fetch<'a> {
    /// Nothing: the panel was read just now, and with it what follows was fetched.
    Nothing,
    /// What comes up next in the panel, and behind its end the beginning of these bytes, the panel read next.
    Then(&'a [u8]),
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
    /// The rows that `places` names, at most `S::TILE`, to be multiplied with panels of `weights`.
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
        Format::Int8 => quantized_panel::<S, Int8>(s, weights, panel, rows, fetch, out),
        Format::F32 => dense_panel::<S, F32>(s, weights, panel, input, places, out),
        Format::F16 => dense_panel::<S, F16>(s, weights, panel, input, places, out),
        Format::BF16 => dense_panel::<S, Bf16>(s, weights, panel, input, places, out),
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
    /// # Safety
    /// `block` points to `BYTES` readable bytes.
    unsafe fn dots<S: Simd, const T: usize>(s: S, block: *const u8, a: [&Group; T]) -> [S::I; T];
}

struct Int4;
impl Block for Int4 {
    const BYTES: usize = int4::BLOCK_BYTES;
    const WEIGHTS: usize = 256;
    const OFFSETS: bool = false;
    const NIBBLES: bool = true;
    #[inline(always)]
    unsafe fn dots<S: Simd, const T: usize>(s: S, block: *const u8, a: [&Group; T]) -> [S::I; T] {
        // SAFETY: 256 of the block's bytes, by the contract.
        let block = unsafe { &*block.cast::<[u8; 256]>() };
        s.block_u4(block, a.map(|a| &a.values), a.map(|a| a.offset_u4))
    }
}

struct Int4Asym;
impl Block for Int4Asym {
    const BYTES: usize = int4_asym::BLOCK_BYTES;
    const WEIGHTS: usize = Int4::WEIGHTS;
    const OFFSETS: bool = true;
    const NIBBLES: bool = true;
    #[inline(always)]
    unsafe fn dots<S: Simd, const T: usize>(s: S, block: *const u8, a: [&Group; T]) -> [S::I; T] {
        // SAFETY: 256 of the block's bytes, by the contract.
        let block = unsafe { &*block.cast::<[u8; 256]>() };
        s.block_u4(block, a.map(|a| &a.values), [0; T])
    }
}

struct Int8;
impl Block for Int8 {
    const BYTES: usize = int8::BLOCK_BYTES;
    const WEIGHTS: usize = 512;
    const OFFSETS: bool = false;
    const NIBBLES: bool = false;
    #[inline(always)]
    unsafe fn dots<S: Simd, const T: usize>(s: S, block: *const u8, a: [&Group; T]) -> [S::I; T] {
        // SAFETY: 512 of the block's bytes, by the contract.
        let block = unsafe { &*block.cast::<[u8; 512]>() };
        s.block_i8(block, a.map(|a| &a.values), a.map(|a| a.offset_i8))
    }
}

/// What one panel of quantised weights x `T` tokens is computed from.
pub struct QuantizedTile<'a, const T: usize> {
    /// `[blocks]`
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
    // A file may hold anything in rows that the matrix does not have.
    let height = weights.height(panel);
    if height < BLOCK_ROWS {
        out[..count].iter_mut().for_each(|out| out[height..].fill(0.0));
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
    let blocks = weights.cols.div_ceil(BLOCK_COLS);
    let mut groups = [&rows.input.groups[..0]; T];
    for t in 0..T {
        groups[t] = rows.input.groups(rows.places.row(t.min(rows.places.count - 1)), blocks);
    }
    let weights = weights.bytes(panel);
    assert_eq!(weights.len(), blocks * B::BYTES);
    s.tile::<B, T>(QuantizedTile { weights, rows: groups, pairs: rows.pairs.all(), fetch }, out);
}

/// One panel x `T` tokens, block by block. See the pseudo-code above.
#[inline(always)]
pub fn by_blocks<S: Simd, B: Block, const T: usize>(s: S, tile: QuantizedTile<'_, T>, out: &mut TileOut) {
    let QuantizedTile { weights, rows, fetch, .. } = tile;
    let blocks = rows[0].len();
    assert_eq!(weights.len(), blocks * B::BYTES);
    assert!(rows.iter().all(|row| row.len() == blocks));
    let mut acc = [s.splat(0.0); T];
    for b in 0..blocks {
        if let Fetch::Then(then) = fetch {
            let ahead = b + AHEAD.min(blocks);
            let (bytes, block) = if ahead < blocks { (weights, ahead) } else { (then, ahead - blocks) };
            prefetch::stream(bytes.as_ptr().wrapping_add(block * B::BYTES), B::BYTES);
        }
        // SAFETY: each row has `blocks` groups, asserted above, of which there is then one.
        let mut a = [unsafe { rows[0].get_unchecked(b) }; T];
        for t in 1..T {
            // SAFETY: as above.
            a[t] = unsafe { rows[t].get_unchecked(b) };
        }
        // SAFETY: `weights` holds `blocks` blocks, asserted above.
        let (dots, scale, offset) = unsafe {
            let block = weights.as_ptr().add(b * B::BYTES);
            let halves = block.add(B::WEIGHTS).cast::<[u8; 32]>();
            let mut offset = s.splat(0.0);
            if B::OFFSETS {
                // Nibbles are levels + 8, and what is kept of the activations' sum is -8 times of it.
                offset = s.mul(s.sub(s.load_f16(&*halves.add(1)), s.splat(8.0)), s.splat(-0.125));
            }
            (B::dots(s, block, a), s.load_f16(&*halves), offset)
        };
        for t in 0..T {
            let mut dot = s.to_f32(dots[t]);
            if B::OFFSETS {
                dot = s.fma(offset, s.to_f32(s.splat_i32(a[t].offset_u4)), dot);
            }
            acc[t] = s.fma(dot, s.mul(scale, s.splat(a[t].scale)), acc[t]);
        }
    }
    for t in 0..T {
        s.store(acc[t], &mut out[t]);
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
