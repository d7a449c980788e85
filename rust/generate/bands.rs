//! The whole vocabulary in descending order of logit, without sorting it.
//!
//! Top-p, min-p and the draw all walk down the tokens until a running sum of weights reaches some point. So the
//! range of logits is divided into equal bands, one pass sums the weight of each, the walk goes band by band, and
//! only the band in which it ends is collected and sorted: some hundred tokens of a quarter of a million.

use super::filters::{self, Cut};
use super::ranking::Ranking;
use super::softmax::{self, BLOCK};

/// Enough that a band is short, few enough that their sums stay in the first-level cache.
const COUNT: usize = 2048;

/// Logits to walk, `[vocab]`, and how they are weighed and divided into bands.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    logits: &'a [f32],
    highest: f32,
    temperature: f32,
    /// Bands per unit of logit.
    scale: f32,
}

impl<'a> Field<'a> {
    /// `highest` and `lowest` are the extremes of the `logits` above -inf; `temperature` > 0.
    pub(super) fn new(logits: &'a [f32], highest: f32, lowest: f32, temperature: f32) -> Self {
        // Tokens further down than this weigh nothing and may share the last band.
        let spread = (highest - lowest).min(-softmax::LOWEST_EXPONENT * temperature);
        let scale = if spread > 0.0 { (COUNT as f32 / spread).min(f32::MAX) } else { 0.0 };
        Self { logits, highest, temperature, scale }
    }

    /// The band of a logit. Never decreases as the logit falls, because each operation rounds monotonically.
    #[inline(always)]
    fn band(&self, logit: f32) -> u32 {
        // 2^23: adding it rounds to an integer, which then stands in the low bits. A cast would check for NaN.
        const TO_INTEGER: f32 = 8_388_608.0;
        let place = (self.highest - logit) * self.scale;
        let bounded = if place < (COUNT - 1) as f32 { place } else { (COUNT - 1) as f32 };
        (bounded + TO_INTEGER).to_bits() % COUNT as u32
    }

    #[inline(always)]
    fn bands(&self, block: &[f32; BLOCK]) -> [u32; BLOCK] {
        let mut bands = [0; BLOCK];
        for (band, &logit) in bands.iter_mut().zip(block) {
            *band = self.band(logit);
        }
        bands
    }

    fn weight(&self, logit: f32) -> f32 {
        softmax::weight(logit, self.highest, self.temperature)
    }

    /// Id and logit of each token of one band, in order of id.
    fn members(&self, band: u32) -> impl Iterator<Item = (u32, f32)> {
        let field = *self;
        let blocks = (0_u32..).step_by(BLOCK).zip(field.logits.chunks(BLOCK));
        let hit = blocks
            .filter(move |(_, block)| block.iter().fold(false, |any, &v| any | (field.band(v) == band)));
        let tokens = hit.flat_map(|(first, block)| (first..).zip(block.iter().copied()));
        tokens.filter(move |&(_, logit)| field.band(logit) == band)
    }
}

/// The weight of each band.
#[derive(Clone)]
pub(super) struct Bands {
    /// `[COUNT]`, highest logits first.
    sums: Vec<f64>,
    /// The first band with a token lighter than min-p allows, or `COUNT`.
    first_light: usize,
}

impl Bands {
    pub(super) fn new() -> Self {
        Self { sums: vec![0.0; COUNT], first_light: COUNT }
    }

    /// Weighs all tokens. Returns the weight of all bands together.
    pub(super) fn fill(&mut self, field: &Field, min_p: f32) -> f64 {
        self.sums.fill(0.0);
        self.first_light = COUNT;
        for block in softmax::blocks(field.logits) {
            let weights = softmax::weights(block, field.highest, field.temperature);
            let bands = field.bands(&block);
            for (band, weight) in bands.into_iter().zip(weights) {
                let band = band as usize;
                self.sums[band] += f64::from(weight);
                if weight < min_p {
                    self.first_light = self.first_light.min(band);
                }
            }
        }
        self.sums.iter().sum()
    }

    /// The weight of the tokens that `cut` keeps.
    pub(super) fn kept_weight(&self, field: &Field, cut: &Cut, ranking: &mut Ranking) -> f64 {
        let mut before = 0.0;
        for (band, sum) in self.sums.iter().enumerate() {
            let after = before + sum;
            if after >= cut.wanted || band == self.first_light {
                let weights = ranking.all_weights(field.members(band as u32), |logit| field.weight(logit));
                // Sums in another order may round to the other side of `after`, which is then the answer.
                return cut.kept_weight(weights, before).map_or(after, |kept| kept.min(after));
            }
            before = after;
        }
        before
    }

