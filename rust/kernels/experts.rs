//! A feed-forward network of many experts, of which each token uses a few.
//!
//! ```text
//! out[t] = sum over the experts e of token t, in rising order, of weight[t, e] x down_e(silu(gate_e(x[t])) * up_e(x[t]))
//!          + sigmoid(shared gate[t]) x the same of the shared expert, if there is one
//! ```
//!
//! A *slot* is one token at one of its experts. Slots are sorted by expert, so that all tokens of an expert share each
//! read of its weights; the shared expert is one more, with every token. Two parallel regions follow:
//!
//! ```text
//! gate_up  for each expert and 128 of its channels (and a piece of its tokens if they are many):
//!            gate and up of these channels, SwiGLU, INT8 with one scale     -> activations [slots, width]
//! down     for each run of panels of the output:
//!            for each expert, rising; for each of its slots: sum[token] += weight x panel x activations
//!            out = sum                                                     -> [tokens, hidden]
//! ```
//!
//! Rows of activations are read where they stand; nothing is gathered. What is summed for a token happens to one panel on
//! one thread, in the order of experts, so no product of a slot is kept, however many there are. All panels of `down`
//! cost the same whatever the router chose, and the tokens of an expert are cut for `gate_up` if it gets very many, so threads end
//! together. Both are shared out in the order of memory. Decode reads the bytes of the chosen experts once, see `alone`.
//!
//! Source: `Qwen3_5MoeSparseMoeBlock` of Hugging Face transformers, which also adds the experts in rising order.

mod activations;
mod alone;
mod down;
mod gate_up;
mod plan;

use self::activations::Activations;
use self::plan::Plan;
use super::activations::Group;
use super::cpu::Cpu;
use super::lanes::LANES;
use super::linear::{Input, Store};
use super::routing::Routes;
use super::tiles::Rows;
use crate::weights::matrix::{BLOCK_COLS, BLOCK_ROWS};
use crate::weights::model::SwiGluWeights;

/// An expert that every token uses.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// Of any width.
    pub weights: &'a SwiGluWeights,
    /// Logits of its weight, `[tokens]`
    pub gate: &'a [f32],
}

/// The experts of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a> {
    /// Those that are routed to.
    pub routed: &'a [SwiGluWeights],
    /// One that all tokens use as well.
    pub shared: Option<Shared<'a>>,
}

impl<'a> Experts<'a> {
    /// Expert `index` of those that are routed to; the shared one comes behind the last.
    fn get(&self, index: usize) -> &'a SwiGluWeights {
        match (self.routed.get(index), self.shared) {
            (Some(expert), _) => expert,
            (None, Some(shared)) => shared.weights,
            (None, None) => panic!("expert {index} of {}", self.routed.len()),
        }
    }
}

/// Memory of [`expert_feed_forward`]. Holds nothing between calls.
#[derive(Debug, Default)]
pub struct ExpertScratch {
    plan: Plan,
    /// `[slots, groups]`, of experts whose down projection is quantised
    groups: Vec<Group>,
    /// `[slots, width]`, of the others
    dense: Vec<f32>,
    /// `[panels, tokens]`, or the products of one token
    sums: Vec<[f32; LANES]>,
}

impl ExpertScratch {
    /// Room for `tokens` tokens with `per_token` of `experts` experts, whose input and output have `hidden` channels and the
    /// widest of which has `width`. A shared expert counts in all of these: one more a token, one more in all.
    pub fn with_capacity(
        tokens: usize,
        per_token: usize,
        experts: usize,
        hidden: usize,
        width: usize,
    ) -> Self {
        let slots = tokens * per_token;
        Self {
            plan: Plan::with_capacity(slots, experts),
            groups: Vec::with_capacity(slots * width.div_ceil(BLOCK_COLS)),
            dense: Vec::with_capacity(slots * width),
            sums: Vec::with_capacity(
                (tokens * hidden.div_ceil(BLOCK_ROWS)).max(alone::room(per_token, hidden, width)),
            ),
        }
    }
}

/// The feed-forward network of `experts` for `input` `[tokens, hidden]`, to `out` `[tokens, hidden]`.
///
/// `input` is quantised too if a gate or up projection is. Allocates only if the capacity of `scratch` does not suffice.
///
/// # Panics
/// If shapes do not fit, a route leads to an expert that does not exist, or a weight is quantised and the input is not.
pub fn expert_feed_forward(
    cpu: &Cpu,
    experts: Experts<'_>,
    input: Input<'_>,
    routes: &Routes,
    scratch: &mut ExpertScratch,
    out: &mut [f32],
    store: Store,
) {
    let tokens = input.tokens;
    assert_eq!(input.dense.len(), out.len(), "input and output are [tokens, hidden]");
    if tokens == 0 {
        return;
    }
    assert!(out.len().is_multiple_of(tokens), "output is [tokens, hidden]");
    let hidden = out.len() / tokens;
    scratch.plan.fill(cpu, experts, routes, tokens);
    let plan = &scratch.plan;
    let mut width = Width::default();
    for run in plan.runs() {
        let expert = experts.get(run.expert);
        check(expert, input, hidden);
        width.include(expert);
    }
    grow(&mut scratch.groups, plan.slots() * width.groups, Group::default());
    grow(&mut scratch.dense, plan.slots() * width.dense, 0.0);
    let alone = alone::is_alone(experts, plan, tokens);
    let room = if alone {
        alone::room(plan.slots(), hidden, width.most)
    } else {
        tokens * hidden.div_ceil(BLOCK_ROWS)
    };
    grow(&mut scratch.sums, room, [0.0; LANES]);
    let activations = Activations::new(width, &mut scratch.groups, &mut scratch.dense);
    if alone {
        alone::gate_up(cpu, experts, plan, input.rows(hidden), &mut scratch.sums, &activations);
    } else {
        gate_up::run(cpu, experts, plan, input.rows(hidden), &activations);
    }
    let activations = Rows {
        dense: &scratch.dense,
        dense_stride: width.dense,
        groups: &scratch.groups,
        group_stride: width.groups,
    };
    if alone {
        alone::down(cpu, experts, plan, activations, &mut scratch.sums, out, store);
    } else {
        down::run(cpu, experts, plan, activations, tokens, &mut scratch.sums, out, store);
    }
}

/// Room that a slot's activations take in each of their two forms.
#[derive(Clone, Copy, Default)]
struct Width {
    groups: usize,
    dense: usize,
    /// Channels of the widest expert.
    most: usize,
}

impl Width {
    fn include(&mut self, expert: &SwiGluWeights) {
        let width = expert.down.cols();
        self.most = self.most.max(width);
        if expert.down.format().is_quantized() {
            self.groups = self.groups.max(width.div_ceil(BLOCK_COLS));
        } else {
            self.dense = self.dense.max(width);
        }
    }
}

fn check(expert: &SwiGluWeights, input: Input<'_>, hidden: usize) {
    let SwiGluWeights { gate, up, down } = expert;
    assert!(gate.cols() == hidden && up.cols() == hidden, "gate and up are [width, hidden]");
    assert_eq!(gate.rows(), up.rows(), "gate and up are [width, hidden]");
    assert!(down.rows() == hidden && down.cols() == gate.rows(), "down is [hidden, width]");
    if gate.format().is_quantized() || up.format().is_quantized() {
        let groups = input.quantized.map_or(0, |q| q.groups().len());
        assert_eq!(groups, input.tokens * hidden.div_ceil(BLOCK_COLS), "input is quantised");
    }
}

/// At least `len` elements; those that are there stay as they are.
fn grow<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}
