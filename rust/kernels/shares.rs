//! How a row of equal units of work is cut into items that threads claim in order.

use std::ops::Range;

/// Units `0..total`, cut into items.
///
/// Each thread should read long pieces: a processor fetches ahead only within a piece, and what it fetches beyond the end was
/// in vain. But long items let threads end at different times. So items come in rounds, one for each thread, and a round
/// takes half of what is left, or as much as `most` allows.
///
/// Source: factoring (Hummel, Schonberg and Flynn 1992).
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    total: usize,
    /// Items of a round.
    threads: usize,
    /// Bounds of an item's units, except for the last, which takes what is left.
    least: usize,
    most: usize,
    count: usize,
}

impl Shares {
    /// Items of `least` to `most` units that get smaller.
    pub(super) fn falling(total: usize, threads: usize, least: usize, most: usize) -> Self {
        let least = least.max(1);
        let mut shares = Self { total, threads: threads.max(1), least, most: most.max(least), count: 0 };
        let mut first = 0;
        while first < total {
            let (size, items) = shares.round(first);
            shares.count += items;
            first += items * size;
        }
        shares
    }

    /// Units of an item, and how many such items there are, of the round that begins at unit `first`.
    fn round(&self, first: usize) -> (usize, usize) {
        let left = self.total - first;
        let share = if self.threads == 1 { left } else { left.div_ceil(2 * self.threads) };
        let size = share.clamp(self.least, self.most);
        (size, left.div_ceil(size).min(self.threads))
    }

    /// How many items.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Units of item `item`, which is below [`Self::count`].
    pub(super) fn part(&self, mut item: usize) -> Range<usize> {
        let mut first = 0;
        loop {
            let (size, items) = self.round(first);
            if item < items {
                let start = first + item * size;
                return start..self.total.min(start + size);
            }
            first += items * size;
            item -= items;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(shares: Shares) -> Vec<Range<usize>> {
        (0..shares.count()).map(|item| shares.part(item)).collect()
    }

    /// Every unit is in one item, in order.
    fn check(shares: Shares, total: usize) -> Vec<usize> {
        let parts = parts(shares);
        assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..total).collect::<Vec<_>>());
        assert!(parts.iter().all(|part| !part.is_empty()));
        parts.iter().map(ExactSizeIterator::len).collect()
    }

    #[test]
    fn falling_items() {
        for total in [0, 1, 2, 7, 8, 9, 100, 1001] {
            for threads in [0, 1, 2, 3, 16, 2000] {
                for least in [0, 1, 3, 200] {
                    for most in [0, 1, 5, usize::MAX] {
                        let sizes = check(Shares::falling(total, threads, least, most), total);
                        assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
                    }
                }
            }
        }
        assert_eq!(check(Shares::falling(64, 2, 1, usize::MAX), 64), [16, 16, 8, 8, 4, 4, 2, 2, 1, 1, 1, 1]);
        assert_eq!(check(Shares::falling(64, 2, 5, 12), 64), [12, 12, 10, 10, 5, 5, 5, 5]);
        assert_eq!(check(Shares::falling(64, 1, 1, usize::MAX), 64), [64]);
    }
}
