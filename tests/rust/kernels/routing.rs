//! Which experts tokens go to.

use edgewise::kernels::Cpu;
use edgewise::kernels::reference;
use edgewise::kernels::routing::{Routes, route_top_k};
use proptest::prelude::*;

use super::golden;
use super::support::{Random, assert_close, assert_same_bits, cpus, fastest, portable, same_on_all};

/// Experts and how many a token takes: below, at and above the lanes.
const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (2, 1),
    (2, 2),
    (7, 3),
    (8, 8),
    (15, 2),
    (16, 5),
    (17, 17),
    (33, 8),
    (64, 1),
    (256, 8),
    (513, 10),
];

fn route(cpu: &Cpu, logits: &[f32], experts: usize, per_token: usize, renormalise: bool) -> Routes {
    let mut routes = Routes::default();
    route_top_k(cpu, logits, experts, per_token, renormalise, &mut routes);
    assert_eq!(routes.per_token(), per_token);
    assert_eq!(routes.experts().len(), logits.len() / experts * per_token);
    routes
}

/// Chosen experts as numbers, then weights.
fn as_floats(routes: &Routes) -> Vec<f32> {
    routes.experts().iter().map(|&expert| expert as f32).chain(routes.weights().iter().copied()).collect()
}

/// The experts of each token are distinct, fall in probability, and none that was left out is better.
fn check_choice(what: &str, logits: &[f32], experts: usize, routes: &Routes) {
    let k = routes.per_token();
    for (logits, chosen) in logits.chunks(experts).zip(routes.experts().chunks(k)) {
        let score = |expert: &u32| logits[*expert as usize];
        assert!(chosen.is_sorted_by(|a, b| score(a) > score(b) || (score(a) == score(b) && a < b)), "{what}");
        let last = score(&chosen[k - 1]);
        for (expert, &logit) in logits.iter().enumerate() {
            let better = logit > last || (logit == last && (expert as u32) < chosen[k - 1]);
            assert!(!better || chosen.contains(&(expert as u32)), "{what}: expert {expert}");
        }
    }
}

/// Multiples of 2^-10, so that different logits have different probabilities, and some are equal.
fn steps(random: &mut Random, n: usize) -> Vec<f32> {
    random.between(n, -2000.0, 2000.0).iter().map(|x| x.round() / 1024.0).collect()
}

#[test]
fn shapes() {
    let (cpus, mut random) = (cpus(), Random::new(70));
    for (experts, per_token) in SHAPES {
        for tokens in [1, 3, 31, 32, 33, 100] {
            for renormalise in [false, true] {
                let logits = steps(&mut random, tokens * experts);
                let what = format!("{per_token} of {experts} for {tokens}");
                same_on_all(&what, &cpus, |cpu| {
                    as_floats(&route(cpu, &logits, experts, per_token, renormalise))
                });
                let routes = route(&cpus[0], &logits, experts, per_token, renormalise);
                check_choice(&what, &logits, experts, &routes);
                let (chosen, weights) = reference::route_top_k(&logits, experts, per_token, renormalise);
                assert_eq!(routes.experts(), chosen, "{what}");
                assert_close(&what, routes.weights(), &weights, 1e-6);
            }
        }
    }
}

/// Routers of four layers, recorded with the original model code.
#[test]
fn recorded_routers() {
    let case = golden::json("routing/case.json");
    let count = |name: &str| case[name].as_u64().unwrap() as usize;
    let (experts, per_token) = (count("num_experts"), count("num_experts_per_tok"));
    let floats = golden::arrays("routing/case.safetensors");
    let integers = golden::integers("routing/case.safetensors");
    for cpu in cpus() {
        for layer in 0..count("layers") {
            let name = |array: &str| format!("seq1.layer{layer}.{array}");
            let routes = route(&cpu, &floats[&name("router_logits")], experts, per_token, true);
            let chosen: Vec<i64> = routes.experts().iter().map(|&expert| i64::from(expert)).collect();
            assert_eq!(chosen, integers[&name("selected_experts")]);
            assert_close("weights", routes.weights(), &floats[&name("router_weights")], 1e-6);
        }
    }
}

#[test]
fn equal_logits_take_the_first_experts() {
    for cpu in cpus() {
        for (experts, per_token) in SHAPES {
            for value in [0.0, -1e30, 3e38] {
                let routes = route(&cpu, &vec![value; 2 * experts], experts, per_token, true);
                let first: Vec<u32> = (0..per_token as u32).collect();
                assert_eq!(routes.experts(), [&first[..], &first].concat());
                assert_close("weights", routes.weights(), &vec![1.0 / per_token as f32; 2 * per_token], 1e-6);
            }
        }
    }
}

