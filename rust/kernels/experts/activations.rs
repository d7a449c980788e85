//! What gate and up projections give to the down projection, in the form in which it reads them.
#![allow(unsafe_code, reason = "written in parallel at places that do not overlap")]

use super::Width;
use crate::kernels::activations::{Group, SPAN, SPAN_COLS, quantize_span};
use crate::kernels::disjoint::Disjoint;
use crate::kernels::lanes::{LANES, Simd};
use crate::kernels::math::silu;
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS, Matrix};

/// Panels of a span of channels, which share a scale.
pub(super) const SPAN_PANELS: usize = SPAN_COLS / BLOCK_ROWS;

/// Activations of all slots: quantised of experts whose down projection is, dense of others.
pub(super) struct Activations<'a> {
    width: Width,
    /// `[slots, width.groups]`
    groups: Disjoint<'a, Group>,
    /// `[slots, width.dense]`
    dense: Disjoint<'a, f32>,
}

impl<'a> Activations<'a> {
    pub(super) fn new(width: Width, groups: &'a mut [Group], dense: &'a mut [f32]) -> Self {
        Self { width, groups: Disjoint::new(groups), dense: Disjoint::new(dense) }
    }

    /// Stores silu(gate) * up, span `span` of slot `slot`, for the down projection `down`.
    ///
    /// # Safety
    /// No other thread may write this span of this slot.
    #[inline(always)]
    pub(super) unsafe fn put<'p, S: Simd>(
        &self,
        s: S,
        down: &Matrix,
        slot: usize,
        span: usize,
        panels: impl Iterator<Item = [&'p [f32; LANES]; 2]>,
    ) {
        let mut values = [[0.0; LANES]; SPAN_PANELS];
        for ([gate, up], value) in panels.zip(&mut values) {
            s.store(s.mul(silu(s, s.load(gate)), s.load(up)), value);
        }
        let first = span * SPAN_COLS;
        let values = &values.as_flattened()[..SPAN_COLS.min(down.cols() - first)];
        if down.format().is_quantized() {
            let start = slot * self.width.groups + span * SPAN;
            // SAFETY: passed on.
            let out = unsafe { self.groups.part(start..start + values.len().div_ceil(BLOCK_COLS)) };
            quantize_span(s, values, out);
        } else {
            let start = slot * self.width.dense + first;
            // SAFETY: passed on.
            unsafe { self.dense.part(start..start + values.len()) }.copy_from_slice(values);
        }
    }
}
