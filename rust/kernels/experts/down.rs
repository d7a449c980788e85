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
use crate::kernels::prefetch;
use crate::kernels::shares::{Piece, share_out};
use crate::kernels::tiles::{Fetch, NO_TILE, Panels, Places, Rows, TileRows, even_part, panel_tile};
use crate::weights::matrix::BLOCK_ROWS;

/// The most sums of a token and a panel that a piece takes: 1 MB, which should stay in a cache.
const MAX_SUMS: usize = 16 * 1024;

/// The fewest panels of a piece: each piece goes through all experts, and jumps from one to the next.
const LEAST: usize = 4;

/// Adds up `activations` `[slots, width]` x down projections in `sums` `[panels, tokens]`, then stores them in `out`
/// `[tokens, hidden]`.
pub(super) fn run(
    cpu: &Cpu,
    experts: Experts<'_>,
    plan: &Plan,
    activations: Rows<'_>,
    tokens: usize,
    sums: &mut [[f32; LANES]],
    out: &mut [f32],
    store: Store,
) {
    let hidden = out.len() / tokens;
    let (sums, out) = (Disjoint::new(sums), Disjoint::new(out));
    let pass = Pass { experts, plan, activations, tokens, hidden, sums, out, store };
    let most = (MAX_SUMS / tokens).max(1);
    let piece = Piece { least: LEAST, most };
    share_out(&cpu.pool, hidden.div_ceil(BLOCK_ROWS), piece, &|panels| cpu.run(Down { pass: &pass, panels }));
}

struct Pass<'a> {
    experts: Experts<'a>,
    plan: &'a Plan,
    activations: Rows<'a>,
    tokens: usize,
    hidden: usize,
    sums: Disjoint<'a, [f32; LANES]>,
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
        // SAFETY: these panels are computed here alone.
        let sums = unsafe { pass.sums.part(panels.start * pass.tokens..panels.end * pass.tokens) };
        sums.fill([0.0; LANES]);
        let runs = pass.plan.runs();
        let down = |run: &Run| Panels::new(&pass.experts.get(run.expert).down);
        for (i, run) in runs.iter().enumerate() {
            let next = runs.get(i + 1).map_or(&[][..], |run| down(run).bytes(panels.start));
            add_expert(s, pass, run, down(run), next, panels.clone(), sums);
        }
        for (token, sums) in sums.chunks_exact(panels.len()).enumerate() {
            for (panel, sum) in panels.clone().zip(sums) {
                let row = panel * BLOCK_ROWS;
                let width = BLOCK_ROWS.min(pass.hidden - row);
                let start = token * pass.hidden + row;
                // SAFETY: as above.
                let out = unsafe { pass.out.part(start..start + width) };
                pass.store.write(s, sum, out);
            }
        }
    }
}

/// Adds what one expert makes of its slots to `sums` `[tokens, panels]`.
#[inline(always)]
fn add_expert<S: Simd>(
    s: S,
    pass: &Pass<'_>,
    run: &Run,
    down: Panels<'_>,
    next: &[u8],
    panels: Range<usize>,
    sums: &mut [[f32; LANES]],
) {
    let mut out = NO_TILE;
    for i in 0..run.count.div_ceil(S::TILE) {
        let tile = even_part(run.count, S::TILE, i);
        let slots = run.first + tile.start..run.first + tile.end;
        let places = Places { first: slots.start, count: slots.len(), list: None };
        let rows = TileRows::new::<S>(down, pass.activations, places);
        let tokens = &pass.plan.tokens()[slots.clone()];
        let weights = &pass.plan.weights()[slots];
        for panel in panels.clone() {
            let at = |token: u32| token as usize * panels.len() + panel - panels.start;
            for &token in tokens {
                prefetch::lines((&raw const sums[at(token)]).cast(), size_of::<[f32; LANES]>());
            }
            let then = if panel + 1 < panels.end { down.bytes(panel + 1) } else { next };
            let fetch = Fetch::for_tile(i, run.count, S::TILE, [then]);
            panel_tile(s, down, panel, &rows, fetch, &mut out);
            for (t, (&token, &weight)) in tokens.iter().zip(weights).enumerate() {
                let sum = &mut sums[at(token)];
                s.store(s.fma(s.splat(weight), s.load(&out[t]), s.load(sum)), sum);
            }
        }
    }
}
