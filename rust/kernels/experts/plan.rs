//! Slots sorted by expert, and how the work on them is cut into items.

use super::Experts;
use crate::kernels::activation::sigmoid_in_place;
use crate::kernels::cpu::Cpu;
use crate::kernels::routing::Routes;
use crate::weights::matrix::BLOCK_COLS;

/// Items for each thread of a region: enough that the last ones end at about the same time.
const ITEMS_PER_THREAD: usize = 24;
/// The fewest tokens of an expert that an item takes if it does not take all: they share reads of the weights.
const PIECE: usize = 32;
/// Tokens that cost about as much as one of them where weights come from the cache.
const TILE: usize = 8;

/// All slots of one expert, and its share of the items that compute gate and up projections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Index of the expert.
    pub(super) expert: usize,
    /// First slot.
    pub(super) first: usize,
    /// Slots, at least one.
    pub(super) count: usize,
    /// Groups of 32 channels that an item takes.
    groups_per_item: usize,
    /// Tokens that an item takes, at most.
    tokens_per_item: usize,
    /// Items of all experts before this one.
    first_item: usize,
}

/// What an item of gate and up projections computes.
pub(super) struct Item {
    pub(super) run: Run,
    /// Slots, counted from the expert's first.
    pub(super) slots: std::ops::Range<usize>,
    /// Groups of 32 channels; the last may be one that the expert has not.
    pub(super) groups: std::ops::Range<usize>,
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
        let (groups_per_item, tokens_per_item) = (1, count);
        self.runs.push(Run { expert, first, count, groups_per_item, tokens_per_item, first_item: 0 });
    }

    /// Cuts gate and up projections into items of about the same cost.
    fn cut(&mut self, threads: usize, experts: Experts<'_>) {
        let groups = |run: &Run| experts.get(run.expert).gate.rows().div_ceil(BLOCK_COLS);
        let tiles = |run: &Run| run.count.div_ceil(TILE);
        let cost: usize = self.runs.iter().map(|run| groups(run) * tiles(run)).sum();
        let target = cost.div_ceil(threads * ITEMS_PER_THREAD).max(1);
        self.items = 0;
        for run in &mut self.runs {
            run.groups_per_item = (target / tiles(run)).max(1);
            run.tokens_per_item = if tiles(run) > target { (TILE * target).max(PIECE) } else { run.count };
            run.first_item = self.items;
            self.items += groups(run).div_ceil(run.groups_per_item) * run.pieces();
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
        let (item, pieces) = (item - run.first_item, run.pieces());
        let (part, piece) = (item / pieces, item % pieces);
        let slots = piece * run.count / pieces..(piece + 1) * run.count / pieces;
        let groups = part * run.groups_per_item..(part + 1) * run.groups_per_item;
        Item { run, slots, groups }
    }
}

impl Run {
    /// Pieces that the tokens are cut into.
    fn pieces(&self) -> usize {
        self.count.div_ceil(self.tokens_per_item)
    }
}
