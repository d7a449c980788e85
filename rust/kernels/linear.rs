//! Matrix products: activations `[tokens, K]` x weights `[N, K]` -> `[tokens, N]`.
//!
//! ```text
//! for each tile of up to TILE tokens:             (of a piece of panels, see `shares`)
//!   for each panel of 16 rows, or two of them:
//!     [tokens, 16] = panel x tile                 see `tiles`
//! ```
//!
//! A panel of quantised weights is streamed once, block by block, in the order it stands in the file. Decode is the tile
//! of one token: it reads each weight byte once, at the memory's speed. A larger tile shares the loads and the
//! expansion of the nibbles. A token's result does not depend on the tile it is computed in.
#![allow(unsafe_code, reason = "disjoint outputs of threads")]

use std::ops::Range;

use super::activations::QuantizedRows;
use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::lanes::{LANES, Op, Simd};
use super::shares::{Piece, share_out};
use super::tiles::{Fetch, NO_TILE, Panels, Places, Rows, TileRows, double_tile, even_part, panel_tile};
use crate::weights::matrix::{BLOCK_ROWS, Matrix};

/// What becomes of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// out = result
    Set,
    /// out = out + result, the residual connection
    Add,
}

impl Store {
    /// Stores the first `out.len()` of `values`, at most 16.
    #[inline(always)]
    pub(super) fn write<S: Simd>(self, s: S, values: &[f32; LANES], out: &mut [f32]) {
        match self {
            Self::Set => match out.as_chunks_mut::<LANES>().0 {
                [out] => *out = *values,
                _ => out.copy_from_slice(&values[..out.len()]),
            },
            Self::Add => match out.as_chunks_mut::<LANES>().0 {
                [out] => s.store(s.add(s.load(out), s.load(values)), out),
                _ => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
            },
        }
    }
}

/// Activations in the forms the weights need: always f32, INT8 where a weight is quantised.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// `[tokens, K]`
    pub dense: &'a [f32],
    /// The same rows quantised; needed if any weight of the call is.
    pub quantized: Option<&'a QuantizedRows>,
    /// Rows.
    pub tokens: usize,
}

impl<'a> Input<'a> {
    /// As rows of `cols` columns.
    pub(super) fn rows(&self, cols: usize) -> Rows<'a> {
        let groups = self.quantized.map_or(&[][..], QuantizedRows::groups);
        let group_stride = self.quantized.map_or(0, QuantizedRows::groups_per_row);
        Rows { dense: self.dense, dense_stride: cols, groups, group_stride }
    }
}

/// One product of a call: weights and where `[tokens, rows]` goes.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[rows, K]`
    pub weights: &'a Matrix,
    /// `[tokens, rows]`
    pub out: &'a mut [f32],
    /// Set or add.
    pub store: Store,
}

/// The least bytes of weights in one piece of decode.
const PIECE_BYTES: usize = 32 * 1024;
/// Bytes of weights in one piece of prefill, where more panels share each read of the activations.
const PREFILL_PIECE_BYTES: usize = 128 * 1024;
/// Tokens from which a call counts as prefill.
const PREFILL_TOKENS: usize = 32;
/// The most panels a piece of prefill holds.
const MAX_PIECE_PANELS: usize = 16;

/// Multiplies one input with several matrices in one parallel region.
///
/// # Panics
/// If shapes do not fit, or a weight is quantised and the input is not.
pub fn linear<const N: usize>(cpu: &Cpu, input: Input<'_>, products: [Product<'_>; N]) {
    if cpu.recorder.is_on() {
        cpu.recorder.add(cpu, input.dense, &std::array::from_fn::<_, N, _>(|i| products[i].weights));
    }
    let jobs = products.map(|product| Job::new(input, product));
    let total = jobs.iter().map(|job| job.weights.count()).sum();
    let largest = jobs.iter().map(|job| job.weights.size()).max().unwrap_or(0).max(1);
    let piece = if input.tokens < PREFILL_TOKENS {
        Piece { least: PIECE_BYTES / largest, most: usize::MAX }
    } else {
        Piece { least: 2, most: (PREFILL_PIECE_BYTES / largest).min(MAX_PIECE_PANELS) }
    };
    share_out(&cpu.pool, total, piece, &|panels| {
        let mut first = 0;
        for job in &jobs {
            let last = first + job.weights.count();
            let (start, end) = (panels.start.max(first), panels.end.min(last));
            if start < end {
                cpu.run(JobPanels { job, panels: start - first..end - first });
            }
            first = last;
        }
    });
}

/// One matrix of a call.
struct Job<'a> {
    input: Rows<'a>,
    tokens: usize,
    weights: Panels<'a>,
    /// Rows of the matrix.
    rows: usize,
    out: Disjoint<'a, f32>,
    store: Store,
}

impl<'a> Job<'a> {
    fn new(input: Input<'a>, product: Product<'a>) -> Self {
        let weights = product.weights;
        assert_eq!(product.out.len(), input.tokens * weights.rows(), "output is [tokens, rows]");
        assert_eq!(input.dense.len(), input.tokens * weights.cols(), "input is [tokens, cols]");
        if weights.format().is_quantized() {
            let groups = input.quantized.map_or(0, |q| q.groups().len());
            assert_eq!(groups, input.tokens * weights.cols().div_ceil(32), "input is quantised");
        }
        let (rows, tokens, panels) = (weights.rows(), input.tokens, Panels::new(weights));
        let (input, out) = (input.rows(weights.cols()), Disjoint::new(product.out));
        Self { input, tokens, weights: panels, rows, out, store: product.store }
    }

    /// Writes a panel's 16 rows `row..` of `token`, or those that the matrix has.
    ///
    /// # Safety
    /// No other thread may write these rows: true for the panels being computed.
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, token: usize, row: usize, values: &[f32; LANES]) {
        let width = LANES.min(self.rows - row);
        let start = token * self.rows + row;
        // SAFETY: passed on.
        let out = unsafe { self.out.part(start..start + width) };
        self.store.write(s, values, out);
    }
}

struct JobPanels<'a> {
    job: &'a Job<'a>,
    panels: Range<usize>,
}

impl Op for JobPanels<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, panels } = self;
        // Tiles of two panels take fewer tokens: there are none where one of a panel holds all.
        let double = S::DOUBLE_TILE > 0 && job.tokens > S::TILE && job.weights.quantized();
        let (most, step) = if double { (S::DOUBLE_TILE, 2) } else { (S::TILE, 1) };
        let mut out = [NO_TILE; 2];
        for i in 0..job.tokens.div_ceil(most) {
            let tokens = even_part(job.tokens, most, i);
            let places = Places { first: tokens.start, count: tokens.len(), list: None };
            let rows = TileRows::new::<S>(job.weights, job.input, places);
            for panel in panels.clone().step_by(step) {
                let count = step.min(panels.end - panel);
                let [a, b] = [job.weights.bytes(panel + count), job.weights.bytes(panel + count + 1)];
                if count == 2 {
                    let fetch = Fetch::for_tile(i, job.tokens, most, [a, b]);
                    double_tile(s, job.weights, panel, &rows, fetch, &mut out);
                } else {
                    let fetch = Fetch::for_tile(i, job.tokens, most, [a]);
                    panel_tile(s, job.weights, panel, &rows, fetch, &mut out[0]);
                }
                for (panel, values) in (panel..).zip(&out[..count]) {
                    for (token, values) in tokens.clone().zip(values) {
                        // SAFETY: these panels are computed here alone.
                        unsafe { job.put(s, token, panel * BLOCK_ROWS, values) };
                    }
                }
            }
        }
    }
}
