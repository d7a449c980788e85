//! Matrix products: activations `[tokens, K]` x weights `[N, K]` -> `[tokens, N]`.
//!
//! **Quantised weights.** A panel of 16 output rows is streamed once, block by block, in the order it stands in the
//! file; each 32-bit lane is one output row, so nothing is ever summed across lanes:
//!
//! ```text
//! for each panel of 16 rows:                      (work item: a few panels, claimed by threads in order)
//!   for each tile of up to TILE tokens:
//!     acc[token] = 0                                                  16 lanes of f32
//!     for each block of 32 columns:
//!       w = eight vectors of 16 rows x 4 columns                      nibbles expanded once for the tile
//!       for each token: dot = sum of w x a, exact in i32              8 dot steps
//!                       acc[token] = fma(dot, scale_w x scale_a, acc[token])
//! ```
//!
//! Decode is the tile of one token: it reads each weight byte once, at the memory's speed. A larger tile shares the
//! loads and the expansion of the nibbles. A token's result does not depend on the tile it is computed in.
//!
//! **Dense weights** (f32, f16, bf16) are row-major as in the checkpoint: lanes run along K, sixteen partial sums
//! folded by the fixed tree. Four rows and up to four tokens share their loads.
#![allow(unsafe_code, reason = "disjoint outputs of threads; unchecked reads in the two inner loops")]

use super::activations::{Group, QuantizedRows};
use super::cpu::Cpu;
use super::disjoint::Disjoint;
use super::elements::{Bf16, Element, F16, F32};
use super::lanes::{LANES, Op, Simd};
use super::math::padded;
use crate::weights::matrix::{BLOCK_ROWS, Format, Matrix};
use crate::weights::{int4, int8};

/// What becomes of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// out = result
    Set,
    /// out = out + result, the residual connection
    Add,
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

/// Bytes of weights in one work item of decode: large enough to amortise claiming it, small enough to balance.
const ITEM_BYTES: usize = 48 * 1024;
/// The most panels an item holds.
const MAX_ITEM_PANELS: usize = 16;
/// Rows of dense weights that share their activations' loads.
const DENSE_ROWS: usize = 4;
/// Tokens of dense products that share their weights' loads.
const DENSE_TOKENS: usize = 4;

/// Multiplies one input with several matrices in one parallel region.
///
/// # Panics
/// If shapes do not fit, or a weight is quantised and the input is not.
pub fn linear<const N: usize>(cpu: &Cpu, input: Input<'_>, products: [Product<'_>; N]) {
    let jobs = products.map(|product| Job::new(input, product));
    let total = jobs.iter().map(|job| job.items).sum();
    cpu.pool.run(total, &|mut item| {
        for job in &jobs {
            if item < job.items {
                return cpu.run(JobItem { job, item });
            }
            item -= job.items;
        }
    });
}

/// One matrix of a call, cut into work items of whole panels.
struct Job<'a> {
    input: Input<'a>,
    weights: &'a Matrix,
    out: Disjoint<'a, f32>,
    store: Store,
    panels_per_item: usize,
    items: usize,
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
        let panels = weights.rows().div_ceil(BLOCK_ROWS);
        let panel_bytes = (weights.bytes().len() / panels.max(1)).max(1);
        let panels_per_item = (ITEM_BYTES / panel_bytes).clamp(1, MAX_ITEM_PANELS);
        let items = panels.div_ceil(panels_per_item);
        Self { input, weights, out: Disjoint::new(product.out), store: product.store, panels_per_item, items }
    }

    /// Writes `values` to rows `row..` of `token`.
    ///
    /// # Safety
    /// No other thread may write these rows: true for the rows of the item being run.
    #[inline(always)]
    unsafe fn put(&self, token: usize, row: usize, values: &[f32]) {
        let start = token * self.weights.rows() + row;
        // SAFETY: passed on.
        let out = unsafe { self.out.part(start..start + values.len()) };
        match self.store {
            Store::Set => out.copy_from_slice(values),
            Store::Add => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
        }
    }

    /// Writes a panel's 16 rows `row..` of `token`, or those that the matrix has.
    ///
    /// # Safety
    /// As for [`Self::put`].
    #[inline(always)]
    unsafe fn put_panel<S: Simd>(&self, s: S, token: usize, row: usize, values: S::F) {
        let left = self.weights.rows() - row;
        if left < LANES {
            let mut all = [0.0; LANES];
            s.store(values, &mut all);
            // SAFETY: passed on.
            return unsafe { self.put(token, row, &all[..left]) };
        }
        let start = token * self.weights.rows() + row;
        // SAFETY: passed on.
        let out = unsafe { self.out.part(start..start + LANES) };
        for out in out.as_chunks_mut::<LANES>().0 {
            match self.store {
                Store::Set => s.store(values, out),
                Store::Add => s.store(s.add(s.load(out), values), out),
            }
        }
    }
}

