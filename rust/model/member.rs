//! The sequences of one pass: their tokens are rows of the same arrays, one sequence behind the other.
//!
//! What works on rows alone (embedding, norms, products, feed-forward networks, the head) takes the rows of all sequences
//! together, so that each weight is read once. What has a state takes the rows of each sequence with its own: the delta
//! layers' in one parallel region by sequences and heads, attention one after the other. No result depends on what else is
//! in the pass.
//!
//! A member may *stop* inside of its tokens: there a copy of its state is kept, from which other texts can go on. Layers take
//! the rows of a stretch, from one stop to the next, one after the other where they have a state.

use std::ops::Range;

use super::media::Pass;
use super::{DeltaState, State};
use crate::error::Result;

/// One sequence's part of a pass.
#[derive(Debug)]
pub struct Member<'a> {
    /// What it has of the tokens before.
    pub state: &'a mut State,
    /// Its tokens.
    pub pass: Pass<'a>,
    /// Where the delta layers' states are to go if others share those that `state` has: for each layer, or for none at all.
    pub fresh: Vec<Option<DeltaState>>,
    /// In order.
    pub stops: Vec<Stop>,
}

/// A place inside of a pass, behind some tokens and before others.
#[derive(Debug)]
pub struct Stop {
    /// Tokens of the pass before it.
    pub after: usize,
    /// What the pass makes a copy of the state there.
    pub state: State,
}

impl Stop {
    /// Behind `pass`, which comes after `state`.
    pub fn new(state: &State, pass: Pass<'_>) -> Result<Self> {
        let (after, mut next_position) = (pass.ids().len(), state.next_position());
        pass.positions(&mut next_position, &mut Vec::new());
        Ok(Self { after, state: state.later_copy(state.len() + after, next_position)? })
    }
}

impl<'a> Member<'a> {
    /// With memory for what the pass leaves.
    pub fn new(state: &'a mut State, pass: Pass<'a>, stops: Vec<Stop>) -> Result<Self> {
        let fresh = if state.is_shared() { state.fresh_deltas()? } else { Vec::new() };
        Ok(Self { state, pass, fresh, stops })
    }

    /// The tokens up to each stop, and those behind the last one.
    pub fn stretches(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        self.stops.iter().map(|stop| stop.after).chain([self.tokens()]).map(move |end| {
            let stretch = start..end;
            start = end;
            stretch
        })
    }

    /// The state, and the same stretches, each with what is to be a copy of the state at its end; none for the last.
    pub fn stretches_mut(
        &mut self,
    ) -> (&mut State, impl Iterator<Item = (Range<usize>, Option<&mut State>)>) {
        let (tokens, mut start) = (self.tokens(), 0);
        let stops = self.stops.iter_mut().map(|stop| (stop.after, Some(&mut stop.state)));
        let stretches = stops.chain([(tokens, None)]).map(move |(end, copy)| {
            let stretch = start..end;
            start = end;
            (stretch, copy)
        });
        (self.state, stretches)
    }

    /// How many tokens it brings.
    pub fn tokens(&self) -> usize {
        self.pass.ids().len()
    }
}

/// Tokens of all members.
pub fn tokens(members: &[Member<'_>]) -> usize {
    members.iter().map(Member::tokens).sum()
}

/// Each member and its rows.
pub fn rows<'m, 'a>(members: &'m [Member<'a>]) -> impl Iterator<Item = (&'m Member<'a>, Range<usize>)> {
    let mut rows = Rows::default();
    members.iter().map(move |member| {
        let taken = rows.take(member.tokens());
        (member, taken)
    })
}

/// The same to be changed.
pub fn rows_mut<'m, 'a>(
    members: &'m mut [Member<'a>],
) -> impl Iterator<Item = (&'m mut Member<'a>, Range<usize>)> {
    let mut rows = Rows::default();
    members.iter_mut().map(move |member| {
        let taken = rows.take(member.tokens());
        (member, taken)
    })
}

#[derive(Default)]
struct Rows {
    taken: usize,
}

impl Rows {
    fn take(&mut self, count: usize) -> Range<usize> {
        self.taken += count;
        self.taken - count..self.taken
    }
}

/// The last row of each stretch.
pub fn ends(members: &[Member<'_>]) -> impl Iterator<Item = usize> {
    rows(members)
        .flat_map(|(member, rows)| member.stretches().map(move |stretch| rows.start + stretch.end - 1))
}

/// Moves the last row of each stretch to the first rows of `array` `[tokens, width]`.
pub fn keep_ends(members: &[Member<'_>], array: &mut [f32]) {
    let width = array.len() / tokens(members);
    for (i, end) in ends(members).enumerate() {
        array.copy_within(end * width..(end + 1) * width, i * width);
    }
}

/// Copies the last row of each stretch of `array` `[tokens, width]` to `out` `[stretches, width]`.
pub fn copy_ends(members: &[Member<'_>], array: &[f32], out: &mut Vec<f32>) {
    let width = array.len() / tokens(members);
    out.clear();
    for end in ends(members) {
        out.extend_from_slice(&array[end * width..(end + 1) * width]);
    }
}
