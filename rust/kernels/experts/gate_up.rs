//! The first region: gate and up projections of all slots, SwiGLU, and the activations that the down projection reads.
//!
//! ```text
//! for each run of an expert's spans of 128 channels, and some tiles of tokens:    as many as `gate` has room for
//!   gate = panels of gate x tiles
//!   for each span, for each tile of tokens:
//!     a = silu(gate) * (panels of up x tile)              rows that the expert does not have are 0
//!     activations[slot, span] = a                         as INT8 with a scale if the down projection is quantised, else f32
//! ```
//!
//! First all of gate, then all of up, and not in turn: memory is fast where much is read in one go.
#![allow(unsafe_code, reason = "activations, written in parallel at places that do not overlap")]

use std::ops::Range;

use super::Experts;
use super::activations::{Activations, SPAN_PANELS};
use super::plan::{Item, Plan};
use crate::kernels::cpu::Cpu;
use crate::kernels::lanes::{Op, Simd};
use crate::kernels::shares::share_out;
use crate::kernels::tiles::{Fetch, NO_TILE, Panels, Places, Rows, TileOut, TileRows, even_part, panel_tile};
use crate::weights::model::SwiGluWeights;

/// Tiles that wait for their counterparts of up: 16 KB.
const WAITING: usize = 32;

/// Fills `activations`.
pub(super) fn run(
    cpu: &Cpu,
    experts: Experts<'_>,
    plan: &Plan,
    input: Rows<'_>,
    activations: &Activations<'_>,
) {
    let pass = Pass { experts, plan, input, activations };
    share_out(&cpu.pool, plan.units(), plan.piece(), &|mut units| {
        while let Some(item) = plan.item(units.clone()) {
            units.start += item.spans.len();
            let next = plan.item(units.start..plan.units());
            cpu.run(GateUp { pass: &pass, item, next });
        }
    });
}

struct Pass<'a> {
    experts: Experts<'a>,
    plan: &'a Plan,
    input: Rows<'a>,
    activations: &'a Activations<'a>,
}

struct GateUp<'a> {
    pass: &'a Pass<'a>,
    item: Item,
    /// What this thread computes next, unless another one has taken it.
    next: Option<Item>,
}

impl Op for GateUp<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut waiting = [NO_TILE; WAITING];
        let all = self.item.slots.len().div_ceil(S::TILE);
        let most = WAITING / SPAN_PANELS;
        let Range { start, end } = self.item.spans;
        // The weights of a span stay in a cache for all tiles, however many.
        let step = (most / all).max(1);
        for span in (start..end).step_by(step) {
            for tile in (0..all).step_by(most) {
                let (spans, tiles) = (span..end.min(span + step), tile..all.min(tile + most));
                self.spans(s, spans, tiles, &mut waiting);
            }
        }
    }
}

impl GateUp<'_> {
    /// All of `spans` x `tiles`, with room for gate in `waiting` `[panels, tiles]`.
    #[inline(always)]
    fn spans<S: Simd>(&self, s: S, spans: Range<usize>, tiles: Range<usize>, waiting: &mut [TileOut]) {
        let expert = self.pass.experts.get(self.item.run.expert);
        let (gate, up) = (Panels::new(&expert.gate), Panels::new(&expert.up));
        let (first, last) = (SPAN_PANELS * spans.start, SPAN_PANELS * spans.end);
        let mut out = [NO_TILE; SPAN_PANELS];
        // Each matrix, and what is read behind it.
        for (matrix, then, is_up) in [(gate, up.bytes(first), false), (up, self.behind(last), true)] {
            for start in (first..last).step_by(SPAN_PANELS) {
                let panels = start..start + SPAN_PANELS;
                for (i, tile) in tiles.clone().enumerate() {
                    let tile = self.tile::<S>(tile);
                    let rows = self.rows::<S>(matrix, &tile);
                    let at = |panel: usize| (panel - first) * tiles.len() + i;
                    for panel in panels.clone() {
                        let out = if is_up { &mut out[panel - start] } else { &mut waiting[at(panel)] };
                        let then = if panel + 1 < last { matrix.bytes(panel + 1) } else { then };
                        let fetch = Fetch::for_tile(i, self.item.slots.len(), S::TILE, [then]);
                        multiply(s, matrix, panel, &rows, fetch, out);
                    }
                    if is_up {
                        let gate = std::array::from_fn(|panel| &waiting[at(start + panel)]);
                        self.activate(s, expert, start / SPAN_PANELS, &tile, gate, &out);
                    }
                }
            }
        }
    }

    /// What is read when panel `last` of `up` was.
    #[inline(always)]
    fn behind(&self, last: usize) -> &[u8] {
        let (item, panel) = match &self.next {
            Some(next) if last == SPAN_PANELS * self.item.spans.end => (next, SPAN_PANELS * next.spans.start),
            _ => (&self.item, last),
        };
        Panels::new(&self.pass.experts.get(item.run.expert).gate).bytes(panel)
    }

    /// Slots of tile `tile` of the item.
    #[inline(always)]
    fn tile<S: Simd>(&self, tile: usize) -> Range<usize> {
        let Item { run, slots, .. } = &self.item;
        let tile = even_part(slots.len(), S::TILE, tile);
        let first = run.first + slots.start;
        first + tile.start..first + tile.end
    }

    /// The rows of slots `tile`.
    #[inline(always)]
    fn rows<S: Simd>(&self, matrix: Panels<'_>, tile: &Range<usize>) -> TileRows<'_> {
        let places = Places { first: tile.start, count: tile.len(), list: Some(self.pass.plan.tokens()) };
        TileRows::new::<S>(matrix, self.pass.input, places)
    }

    /// `SwiGLU` of one span of slots `tile`, stored as the down projection reads it.
    #[inline(always)]
    fn activate<S: Simd>(
        &self,
        s: S,
        expert: &SwiGluWeights,
        span: usize,
        tile: &Range<usize>,
        gate: [&TileOut; SPAN_PANELS],
        up: &[TileOut; SPAN_PANELS],
    ) {
        for (t, slot) in tile.clone().enumerate() {
            let panels = gate.iter().zip(up).map(|(gate, up)| [&gate[t], &up[t]]);
            // SAFETY: this item alone computes these channels of these slots.
            unsafe { self.pass.activations.put(s, &expert.down, slot, span, panels) };
        }
    }
}

/// One panel x the tokens of `rows`; zeros if the matrix does not have it.
#[inline(always)]
fn multiply<S: Simd>(
    s: S,
    matrix: Panels<'_>,
    panel: usize,
    rows: &TileRows<'_>,
    fetch: Fetch<'_>,
    out: &mut TileOut,
) {
    if panel < matrix.count() {
        panel_tile(s, matrix, panel, rows, fetch, out);
    } else {
        *out = NO_TILE;
    }
}
