#![allow(clippy::float_cmp, reason = "entries are read exactly")]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::RopeConfig;
use super::super::tests::{expect, full, parse, small, text_0_8b, with, without};
use super::*;
use crate::kernels::rope::frequencies;

/// `config` with YaRN as Qwen's model cards say: `factor` times `original` tokens.
fn stretched(config: Value, factor: impl Into<Value>, original: impl Into<Value>) -> Value {
    let config = with(config, "rope_parameters.rope_type", "yarn");
    let config = with(config, "rope_parameters.factor", factor);
    with(config, "rope_parameters.original_max_position_embeddings", original)
}

/// The small model with YaRN and one entry more.
fn small_with(key: &str, entry: impl Into<Value>) -> Value {
    with(stretched(small(), 4.0, 4096), &format!("rope_parameters.{key}"), entry)
}

fn text(config: &Value) -> TextConfig {
    parse(config).unwrap().text
}

fn yarn(config: &Value) -> YarnConfig {
    text(config).rope.yarn.unwrap()
}

#[track_caller]
fn refused(key: &str, entry: impl Into<Value>, reason: &str) {
    expect(&small_with(key, entry), &format!("rope_parameters.{key}"), reason);
}

#[test]
fn reads_the_form_of_the_model_cards() {
    let text = text(&stretched(text_0_8b(), 4.0, 262_144));
    let yarn = YarnConfig {
        factor: 4.0,
        original_context: 262_144,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: 1.138_629_436_111_989,
    };
    assert_eq!(text.max_position_embeddings, 1_048_576);
    let rope = RopeConfig { theta: 1e7, rotary_dim: 64, sections: [11, 11, 10], yarn: Some(yarn) };
    assert_eq!(text.rope, rope);
}

#[test]
fn reads_the_older_form() {
    let old = with(without(small(), "rope_parameters"), "rope_theta", 5e6);
    let scaling = json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": 4096});
    let scaled = with(old, "rope_scaling", scaling);
    let text = text(&scaled);
    assert_eq!((text.rope.theta, text.max_position_embeddings), (5e6, 8192));
    assert_eq!(yarn(&with(scaled, "rope_scaling.rope_type", "yarn")), text.rope.yarn.unwrap());
}

#[test]
fn the_context_is_the_original_one_times_the_factor() {
    let context = |longest: u64, factor: Value, original: Value| {
        let config = with(small(), "max_position_embeddings", longest);
        text(&stretched(config, factor, original)).max_position_embeddings
    };
    assert_eq!(context(4096, json!(4), json!(4096)), 16_384, "the length before");
    assert_eq!(context(16_384, json!(4), json!(4096)), 16_384, "the length after");
    assert_eq!(context(1_000_000, json!(3), json!(262_144)), 786_432, "another length");
    assert_eq!(context(4096, json!(1.5), json!(4097)), 6145, "part of a token");
    assert_eq!(context(4096, json!(4), json!(null)), 16_384, "the original length left out");
    assert_eq!(context(16_384, json!(null), json!(4096)), 16_384, "the factor left out");
    assert_eq!(context(4096, json!(1), json!(4096)), 4096, "nothing gained");
}

#[test]
fn the_factor_left_out_is_the_ratio_of_the_lengths() {
    let extended = with(small(), "max_position_embeddings", 12_288);
    assert_eq!(yarn(&stretched(extended, Value::Null, 4096)).factor, 3.0);
    expect(&stretched(small(), Value::Null, 4096), "rope_parameters.factor", "is missing");
    expect(&stretched(small(), Value::Null, Value::Null), "rope_parameters.factor", "is missing");
}

