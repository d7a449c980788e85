//! The sampler through its public interface: known cases, a naive twin, and statistics.
#![allow(clippy::float_cmp, reason = "what the sampler promises is exact")]

use edgewise::Error;
use edgewise::generate::{Choice, Sampler, SamplingParams};
use proptest::prelude::*;

fn sampler(params: SamplingParams, vocab_size: usize) -> Sampler {
    Sampler::new(params, vocab_size).unwrap()
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// `count` tokens drawn one after the other from the same logits.
fn draws(params: &SamplingParams, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = sampler(params.clone(), logits.len());
    (0..count).map(|_| sampler.sample(logits).unwrap().token).collect()
}

/// Logits without pattern and without ties, about 12 units wide.
fn scattered(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 10_007) as f32 * 12e-4 + i as f32 * 1e-6).collect()
}

// Known cases.

#[test]
fn greedy_by_hand() {
    let cases: [(&[f32], u32); 6] = [
        (&[3.0], 0),
        (&[1.0, 5.0, 2.0], 1),
        (&[2.0, 7.0, 7.0, 7.0], 1),
        (&[-0.0, 0.0], 0),
        (&[f32::NEG_INFINITY, -1e38, f32::NEG_INFINITY], 1),
        (&[f32::MIN, f32::MAX, 0.0], 1),
    ];
    for (logits, expected) in cases {
        assert_eq!(draws(&greedy(), logits, 3), [expected; 3], "{logits:?}");
    }
}

#[test]
fn allowed_tokens_by_hand() {
    // Probabilities 0.4, 0.3, 0.2, 0.1 in the order 2, 0, 3, 1.
    let logits = [0.3_f32, 0.1, 0.4, 0.2].map(f32::ln);
    let base = SamplingParams::default;
    let cases = [
        (base(), vec![0, 1, 2, 3]),
        (SamplingParams { top_k: 1, ..base() }, vec![2]),
        (SamplingParams { top_k: 3, ..base() }, vec![0, 2, 3]),
        (SamplingParams { top_p: 0.01, ..base() }, vec![2]),
        (SamplingParams { top_p: 0.39, ..base() }, vec![2]),
        (SamplingParams { top_p: 0.41, ..base() }, vec![0, 2]),
        (SamplingParams { top_p: 0.75, ..base() }, vec![0, 2, 3]),
        (SamplingParams { min_p: 0.3, ..base() }, vec![0, 2, 3]),
        (SamplingParams { min_p: 0.6, ..base() }, vec![0, 2]),
        (SamplingParams { min_p: 1.0, ..base() }, vec![2]),
        // Among the top 2 the probabilities are 4/7 and 3/7: 0.5 needs one, 0.6 two.
        (SamplingParams { top_k: 2, top_p: 0.5, ..base() }, vec![2]),
        (SamplingParams { top_k: 2, top_p: 0.6, ..base() }, vec![0, 2]),
        // Temperature comes first: at 0.5 the probabilities are 16, 9, 4, 1 over 30.
        (SamplingParams { temperature: 0.5, top_p: 0.52, ..base() }, vec![2]),
        (SamplingParams { temperature: 0.5, min_p: 0.3, ..base() }, vec![0, 2]),
        (SamplingParams { suppress: vec![2], top_k: 1, ..base() }, vec![0]),
        (SamplingParams { suppress: vec![2, 0], top_p: 0.6, ..base() }, vec![3]),
    ];
    for (params, expected) in cases {
        let mut seen = draws(&params, &logits, 400);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, expected, "{params:?}");
    }
}

#[test]
fn ties_at_a_cut_go_to_the_lowest_id() {
    let logits = [0.0, 1.0, 0.0, 0.0, 0.0];
    for params in [
        SamplingParams { top_k: 3, ..SamplingParams::default() },
        // Probability of id 1 is e / (e + 4) = 0.405, each other has 0.149.
        SamplingParams { top_p: 0.7, ..SamplingParams::default() },
    ] {
        let mut seen = draws(&params, &logits, 400);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2], "{params:?}");
    }
}

