//! The second region: down projections of all slots, added up for each token.
//!
//! ```text
//! for each panel of a run:
//!   sum[token] = 0                                        16 lanes
//!   for each expert, rising:                              what it has of the panel is fetched while the last one is used
//!     for each tile of its slots:
//!       sum[token] = fma(weight[slot], panel x activations[slot], sum[token])
//!   out[token] = sum[token], or out + sum
//! ```
#![allow(unsafe_code, reason = "sums and outputs, written in parallel at places that do not overlap")]

use std::ops::Range;

use super::Experts;
use super::plan::{Plan, Run};
use crate::kernels::cpu::Cpu;
use crate::kernels::disjoint::Disjoint;
use crate::kernels::lanes::{LANES, Op, Simd};
use crate::kernels::linear::Store;
use crate::kernels::tiles::{Fetch, MAX_TILE, Places, Rows, even_part, panel_tile};
use crate::weights::matrix::BLOCK_ROWS;

/// Adds up `activations` `[slots, width]` x down projections in `sums` `[panels, tokens, 16]`, then stores them in `out`
/// `[tokens, hidden]`.
pub(super) fn run(
    cpu: &Cpu,
    experts: Experts<'_>,
    plan: &Plan,
    activations: Rows<'_>,
    tokens: usize,
    sums: &mut [f32],
    out: &mut [f32],
    store: Store,
) {
    let hidden = out.len() / tokens;
    let (sums, out) = (Disjoint::new(sums), Disjoint::new(out));
    let pass = Pass { experts, plan, activations, tokens, hidden, sums, out, store };
    cpu.pool.run(plan.panel_items(), &|item| cpu.run(Down { pass: &pass, panels: plan.panels(item) }));
}

struct Pass<'a> {
    experts: Experts<'a>,
    plan: &'a Plan,
    activations: Rows<'a>,
    tokens: usize,
    hidden: usize,
    sums: Disjoint<'a, f32>,
    out: Disjoint<'a, f32>,
    store: Store,
}

struct Down<'a> {
    pass: &'a Pass<'a>,
    panels: Range<usize>,
}

impl Op for Down<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { pass, panels } = self;
        let panel = pass.tokens * LANES;
        // SAFETY: these panels belong to this item.
        let sums = unsafe { pass.sums.part(panels.start * panel..panels.end * panel) };
        sums.fill(0.0);
        let runs = pass.plan.runs();
        for (i, run) in runs.iter().enumerate() {
            let next = runs
                .get(i + 1)
                .map_or(&[][..], |run| pass.experts.get(run.expert).down.panel_bytes(panels.start));
            add_expert(s, pass, run, next, panels.clone(), sums.as_chunks_mut().0);
        }
        for (panel, sums) in panels.zip(sums.chunks_exact(panel)) {
            let row = panel * BLOCK_ROWS;
            let width = BLOCK_ROWS.min(pass.hidden - row);
            for (token, sum) in sums.as_chunks().0.iter().enumerate() {
                let start = token * pass.hidden + row;
                // SAFETY: as above.
                let out = unsafe { pass.out.part(start..start + width) };
                pass.store.write(s, sum, out);
            }
        }
    }
}

/// Adds what one expert makes of its slots to `sums` `[panels, tokens]`.
#[inline(always)]
fn add_expert<S: Simd>(
    s: S,
    pass: &Pass<'_>,
    run: &Run,
    next: &[u8],
    panels: Range<usize>,
    sums: &mut [[f32; LANES]],
) {
    let down = &pass.experts.get(run.expert).down;
    let mut out = [[0.0; LANES]; MAX_TILE];
    for i in 0..run.count.div_ceil(S::TILE) {
        let tile = even_part(run.count, S::TILE, i);
        let first = run.first + tile.start;
        let places = Places { first, count: tile.len(), list: None };
        for (panel, sums) in panels.clone().zip(sums.chunks_exact_mut(pass.tokens)) {
            let then = if panel + 1 < panels.end { down.panel_bytes(panel + 1) } else { next };
            let fetch = if i == 0 { Fetch::Then(then) } else { Fetch::Nothing };
            panel_tile(s, down, panel, pass.activations, places, fetch, &mut out);
            for (slot, out) in (first..).zip(&out[..tile.len()]) {
                let sum = &mut sums[pass.plan.tokens()[slot] as usize];
                let weight = s.splat(pass.plan.weights()[slot]);
                s.store(s.fma(weight, s.load(out), s.load(sum)), sum);
            }
        }
    }
}