#[test]
fn attention_factors() {
    let found = |entries: &[(&str, f64)]| {
        let set =
            |config, &(key, value): &(&str, f64)| with(config, &format!("rope_parameters.{key}"), value);
        yarn(&entries.iter().fold(stretched(small(), 40.0, 4096), set)).attention_factor
    };
    let from_factor = 0.1 * libm::log(40.0) + 1.0;
    assert_eq!(found(&[]), from_factor);
    assert_eq!(found(&[("attention_factor", 0.5)]), 0.5);
    assert_eq!(found(&[("attention_factor", 0.5), ("mscale", 1.0), ("mscale_all_dim", 0.5)]), 0.5);
    let from_both = from_factor / (0.05 * libm::log(40.0) + 1.0);
    assert_eq!(found(&[("mscale", 1.0), ("mscale_all_dim", 0.5)]), from_both);
    for entries in [[("mscale", 0.7), ("mscale_all_dim", 0.0)], [("mscale", 0.0), ("mscale_all_dim", 1.0)]] {
        assert_eq!(found(&entries), from_factor);
    }
    assert_eq!(found(&[("mscale", 0.7)]), from_factor);
}

#[test]
fn entries_out_of_range_are_refused() {
    for factor in [json!(0.5), json!(-4), json!("4"), json!([4])] {
        refused("factor", factor, "must be a number of at least 1");
    }
    refused("factor", 1e300, "4096 tokens x 1e300 are more than 16777216");
    for original in [json!(0), json!(-1), json!(4096.0), json!("4096"), json!(u64::MAX)] {
        refused("original_max_position_embeddings", original, "must be a whole number from 1 to 16777216");
    }
    let steep = small_with("rope_theta", 2.0);
    for original in [5, 4_000_000] {
        let config = with(steep.clone(), "rope_parameters.original_max_position_embeddings", original);
        let field = "rope_parameters.original_max_position_embeddings";
        expect(&config, field, "no channel pair is on the ramp");
    }
    for key in ["beta_fast", "beta_slow", "attention_factor"] {
        for value in [json!(0), json!(-1), json!("1"), json!(true)] {
            refused(key, value, "must be a number above 0");
        }
    }
    for key in ["mscale", "mscale_all_dim"] {
        refused(key, -0.5, "must be a number of at least 0");
    }
    refused("beta_fast", 0.5, "0.5 is less than beta_slow, 1");
    refused("truncate", 1, "must be true or false");
    refused("attention_factor", 1e300, "out of range");
    refused("attention_factor", 1e-300, "out of range");
    let scales = small_with("mscale", f64::MAX);
    expect(&with(scales, "rope_parameters.mscale_all_dim", 1.0), "rope_parameters.mscale", "out of range");
    for theta in [1.0, 0.5] {
        expect(&small_with("rope_theta", theta), "rope_parameters.rope_type", "needs a rope_theta above 1");
    }
    let nested = full(&small_with("beta_slow", 0));
    expect(&nested, "text_config.rope_parameters.beta_slow", "must be a number above 0");
}

#[test]
fn entries_of_yarn_mean_nothing_beside_another_type() {
    let config = with(stretched(small(), 4.0, 4096), "rope_parameters.rope_type", "default");
    let text = text(&config);
    assert_eq!((text.rope.yarn, text.max_position_embeddings), (None, 4096));
}

#[test]
fn a_configuration_is_extended_as_if_it_said_so() {
    let mut extended = text(&text_0_8b());
    extended.extend(4.0).unwrap();
    assert_eq!(extended, text(&stretched(text_0_8b(), 4.0, 262_144)));
}

#[test]
fn what_cannot_be_extended() {
    let refused = |mut text: TextConfig, factor, reason: &str| {
        let before = text.clone();
        let message = text.extend(factor).unwrap_err().to_string();
        assert!(message.starts_with("yarn_factor: ") && message.contains(reason), "{message}");
        assert_eq!(text, before);
    };
    for factor in [1.0, 0.0, -4.0, f64::NAN, f64::INFINITY] {
        refused(text(&small()), factor, "must be a number above 1");
    }
    refused(text(&small()), 5000.0, "4096 tokens x 5000.0 are more than 16777216");
    let stretched = text(&stretched(small(), 4.0, 4096));
    refused(stretched, 2.0, "the model has YaRN already: factor 4, 16384 tokens");
    let steep = with(small(), "rope_parameters.rope_theta", 2.0);
    refused(text(&with(steep, "max_position_embeddings", 4)), 2.0, "no channel pair is on the ramp");
    refused(text(&with(small(), "rope_parameters.rope_theta", 1.0)), 2.0, "needs a rope_theta above 1");
}

