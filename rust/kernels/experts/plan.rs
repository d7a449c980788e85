//! Slots sorted by expert, and how the work on them is cut into units.

use std::ops::Range;

use super::Experts;
use crate::kernels::activation::sigmoid_in_place;
use crate::kernels::activations::SPAN_COLS;
use crate::kernels::cpu::Cpu;
use crate::kernels::routing::Routes;
use crate::kernels::shares::Piece;
use crate::kernels::tiles::MAX_TILE;

/// A thread's part of gate and up projections is at least so many pieces.
const SHARE: usize = 4;
/// The fewest tiles of an expert's tokens that a unit takes if it does not take all: they share reads of the weights.
const TILES: usize = 4;

/// All slots of one expert, and the units that compute its gate and up projections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Index of the expert.
    pub(super) expert: usize,
    /// First slot.
    pub(super) first: usize,
    /// Slots, at least one.
    pub(super) count: usize,
    /// Spans of 128 channels.
    spans: usize,
    /// Pieces that the slots are cut into. A unit is a span of a piece.
    pieces: usize,
    /// Units of all experts before this one.
    first_unit: usize,
}

/// Units that follow each other in one expert: some spans of 128 channels of gate and up projections, for some slots.
pub(super) struct Item {
    pub(super) run: Run,
    /// Slots, counted from the expert's first.
    pub(super) slots: Range<usize>,
    /// Spans of 128 channels.
    pub(super) spans: Range<usize>,
}

/// The order of work for one pass.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Of each expert: how many slots, then where the next one goes. `[experts]`
    cursors: Vec<u32>,
    /// `[slots]`
    tokens: Vec<u32>,
    /// `[slots]`
    weights: Vec<f32>,
    runs: Vec<Run>,
    /// Of gate and up projections.
    units: usize,
    /// Units that a thread takes at a time, at most.
    most: usize,
}

impl Plan {
    pub(super) fn with_capacity(slots: usize, experts: usize) -> Self {
        Self {
            cursors: Vec::with_capacity(experts),
            tokens: Vec::with_capacity(slots),
            weights: Vec::with_capacity(slots),
            runs: Vec::with_capacity(experts),
            units: 0,
            most: 0,
        }
    }

    /// Experts that have tokens, in rising order, the shared one last.
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(super) fn slots(&self) -> usize {
        self.tokens.len()
    }

    /// Token of each slot.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How much each slot counts.
    pub(super) fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Sorts the routes of `tokens` tokens: by expert, and the slots of an expert by token.
    pub(super) fn fill(&mut self, cpu: &Cpu, experts: Experts<'_>, routes: &Routes, tokens: usize) {
        let per_token = routes.per_token();
        assert_eq!(routes.experts().len(), tokens * per_token, "routes are [tokens, per_token]");
        self.count(routes.experts(), experts.routed.len());
        self.tokens.clear();
        self.tokens.resize(routes.experts().len(), 0);
        self.weights.clear();
        self.weights.resize(routes.experts().len(), 0.0);
        for (i, (&expert, &weight)) in routes.experts().iter().zip(routes.weights()).enumerate() {
            let slot = self.cursors[expert as usize];
            self.cursors[expert as usize] = slot + 1;
            self.tokens[slot as usize] = (i / per_token) as u32;
            self.weights[slot as usize] = weight;
        }
        if let Some(shared) = experts.shared {
            assert_eq!(shared.gate.len(), tokens, "the shared expert's gate is [tokens]");
            self.add_run(experts.routed.len(), self.tokens.len(), tokens);
            self.tokens.extend(0..tokens as u32);
            self.weights.extend_from_slice(shared.gate);
            let first = self.weights.len() - tokens;
            sigmoid_in_place(cpu, &mut self.weights[first..]);
        }
        self.cut(cpu.pool.threads(), experts);
    }

    /// Makes the runs of the experts, and moves the cursors to their first slots.
    fn count(&mut self, routes: &[u32], experts: usize) {
        self.cursors.clear();
        self.cursors.resize(experts, 0);
        for &expert in routes {
            assert!((expert as usize) < experts, "a route to expert {expert} of {experts}");
            self.cursors[expert as usize] += 1;
        }
        self.runs.clear();
        let mut first = 0;
        for expert in 0..experts {
            let count = self.cursors[expert] as usize;
            self.cursors[expert] = first as u32;
            if count > 0 {
                self.add_run(expert, first, count);
            }
            first += count;
        }
    }

    fn add_run(&mut self, expert: usize, first: usize, count: usize) {
        self.runs.push(Run { expert, first, count, spans: 0, pieces: 0, first_unit: 0 });
    }

    /// Cuts gate and up projections into units in the order of memory. An expert of many tokens has several for each span, so that
    /// threads end together also if it has them all.
    fn cut(&mut self, threads: usize, experts: Experts<'_>) {
        for run in &mut self.runs {
            run.spans = experts.get(run.expert).gate.rows().div_ceil(SPAN_COLS);
        }
        let total: usize = self.runs.iter().map(Run::cost).sum();
        let share = if threads == 1 { usize::MAX } else { total.div_ceil(SHARE * threads).max(1) };
        let (mut units, mut largest) = (0, 1);
        for run in &mut self.runs {
            run.pieces = if run.tiles() > share { run.tiles().div_ceil(share.max(TILES)) } else { 1 };
            run.first_unit = units;
            units += run.spans * run.pieces;
            largest = largest.max(run.tiles().div_ceil(run.pieces));
        }
        (self.units, self.most) = (units, (share / largest).max(1));
    }

    /// Units of gate and up projections.
    pub(super) fn units(&self) -> usize {
        self.units
    }

    /// How many a thread takes at a time.
    pub(super) fn piece(&self) -> Piece {
        Piece { least: 1, most: self.most }
    }

    /// Units from `units.start` on that are of one expert and the same slots; none if `units` is empty.
    pub(super) fn item(&self, units: Range<usize>) -> Option<Item> {
        if units.is_empty() {
            return None;
        }
        let behind = self.runs.partition_point(|run| run.first_unit <= units.start);
        let run = self.runs[behind - 1];
        let unit = units.start - run.first_unit;
        let (piece, span) = (unit / run.spans, unit % run.spans);
        let slots = piece * run.count / run.pieces..(piece + 1) * run.count / run.pieces;
        let spans = span..run.spans.min(span + units.len());
        Some(Item { run, slots, spans })
    }
}

impl Run {
    /// Tiles of tokens, about.
    fn tiles(&self) -> usize {
        self.count.div_ceil(MAX_TILE)
    }

    fn cost(&self) -> usize {
        self.spans * self.tiles()
    }
}
