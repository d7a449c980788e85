//! Sums of what matrices read, if somebody calibrates.
//!
//! ```text
//! for each input x [tokens, K] of matrices, each span of 128 channels, each pair i <= j in it:
//!     sum[span][i][j] += x[t][128 span + i] * x[t][128 span + j]        in f64, token after token
//! ```
//!
//! Off, as it is by default, a product costs one load and a branch more. 32 rows of sums are shared out to threads at a time; they are
//! added by one thread, in the order of tokens, so their bits depend neither on threads nor on how a text was cut. It is on only
//! while a pass of the text in question holds the engine's scratch memory, so passes of others are not recorded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::kernels::Cpu;
use crate::weights::matrix::{BLOCK_COLS, Matrix};
use crate::weights::moments::SPAN;

/// Sums of 32 channels with their span.
const ITEM: usize = BLOCK_COLS * SPAN;

/// Adds up what matrices read, if it is on.
#[derive(Debug, Default)]
pub struct Recorder {
    on: AtomicBool,
    record: Mutex<Record>,
}

/// The sums of all inputs.
#[derive(Debug, Default)]
pub struct Record {
    inputs: Vec<RecordedInput>,
    /// Where a matrix's bytes begin -> index of its input.
    matrices: BTreeMap<usize, usize>,
}

/// The sums of one input.
#[derive(Debug)]
pub struct RecordedInput {
    /// Channels.
    pub cols: usize,
    /// `[spans, SPAN, SPAN]`, only upper triangles.
    pub sums: Vec<f64>,
}

impl Recorder {
    /// Adds to `record` from now on.
    pub fn start(&self, record: Record) {
        *self.record() = record;
        self.on.store(true, Ordering::Relaxed);
    }

    /// Records no more, and gives the record back.
    pub fn stop(&self) -> Record {
        self.on.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.record())
    }

    /// Whether it is on.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Adds `rows` `[tokens, K]`, which all of `matrices` read.
    pub fn add(&self, cpu: &Cpu, rows: &[f32], matrices: &[&Matrix]) {
        let Some(first) = matrices.first() else { return };
        let mut record = self.record();
        let Record { inputs, matrices: known } = &mut *record;
        let index = *known.entry(place(first)).or_insert_with(|| {
            let cols = first.cols();
            inputs.push(RecordedInput { cols, sums: vec![0.0; cols.div_ceil(SPAN) * SPAN * SPAN] });
            inputs.len() - 1
        });
        known.extend(matrices.iter().map(|matrix| (place(matrix), index)));
        inputs[index].add(cpu, rows);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// The inputs, each once.
    pub fn inputs(&self) -> &[RecordedInput] {
        &self.inputs
    }

    /// The index of the input that `matrix` read, if it read any.
    pub fn input_of(&self, matrix: &Matrix) -> Option<usize> {
        self.matrices.get(&place(matrix)).copied()
    }
}

impl RecordedInput {
    fn add(&mut self, cpu: &Cpu, rows: &[f32]) {
        let cols = self.cols;
        cpu.rows(&mut self.sums, ITEM, 1, |items, sums| {
            for (item, sums) in items.zip(sums.chunks_exact_mut(ITEM)) {
                let (span, first) = (item / (SPAN / BLOCK_COLS), item % (SPAN / BLOCK_COLS) * BLOCK_COLS);
                let columns = span * SPAN..cols.min((span + 1) * SPAN);
                for row in rows.chunks_exact(cols) {
                    add_products(&row[columns.clone()], first, sums);
                }
            }
        });
    }
}

/// What tells matrices apart: no two stand at the same place.
fn place(matrix: &Matrix) -> usize {
    matrix.bytes().as_ptr() as usize
}

/// Adds the products of the 32 numbers from `first` on with all of `x`, up to SPAN numbers, to `sums` `[32, SPAN]`.
fn add_products(x: &[f32], first: usize, sums: &mut [f64]) {
    let mut wide = [0.0_f64; SPAN];
    for (wide, &x) in wide.iter_mut().zip(x) {
        *wide = f64::from(x);
    }
    // Eight at a time, so that it vectorises; what stands left of the diagonal is not read.
    let width = x.len().next_multiple_of(8);
    for (i, sums) in (first..width).zip(sums.chunks_exact_mut(SPAN)) {
        let (from, factor) = (i / 8 * 8, wide[i]);
        for (sum, &x) in sums[from..width].iter_mut().zip(&wide[from..width]) {
            *sum += factor * x;
        }
    }
}
