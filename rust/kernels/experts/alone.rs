//! One token alone: all its experts are read from memory, and used once.
//!
//! ```text
//! for each expert, rising:   gate x input, up x input                      -> products [experts, 2, panels]
//! for each expert:           silu(gate) * up                               -> activations [experts, width]
//! for each expert, rising:   down x activations                            -> products [experts, panels]
//! for each panel:            sum = 0;  for each expert, rising: sum = fma(weight, product, sum)
//! ```
//!
//! Memory is fast where a thread reads on. So here panels are shared out in the order of memory, and each thread goes through whole
//! matrices; what needs the products of several follows when all are there. Cut like the tokens of a prompt, by groups of channels
//! that take gate and up in turn and panels of the output that take all experts in turn, down projections were read at 0.69
//! of the memory's 80 GB/s, now at 0.83. The operations are those of `gate_up` and `down`, and so are the bits.
#![allow(unsafe_code, reason = "products, written in parallel at places that do not overlap")]

use std::ops::Range;

use super::Experts;
use super::activations::{Activations, SPAN_PANELS};
use super::plan::Plan;
use crate::kernels::cpu::Cpu;
use crate::kernels::disjoint::Disjoint;
use crate::kernels::lanes::{LANES, Op, Simd};
use crate::kernels::linear::Store;
use crate::kernels::shares::{Piece, share_out};
use crate::kernels::tiles::{Fetch, NO_TILE, Panels, Places, Rows, TileRows, panel_tile};
use crate::weights::matrix::BLOCK_ROWS;

/// The fewest panels that a thread takes.
const PIECE: Piece = Piece { least: 4, most: usize::MAX };
/// The fewest spans of channels that a thread makes of products.
const ACTIVATIONS: Piece = Piece { least: 4, most: usize::MAX };
/// The fewest panels whose products a thread adds up.
const SUMS: Piece = Piece { least: 16, most: usize::MAX };
/// Gate and up.
const TWO: usize = 2;

/// Whether a pass is one token, each of its slots at an expert of its own, and all these of one width.
pub(super) fn is_alone(experts: Experts<'_>, plan: &Plan, tokens: usize) -> bool {
    let runs = plan.runs();
    let width = |i: usize| experts.get(runs[i].expert).gate.rows();
    tokens == 1 && runs.len() == plan.slots() && (1..runs.len()).all(|i| width(i) == width(0))
}

/// Products that a token with `slots` slots has at a time.
pub(super) fn room(slots: usize, hidden: usize, width: usize) -> usize {
    slots * hidden.div_ceil(BLOCK_ROWS).max(TWO * width.div_ceil(BLOCK_ROWS))
}

/// Gate and up projections of `input`, one row, to `activations`; `products` has [`room`].
pub(super) fn gate_up(
    cpu: &Cpu,
    experts: Experts<'_>,
    plan: &Plan,
    input: Rows<'_>,
    products: &mut [[f32; LANES]],
    activations: &Activations<'_>,
) {
    let Some(first) = plan.runs().first() else { return };
    let panels = experts.get(first.expert).gate.rows().div_ceil(BLOCK_ROWS);
    let matrix = |index: usize| {
        let expert = experts.get(plan.runs()[index / TWO].expert);
        Factor {
            weights: Panels::new(if index.is_multiple_of(TWO) { &expert.gate } else { &expert.up }),
            row: 0,
        }
    };
    let products = &mut products[..TWO * plan.slots() * panels];
    multiply(cpu, panels, &matrix, input, products);
    let spans = panels.div_ceil(SPAN_PANELS);
    share_out(&cpu.pool, plan.slots() * spans, ACTIVATIONS, &|units| {
        cpu.run(Activate { experts, plan, panels, spans, products, units, activations });
    });
}

/// Down projections of `activations` `[slots, width]`, added up in `out` `[hidden]`; `products` has [`room`].
pub(super) fn down(
    cpu: &Cpu,
    experts: Experts<'_>,
    plan: &Plan,
    activations: Rows<'_>,
    products: &mut [[f32; LANES]],
    out: &mut [f32],
    store: Store,
) {
    let panels = out.len().div_ceil(BLOCK_ROWS);
    let matrix = |slot: usize| {
        let expert = experts.get(plan.runs()[slot].expert);
        Factor { weights: Panels::new(&expert.down), row: slot }
    };
    let products = &mut products[..plan.slots() * panels];
    multiply(cpu, panels, &matrix, activations, products);
    let (hidden, out) = (out.len(), Disjoint::new(out));
    share_out(&cpu.pool, panels, SUMS, &|some| {
        // SAFETY: these panels are added up here alone.
        let out = unsafe { out.part(some.start * BLOCK_ROWS..hidden.min(some.end * BLOCK_ROWS)) };
        cpu.run(AddUp { weights: plan.weights(), panels, first: some.start, products, out, store });
    });
}