#[test]
fn penalties_apply_to_greedy_and_tell_prompt_from_generated() {
    let logits = [5.0, 4.0, 3.0];
    let next = |params: SamplingParams, prompt: &[u32], generated: &[u32]| {
        let mut sampler = sampler(params, 3);
        sampler.observe(prompt, false).unwrap();
        sampler.observe(generated, true).unwrap();
        sampler.sample(&logits).unwrap().token
    };
    let repetition = || SamplingParams { repetition_penalty: 2.0, ..greedy() };
    let presence = || SamplingParams { presence_penalty: 1.5, ..greedy() };
    let frequency = || SamplingParams { frequency_penalty: 0.6, ..greedy() };
    assert_eq!(next(repetition(), &[0], &[]), 1);
    assert_eq!(next(repetition(), &[0, 0], &[1]), 2);
    assert_eq!(next(presence(), &[0, 0, 0], &[]), 0);
    assert_eq!(next(presence(), &[], &[0]), 1);
    assert_eq!(next(frequency(), &[0, 0, 0], &[0]), 0);
    assert_eq!(next(frequency(), &[], &[0, 0]), 1);
}

#[test]
fn sampling_does_not_observe() {
    let params = SamplingParams { presence_penalty: 10.0, ..greedy() };
    assert_eq!(draws(&params, &[1.0, 2.0], 5), [1; 5]);
}

// Arguments and unusable logits.

#[test]
fn wrong_parameters_are_named() {
    let base = SamplingParams::default;
    let mut cases = vec![
        ("temperature", SamplingParams { temperature: -0.1, ..base() }),
        ("top_p", SamplingParams { top_p: 0.0, ..base() }),
        ("top_p", SamplingParams { top_p: 1.01, ..base() }),
        ("min_p", SamplingParams { min_p: -0.01, ..base() }),
        ("min_p", SamplingParams { min_p: 1.01, ..base() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: -1.0, ..base() }),
        ("logprobs", SamplingParams { logprobs: Some(11), ..base() }),
        ("logprobs", SamplingParams { logprobs: Some(usize::MAX), ..base() }),
        ("suppress", SamplingParams { suppress: vec![3, 10], ..base() }),
        ("suppress", SamplingParams { suppress: (0..10).chain(0..3).collect(), ..base() }),
    ];
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        cases.extend([
            ("temperature", SamplingParams { temperature: value, ..base() }),
            ("top_p", SamplingParams { top_p: value, ..base() }),
            ("min_p", SamplingParams { min_p: value, ..base() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: value, ..base() }),
            ("presence_penalty", SamplingParams { presence_penalty: value, ..base() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: value, ..base() }),
        ]);
    }
    for (name, params) in cases {
        let shown = format!("{params:?}");
        match Sampler::new(params, 10) {
            Err(Error::Argument { argument, .. }) => assert_eq!(argument, name, "{shown}"),
            other => panic!("{shown}: {:?}", other.map(|_| "accepted")),
        }
    }
    assert!(
        matches!(Sampler::new(base(), 0), Err(Error::Argument { argument, .. }) if argument == "vocab_size")
    );
}

#[test]
fn ends_of_the_ranges_are_accepted() {
    for params in [
        SamplingParams { top_k: usize::MAX, logprobs: Some(10), ..SamplingParams::default() },
        SamplingParams {
            top_p: f32::from_bits(1),
            temperature: f32::from_bits(1),
            ..SamplingParams::default()
        },
        SamplingParams { temperature: f32::MAX, min_p: 1.0, ..SamplingParams::default() },
        SamplingParams { repetition_penalty: f32::from_bits(1), presence_penalty: f32::MIN, ..greedy() },
        SamplingParams { suppress: vec![0; 50], frequency_penalty: f32::MAX, ..SamplingParams::default() },
    ] {
        let mut sampler = sampler(params, 10);
        sampler.observe(&[0, 1, 2, 9], true).unwrap();
        sampler.sample(&scattered(10)).unwrap();
    }
}

