//! Token ids to logits.
//!
//! [`Model`] is the immutable part, [`State`] what it keeps of one sequence, [`Scratch`] the memory one pass works in.
//! Prefill and decode are the same function with more or fewer tokens, and give the same bits however a text is cut.

mod attention;
mod engine;
mod feed_forward;
mod gated_delta;
mod input;
mod layer;
pub mod open;
mod scratch;
mod state;
mod workspace;

pub use engine::{Engine, Trace};
pub use scratch::Scratch;
pub use state::{DeltaState, LayerState, State};

use crate::config::TextConfig;
use crate::error::{Error, Result};
use crate::kernels::Cpu;
use crate::kernels::linear::linear;
use crate::kernels::norm::rms_norm;
use crate::threads::StandardFloat;
use crate::weights::model::Weights;

/// A text model: its shapes and weights.
#[derive(Debug)]
pub struct Model {
    /// Shapes and constants.
    pub config: TextConfig,
    /// The weights.
    pub weights: Weights,
}

/// A place in the forward pass that can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Token embeddings.
    Embedding,
    /// The output of decoder layer i, before the final norm.
    Layer(usize),
}

/// Sees `[tokens, hidden]` at each stage of each chunk.
pub type Watch<'a> = &'a mut dyn FnMut(Stage, &[f32]);

impl Model {
    /// Appends `tokens` (at most [`Scratch::tokens`]) to `state`; leaves their hidden states before the final norm in
    /// `scratch` and the last one in `state`.
    fn forward(
        &self,
        cpu: &Cpu,
        scratch: &mut Scratch,
        state: &mut State,
        tokens: &[u32],
        mut watch: Option<Watch<'_>>,
    ) {
        let _standard = StandardFloat::enter();
        state.broken = true;
        let hidden = tokens.len() * self.config.hidden_size;
        self.embed(tokens, &mut scratch.hidden[..hidden]);
        Self::place(scratch, state, tokens.len());
        let mut show = |stage, x: &[f32]| {
            if let Some(watch) = &mut watch {
                watch(stage, x);
            }
        };
        show(Stage::Embedding, &scratch.hidden[..hidden]);
        for (i, (weights, state)) in self.weights.layers.iter().zip(&mut state.layers).enumerate() {
            layer::forward(cpu, &self.config, weights, state, scratch, tokens.len());
            show(Stage::Layer(i), &scratch.hidden[..hidden]);
        }
        state.broken = false;
        state.len += tokens.len();
        state.last_hidden.clear();
        state.last_hidden.extend_from_slice(&scratch.hidden[hidden - self.config.hidden_size..hidden]);
    }

    /// Rows of the embedding, `[tokens, hidden]`.
    fn embed(&self, tokens: &[u32], out: &mut [f32]) {
        for (token, row) in tokens.iter().zip(out.chunks_exact_mut(self.config.hidden_size)) {
            self.weights.embedding.read_row(*token as usize, row);
        }
    }

    /// Rotary positions of the next `tokens` text tokens.
    fn place(scratch: &mut Scratch, state: &mut State, tokens: usize) {
        scratch.positions.clear();
        scratch.positions.extend((state.next_position..).take(tokens).map(|position| [position; 3]));
        scratch.rope.fill(&scratch.positions);
        state.next_position += tokens as u32;
    }

    /// Final norm and vocabulary head of `hidden` `[tokens, hidden]`: `normed` `[tokens, hidden]`, `logits` `[tokens, vocab]`.
    fn head(&self, cpu: &Cpu, scratch: &mut Scratch, hidden: &[f32], normed: &mut [f32], logits: &mut [f32]) {
        let _standard = StandardFloat::enter();
        rms_norm(cpu, hidden, &self.weights.final_norm, self.config.rms_norm_eps, normed);
        let head = &self.weights.head;
        let input = input::prepare(cpu, normed, self.config.hidden_size, &[head], &mut scratch.quantized);
        linear(cpu, input, [input::set(head, logits)]);
    }

    /// Checks that all logits are finite; if not, looks for the tensor at fault.
    fn check_finite(&self, logits: &[f32]) -> Result<()> {
        const EXPONENT: u32 = 0x7f80_0000;
        let bad = logits.iter().fold(false, |bad, x| bad | (x.to_bits() & EXPONENT == EXPONENT));
        if !bad {
            return Ok(());
        }
        let reason = match self.weights.find_non_finite() {
            Some(name) => format!("tensor '{name}' holds NaN or infinity"),
            None => "the activations overflowed although all weights are finite".to_owned(),
        };
        Err(Error::NonFinite { reason })
    }
}
