//! Several sequences move on together: continuous batching.
//!
//! ```text
//! step(turns):
//!   refuse turns that cannot be taken, each with its own error
//!   for groups of turns whose tokens have room in a pass (mostly one group):
//!     one pass over the weights
//! scores(turns): one pass over the vocabulary for all that want logits
//! ```
//!
//! A prompt may take several turns, with other sequences beside it in each; a decoded token takes one. On its way it may leave
//! copies of its state, also in the middle of a pass. What a sequence gets
//! has the bits that it would get alone, so who else is there is of no interest to it.

use super::engine::{check_scored, check_whole};
use super::media::Prompt;
use super::member::{Member, Stop};
use super::{Engine, State};
use crate::error::{Error, Result};

/// How far a prompt has been appended to a state.
#[derive(Debug, Default)]
pub struct Progress {
    done: usize,
    checked: bool,
    /// The state before the image inside of which the prompt has got.
    before_image: Option<Box<State>>,
    /// Numbers of tokens after which a copy of the state is kept, rising.
    places: Vec<usize>,
    /// The copies made so far.
    kept: Vec<State>,
}

impl Progress {
    /// Nothing is appended; of the state after the first so many tokens of `prompt`, for each of `places`, a copy will be kept.
    pub fn keeping(prompt: Prompt<'_>, places: Vec<usize>) -> Result<Self> {
        let mut last = 0;
        for (i, &place) in places.iter().enumerate() {
            let fault = |reason: String| Err(Error::argument(&format!("places[{i}]"), reason));
            let tokens = prompt.ids().len();
            if !(last + 1..=tokens).contains(&place) {
                return fault(format!("is {place}, must be more than {last} and at most {tokens}"));
            }
            if prompt.cuts_span(place) {
                return fault(format!("is {place}, inside an image"));
            }
            last = place;
        }
        Ok(Self { places, ..Self::default() })
    }

    /// Tokens appended.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Hands out the copies made since the last time, those of fewer tokens first.
    pub fn take_kept(&mut self) -> Vec<State> {
        std::mem::take(&mut self.kept)
    }

    /// At most `tokens` tokens of `prompt` that come next, with memory for what they leave; none if there are none.
    pub(super) fn begin<'a>(
        &mut self,
        state: &'a mut State,
        prompt: Prompt<'a>,
        tokens: usize,
    ) -> Result<Option<Member<'a>>> {
        let end = prompt.ids().len().min(self.done + tokens);
        if end == self.done {
            return Ok(None);
        }
        state.reserve(state.len() + end - self.done)?;
        let inside = self.places.iter().filter(|&&place| self.done < place && place < end);
        let stops = inside.map(|&place| Stop::new(state, prompt.pass(self.done..place)));
        let stops = stops.collect::<Result<_>>()?;
        if prompt.cuts_span(end) && self.before_image.is_none() {
            self.before_image = Some(Box::new(state.clone()));
        }
        Ok(Some(Member::new(state, prompt.pass(self.done..end), stops)?))
    }

    /// They are appended.
    pub(super) fn end(&mut self, prompt: Prompt<'_>, member: Member<'_>) {
        self.done += member.tokens();
        self.kept.extend(member.stops.into_iter().map(|stop| stop.state));
        if self.places.contains(&self.done) {
            self.kept.push(member.state.clone());
        }
        if !prompt.cuts_span(self.done) {
            self.before_image = None;
        }
    }

    /// Takes `state` back to the image that it is inside of, if it is: for a prompt that is given up.
    pub fn leave_image(&mut self, state: &mut State) {
        if let Some(before) = self.before_image.take() {
            *state = *before;
        }
    }
}

/// What one sequence does in a step.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The sequence.
    pub state: &'a mut State,
    /// What is being appended to it.
    pub prompt: Prompt<'a>,
    /// How much of that is done.
    pub progress: &'a mut Progress,
    /// How many tokens more, at most.
    pub tokens: usize,
    /// How it went.
    pub outcome: Result<()>,
}

impl<'a> Turn<'a> {
    /// The next `tokens` tokens of `prompt`, or what is left of it.
    pub fn new(state: &'a mut State, prompt: Prompt<'a>, progress: &'a mut Progress, tokens: usize) -> Self {
        Self { state, prompt, progress, tokens, outcome: Ok(()) }
    }

    /// Whether the whole prompt is appended.
    pub fn is_done(&self) -> bool {
        self.outcome.is_ok() && self.progress.done == self.prompt.ids().len()
    }
}

impl Engine {
    /// Takes all turns. One that fails leaves its sequence as it was, and the others do not notice.
    pub fn step(&self, turns: &mut [Turn<'_>]) {
        let mut members = Vec::with_capacity(turns.len());
        let mut ends = Vec::with_capacity(turns.len());
        for turn in turns {
            let Turn { state, prompt, progress, tokens, outcome } = turn;
            let tokens = (*tokens).min(self.most_tokens());
            match self.begin(state, *prompt, progress, tokens) {
                Ok(None) => (),
                Ok(Some(member)) => {
                    members.push(member);
                    ends.push((progress, *prompt));
                }
                Err(error) => *outcome = Err(error),
            }
        }
        let mut rest = &mut members[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(fitting(rest, self.most_tokens()));
            self.pass(now);
            rest = later;
        }
        for ((progress, prompt), member) in ends.into_iter().zip(members) {
            progress.end(prompt, member);
        }
    }

    /// The tokens of a turn, if it has any and can be taken.
    fn begin<'a>(
        &self,
        state: &'a mut State,
        prompt: Prompt<'a>,
        progress: &mut Progress,
        tokens: usize,
    ) -> Result<Option<Member<'a>>> {
        if progress.checked {
            check_whole(state)?;
        } else {
            self.check(state, prompt)?;
            progress.checked = true;
        }
        progress.begin(state, prompt, tokens)
    }

    /// Logits after the last token of each of `states`, into `out` `[states, vocab]`: what [`Self::logits`] gives for each,
    /// but not yet looked at by [`Self::check_finite`].
    pub fn logits_of_all(&self, states: &[&State], out: &mut [f32]) -> Result<()> {
        states.iter().try_for_each(|state| check_scored(state))?;
        let most = self.most_tokens();
        let rows = most * self.model.config.vocab_size;
        for (states, out) in states.chunks(most).zip(out.chunks_mut(rows)) {
            self.scores(states, out);
        }
        Ok(())
    }
}

/// How many of the first `members` have room in a pass of `most` tokens; one at least.
fn fitting(members: &[Member<'_>], most: usize) -> usize {
    let mut tokens = 0;
    let fits = |member: &&Member<'_>| {
        tokens += member.tokens();
        tokens <= most
    };
    members.iter().take_while(fits).count().max(1)
}
