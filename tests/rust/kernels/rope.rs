//! Rotary positions against recordings of the original model code.

use std::path::Path;

use edgewise::config::{ModelConfig, RopeConfig};
use edgewise::kernels::rope::{RopeTable, frequencies};
use serde_json::{Value, json};

use super::golden::{arrays, json};

/// The rotary settings of the recorded model, with the entries of `changes` in place of its own.
fn settings(changes: &Value) -> RopeConfig {
    let mut config = json("yarn/config.json");
    let entries = changes.as_object().unwrap();
    for (key, value) in entries {
        let place = if key == "head_dim" { &mut config } else { &mut config["rope_parameters"] };
        place[key] = value.clone();
    }
    if !entries.is_empty() {
        // The recorded sections fit no other number of channels.
        config["rope_parameters"].as_object_mut().unwrap().remove("mrope_section").unwrap();
    }
    ModelConfig::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap().text.rope
}

/// Steps of f32 between two positive numbers.
fn steps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn frequencies_of_yarn_are_the_recorded_ones() {
    let record = json("yarn/case.json");
    let rows = record["inv_freq_table"].as_array().unwrap();
    assert_eq!(rows.len(), 8);
    let (mut same, mut count) = (0, 0);
    for row in rows {
        let mut changes = row.clone();
        let recorded = changes.as_object_mut().unwrap().remove("inv_freq").unwrap();
        let attention_factor = changes.as_object_mut().unwrap().remove("attention_scaling").unwrap();
        let rope = settings(&changes);
        let found = frequencies(&rope);
        let recorded: Vec<f32> =
            recorded.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        assert_eq!(found.len(), recorded.len(), "{changes}");
        for (i, (&found, &recorded)) in found.iter().zip(&recorded).enumerate() {
            assert!(steps(found, recorded) <= 1, "{changes}: pair {i} has {found}, not {recorded}");
            same += usize::from(found == recorded);
        }
        count += found.len();
        let yarn = rope.yarn.unwrap();
        assert!((yarn.attention_factor - attention_factor.as_f64().unwrap()).abs() < 1e-15, "{changes}");
    }
    // torch's power is off by one bit now and then, which nothing here can know.
    assert!(100 * same >= 99 * count, "{same} of {count}");
}

#[test]
fn sines_and_cosines_of_yarn_are_the_recorded_ones() {
    let recorded = arrays("yarn/case.safetensors");
    let rope = settings(&json!({}));
    let half = rope.rotary_dim / 2;
    assert_eq!(frequencies(&rope), recorded["inv_freq"]);
    let tokens = recorded["cos"].len() / rope.rotary_dim;
    assert_eq!(tokens, 200);
    let mut table = RopeTable::new(&rope, tokens);
    table.fill((0..tokens as u32).map(|position| [position; 3]));
    let rows = |name: &str| recorded[name].chunks(rope.rotary_dim).map(<[f32]>::to_vec).collect::<Vec<_>>();
    for (token, (cos, sin)) in rows("cos").iter().zip(&rows("sin")).enumerate() {
        // Turning (1, 0) gives cosine and sine themselves.
        let mut head = [vec![1.0; half], vec![0.0; half]].concat();
        table.rotate(token, &mut head);
        for (i, (found, expected)) in head.iter().zip(cos[..half].iter().chain(&sin[..half])).enumerate() {
            assert!((found - expected).abs() < 3e-7, "token {token}, {i}: {found}, not {expected}");
        }
    }
}

#[test]
fn angles_of_a_million_tokens_are_products_in_f32() {
    let row = &json("yarn/case.json")["inv_freq_table"][0];
    let mut changes = row.clone();
    changes
        .as_object_mut()
        .unwrap()
        .retain(|key, _| !["inv_freq", "attention_scaling"].contains(&key.as_str()));
    let rope = settings(&changes);
    let (half, scale) = (rope.rotary_dim / 2, rope.yarn.as_ref().unwrap().attention_factor);
    for position in [262_143, 262_144, 786_431, 1_048_575] {
        let mut table = RopeTable::new(&rope, 1);
        table.fill([[position; 3]]);
        let mut head = [vec![1.0; half], vec![0.0; half]].concat();
        table.rotate(0, &mut head);
        for (i, frequency) in frequencies(&rope).into_iter().enumerate() {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            for (found, expected) in [(head[i], cos * scale), (head[i + half], sin * scale)] {
                let error = (f64::from(found) - expected).abs();
                assert!(error < 3e-7, "position {position}, pair {i}: {found}, not {expected}");
            }
        }
    }
}
