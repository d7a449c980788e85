//! The best few of many logits, in order, without sorting the rest.
//!
//! One pass keeps what beats a floor. When the list is full, selection cuts it to the best `size` and the floor
//! rises to the last of them; soon almost no token passes it, and the pass runs at the speed of comparison.

/// Values compared with the floor at once.
const LANES: usize = 16;

/// How far the list may outgrow a small `size` before it is cut.
const SLACK: usize = 1024;

/// A token packed so that integer order is rank: higher logit first, equal logits by lowest id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ranked(u64);

impl Ranked {
    fn new(logit: f32, id: u32) -> Self {
        // Adding 0 turns -0 into +0: equal logits must have equal bits.
        let bits = (logit + 0.0).to_bits();
        let ascending = if bits >> 31 == 0 { bits | (1 << 31) } else { !bits };
        Self((u64::from(!ascending) << 32) | u64::from(id))
    }

    pub(super) fn id(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn logit(self) -> f32 {
        let ascending = !((self.0 >> 32) as u32);
        let bits = if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending };
        f32::from_bits(bits)
    }
}

/// A list of tokens in order of rank, kept between calls for its memory.
#[derive(Clone)]
pub(super) struct Ranking {
    best: Vec<Ranked>,
    /// The weight of each, where asked for.
    weights: Vec<f32>,
}

impl Ranking {
    /// A list with room for the best `size` of `vocab_size` tokens.
    pub(super) fn with_room(size: usize, vocab_size: usize) -> Self {
        let room = full_length(size).min(vocab_size) + LANES;
        Self { best: Vec::with_capacity(room), weights: Vec::with_capacity(size.min(vocab_size)) }
    }

    /// The best `size` of `logits`, `[vocab]`, best first; fewer if fewer are above -inf. No logit is NaN.
    pub(super) fn best(&mut self, logits: &[f32], size: usize) -> &[Ranked] {
        self.best.clear();
        let full = full_length(size);
        let mut floor = f32::NEG_INFINITY;
        for (block, values) in (0_u32..).step_by(LANES).zip(logits.chunks(LANES)) {
            // Ids ascend, so a token equal to the floor ranks behind it.
            if values.iter().fold(false, |any, &value| any | (value > floor)) {
                let passing = (block..).zip(values).filter(|&(_, &value)| value > floor);
                self.best.extend(passing.map(|(id, &value)| Ranked::new(value, id)));
                if self.best.len() >= full {
                    floor = self.cut(size);
                }
            }
        }
        self.cut(size);
        self.best.sort_unstable();
        &self.best
    }

    /// The weights of the best `size` of `logits`, best first. `weight` gives that of a logit.
    pub(super) fn best_weights(
        &mut self,
        logits: &[f32],
        size: usize,
        weight: impl Fn(f32) -> f32,
    ) -> &[f32] {
        self.best(logits, size);
        self.weigh(weight)
    }

    /// Ranks all of `tokens`, pairs of id and logit; returns their weights, best first.
    pub(super) fn all_weights(
        &mut self,
        tokens: impl Iterator<Item = (u32, f32)>,
        weight: impl Fn(f32) -> f32,
    ) -> &[f32] {
        self.best.clear();
        self.best.extend(tokens.map(|(id, logit)| Ranked::new(logit, id)));
        self.best.sort_unstable();
        self.weigh(weight)
    }

    /// The id at `place` of the list made last.
    pub(super) fn id_at(&self, place: usize) -> Option<u32> {
        self.best.get(place).map(|token| token.id())
    }

    /// Tokens and weights that fit without allocating.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> (usize, usize) {
        (self.best.capacity(), self.weights.capacity())
    }

    fn weigh(&mut self, weight: impl Fn(f32) -> f32) -> &[f32] {
        self.weights.clear();
        self.weights.extend(self.best.iter().map(|token| weight(token.logit())));
        &self.weights
    }

    /// Keeps the best `size`, in any order; returns the logit of the last of them.
    fn cut(&mut self, size: usize) -> f32 {
        if size == 0 || self.best.len() <= size {
            self.best.truncate(size);
            return f32::NEG_INFINITY;
        }
        let last = self.best.select_nth_unstable(size - 1).1.logit();
        self.best.truncate(size);
        last
    }
}

/// The length at which the list for the best `size` is cut.
fn full_length(size: usize) -> usize {
    size.saturating_mul(2).max(size.saturating_add(SLACK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(logits: &[f32], size: usize) -> Vec<(u32, f32)> {
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        all.retain(|&(_, logit)| logit > f32::NEG_INFINITY);
        all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        all.truncate(size);
        all
    }

    fn ranked(logits: &[f32], size: usize) -> Vec<(u32, f32)> {
        Ranking::with_room(size, logits.len())
            .best(logits, size)
            .iter()
            .map(|token| (token.id(), token.logit()))
            .collect()
    }

    proptest! {
        #[test]
        fn equals_a_stable_sort(
            // Few distinct values, so that ties are common.
            logits in prop::collection::vec(prop_oneof![
                (-3..=3_i8).prop_map(f32::from), Just(-0.0), Just(f32::NEG_INFINITY), -1e30_f32..1e30
            ], 0..3000),
            size in prop_oneof![0..4_usize, 0..4000_usize],
        ) {
            prop_assert_eq!(ranked(&logits, size), naive(&logits, size));
        }
    }

    #[test]
    fn ascending_logits_cut_the_list_many_times() {
        let logits: Vec<f32> = (0..20_000).map(|i| i as f32).collect();
        for size in [1, 20, 1500] {
            assert_eq!(ranked(&logits, size), naive(&logits, size));
        }
    }

    #[test]
    fn all_ranks_by_logit_then_id() {
        let mut ranking = Ranking::with_room(0, 0);
        let tokens = [(3, 0.0), (9, -1.0), (1, -0.0), (7, f32::NEG_INFINITY), (2, 5.0), (5, f32::MIN)];
        assert_eq!(
            ranking.all_weights(tokens.into_iter(), |logit| logit),
            [5.0, 0.0, 0.0, -1.0, f32::MIN, f32::NEG_INFINITY]
        );
        let ids = [0, 1, 2, 3, 4, 5, 6].map(|place| ranking.id_at(place));
        assert_eq!(ids, [Some(2), Some(1), Some(3), Some(9), Some(5), Some(7), None]);
    }

    #[test]
    fn with_room_the_list_does_not_grow() {
        let logits: Vec<f32> = (0..20_000).map(|i| i as f32).collect();
        for size in [1, 20, 5000, 20_000] {
            let mut ranking = Ranking::with_room(size, logits.len());
            let before = ranking.capacity();
            ranking.best_weights(&logits, size, |logit| logit);
            assert_eq!(ranking.capacity(), before);
        }
    }
}