struct JobItem<'a> {
    job: &'a Job<'a>,
    item: usize,
}

impl Op for JobItem<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.job;
        let first = self.item * job.panels_per_item;
        let last = (first + job.panels_per_item).min(job.weights.rows().div_ceil(BLOCK_ROWS));
        match job.weights.format() {
            Format::Int4 => quantized_panels::<S, Int4>(s, job, first..last),
            Format::Int8 => quantized_panels::<S, Int8>(s, job, first..last),
            Format::F32 => dense_rows::<S, F32>(s, job, first..last),
            Format::F16 => dense_rows::<S, F16>(s, job, first..last),
            Format::BF16 => dense_rows::<S, Bf16>(s, job, first..last),
        }
    }
}

/// A block format: how its weights become byte vectors, and which dot product they want.
trait Block {
    const BYTES: usize;
    /// Bytes of weights before the scales.
    const WEIGHTS: usize;
    /// # Safety
    /// `block` points to `BYTES` readable bytes.
    unsafe fn load<S: Simd>(s: S, block: *const u8) -> [S::B; 8];
    fn dots<S: Simd, const T: usize>(s: S, w: &[S::B; 8], a: [&Group; T]) -> [S::I; T];
}

struct Int4;
impl Block for Int4 {
    const BYTES: usize = int4::BLOCK_BYTES;
    const WEIGHTS: usize = 256;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, block: *const u8) -> [S::B; 8] {
        // SAFETY: 256 of the block's bytes, by the contract.
        s.load_u4(unsafe { &*block.cast::<[u8; 256]>() })
    }
    #[inline(always)]
    fn dots<S: Simd, const T: usize>(s: S, w: &[S::B; 8], a: [&Group; T]) -> [S::I; T] {
        s.dots_u4(w, a.map(|a| &a.values), a.map(|a| a.offset_u4))
    }
}

struct Int8;
impl Block for Int8 {
    const BYTES: usize = int8::BLOCK_BYTES;
    const WEIGHTS: usize = 512;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, block: *const u8) -> [S::B; 8] {
        // SAFETY: 512 of the block's bytes, by the contract.
        s.load_i8(unsafe { &*block.cast::<[u8; 512]>() })
    }
    #[inline(always)]
    fn dots<S: Simd, const T: usize>(s: S, w: &[S::B; 8], a: [&Group; T]) -> [S::I; T] {
        s.dots_i8(w, a.map(|a| &a.values), a.map(|a| a.offset_i8))
    }
}

/// Panels `panels` of a quantised matrix for all tokens, tile by tile.
#[inline(always)]
fn quantized_panels<S: Simd, B: Block>(s: S, job: &Job<'_>, panels: std::ops::Range<usize>) {
    let Some(input) = job.input.quantized else { return };
    let tokens = job.input.tokens;
    let mut token = 0;
    while token < tokens {
        let left = tokens - token;
        let tile = if left >= S::TILE { S::TILE } else { 1 << left.ilog2() };
        for panel in panels.clone() {
            match tile {
                8 => quantized_tile::<S, B, 8>(s, job, input, panel, token),
                4 => quantized_tile::<S, B, 4>(s, job, input, panel, token),
                2 => quantized_tile::<S, B, 2>(s, job, input, panel, token),
                _ => quantized_tile::<S, B, 1>(s, job, input, panel, token),
            }
        }
        token += tile;
    }
}