#[test]
fn observing_an_unknown_id_counts_nothing() {
    let mut sampler = sampler(SamplingParams { presence_penalty: 10.0, ..greedy() }, 2);
    let error = sampler.observe(&[1, 2], true).unwrap_err();
    assert!(matches!(&error, Error::Argument { argument, .. } if argument == "ids"), "{error}");
    assert_eq!(sampler.sample(&[1.0, 2.0]).unwrap().token, 1);
}

#[test]
fn unusable_logits_are_errors_and_leave_the_sampler_as_it_was() {
    let none = f32::NEG_INFINITY;
    let cases: [&[f32]; 5] = [
        &[0.0, f32::NAN, 1.0],
        &[0.0, f32::INFINITY, 1.0],
        &[none; 3],
        &[none, none, 4.0],
        &[none, none, f32::NAN],
    ];
    let params = SamplingParams { suppress: vec![2], ..SamplingParams::default() };
    for temperature in [0.0, 1.0] {
        let mut sampler = sampler(SamplingParams { temperature, ..params.clone() }, 3);
        let mut untouched = sampler.clone();
        for logits in cases {
            let result = sampler.sample(logits);
            assert!(matches!(result, Err(Error::NonFinite { .. })), "{logits:?}: {result:?}");
        }
        for length in [0, 2, 4] {
            let result = sampler.sample(&vec![0.0; length]);
            assert!(
                matches!(&result, Err(Error::Argument { argument, .. }) if argument == "logits"),
                "{result:?}"
            );
        }
        for _ in 0..50 {
            assert_eq!(
                sampler.sample(&[0.1, 0.2, 0.3]).unwrap(),
                untouched.sample(&[0.1, 0.2, 0.3]).unwrap()
            );
        }
    }
}

// Seeds.

#[test]
fn a_seed_gives_the_same_tokens_and_another_seed_others() {
    let logits = scattered(5000);
    let of = |seed| draws(&SamplingParams { seed, ..SamplingParams::default() }, &logits, 30);
    assert_eq!(of(1), of(1));
    for (a, b) in [(0, 1), (1, 2), (0, u64::MAX), (1, 1 << 32)] {
        assert_ne!(of(a), of(b), "seeds {a} and {b}");
    }
}

#[test]
fn a_clone_continues_as_the_original() {
    let logits = scattered(500);
    let mut original = sampler(SamplingParams::default(), 500);
    original.sample(&logits).unwrap();
    let mut clone = original.clone();
    for _ in 0..30 {
        assert_eq!(clone.sample(&logits).unwrap(), original.sample(&logits).unwrap());
    }
}

#[test]
fn neutral_filters_and_reports_do_not_move_the_draw() {
    let logits = scattered(3000);
    let plain = draws(&SamplingParams::default(), &logits, 100);
    for params in [
        SamplingParams { top_k: 3000, ..SamplingParams::default() },
        SamplingParams { top_k: 4000, ..SamplingParams::default() },
        // One token short of everything takes the other path through the code; that token weighs e^-12.
        SamplingParams { top_k: 2999, ..SamplingParams::default() },
        SamplingParams { min_p: 1e-30, ..SamplingParams::default() },
        SamplingParams { logprobs: Some(5), ..SamplingParams::default() },
        SamplingParams { presence_penalty: 1.0, ..SamplingParams::default() },
    ] {
        assert_eq!(draws(&params, &logits, 100), plain, "{params:?}");
    }
}

/// Computed apart from this crate, in f64; every CPU must give these tokens and bits.
#[test]
fn the_same_bits_everywhere() {
    let logits = scattered(4096);
    let base = || SamplingParams { seed: 42, logprobs: Some(1), ..SamplingParams::default() };
    let cases = [
        (base(), [2689, 1596, 1414, 326], 0xc0c2_edda),
        (
            SamplingParams { top_k: 50, top_p: 0.9, temperature: 0.8, ..base() },
            [1318, 2473, 532, 2866],
            0xc0bb_8d46,
        ),
        (
            SamplingParams { top_p: 0.7, min_p: 0.01, temperature: 1.3, ..base() },
            [2641, 163, 1136, 1227],
            0xc0c1_d338,
        ),
    ];
    for (params, tokens, last_logprob) in cases {
        let mut sampler = sampler(params.clone(), logits.len());
        let choices: Vec<Choice> = (0..4).map(|_| sampler.sample(&logits).unwrap()).collect();
        let found: Vec<u32> = choices.iter().map(|choice| choice.token).collect();
        let bits = choices[3].logprob.unwrap().to_bits();
        assert_eq!((found.as_slice(), bits), (tokens.as_slice(), last_logprob), "{params:?}");
    }
}