/// Differences too large for e^x, and -infinity, which is an expert ruled out.
#[test]
fn hopeless_experts_weigh_nothing() {
    for cpu in cpus() {
        let logits = [-1e30, 200.0, f32::NEG_INFINITY, 90.0, 200.0];
        let routes = route(&cpu, &logits, 5, 5, true);
        assert_eq!(routes.experts(), [1, 4, 0, 2, 3]);
        assert_eq!(routes.weights(), [0.5, 0.5, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn non_finite_logits_poison_their_token_only() {
    let (experts, per_token, faulty) = (19, 4, 1);
    let clean = Random::new(71).numbers(3 * experts);
    for cpu in cpus() {
        for renormalise in [false, true] {
            let expected = route(&cpu, &clean, experts, per_token, renormalise);
            let rows = [f32::NAN, f32::INFINITY].into_iter().flat_map(|fault| {
                [0, 3, 16, 18].map(|expert| {
                    let mut row = clean[faulty * experts..][..experts].to_vec();
                    row[expert] = fault;
                    row
                })
            });
            for row in rows.chain([vec![f32::NEG_INFINITY; experts], vec![f32::NAN; experts]]) {
                let mut logits = clean.clone();
                logits[faulty * experts..][..experts].copy_from_slice(&row);
                let found = route(&cpu, &logits, experts, per_token, renormalise);
                for token in 0..3 {
                    let part = token * per_token..(token + 1) * per_token;
                    let (chosen, weights) = (&found.experts()[part.clone()], &found.weights()[part.clone()]);
                    if token == faulty {
                        assert!(weights.iter().all(|weight| weight.is_nan()), "{row:?}: {weights:?}");
                        assert_eq!(chosen, [0, 1, 2, 3]);
                    } else {
                        assert_eq!(chosen, &expected.experts()[part.clone()]);
                        assert_same_bits("weights", weights, &expected.weights()[part]);
                    }
                }
            }
        }
    }
}

#[test]
fn no_tokens_have_no_routes() {
    assert!(route(&fastest(), &[], 8, 2, true).experts().is_empty());
}

#[test]
#[should_panic(expected = "3 of 2 experts")]
fn more_experts_than_there_are() {
    route(&fastest(), &[0.0; 4], 2, 3, true);
}

#[test]
fn later_calls_leave_nothing_of_earlier_ones() {
    let mut routes = Routes::with_capacity(4, 2);
    let logits = Random::new(72).numbers(4 * 6);
    route_top_k(&fastest(), &logits, 6, 2, true, &mut routes);
    route_top_k(&fastest(), &logits[..6], 6, 3, true, &mut routes);
    let fresh = route(&fastest(), &logits[..6], 6, 3, true);
    assert_eq!((routes.experts(), routes.weights()), (fresh.experts(), fresh.weights()));
    assert_eq!(routes.per_token(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_router(seed: u64, experts in 1_usize..80, part in 0.0_f64..1.0, tokens in 1_usize..40, spread in 0.1_f32..60.0) {
        let per_token = 1 + (part * experts as f64) as usize;
        let mut random = Random::new(seed);
        let logits = random.between(tokens * experts, -spread, spread);
        let routes = route(&fastest(), &logits, experts, per_token, true);
        assert_same_bits("tiers", &as_floats(&routes), &as_floats(&route(&portable(), &logits, experts, per_token, true)));
        for weights in routes.weights().chunks(per_token) {
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            prop_assert!((sum - 1.0).abs() < 1e-6, "{sum}");
            prop_assert!(weights.is_sorted_by(|a, b| a >= b));
        }
        // One by one in any order, tokens get what they get together.
        let mut order: Vec<usize> = (0..tokens).collect();
        order.sort_by_cached_key(|_| random.bits());
        for token in order {
            let alone = route(&fastest(), &logits[token * experts..][..experts], experts, per_token, true);
            let part = token * per_token..(token + 1) * per_token;
            prop_assert_eq!(alone.experts(), &routes.experts()[part.clone()]);
            assert_same_bits("alone", alone.weights(), &routes.weights()[part]);
        }
        // Whoever takes more takes the same ones first.
        let fewer = route(&fastest(), &logits, experts, per_token.div_ceil(2), false);
        let chosen = routes.experts().chunks(per_token).zip(fewer.experts().chunks(fewer.per_token()));
        for (more, fewer) in chosen {
            prop_assert!(more.starts_with(fewer));
        }
    }
}
