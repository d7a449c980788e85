//! The innermost part of all matrix products: one panel of 16 weight rows, or two, x a tile of tokens.
//!
//! What all of them share: panels, rows of activations, what is fetched ahead. The loops are in [`quantized`] and [`dense`].
//!
//! What a token's result is does not depend on the tile it is computed in, nor on where its activations stand.

mod dense;
mod quantized;

use dense::dense_panel;
pub use quantized::{Block, QuantizedTile, by_blocks};
use quantized::{Int4, Int4Asym, Int4S8, Int8, quantized_double, quantized_panel};

use super::activations::Group;
use super::elements::{Bf16, F16, F32};
use super::lanes::{LANES, Simd};
use super::pairs::{Pairs, Sums};
use super::prefetch::Reads;
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS, Format, Matrix};

/// The most tokens of a tile, on any tier.
pub(super) const MAX_TILE: usize = if cfg!(target_arch = "aarch64") { 12 } else { 8 };

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