// Statistics, with fixed seeds.

/// The sum of (observed - expected)^2 / expected over bins.
fn chi_square(observed: &[u32], expected: &[f64]) -> f64 {
    observed.iter().zip(expected).map(|(&seen, want)| (f64::from(seen) - want).powi(2) / want).sum()
}

#[test]
fn frequencies_match_the_softmax() {
    const DRAWS: usize = 20_000;
    let logits = [1.0_f32, -0.5, 2.0, 0.0, 0.5, 2.0, -1.0, 1.5, 0.25, 1.0];
    for (temperature, top_k, seed) in [(1.0_f32, 0, 1), (0.7, 0, 2), (2.0, 0, 3), (1.0, 6, 4)] {
        let mut ranked: Vec<usize> = (0..10).collect();
        ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        ranked.truncate(if top_k == 0 { 10 } else { top_k });
        let weight = |id: &usize| (f64::from(logits[*id]) / f64::from(temperature)).exp();
        let total: f64 = ranked.iter().map(weight).sum();
        let expected: Vec<f64> = ranked.iter().map(|id| DRAWS as f64 * weight(id) / total).collect();

        let params = SamplingParams { temperature, top_k, seed, ..SamplingParams::default() };
        let tokens = draws(&params, &logits, DRAWS);
        let count = |id: &usize| tokens.iter().filter(|&&token| token as usize == *id).count() as u32;
        let observed: Vec<u32> = ranked.iter().map(count).collect();
        assert_eq!(observed.iter().sum::<u32>(), DRAWS as u32);
        let value = chi_square(&observed, &expected);
        // The 99.9th percentile for 9 degrees of freedom; 5 have a lower one, 20.5.
        let bound = if top_k == 0 { 27.9 } else { 20.5 };
        assert!(value < bound, "temperature {temperature}, top_k {top_k}: chi-square {value}");
    }
}

#[test]
fn frequencies_over_a_large_vocabulary_match_the_softmax() {
    const DRAWS: usize = 20_000;
    let logits: Vec<f32> = scattered(20_000).iter().map(|logit| logit / 4.0).collect();
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let total: f64 = weights.iter().sum();
    // 20 bins of consecutive ids, each holding logits of all sizes.
    let expected: Vec<f64> =
        weights.chunks(1000).map(|bin| bin.iter().sum::<f64>() / total * DRAWS as f64).collect();
    let mut observed = vec![0; 20];
    for token in draws(&SamplingParams { seed: 5, ..SamplingParams::default() }, &logits, DRAWS) {
        observed[token as usize / 1000] += 1;
    }
    let value = chi_square(&observed, &expected);
    assert!(value < 43.8, "chi-square {value}: above the 99.9th percentile for 19 degrees of freedom");
}

// Log-probabilities.

#[test]
fn logprobs_come_from_the_raw_logits() {
    let logits = [0.3_f32, 0.1, 0.4, 0.2].map(f32::ln);
    let params = SamplingParams {
        temperature: 0.3,
        top_k: 2,
        repetition_penalty: 1.5,
        suppress: vec![2],
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let mut sampler = sampler(params, 4);
    sampler.observe(&[0, 1], true).unwrap();
    for _ in 0..20 {
        let choice = sampler.sample(&logits).unwrap();
        let near = |found: f32, expected: f32| (found - expected).abs() < 1e-6;
        assert!(near(choice.logprob.unwrap(), logits[choice.token as usize]), "{choice:?}");
        assert_ne!(choice.token, 2);
        let ids: Vec<u32> = choice.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [2, 0, 3]);
        assert!(choice.top.iter().all(|&(id, logprob)| near(logprob, logits[id as usize])), "{choice:?}");
    }
}