    /// The token at which the running sum of weights exceeds `target`; `None` if none does.
    pub(super) fn token(&self, field: &Field, target: f64, ranking: &mut Ranking) -> Option<u32> {
        let mut before = 0.0;
        for (band, sum) in self.sums.iter().enumerate() {
            let after = before + sum;
            if after > target {
                let weights = ranking.all_weights(field.members(band as u32), |logit| field.weight(logit));
                let last = || weights.iter().rposition(|&weight| weight > 0.0);
                let place = filters::place(weights, before, target).or_else(last)?;
                return ranking.id_at(place);
            }
            before = after;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::{params::SamplingParams, scan};
    use super::*;
    use proptest::prelude::*;

    /// Ids and weights of all tokens, sorted.
    fn sorted(logits: &[f32], highest: f32, temperature: f32) -> Vec<(u32, f32)> {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap().then(a.cmp(&b)));
        ids.iter().map(|&id| (id, softmax::weight(logits[id as usize], highest, temperature))).collect()
    }

    fn check(logits: &[f32], params: &SamplingParams, uniform: f64) {
        let highest = scan::highest(logits).unwrap();
        let field = Field::new(logits, highest, scan::lowest(logits), params.temperature);
        let mut ranking = Ranking::with_room(0, 0);
        let mut bands = Bands::new();
        let total = bands.fill(&field, params.min_p);
        let cut = Cut::new(params, total);
        let kept = bands.kept_weight(&field, &cut, &mut ranking);
        let id = bands.token(&field, uniform * kept, &mut ranking).unwrap();

        let sorted = sorted(logits, highest, params.temperature);
        let weights: Vec<f32> = sorted.iter().map(|&(_, weight)| weight).collect();
        let all: f64 = weights.iter().copied().map(f64::from).sum();
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * all;
        assert!(close(total, all), "{total} is not {all}");
        let expected = cut.kept_weight(&weights, 0.0).unwrap_or(all);
        assert!(close(kept, expected), "kept {kept}, expected {expected}");
        let place = sorted.iter().position(|&(other, _)| other == id).unwrap();
        let before: f64 = weights[..place].iter().copied().map(f64::from).sum();
        let after = before + f64::from(weights[place]);
        assert!(
            weights[place] > 0.0
                && before - 1e-9 * all <= uniform * kept
                && uniform * kept <= after + 1e-9 * all
        );
    }

    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => (-8..=8_i8).prop_map(|value| f32::from(value) / 2.0),
            4 => -20.0_f32..20.0,
            1 => Just(f32::NEG_INFINITY),
            1 => prop_oneof![Just(f32::MIN), Just(-1e30), Just(-120.0)],
        ]
    }

    proptest! {
        #[test]
        fn walks_as_a_full_sort_does(
            logits in prop::collection::vec(logit(), 1..400),
            temperature in prop_oneof![Just(1.0_f32), 0.05_f32..5.0, Just(1e-30), Just(f32::MAX)],
            top_p in prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
            min_p in prop_oneof![Just(0.0_f32), 0.0_f32..=1.0],
            uniform in prop_oneof![Just(0.0), Just(1.0_f64.next_down()), 0.0..1.0],
        ) {
            prop_assume!(logits.iter().any(|&logit| logit > f32::NEG_INFINITY));
            check(&logits, &SamplingParams { temperature, top_p, min_p, ..SamplingParams::default() }, uniform);
        }

        #[test]
        fn bands_never_decrease_as_the_logit_falls(
            mut logits in prop::collection::vec(logit(), 1..60), temperature in 0.01_f32..100.0,
        ) {
            prop_assume!(logits.iter().any(|&logit| logit > f32::NEG_INFINITY));
            logits.sort_by(|a, b| b.partial_cmp(a).unwrap());
            let field = Field::new(&logits, logits[0], scan::lowest(&logits), temperature);
            let bands: Vec<u32> = logits.iter().map(|&logit| field.band(logit)).collect();
            prop_assert!(bands.is_sorted() && bands[0] == 0 && bands.iter().all(|&band| band < COUNT as u32));
        }
    }

    #[test]
    fn equal_and_nearly_equal_logits() {
        for step in [0.0, f32::from_bits(1), 1e-30, 1e-7] {
            let logits: Vec<f32> = (0..1000).map(|i| -step * i as f32).collect();
            for uniform in [0.0, 0.3, 1.0_f64.next_down()] {
                check(&logits, &SamplingParams { top_p: 0.9, ..SamplingParams::default() }, uniform);
            }
        }
    }

    #[test]
    fn extremes_of_the_number_format() {
        let logits = [f32::MAX, f32::MIN, 0.0, f32::NEG_INFINITY];
        for temperature in [f32::from_bits(1), 1.0, f32::MAX] {
            for uniform in [0.0, 0.5, 1.0_f64.next_down()] {
                check(&logits, &SamplingParams { temperature, ..SamplingParams::default() }, uniform);
            }
        }
    }
}
