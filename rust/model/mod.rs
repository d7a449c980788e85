//! Token ids, and what stands for images, to logits.
//!
//! [`Model`] is the immutable part, [`State`] what it keeps of one sequence, [`Scratch`] the memory one pass works in.
//! Prefill and decode are the same function with more or fewer tokens, and give the same bits however a text is cut.

mod attention;
mod calibration;
mod costs;
mod engine;
mod feed_forward;
mod fingerprint;
mod gated_delta;
mod input;
mod layer;
pub mod media;
mod member;
pub mod open;
pub mod positions;
mod prefix_cache;
pub mod saved;
mod scratch;
mod settling;
mod state;
mod step;
pub mod vision;
mod workspace;

pub use costs::{Costs, Operations};
pub use engine::{Engine, Trace};
pub use media::{Prompt, Span};
pub use prefix_cache::{PrefixCache, TextPath};
pub use scratch::Scratch;
pub use state::{DeltaState, LayerState, State};
pub use step::{Progress, Turn};

use self::media::Pass;
use self::member::Member;
use self::vision::{Features, VisionTower};
use crate::config::TextConfig;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::linear::linear;
use crate::kernels::profile::Operation;
use crate::threads::StandardFloat;
use crate::weights::model::{FeedForwardWeights, Weights};

/// A text model with, perhaps, a vision tower: shapes and weights.
#[derive(Debug)]
pub struct Model {
    /// Shapes and constants of the text model.
    pub config: TextConfig,
    /// Its weights.
    pub weights: Weights,
    /// What turns images into embeddings.
    pub vision: Option<VisionTower>,
}

/// A place in the forward pass that can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Token embeddings.
    Embedding,
    /// The output of decoder layer i, before the final norm.
    Layer(usize),
    /// The scores that the router of layer i gives all experts, `[tokens, experts]`.
    RouterLogits(usize),
    /// The experts chosen in layer i, by falling weight, `[tokens, chosen]`; whole numbers.
    SelectedExperts(usize),
    /// Their weights, `[tokens, chosen]`.
    RouterWeights(usize),
}

/// Sees `[tokens, hidden]`, or what the stage says, at each stage of each chunk.
pub type Watch<'a> = &'a mut dyn FnMut(Stage, &[f32]);

impl Model {
    /// Appends to the state of each member the tokens of its pass, and leaves the last one's hidden state before the final
    /// norm there; the same at its stops. If watched, the hidden states of all tokens are left in `scratch` too.
    ///
    /// Members bring a token at least, and [`Scratch::tokens`] together at most. Each weight is read once for all of them.
    fn forward(
        &self,
        cpu: &Cpu,
        scratch: &mut Scratch,
        members: &mut [Member<'_>],
        mut watch: Option<Watch<'_>>,
    ) {
        let _standard = StandardFloat::enter();
        cpu.profile.begin();
        for member in &mut *members {
            member.state.broken = true;
        }
        let width = self.config.hidden_size;
        let tokens = member::tokens(members);
        let hidden = tokens * width;
        for (member, rows) in member::rows(members) {
            self.embed(&member.pass, &mut scratch.hidden[rows.start * width..rows.end * width]);
        }
        Self::place(scratch, members);
        cpu.profile.lap(Operation::Embedding, tokens * self.weights.embedding.row_bytes());
        let watched = watch.is_some();
        let mut show = |stage, x: &[f32]| {
            if let Some(watch) = &mut watch {
                watch(stage, x);
            }
        };
        show(Stage::Embedding, &scratch.hidden[..hidden]);
        let last = self.weights.layers.len() - 1;
        // What is added behind the last layer stands in the rows of all tokens.
        let ends_only = !watched && !members.iter().any(|member| member.pass.has_deepstack(last));
        for (i, weights) in self.weights.layers.iter().enumerate() {
            let outputs = if i == last && ends_only { member::ends(members).count() } else { tokens };
            layer::forward(cpu, &self.config, weights, i, members, scratch, outputs);
            show(Stage::Layer(i), &scratch.hidden[..hidden]);
            if watched && matches!(weights.feed_forward, FeedForwardWeights::Moe(_)) {
                scratch.feed_forward.show_routes(i, tokens, &mut show);
            }
            for (member, rows) in member::rows(members) {
                member.pass.add_deepstack(i, &mut scratch.hidden[rows.start * width..rows.end * width]);
            }
        }
        let mut outputs = 0;
        for (member, rows) in member::rows_mut(members) {
            let (state, stretches) = member.stretches_mut();
            state.len += rows.len();
            for (stretch, copy) in stretches {
                let state = copy.unwrap_or(&mut *state);
                let row = if ends_only { outputs } else { rows.start + stretch.end - 1 };
                outputs += 1;
                state.broken = false;
                state.last_hidden.clear();
                state.last_hidden.extend_from_slice(&scratch.hidden[row * width..(row + 1) * width]);
            }
        }
    }

    /// Rows of the embedding, or of images where they stand: `[tokens, hidden]`.
    fn embed(&self, pass: &Pass<'_>, out: &mut [f32]) {
        for (token, row) in pass.ids().iter().zip(out.chunks_exact_mut(self.config.hidden_size)) {
            self.weights.embedding.read_row(*token as usize, row);
        }
        pass.put_embeddings(out);
    }

    /// Rotary positions of all rows.
    fn place(scratch: &mut Scratch, members: &mut [Member<'_>]) {
        scratch.positions.clear();
        for member in members {
            member.pass.positions(&mut member.state.next_position, &mut scratch.positions);
        }
        scratch.rope.fill(scratch.positions.iter().copied());
    }

    /// Final norm and vocabulary head of `hidden` `[tokens, hidden]`: `normed` `[tokens, hidden]`, `logits` `[tokens, vocab]`.
    fn head(&self, cpu: &Cpu, scratch: &mut Scratch, hidden: &[f32], normed: &mut [f32], logits: &mut [f32]) {
        let _standard = StandardFloat::enter();
        cpu.profile.begin();
        let (norm, head) = (&self.weights.final_norm, &self.weights.head);
        let quantized = head.format().is_quantized();
        let eps = self.config.rms_norm_eps;
        let input = input::normalize(cpu, hidden, norm, eps, quantized, normed, &mut scratch.input);
        linear(cpu, input, [input::set(head, logits)]);
        cpu.profile.products(Operation::Head, input.tokens, &[head]);
    }

    /// Checks that all logits are finite; if not, looks for the tensor at fault.
    fn check_finite(&self, logits: &[f32]) -> Result<()> {
        const EXPONENT: u32 = 0x7f80_0000;
        let bad = logits.iter().fold(false, |bad, x| bad | (x.to_bits() & EXPONENT == EXPONENT));
        if bad { Err(non_finite("logits", self.weights.find_non_finite())) } else { Ok(()) }
    }

    /// The same for what the vision tower gives.
    fn check_features(&self, features: &Features) -> Result<()> {
        if features.is_finite() {
            return Ok(());
        }
        let culprit = self.vision.as_ref().and_then(|vision| vision.weights.find_non_finite());
        Err(non_finite("image features", culprit))
    }
}

/// An error about `what`, and the tensor that is to blame.
fn non_finite(what: &'static str, tensor: Option<String>) -> Error {
    let reason = match tensor {
        Some(name) => format!("tensor '{name}' holds NaN or infinity"),
        None => "the activations overflowed although all weights are finite".to_owned(),
    };
    Error::NonFinite { what, reason }
}