#[test]
fn logprobs_only_when_asked_for() {
    let choice =
        |logprobs| sampler(SamplingParams { logprobs, ..greedy() }, 3).sample(&[1.0, 2.0, 2.0]).unwrap();
    assert_eq!(choice(None), Choice { token: 1, logprob: None, top: Vec::new() });
    let alone = choice(Some(0));
    assert!(alone.logprob.is_some() && alone.top.is_empty());
    assert_eq!(choice(Some(3)).top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 2, 0]);
}

// Properties, against a naive twin in f64 that sorts everything.

/// Logits after penalties, straight from the definitions.
fn naive_penalties(logits: &[f32], params: &SamplingParams, prompt: &[u32], generated: &[u32]) -> Vec<f32> {
    let adjust = |(id, &logit): (usize, &f32)| {
        let count = generated.iter().filter(|&&other| other as usize == id).count();
        let in_prompt = prompt.iter().any(|&other| other as usize == id);
        let mut value = logit;
        if count > 0 || in_prompt {
            value = if value < 0.0 {
                value * params.repetition_penalty
            } else {
                value / params.repetition_penalty
            };
        }
        value -= params.frequency_penalty * count as f32;
        value -= if count > 0 { params.presence_penalty } else { 0.0 };
        if params.suppress.iter().any(|&other| other as usize == id) { f32::NEG_INFINITY } else { value }
    };
    logits.iter().enumerate().map(adjust).collect()
}

/// The tokens the filters leave, best first. `slack` widens every limit by a relative error.
fn naive_allowed(adjusted: &[f32], params: &SamplingParams, slack: f64) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..adjusted.len() as u32).collect();
    ids.retain(|&id| adjusted[id as usize] > f32::NEG_INFINITY);
    ids.sort_by(|&a, &b| adjusted[b as usize].partial_cmp(&adjusted[a as usize]).unwrap().then(a.cmp(&b)));
    if params.top_k > 0 {
        ids.truncate(params.top_k);
    }
    let highest = f64::from(adjusted[ids[0] as usize]);
    let weight =
        |id: u32| ((f64::from(adjusted[id as usize]) - highest) / f64::from(params.temperature)).exp();
    let total: f64 = ids.iter().map(|&id| weight(id)).sum();
    let mut sum = 0.0;
    ids.retain(|&id| {
        let kept = params.top_p >= 1.0 || sum < (f64::from(params.top_p) + slack) * total;
        sum += weight(id);
        kept && weight(id) * (1.0 + slack) >= f64::from(params.min_p)
    });
    ids
}

fn filters() -> impl Strategy<Value = SamplingParams> {
    let penalties = (
        prop_oneof![Just(1.0_f32), 0.5_f32..2.0],
        prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
        prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
    );
    let cuts = (
        prop_oneof![Just(0_usize), 1_usize..40],
        prop_oneof![Just(1.0_f32), 0.05_f32..1.0],
        prop_oneof![Just(0.0_f32), 0.0_f32..1.0],
    );
    let rest = (0.1_f32..3.0, any::<u64>(), prop::collection::vec(0_u32..30, 0..8));
    (penalties, cuts, rest).prop_map(|((repetition, presence, frequency), (top_k, top_p, min_p), rest)| {
        let (temperature, seed, suppress) = rest;
        SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            seed,
            logprobs: Some(5),
            suppress,
        }
    })
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        6 => -10.0_f32..10.0,
        3 => (-4..=4_i8).prop_map(f32::from),
        1 => Just(f32::NEG_INFINITY),
    ];
    // At least 30 tokens, at most 8 of them suppressed; some with a tail beyond.
    prop::collection::vec(logit, 30..120)
}

fn history() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0_u32..30, 0..40)
}

