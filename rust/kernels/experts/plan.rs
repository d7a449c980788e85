//! Slots sorted by expert, and how the work on them is cut into items.

use std::ops::Range;

use super::Experts;
use crate::kernels::activation::sigmoid_in_place;
use crate::kernels::cpu::Cpu;
use crate::kernels::routing::Routes;
use crate::kernels::tiles::MAX_TILE;
use crate::weights::matrix::BLOCK_COLS;

/// An item takes at most this share of a thread's part of what is left.
const SHARE: usize = 2;
/// The fewest tiles of an expert's tokens that an item takes if it does not take all: they share reads of the weights.
const PIECE: usize = 4;

/// All slots of one expert, and its share of the items that compute gate and up projections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Index of the expert.
    pub(super) expert: usize,
    /// First slot.
    pub(super) first: usize,
    /// Slots, at least one.
    pub(super) count: usize,
    /// Groups of 32 channels.
    groups: usize,
    /// Parts that the groups are cut into.
    parts: usize,
    /// Pieces that the slots are cut into.
    pieces: usize,
    /// Items of all experts before this one.
    first_item: usize,
}

/// What an item of gate and up projections computes.
pub(super) struct Item {
    pub(super) run: Run,
    /// Slots, counted from the expert's first.
    pub(super) slots: Range<usize>,
    /// Groups of 32 channels.
    pub(super) groups: Range<usize>,
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
    /// Items of gate and up projections.
    items: usize,
}

impl Plan {
    pub(super) fn with_capacity(slots: usize, experts: usize) -> Self {
        Self {
            cursors: Vec::with_capacity(experts),
            tokens: Vec::with_capacity(slots),
            weights: Vec::with_capacity(slots),
            runs: Vec::with_capacity(experts),
            items: 0,
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
        self.runs.push(Run { expert, first, count, groups: 0, parts: 0, pieces: 0, first_item: 0 });
    }

    /// Cuts gate and up projections into items: large ones first, because memory is fast where much is read in one go,
    /// then smaller ones, so that all threads end at about the same time.
    fn cut(&mut self, threads: usize, experts: Experts<'_>) {
        for run in &mut self.runs {
            run.groups = experts.get(run.expert).gate.rows().div_ceil(BLOCK_COLS);
        }
        let mut left: usize = self.runs.iter().map(Run::cost).sum();
        self.items = 0;
        for run in &mut self.runs {
            left -= run.cost();
            let target = share(left, threads);
            run.parts = run.groups.div_ceil((target / run.tiles()).max(1));
            run.pieces = if run.tiles() > target { run.tiles().div_ceil(target.max(PIECE)) } else { 1 };
            run.first_item = self.items;
            self.items += run.parts * run.pieces;
        }
    }

    /// Items of gate and up projections.
    pub(super) fn items(&self) -> usize {
        self.items
    }

    /// What item `item` computes.
    pub(super) fn item(&self, item: usize) -> Item {
        let behind = self.runs.partition_point(|run| run.first_item <= item);
        let run = self.runs[behind - 1];
        let item = item - run.first_item;
        let (part, piece) = (item / run.pieces, item % run.pieces);
        let slots = piece * run.count / run.pieces..(piece + 1) * run.count / run.pieces;
        let groups = part * run.groups / run.parts..(part + 1) * run.groups / run.parts;
        Item { run, slots, groups }
    }
}

impl Run {
    /// Tiles of tokens, about.
    fn tiles(&self) -> usize {
        self.count.div_ceil(MAX_TILE)
    }

    fn cost(&self) -> usize {
        self.groups * self.tiles()
    }
}

/// How much of what is left an item takes.
fn share(left: usize, threads: usize) -> usize {
    if threads == 1 { usize::MAX } else { left.div_ceil(SHARE * threads).max(1) }
}
