//! The first region: gate and up projections of all slots, SwiGLU, and the activations that the down projection reads.
//!
//! ```text
//! for each group of 32 channels:
//!   for each tile of tokens:
//!     gate, up = two panels of each x tile
//!     a = silu(gate) * up                         rows that the expert does not have are 0
//!     activations[slot, group] = a                as INT8 with a scale if the down projection is quantised, else f32
//! ```
#![allow(unsafe_code, reason = "activations, written in parallel at places that do not overlap")]

use super::plan::{Item, Plan};
use super::{Experts, Width};
use crate::kernels::activations::{Group, quantize_lanes};
use crate::kernels::cpu::Cpu;
use crate::kernels::disjoint::Disjoint;
use crate::kernels::lanes::{LANES, Op, Simd};
use crate::kernels::math::silu;
use crate::kernels::tiles::{Fetch, MAX_TILE, Places, Rows, TileOut, even_part, panel_tile};
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS};
use crate::weights::model::SwiGluWeights;

/// Fills `groups` `[slots, width.groups]` and `dense` `[slots, width.dense]` for experts of each kind.
pub(super) fn run(
    cpu: &Cpu,
    experts: Experts<'_>,
    plan: &Plan,
    input: Rows<'_>,
    width: Width,
    groups: &mut [Group],
    dense: &mut [f32],
) {
    let pass =
        Pass { experts, plan, input, width, groups: Disjoint::new(groups), dense: Disjoint::new(dense) };
    cpu.pool.run(plan.items(), &|item| cpu.run(GateUp { pass: &pass, item: plan.item(item) }));
}

struct Pass<'a> {
    experts: Experts<'a>,
    plan: &'a Plan,
    input: Rows<'a>,
    width: Width,
    groups: Disjoint<'a, Group>,
    dense: Disjoint<'a, f32>,
}

struct GateUp<'a> {
    pass: &'a Pass<'a>,
    item: Item,
}

impl Op for GateUp<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { pass, item: Item { run, slots, groups } } = self;
        let expert = pass.experts.get(run.expert);
        let mut panels = [[[0.0; LANES]; MAX_TILE]; 4];
        for group in groups.start..groups.end.min(expert.gate.rows().div_ceil(BLOCK_COLS)) {
            for i in 0..slots.len().div_ceil(S::TILE) {
                let tile = even_part(slots.len(), S::TILE, i);
                let first = run.first + slots.start + tile.start;
                let places = Places { first, count: tile.len(), list: Some(pass.plan.tokens()) };
                let fetch = if i == 0 { Fetch::Following } else { Fetch::Nothing };
                multiply(s, expert, group, pass.input, places, fetch, &mut panels);
                for t in 0..tile.len() {
                    // SAFETY: this item alone computes these channels of these slots.
                    unsafe { activate(s, pass, expert, first + t, group, &panels, t) };
                }
            }
        }
    }
}

/// The group's two panels of gate, then of up, for one tile.
#[inline(always)]
fn multiply<S: Simd>(
    s: S,
    expert: &SwiGluWeights,
    group: usize,
    input: Rows<'_>,
    places: Places<'_>,
    fetch: Fetch<'_>,
    out: &mut [TileOut; 4],
) {
    for (i, out) in out.iter_mut().enumerate() {
        let matrix = if i < 2 { &expert.gate } else { &expert.up };
        let panel = 2 * group + i % 2;
        if panel * BLOCK_ROWS < matrix.rows() {
            panel_tile(s, matrix, panel, input, places, fetch, out);
        } else {
            *out = [[0.0; LANES]; MAX_TILE];
        }
    }
}

/// `SwiGLU` of token `t` of a tile, stored as the down projection reads it.
///
/// # Safety
/// No other thread may write these channels of the slot.
#[inline(always)]
unsafe fn activate<S: Simd>(
    s: S,
    pass: &Pass<'_>,
    expert: &SwiGluWeights,
    slot: usize,
    group: usize,
    panels: &[TileOut; 4],
    t: usize,
) {
    let half = |i: usize| (&panels[i][t], &panels[i + 2][t]);
    let ((gate_low, up_low), (gate_high, up_high)) = (half(0), half(1));
    let low = s.mul(silu(s, s.load(gate_low)), s.load(up_low));
    let high = s.mul(silu(s, s.load(gate_high)), s.load(up_high));
    if expert.down.format().is_quantized() {
        // SAFETY: passed on.
        let out = unsafe { pass.groups.item(slot * pass.width.groups + group) };
        return quantize_lanes(s, low, high, out);
    }
    let mut values = [[0.0; LANES]; 2];
    s.store(low, &mut values[0]);
    s.store(high, &mut values[1]);
    let width = BLOCK_COLS.min(expert.down.cols() - group * BLOCK_COLS);
    let start = slot * pass.width.dense + group * BLOCK_COLS;
    // SAFETY: passed on.
    let out = unsafe { pass.dense.part(start..start + width) };
    out.copy_from_slice(&values.as_flattened()[..width]);
}