proptest! {
    #[test]
    fn tokens_are_always_allowed(
        params in filters(), logits in logits(), prompt in history(), generated in history(),
    ) {
        let adjusted = naive_penalties(&logits, &params, &prompt, &generated);
        prop_assume!(adjusted.iter().any(|&logit| logit > f32::NEG_INFINITY));
        let allowed = naive_allowed(&adjusted, &params, 1e-5);
        let mut sampler = sampler(params, logits.len());
        sampler.observe(&prompt, false).unwrap();
        sampler.observe(&generated, true).unwrap();
        let before = logits.clone();
        for _ in 0..20 {
            let token = sampler.sample(&logits).unwrap().token;
            prop_assert!(allowed.contains(&token), "{token} is not in {allowed:?}");
        }
        prop_assert!(before == logits);
    }

    #[test]
    fn greedy_takes_the_best_after_penalties(
        params in filters(), logits in logits(), prompt in history(), generated in history(),
    ) {
        let adjusted = naive_penalties(&logits, &params, &prompt, &generated);
        prop_assume!(adjusted.iter().any(|&logit| logit > f32::NEG_INFINITY));
        let best = naive_allowed(&adjusted, &SamplingParams::default(), 0.0)[0];
        // Temperature 0, one candidate, and a temperature so low that the best has all the probability.
        for variant in [
            SamplingParams { temperature: 0.0, ..params.clone() },
            SamplingParams { top_k: 1, ..params.clone() },
            SamplingParams { temperature: 1e-30, top_k: 0, top_p: 0.001, ..params.clone() },
        ] {
            let mut sampler = sampler(variant, logits.len());
            sampler.observe(&prompt, false).unwrap();
            sampler.observe(&generated, true).unwrap();
            prop_assert_eq!(sampler.sample(&logits).unwrap().token, best);
        }
    }

    #[test]
    fn a_low_temperature_approaches_greedy(logits in logits(), seed in any::<u64>()) {
        prop_assume!(logits.iter().any(|&logit| logit > f32::NEG_INFINITY));
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let params = SamplingParams { temperature: 1e-8, seed, ..SamplingParams::default() };
        for token in draws(&params, &logits, 5) {
            prop_assert_eq!(logits[token as usize], best);
        }
    }

    #[test]
    fn permuted_logits_give_permuted_tokens(
        params in filters(), order in Just((0..60_u32).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let logits = scattered(60);
        let permuted: Vec<f32> = order.iter().map(|&id| logits[id as usize]).collect();
        let params = SamplingParams { suppress: Vec::new(), ..params };
        let tokens = draws(&params, &logits, 10);
        let found: Vec<u32> = draws(&params, &permuted, 10).iter().map(|&token| order[token as usize]).collect();
        prop_assert_eq!(tokens, found);
    }

    #[test]
    fn logprobs_are_a_sorted_distribution(logits in logits(), count in 0_usize..30, seed in any::<u64>()) {
        let finite = logits.iter().filter(|&&logit| logit > f32::NEG_INFINITY).count();
        prop_assume!(finite > 0);
        let params = SamplingParams { logprobs: Some(count), seed, ..SamplingParams::default() };
        let choice = sampler(params, logits.len()).sample(&logits).unwrap();
        prop_assert_eq!(choice.top.len(), count.min(finite));
        prop_assert!(choice.logprob.unwrap() <= 0.0);
        prop_assert!(choice.top.is_sorted_by(|a, b| a.1 >= b.1));
        let ids: Vec<u32> = choice.top.iter().map(|&(id, _)| id).collect();
        let best = naive_allowed(&logits, &SamplingParams { top_k: count, ..SamplingParams::default() }, 0.0);
        prop_assert!(count == 0 || ids == best);
        let sum: f64 = choice.top.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
        prop_assert!(sum <= 1.0 + 1e-5);
        let of_chosen = choice.top.iter().find(|&&(id, _)| id == choice.token);
        prop_assert!(of_chosen.is_none_or(|&(_, logprob)| Some(logprob) == choice.logprob));
    }

    #[test]
    fn suppressed_ids_never_appear(suppress in prop::collection::vec(0_u32..30, 1..20), seed in any::<u64>()) {
        let logits: Vec<f32> = (0..30).map(|id| if suppress.contains(&id) { 9.0 } else { 0.0 }).collect();
        let params = SamplingParams { suppress: suppress.clone(), seed, ..SamplingParams::default() };
        for token in draws(&params, &logits, 20) {
            prop_assert!(!suppress.contains(&token));
        }
    }
}
