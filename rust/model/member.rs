//! The sequences of one pass: their tokens are rows of the same arrays, one sequence behind the other.
//!
//! What works on rows alone (embedding, norms, products, feed-forward networks, the head) takes the rows of all sequences
//! together, so that each weight is read once. What has a state takes the rows of each sequence with its own: the delta
//! layers' in one parallel region by sequences and heads, attention one after the other. No result depends on what else is
//! in the pass.

use std::ops::Range;

use super::State;
use super::media::Pass;

/// One sequence's part of a pass.
#[derive(Debug)]
pub struct Member<'a> {
    /// What it has of the tokens before.
    pub state: &'a mut State,
    /// Its tokens.
    pub pass: Pass<'a>,
}

impl Member<'_> {
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

/// Moves the last row of each member to the first rows of `array` `[tokens, width]`.
pub fn keep_ends(members: &[Member<'_>], array: &mut [f32]) {
    let width = array.len() / tokens(members);
    for (i, (_, rows)) in rows(members).enumerate() {
        array.copy_within((rows.end - 1) * width..rows.end * width, i * width);
    }
}

/// Copies the last row of each member of `array` `[tokens, width]` to `ends` `[members, width]`.
pub fn copy_ends(members: &[Member<'_>], array: &[f32], ends: &mut Vec<f32>) {
    let width = array.len() / tokens(members);
    ends.clear();
    for (_, rows) in rows(members) {
        ends.extend_from_slice(&array[(rows.end - 1) * width..rows.end * width]);
    }
}
