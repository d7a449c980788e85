//! What gate and up projections give to the down projection, in the form in which it reads them.
#![allow(unsafe_code, reason = "written in parallel at places that do not overlap")]

use super::Width;
use crate::kernels::activations::{Group, quantize_lanes};
use crate::kernels::disjoint::Disjoint;
use crate::kernels::lanes::{LANES, Simd};
use crate::kernels::math::silu;
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS, Matrix};

/// Panels of a group.
pub(super) const GROUP_PANELS: usize = BLOCK_COLS / BLOCK_ROWS;

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

    /// Stores silu(gate) * up, group `group` of slot `slot`, for the down projection `down`.
    ///
    /// # Safety
    /// No other thread may write this group of this slot.
    #[inline(always)]
    pub(super) unsafe fn put<S: Simd>(
        &self,
        s: S,
        down: &Matrix,
        slot: usize,
        group: usize,
        gate: [&[f32; LANES]; GROUP_PANELS],
        up: [&[f32; LANES]; GROUP_PANELS],
    ) {
        let low = s.mul(silu(s, s.load(gate[0])), s.load(up[0]));
        let high = s.mul(silu(s, s.load(gate[1])), s.load(up[1]));
        if down.format().is_quantized() {
            // SAFETY: passed on.
            let out = unsafe { self.groups.item(slot * self.width.groups + group) };
            quantize_lanes(s, low, high, out);
        } else {
            let mut values = [[0.0; LANES]; GROUP_PANELS];
            s.store(low, &mut values[0]);
            s.store(high, &mut values[1]);
            let count = BLOCK_COLS.min(down.cols() - group * BLOCK_COLS);
            let start = slot * self.width.dense + group * BLOCK_COLS;
            // SAFETY: passed on.
            let out = unsafe { self.dense.part(start..start + count) };
            out.copy_from_slice(&values.as_flattened()[..count]);
        }
    }
}
