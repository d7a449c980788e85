//! The engine: a model, where it runs, and the memory it works in, safe to share between threads.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::costs;
use super::media::{Prompt, Span};
use super::member::{self, Member};
use super::settling::{Settling, no_large_pages};
use super::step::Progress;
use super::vision::{Features, Grid, VisionTower, VisionWatch};
use super::workspace::{Taken, Workspace};
use super::{Model, Stage, State};
use crate::config::TextConfig;
use crate::error::{Error, Result, try_zeros};
use crate::kernels::Cpu;
use crate::kernels::kv_cache::KvType;
use crate::large_pages;
use crate::weights::matrix::Matrix;

/// Tokens of one pass through the layers in prefill, at most.
const CHUNK: usize = 256;
/// The same in a model with experts. Each expert gets a few of them and is read from memory for those, so more tokens share
/// a read: of 512 with 8 of 256 experts each, 16.
const MOE_CHUNK: usize = 512;
/// Tokens of the very first pass.
const FIRST_CHUNK: usize = 32;
/// Passes grow to multiples of this, whole tiles of the kernels.
const CHUNK_STEP: usize = 32;
/// The longest a pass should take, so that Ctrl-C is heard soon on a slow machine too.
const CHUNK_SECONDS: f64 = 0.8;

/// A loaded model ready to compute. Passes of different sequences take turns; any number of sequences can be alive.
#[derive(Debug)]
pub struct Engine {
    /// Shapes and weights.
    pub model: Model,
    /// Tier and threads.
    pub cpu: Cpu,
    kv_type: KvType,
    /// Before the first token.
    empty: State,
    workspace: Workspace,
    /// None where weights stay in the mapped file.
    settling: Option<Settling>,
    /// Tokens of the next pass. Results do not depend on it.
    chunk: AtomicUsize,
}

impl Engine {
    /// Puts `model` on `cpu`.
    pub fn new(model: Model, cpu: Cpu, kv_type: KvType) -> Self {
        let workspace = Workspace::new(&model.config, chunk(&model.config));
        let empty = State::new(&model.config, kv_type);
        let chunk = AtomicUsize::new(FIRST_CHUNK);
        Self { model, cpu, kv_type, empty, workspace, settling: None, chunk }
    }

    /// Decides about large pages for the weights that decoding reads: behind the tokens, where the system has them and room;
    /// at once; or never. `proceed` is asked now and then while all moves at once.
    ///
    /// # Errors
    /// If they are wanted at once, and the system has none or no memory for them; that of `proceed`.
    pub fn use_large_pages(
        &mut self,
        wanted: Option<bool>,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let page = match (wanted, large_pages::size()) {
            (Some(false), _) | (None, None) => return Ok(()),
            (Some(true), None) => return Err(no_large_pages("this system gives programs none")),
            (_, Some(page)) => page,
        };
        let parts = costs::met(&self.model.weights).map(Matrix::data);
        self.settling = Some(Settling::new(parts, page, wanted.is_none()));
        if wanted == Some(true) { self.settle(proceed) } else { Ok(()) }
    }

    /// Bytes of weights that were moved into large pages.
    pub fn settled_bytes(&self) -> usize {
        self.settling.as_ref().map_or(0, Settling::moved)
    }

    /// Moves what is left of the weights into large pages now, as far as there is room. `proceed` is asked now and then.
    ///
    /// # Errors
    /// If the system has no memory for it; that of `proceed`. What moved until then stays moved.
    pub fn settle(&self, proceed: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.settling.as_ref().map_or(Ok(()), |settling| settling.finish(&self.cpu, proceed))
    }

    /// Number type of the KV cache of new sequences.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// The state before the first token.
    pub fn state(&self) -> State {
        let mut state = self.empty.clone();
        state.last_hidden.reserve_exact(self.model.config.hidden_size);
        state
    }

    /// Appends `prompt` to `state`. `proceed` is asked before each chunk and stops the work with an error, as does a lack of
    /// memory; the state then holds the chunks done so far, but for the last ones if they end inside an image.
    pub fn append(
        &self,
        state: &mut State,
        prompt: Prompt<'_>,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        self.check(state, prompt)?;
        let mut progress = Progress::default();
        let done = self.append_passes(state, prompt, proceed, &mut progress);
        if done.is_err() {
            progress.leave_image(state);
        }
        done
    }

    /// The same, but an error may leave the state inside an image.
    fn append_passes(
        &self,
        state: &mut State,
        prompt: Prompt<'_>,
        proceed: &mut dyn FnMut() -> Result<()>,
        progress: &mut Progress,
    ) -> Result<()> {
        while progress.done() < prompt.ids().len() {
            proceed()?;
            let Some(member) = progress.begin(state, prompt, self.pass_tokens())? else { break };
            let mut members = [member];
            self.pass(&mut members);
            let [member] = members;
            progress.end(prompt, member);
        }
        Ok(())
    }

