//! Top-p and min-p over tokens in descending order, and the place a random number falls on.
//!
//! `weights` are unnormalised probabilities in descending order: of all candidates, or of a section of them that
//! follows candidates weighing `before`.

use super::params::SamplingParams;

/// What top-p and min-p look for in a walk down the weights.
pub(super) struct Cut {
    /// The walk ends with the token that brings the sum to this. Infinite if top-p is off.
    pub(super) wanted: f64,
    /// The walk ends before the first token lighter than this. (The heaviest weighs 1.)
    pub(super) lightest: f32,
}

impl Cut {
    /// The cut of `params` among candidates that weigh `total`.
    pub(super) fn new(params: &SamplingParams, total: f64) -> Self {
        let wanted = if params.top_p < 1.0 { f64::from(params.top_p) * total } else { f64::INFINITY };
        Self { wanted, lightest: params.min_p }
    }

    /// The weight of all tokens kept, if the walk ends within this section.
    pub(super) fn kept_weight(&self, weights: &[f32], before: f64) -> Option<f64> {
        let mut kept = before;
        for &weight in weights {
            if weight < self.lightest {
                return Some(kept);
            }
            kept += f64::from(weight);
            if kept >= self.wanted {
                return Some(kept);
            }
        }
        None
    }
}

/// The first place of this section at which the running sum exceeds `target`. A weight of 0 is never the place.
pub(super) fn place(weights: &[f32], before: f64, target: f64) -> Option<usize> {
    let mut sum = before;
    weights.iter().position(|&weight| {
        sum += f64::from(weight);
        sum > target
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums to 2; as probabilities 1/2, 1/4, 1/8, 1/8.
    const WEIGHTS: [f32; 4] = [1.0, 0.5, 0.25, 0.25];

    fn cut(top_p: f32, min_p: f32) -> Cut {
        Cut::new(&SamplingParams { top_p, min_p, ..SamplingParams::default() }, 2.0)
    }

    #[test]
    fn kept_weight_by_hand() {
        let cases = [
            ((1.0, 0.0), None),
            ((1e-9, 0.0), Some(1.0)),
            ((0.5, 0.0), Some(1.0)),
            ((0.51, 0.0), Some(1.5)),
            ((0.75, 0.0), Some(1.5)),
            ((0.876, 0.0), Some(2.0)),
            ((1.0, 0.25), None),
            ((1.0, 0.3), Some(1.5)),
            ((1.0, 1.0), Some(1.0)),
            ((0.6, 0.6), Some(1.0)),
            ((0.5, 0.3), Some(1.0)),
            ((0.99, 0.3), Some(1.5)),
        ];
        for ((top_p, min_p), expected) in cases {
            assert_eq!(
                cut(top_p, min_p).kept_weight(&WEIGHTS, 0.0),
                expected,
                "top_p {top_p}, min_p {min_p}"
            );
        }
    }

    #[test]
    fn a_walk_in_sections_ends_where_the_whole_one_does() {
        for (top_p, min_p) in [(0.5, 0.0), (0.51, 0.0), (0.8, 0.0), (0.9, 0.0), (1.0, 0.3), (1.0, 0.6)] {
            let cut = cut(top_p, min_p);
            let whole = cut.kept_weight(&WEIGHTS, 0.0);
            for split in 1..4 {
                let (first, second) = WEIGHTS.split_at(split);
                let before = first.iter().copied().map(f64::from).sum();
                let sections = cut.kept_weight(first, 0.0).or_else(|| cut.kept_weight(second, before));
                assert_eq!(sections, whole, "top_p {top_p}, min_p {min_p}, split {split}");
            }
        }
    }

    #[test]
    fn place_by_hand() {
        for (target, expected) in
            [(0.0, Some(0)), (0.999, Some(0)), (1.0, Some(1)), (1.5, Some(2)), (1.99, Some(3)), (2.0, None)]
        {
            assert_eq!(place(&WEIGHTS, 0.0, target), expected, "target {target}");
        }
        assert_eq!(place(&WEIGHTS, 5.0, 6.0), Some(1));
        assert_eq!(place(&[1.0, 0.0, 0.0], 0.0, 1.0), None);
        assert_eq!(place(&[0.0, 1.0], 0.0, 0.0), Some(1));
    }
}