/// How many numbers of f32 lie between.
fn steps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_factor_of_1_changes_nothing(
        theta in 1e3..1e8_f64, original in 512..1_000_000_usize, quarters in 1..8_usize, truncate in any::<bool>(),
    ) {
        let default = RopeConfig { theta, rotary_dim: 16 * quarters, sections: [8 * quarters, 0, 0], yarn: None };
        let yarn = YarnConfig { truncate, ..YarnConfig::new(original, 1.0) };
        prop_assert_eq!((yarn.attention_factor, yarn.context()), (1.0, original));
        let same = RopeConfig { yarn: Some(yarn), ..default.clone() };
        for (found, expected) in frequencies(&same).into_iter().zip(frequencies(&default)) {
            // A wavelength rounded to f32, theta^x of an exponent in f32, and its reciprocal.
            prop_assert!(steps(found, expected) <= 12, "{found} {expected}");
        }
    }

    #[test]
    fn frequencies_lie_between_those_of_training_and_their_part(
        theta in 1.5..1e9_f64, factor in 1.0..100.0_f64, original in 1..100_000_usize,
        betas in (0.01..1e3_f64, 0.01..1e3_f64), half in 1..129_usize, truncate in any::<bool>(),
    ) {
        let (beta_fast, beta_slow) = (betas.0.max(betas.1), betas.0.min(betas.1));
        let yarn = YarnConfig { beta_fast, beta_slow, truncate, ..YarnConfig::new(original, factor) };
        prop_assume!(yarn.fault(theta, 2 * half).is_none());
        let default = RopeConfig { theta, rotary_dim: 2 * half, sections: [half, 0, 0], yarn: None };
        let [low, high] = yarn.ramp(theta, 2 * half);
        let rope = RopeConfig { yarn: Some(yarn), ..default.clone() };
        let (found, kept) = (frequencies(&rope), frequencies(&default));
        for (i, (&found, &kept)) in found.iter().zip(&kept).enumerate() {
            let divided = kept / factor as f32;
            prop_assert!(found <= kept * (1.0 + 1e-6) && found >= divided * (1.0 - 1e-6), "{found} {kept}");
            let expected = if i as f64 <= low { kept } else if i as f64 >= high { divided } else { found };
            prop_assert!((found / expected - 1.0).abs() < 3e-6, "pair {i}: {found}, not {expected}");
        }
        prop_assert!(found.is_sorted_by(|a, b| *a >= b * (1.0 - 1e-6)), "{found:?}");
    }

    #[test]
    fn any_entries_are_read_or_refused(
        key in prop::sample::select(vec![
            "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
            "rope_theta",
        ]),
        entry in prop_oneof![any::<f64>().prop_map(Value::from), any::<u64>().prop_map(Value::from)],
    ) {
        let Ok(config) = parse(&with(small_with("mscale_all_dim", 0.5), &format!("rope_parameters.{key}"), entry))
        else {
            return Ok(());
        };
        let text = config.text;
        let yarn = text.rope.yarn.clone().unwrap();
        prop_assert!(text.max_position_embeddings >= yarn.original_context);
        prop_assert!(text.max_position_embeddings <= MAX_SIZE);
        prop_assert!((yarn.attention_factor as f32).is_finite());
        prop_assert!(frequencies(&text.rope).iter().all(|x| x.is_finite() && *x >= 0.0));
    }
}