/// A matrix, and the row of the input that it meets.
struct Factor<'a> {
    weights: Panels<'a>,
    row: usize,
}

/// Matrices of `panels` panels each, the i-th of which is `matrix(i)`, x their rows of `input`, to `products` `[matrices, panels]`.
fn multiply<'a>(
    cpu: &Cpu,
    panels: usize,
    matrix: &(dyn Fn(usize) -> Factor<'a> + Sync),
    input: Rows<'a>,
    products: &mut [[f32; LANES]],
) {
    let total = products.len();
    let products = Disjoint::new(products);
    share_out(&cpu.pool, total, PIECE, &|units| {
        // SAFETY: these units are computed here alone.
        let products = unsafe { products.part(units.clone()) };
        cpu.run(Multiply { panels, matrix, input, units, last: total / panels - 1, products });
    });
}

struct Multiply<'a, 'f> {
    panels: usize,
    matrix: &'f (dyn Fn(usize) -> Factor<'a> + Sync),
    input: Rows<'a>,
    /// Panels of all matrices.
    units: Range<usize>,
    /// Index of the last matrix.
    last: usize,
    /// As many as there are units.
    products: &'f mut [[f32; LANES]],
}

impl Op for Multiply<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { panels, matrix, input, units, last, products } = self;
        let mut products = products.iter_mut();
        let mut out = NO_TILE;
        for index in units.start / panels..units.end.div_ceil(panels) {
            let Factor { weights, row } = matrix(index);
            let next = if index < last { matrix(index + 1).weights.bytes(0) } else { &[] };
            let rows = TileRows::new::<S>(weights, input, Places { first: row, count: 1, list: None });
            let first = index * panels;
            let (start, end) = (units.start.max(first) - first, units.end.min(first + panels) - first);
            for (panel, product) in (start..end).zip(&mut products) {
                let then = if panel + 1 < panels { weights.bytes(panel + 1) } else { next };
                panel_tile(s, weights, panel, &rows, Fetch::for_tile(0, 1, 1, [then]), &mut out);
                *product = out[0];
            }
        }
    }
}

/// `SwiGLU` of some spans of all slots.
struct Activate<'a> {
    experts: Experts<'a>,
    plan: &'a Plan,
    panels: usize,
    /// Of a slot.
    spans: usize,
    /// `[slots, 2, panels]`
    products: &'a [[f32; LANES]],
    /// Of `[slots, spans]`
    units: Range<usize>,
    activations: &'a Activations<'a>,
}

impl Op for Activate<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { experts, plan, panels, spans, products, units, activations } = self;
        for unit in units {
            let (slot, span) = (unit / spans, unit % spans);
            let down = &experts.get(plan.runs()[slot].expert).down;
            let (gate, up) = products[slot * TWO * panels..][..TWO * panels].split_at(panels);
            let part = SPAN_PANELS * span..panels.min(SPAN_PANELS * (span + 1));
            let panels = gate[part.clone()].iter().zip(&up[part]).map(|(gate, up)| [gate, up]);
            // SAFETY: these units are computed here alone.
            unsafe { activations.put(s, down, slot, span, panels) };
        }
    }
}

/// out = sum over the slots of weights[slot] x products[slot], or out + it, for panels from `first` on.
struct AddUp<'a> {
    /// `[slots]`
    weights: &'a [f32],
    panels: usize,
    first: usize,
    /// `[slots, panels]`
    products: &'a [[f32; LANES]],
    /// `[channels of these panels]`
    out: &'a mut [f32],
    store: Store,
}

impl Op for AddUp<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (panel, out) in (self.first..).zip(self.out.chunks_mut(BLOCK_ROWS)) {
            let mut sum = s.splat(0.0);
            for (&weight, products) in self.weights.iter().zip(self.products.chunks_exact(self.panels)) {
                sum = s.fma(s.splat(weight), s.load(&products[panel]), sum);
            }
            let mut values = [0.0; LANES];
            s.store(sum, &mut values);
            self.store.write(s, &values, out);
        }
    }
}