/// One panel x `T` tokens. See the pseudo-code above.
#[inline(always)]
fn quantized_tile<S: Simd, B: Block, const T: usize>(
    s: S,
    job: &Job<'_>,
    input: &QuantizedRows,
    panel: usize,
    token: usize,
) {
    let blocks = input.groups_per_row();
    let weights = &job.weights.bytes()[panel * blocks * B::BYTES..(panel + 1) * blocks * B::BYTES];
    let groups = &input.groups()[token * blocks..(token + T) * blocks];
    let mut acc = [s.splat(0.0); T];
    for b in 0..blocks {
        // SAFETY: `weights` holds `blocks` blocks and `groups` T x blocks groups, both sliced with bounds checks above.
        let (w, scale) = unsafe {
            let block = weights.as_ptr().add(b * B::BYTES);
            (B::load(s, block), s.load_f16(&*block.add(B::WEIGHTS).cast::<[u8; 32]>()))
        };
        let mut a = [&groups[0]; T];
        for t in 0..T {
            // SAFETY: as above.
            a[t] = unsafe { groups.get_unchecked(t * blocks + b) };
        }
        let dots = B::dots(s, &w, a);
        for t in 0..T {
            acc[t] = s.fma(s.to_f32(dots[t]), s.mul(scale, s.splat(a[t].scale)), acc[t]);
        }
    }
    let row = panel * BLOCK_ROWS;
    for t in 0..T {
        // SAFETY: these rows belong to this item.
        unsafe { job.put_panel(s, token + t, row, acc[t]) };
    }
}

/// Rows of panels `panels` of a dense matrix for all tokens.
#[inline(always)]
fn dense_rows<S: Simd, E: Element>(s: S, job: &Job<'_>, panels: std::ops::Range<usize>) {
    let end = (panels.end * BLOCK_ROWS).min(job.weights.rows());
    let mut row = panels.start * BLOCK_ROWS;
    while row < end {
        if end - row >= DENSE_ROWS {
            dense_tokens::<S, E, DENSE_ROWS>(s, job, row);
            row += DENSE_ROWS;
        } else {
            dense_tokens::<S, E, 1>(s, job, row);
            row += 1;
        }
    }
}

#[inline(always)]
fn dense_tokens<S: Simd, E: Element, const R: usize>(s: S, job: &Job<'_>, row: usize) {
    let mut token = 0;
    while token < job.input.tokens {
        if job.input.tokens - token >= DENSE_TOKENS {
            dense_tile::<S, E, R, DENSE_TOKENS>(s, job, row, token);
            token += DENSE_TOKENS;
        } else {
            dense_tile::<S, E, R, 1>(s, job, row, token);
            token += 1;
        }
    }
}

/// `R` rows x `T` tokens: one vector of partial sums each.
#[inline(always)]
fn dense_tile<S: Simd, E: Element, const R: usize, const T: usize>(
    s: S,
    job: &Job<'_>,
    row: usize,
    token: usize,
) {
    let cols = job.weights.cols();
    let weights = &job.weights.bytes()[row * cols * E::SIZE..(row + R) * cols * E::SIZE];
    let x = &job.input.dense[token * cols..(token + T) * cols];
    let mut acc = [[s.splat(0.0); T]; R];
    let whole = cols / LANES * LANES;
    let mut k = 0;
    while k < whole {
        // k + 16 <= cols, and both slices hold whole rows of `cols`.
        let (mut w, mut a) = ([s.splat(0.0); R], [s.splat(0.0); T]);
        for r in 0..R {
            // SAFETY: as above.
            w[r] = unsafe { E::load(s, weights.as_ptr().add((r * cols + k) * E::SIZE)) };
        }
        for t in 0..T {
            // SAFETY: as above.
            a[t] = s.load(unsafe { &*x.as_ptr().add(t * cols + k).cast() });
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
            a[t] = s.load(&padded(&x[t * cols + whole..(t + 1) * cols]));
        }
        multiply(s, &mut acc, &w, &a);
    }
    for t in 0..T {
        let mut out = [0.0; R];
        for r in 0..R {
            out[r] = s.sum(acc[r][t]);
        }
        // SAFETY: these rows belong to this item.
        unsafe { job.put(token + t, row, &out) };
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