    /// One pass of at most [`Self::most_tokens`] tokens.
    pub(super) fn pass(&self, members: &mut [Member<'_>]) {
        let start = Instant::now();
        self.model.forward(&self.cpu, &mut self.scratch(), members, None);
        let (tokens, seconds) = (member::tokens(members), start.elapsed().as_secs_f64());
        self.adapt_chunk(tokens, seconds);
        let writing = tokens == members.len();
        if let Some(settling) = self.settling.as_ref().filter(|_| writing) {
            for member in members {
                settling.take_up(member.state);
            }
            settling.step(&self.cpu, seconds);
        }
    }

    /// Tokens that the next pass should have at most, to be over soon.
    pub fn pass_tokens(&self) -> usize {
        self.chunk.load(Relaxed).min(self.most_tokens())
    }

    /// Tokens that a pass has room for.
    pub fn most_tokens(&self) -> usize {
        chunk(&self.model.config)
    }

    /// Sizes the next pass by how long this one took, so that a few steps reach the largest that is quick enough.
    fn adapt_chunk(&self, tokens: usize, seconds: f64) {
        let quick = (tokens as f64 * CHUNK_SECONDS / 2.0 / seconds.max(1e-9)) as usize;
        let chunk = self.chunk.load(Relaxed);
        if tokens == chunk && seconds < CHUNK_SECONDS / 2.0 {
            self.chunk.store((quick / CHUNK_STEP * CHUNK_STEP).clamp(chunk, self.most_tokens()), Relaxed);
        } else if tokens > 1 && seconds > CHUNK_SECONDS {
            self.chunk.store(tokens / 2, Relaxed);
        }
    }

    /// Makes room for `tokens` tokens in all, so that appending them one at a time allocates nothing, once a state that others
    /// share has memory of its own.
    pub fn reserve(&self, state: &mut State, tokens: usize) -> Result<()> {
        let tokens = tokens.min(self.model.config.max_position_embeddings);
        state.reserve(tokens)?;
        self.scratch().attention.partials.reserve(1, self.model.config.attention.heads, tokens);
        Ok(())
    }

    /// Logits after the last token of `state`, into `out` `[vocab]`.
    pub fn logits(&self, state: &State, out: &mut [f32]) -> Result<()> {
        check_scored(state)?;
        self.scores(&[state], out);
        self.check_finite(out)
    }

    /// The same for several states, `out` `[states, vocab]`, without looking at the numbers.
    ///
    /// # Panics
    /// If a state is empty, or there are more than a pass has room for.
    pub(super) fn scores(&self, states: &[&State], out: &mut [f32]) {
        let mut scratch = self.scratch();
        let (mut hidden, mut normed) =
            (std::mem::take(&mut scratch.hidden), std::mem::take(&mut scratch.normed));
        let width = self.model.config.hidden_size;
        for (state, row) in states.iter().zip(hidden.chunks_exact_mut(width)) {
            row.copy_from_slice(&state.last_hidden);
        }
        let rows = ..states.len() * width;
        self.model.head(&self.cpu, &mut scratch, &hidden[rows], &mut normed[rows], out);
        (scratch.hidden, scratch.normed) = (hidden, normed);
    }

    /// Refuses logits that are not finite, and names the tensor at fault.
    pub fn check_finite(&self, logits: &[f32]) -> Result<()> {
        self.model.check_finite(logits)
    }

    /// Logits after every token of `prompt` from an empty state: `[tokens, vocab]`.
    pub fn all_logits(
        &self,
        prompt: Prompt<'_>,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        Ok(self.trace(prompt, proceed, &mut |_, _| {})?.logits)
    }

    /// Runs `prompt` from an empty state and keeps what a comparison needs. `watch` sees every stage of every chunk.
    pub fn trace(
        &self,
        prompt: Prompt<'_>,
        proceed: &mut dyn FnMut() -> Result<()>,
        watch: &mut dyn FnMut(Stage, &[f32]),
    ) -> Result<Trace> {
        let mut state = self.state();
        self.check(&state, prompt)?;
        let config = &self.model.config;
        let tokens = prompt.ids().len();
        let mut final_norm = try_zeros(tokens, config.hidden_size)?;
        let mut logits = try_zeros(tokens, config.vocab_size)?;
        let (mut done, mut norms, mut scores) = (0, &mut final_norm[..], &mut logits[..]);
        while done < tokens {
            proceed()?;
            let range = done..(done + self.pass_tokens()).min(tokens);
            state.reserve(range.end)?;
            let (normed, later_norms) = norms.split_at_mut(range.len() * config.hidden_size);
            let (logits, later_scores) = scores.split_at_mut(range.len() * config.vocab_size);
            let mut members = [Member::new(&mut state, prompt.pass(range.clone()), Vec::new())?];
            let start = Instant::now();
            let mut scratch = self.scratch();
            self.model.forward(&self.cpu, &mut scratch, &mut members, Some(watch));
            let hidden = std::mem::take(&mut scratch.hidden);
            self.model.head(&self.cpu, &mut scratch, &hidden[..normed.len()], normed, logits);
            scratch.hidden = hidden;
            drop(scratch);
            self.adapt_chunk(range.len(), start.elapsed().as_secs_f64());
            (done, norms, scores) = (range.end, later_norms, later_scores);
        }
        self.model.check_finite(&logits)?;
        Ok(Trace { final_norm, logits, state })
    }

    /// A prompt in which `spans` stand in place of placeholders.
    pub fn prompt<'a>(&self, ids: &'a [u32], spans: &'a [Span]) -> Result<Prompt<'a>> {
        let tokens = self.model.vision.as_ref().map(|vision| &vision.tokens);
        let placeholders = tokens.map(|tokens| [tokens.image, tokens.video]);
        Prompt::new(ids, spans, placeholders.as_ref().map_or(&[], |ids| ids))
    }

    /// The vision tower, which a model of text alone does not have.
    pub fn vision(&self) -> Result<&VisionTower> {
        let reason = "the model has no vision tower, it reads text only";
        self.model.vision.as_ref().ok_or_else(|| Error::argument("pixel_values", reason))
    }

    /// Encodes one image or pair of frames: `pixels` `[rows * columns, patch values]`, a grid of `rows` x `columns` patches.
    ///
    /// `proceed` is told before each block how many are done, and stops the work with an error. `watch` sees every stage.
    pub fn encode(
        &self,
        pixels: Vec<f32>,
        [rows, columns]: [usize; 2],
        proceed: &mut dyn FnMut(usize) -> Result<()>,
        watch: VisionWatch<'_>,
    ) -> Result<Features> {
        let tower = self.vision()?;
        let grid = Grid::new(&tower.config, rows, columns)?;
        let expected = grid.patches() * tower.config.patch_values();
        if pixels.len() != expected {
            let reason = format!("holds {} numbers, the grid needs {expected}", pixels.len());
            return Err(Error::argument("pixel_values", reason));
        }
        if pixels.iter().any(|x| !x.is_finite()) {
            return Err(Error::argument("pixel_values", "holds NaN or infinity"));
        }
        let features = tower.encode(&self.cpu, pixels, grid, proceed, watch)?;
        self.model.check_features(&features)?;
        Ok(features)
    }

    /// Refuses unknown ids and texts beyond the context, before any work.
    pub(super) fn check(&self, state: &State, prompt: Prompt<'_>) -> Result<()> {
        check_whole(state)?;
        let (config, ids) = (&self.model.config, prompt.ids());
        for (i, span) in prompt.spans().iter().enumerate() {
            if span.features.embeddings.len() != span.features.tokens() * config.hidden_size {
                return Err(Error::argument(&format!("media[{i}]"), "comes from another model"));
            }
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocab_size) {
            let reason = format!("token id {id} is outside the vocabulary of {}", config.vocab_size);
            return Err(Error::argument("ids", reason));
        }
        let needed = state.len().saturating_add(ids.len());
        if needed > config.max_position_embeddings {
            return Err(Error::Context { needed, limit: config.max_position_embeddings });
        }
        Ok(())
    }

    pub(super) fn scratch(&self) -> Taken<'_> {
        self.workspace.take(&self.model.config, self.most_tokens())
    }
}

/// Refuses a state whose last pass panicked.
pub(super) fn check_whole(state: &State) -> Result<()> {
    if state.broken {
        return Err(Error::argument("sequence", "an internal error left it unusable; start a new one"));
    }
    Ok(())
}

/// Refuses a state that has no logits.
pub(super) fn check_scored(state: &State) -> Result<()> {
    check_whole(state)?;
    if state.is_empty() {
        return Err(Error::argument("sequence", "it is empty, so there are no logits"));
    }
    Ok(())
}

/// Tokens of the largest pass.
fn chunk(config: &TextConfig) -> usize {
    let chunk = if config.moe.is_some() { MOE_CHUNK } else { CHUNK };
    chunk.min(config.max_position_embeddings)
}

/// What [`Engine::trace`] keeps.
#[derive(Debug)]
pub struct Trace {
    /// `[tokens, hidden]`
    pub final_norm: Vec<f32>,
    /// `[tokens, vocab]`
    pub logits: Vec<f32>,
    /// The state after the last token.
    pub state: State,
}
