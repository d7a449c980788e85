//! Multi-axis rotary positions: time, row and column of each token.
//!
//! A text token advances all three axes by one. The tokens of an image, or of a pair of video frames, share the time at
//! which it begins and count rows and columns from there; text goes on one behind the largest of them. So an area of
//! 10 x 15 tokens after position 7 has time 8, rows 8..18 and columns 8..23, and the next token has 23.
//!
//! Source: Qwen2-VL (Wang et al. 2024, arXiv 2409.12191), with one time for each area as in the Qwen3-VL model code.

use std::ops::Range;

use crate::kernels::rope::Position;

/// Where an image stands in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Index of its first token.
    pub start: usize,
    /// In tokens.
    pub rows: usize,
    /// In tokens.
    pub columns: usize,
}

impl Area {
    /// The tokens it takes.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows * self.columns
    }

    /// By how much its first `tokens` tokens move the next position.
    fn advance(&self, tokens: usize) -> u32 {
        tokens.div_ceil(self.columns).max(tokens.min(self.columns)) as u32
    }
}

/// Appends the positions of tokens `range` of a prompt to `out`. `areas` are those that reach into the range, in order and apart.
///
/// `next` is the position that text would have at the beginning of the range, and becomes that at its end.
pub fn place(
    areas: impl Iterator<Item = Area>,
    range: Range<usize>,
    next: &mut u32,
    out: &mut Vec<Position>,
) {
    let mut done = range.start;
    for area in areas {
        let taken = area.range();
        let (start, end) = (taken.start.max(range.start), taken.end.min(range.end));
        text(start - done, next, out);
        // Of an area that began before the range, the tokens placed so far have moved `next`.
        let origin = *next - area.advance(start - taken.start);
        for index in start - taken.start..end - taken.start {
            let (row, column) = (index / area.columns, index % area.columns);
            out.push([origin, origin + row as u32, origin + column as u32]);
        }
        *next = origin + area.advance(end - taken.start);
        done = end;
    }
    text(range.end - done, next, out);
}

/// Positions of `tokens` text tokens.
fn text(tokens: usize, next: &mut u32, out: &mut Vec<Position>) {
    out.extend((*next..).take(tokens).map(|position| [position; 3]));
    *next += tokens as u32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(areas: &[Area], tokens: usize) -> (Vec<Position>, u32) {
        let (mut out, mut next) = (Vec::new(), 0);
        place(areas.iter().copied(), 0..tokens, &mut next, &mut out);
        (out, next)
    }

    #[test]
    fn an_area_between_texts() {
        let (positions, next) = all(&[Area { start: 1, rows: 2, columns: 3 }], 8);
        let area = [[1, 1, 1], [1, 1, 2], [1, 1, 3], [1, 2, 1], [1, 2, 2], [1, 2, 3]];
        assert_eq!(positions[0], [0; 3]);
        assert_eq!(positions[1..7], area);
        assert_eq!((positions[7], next), ([4; 3], 5));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            parts in prop::collection::vec((0..5_usize, 1..6_usize, 1..6_usize), 0..4),
            tail in 0..4_usize,
            cuts in prop::collection::vec(0..200_usize, 0..6),
        ) {
            let mut areas = Vec::new();
            let mut tokens = 0;
            for (text, rows, columns) in parts {
                areas.push(Area { start: tokens + text, rows, columns });
                tokens += text + rows * columns;
            }
            tokens += tail;
            let whole = all(&areas, tokens);
            // The position after any prompt is one behind its largest.
            let largest = whole.0.iter().flatten().max();
            prop_assert_eq!(whole.1, largest.map_or(0, |largest| largest + 1));
            let mut borders: Vec<_> = cuts.into_iter().map(|cut| cut % (tokens + 1)).chain([0, tokens]).collect();
            borders.sort_unstable();
            let (mut out, mut next) = (Vec::new(), 0);
            for border in borders.windows(2) {
                let range = border[0]..border[1];
                let inside = areas.iter().copied().filter(|area| {
                    area.range().end > range.start && area.start < range.end
                });
                place(inside, range.clone(), &mut next, &mut out);
            }
            prop_assert_eq!((out, next), whole);
        }
    }
}
