//! One panel of dense weights (f32, f16, bf16) x a tile of tokens. Weights are row-major as in the checkpoint: lanes run along the
//! columns, sixteen partial sums folded by the fixed tree.
//!
//! ```text
//! for four rows, and up to four tokens that share their loads:
//!   acc[row][token] = 0                                     16 lanes of f32
//!   for each 16 columns:  acc[row][token] = fma(w[row], a[token], acc[row][token])
//!   out[token][row] = sum of the lanes of acc[row][token]
//! ```
#![allow(unsafe_code, reason = "unchecked reads in the inner loop")]

use std::marker::PhantomData;

use super::super::elements::Element;
use super::super::lanes::{LANES, Op, Simd};
use super::super::math::padded;
use super::{Panels, Places, Rows, TileOut};

/// Rows of weights that share their activations' loads.
const ROWS: usize = 4;

/// One panel of a dense matrix x the tokens of `places`.
#[inline(always)]
pub(super) fn dense_panel<S: Simd, E: Element>(
    s: S,
    weights: Panels<'_>,
    panel: usize,
    input: Rows<'_>,
    places: Places<'_>,
    out: &mut TileOut,
) {
    s.apart(DensePanel::<E> { weights, panel, input, places, out, element: PhantomData });
}

struct DensePanel<'a, E> {
    weights: Panels<'a>,
    panel: usize,
    input: Rows<'a>,
    places: Places<'a>,
    out: &'a mut TileOut,
    element: PhantomData<E>,
}

impl<E: Element> Op for DensePanel<'_, E> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weights, panel, input, places, out, .. } = self;
        let (rows, cols) = (weights.height(panel), weights.cols);
        let panel = weights.bytes(panel);
        let mut row = 0;
        while row < rows {
            let bytes = &panel[row * cols * E::SIZE..];
            if rows - row >= ROWS {
                dense_tokens::<S, E, ROWS>(s, bytes, cols, input, places, row, out);
                row += ROWS;
            } else {
                dense_tokens::<S, E, 1>(s, bytes, cols, input, places, row, out);
                row += 1;
            }
        }
        out[..places.count].iter_mut().for_each(|out| out[rows..].fill(0.0));
    }
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
