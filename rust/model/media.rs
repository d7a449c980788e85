//! Images and video frames in a text: features stand in place of token embeddings.
//!
//! A span of a prompt, tokens `start..start + features.tokens()`, stands for one image or pair of frames. The ids there are
//! placeholders. `DeepStack` features are added after decoder layers, at the same tokens.

use std::ops::Range;
use std::sync::Arc;

use super::positions::{Area, place};
use super::vision::Features;
use crate::error::{Error, Result};
use crate::kernels::rope::Position;

/// Features and where they stand in a prompt.
#[derive(Clone, Debug)]
pub struct Span {
    /// Index of the first token it takes.
    pub start: usize,
    /// What stands there.
    pub features: Arc<Features>,
}

impl Span {
    /// The tokens it takes.
    pub fn range(&self) -> Range<usize> {
        self.area().range()
    }

    fn area(&self) -> Area {
        let grid = self.features.grid;
        Area { start: self.start, rows: grid.merged_rows(), columns: grid.merged_columns() }
    }
}

/// Token ids and the features that stand in place of some.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    ids: &'a [u32],
    spans: &'a [Span],
}

impl<'a> Prompt<'a> {
    /// Text alone.
    pub fn text(ids: &'a [u32]) -> Self {
        Self { ids, spans: &[] }
    }

    /// A prompt in which `spans`, in order and apart, stand in place of ids of `placeholders`.
    pub fn new(ids: &'a [u32], spans: &'a [Span], placeholders: &[u32]) -> Result<Self> {
        let mut free = 0;
        for (i, span) in spans.iter().enumerate() {
            let fault = |reason: String| Error::argument(&format!("media[{i}]"), reason);
            let end = span.start.checked_add(span.features.tokens()).filter(|&end| end <= ids.len());
            let Some(end) = end.filter(|_| span.start >= free) else {
                let (start, tokens) = (span.start, span.features.tokens());
                let reason = format!(
                    "takes {tokens} tokens from index {start}, but only {free}..{} are left",
                    ids.len()
                );
                return Err(fault(reason));
            };
            if let Some(at) = (span.start..end).find(|&at| !placeholders.contains(&ids[at])) {
                return Err(fault(format!("id {} at index {at} is no placeholder of images", ids[at])));
            }
            free = end;
        }
        Ok(Self { ids, spans })
    }

    /// Token ids.
    pub fn ids(&self) -> &'a [u32] {
        self.ids
    }

    /// What stands in place of some, in order.
    pub fn spans(&self) -> &'a [Span] {
        self.spans
    }

    /// Whether index `at` lies inside a span, behind its first token.
    pub fn cuts_span(&self, at: usize) -> bool {
        let span = self.spans.get(self.spans.partition_point(|span| span.range().end <= at));
        span.is_some_and(|span| span.start < at)
    }

    /// Tokens `range`, to be computed together.
    pub fn pass(&self, range: Range<usize>) -> Pass<'a> {
        let first = self.spans.partition_point(|span| span.range().end <= range.start);
        let last = self.spans.partition_point(|span| span.start < range.end);
        Pass { ids: &self.ids[range.clone()], spans: &self.spans[first..last], first: range.start }
    }
}

/// Some consecutive tokens of a prompt.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    ids: &'a [u32],
    /// Those that reach into the pass.
    spans: &'a [Span],
    /// Index of the first token in the prompt.
    first: usize,
}

impl Pass<'_> {
    /// Token ids.
    pub fn ids(&self) -> &[u32] {
        self.ids
    }

    /// Overwrites the rows of `hidden` `[tokens, width]` that spans take.
    pub fn put_embeddings(&self, hidden: &mut [f32]) {
        for part in self.parts() {
            let (target, source) = part.rows(hidden, &part.features.embeddings);
            target.copy_from_slice(source);
        }
    }

    /// Adds the features for decoder layer `layer` to the rows of `hidden` `[tokens, width]` that spans take.
    pub fn add_deepstack(&self, layer: usize, hidden: &mut [f32]) {
        for part in self.parts() {
            let Some(features) = part.features.deepstack.get(layer) else { continue };
            let (target, source) = part.rows(hidden, features);
            target.iter_mut().zip(source).for_each(|(x, feature)| *x += feature);
        }
    }

    /// Whether there are features for decoder layer `layer`.
    pub fn has_deepstack(&self, layer: usize) -> bool {
        self.spans.iter().any(|span| span.features.deepstack.len() > layer)
    }

    /// Appends the position of each token to `out`, see [`place`].
    pub fn positions(&self, next: &mut u32, out: &mut Vec<Position>) {
        let areas = self.spans.iter().map(Span::area);
        place(areas, self.first..self.first + self.ids.len(), next, out);
    }

    /// The part of each span that lies in the pass.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let (first, end) = (self.first, self.first + self.ids.len());
        self.spans.iter().map(move |span| {
            let range = span.range();
            Part {
                features: &span.features,
                tokens: range.start.max(first) - first..range.end.min(end) - first,
                skipped: first.saturating_sub(range.start),
            }
        })
    }
}

/// The part of a span that lies in a pass.
struct Part<'a> {
    features: &'a Features,
    /// Its tokens, counted from the pass's first.
    tokens: Range<usize>,
    /// Tokens of the span in earlier passes.
    skipped: usize,
}

impl<'a> Part<'a> {
    /// Its rows of `hidden` `[tokens of the pass, width]` and of `features` `[tokens of the span, width]`.
    fn rows<'h>(&self, hidden: &'h mut [f32], features: &'a [f32]) -> (&'h mut [f32], &'a [f32]) {
        let width = features.len() / self.features.tokens();
        let source = self.skipped..self.skipped + self.tokens.len();
        (
            &mut hidden[self.tokens.start * width..self.tokens.end * width],
            &features[source.start * width..source.end * width],
        )
    }
}
