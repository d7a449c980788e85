//! What the engine refuses to see, and what an interruption leaves behind.

use std::thread;

use edgewise::error::Error;
use edgewise::model::Engine;

use super::{DEEPSTACK, IMAGE};
use crate::models::{DEMO, Model, Run, TINY, append, arrays, assert_same, bits, logits, text};
use crate::pictures::{Seen, picture, see, try_see};

fn encode(engine: &Engine, pixels: Vec<f32>, grid: [usize; 2]) -> String {
    engine.encode(pixels, grid, &mut |_| Ok(()), &mut |_, _| {}).unwrap_err().to_string()
}

#[test]
fn a_text_model_sees_nothing() {
    let engine = Model::new(TINY, "f32").open_fastest(1);
    assert_eq!(
        encode(&engine, vec![], [2, 2]),
        "pixel_values: the model has no vision tower, it reads text only"
    );
    let other = Model::new(IMAGE, "f32").open_fastest(1);
    let seen = Seen::new(&other, &[1, 1], &[see(&other, [2, 2], 0)], 1);
    let message = engine.prompt(&seen.ids, &seen.spans).unwrap_err().to_string();
    assert!(message.ends_with("at index 1 is no placeholder of images"), "{message}");
}

#[test]
fn pixels_that_do_not_fit() {
    let engine = Model::new(IMAGE, "f32").open_fastest(1);
    for (numbers, grid, message) in [
        (4 * 1536, [2, 4], "pixel_values: holds 6144 numbers, the grid needs 12288"),
        (0, [2, 2], "pixel_values: holds 0 numbers, the grid needs 6144"),
        (4 * 1536 + 1, [2, 2], "pixel_values: holds 6145 numbers, the grid needs 6144"),
        (3 * 1536, [1, 3], "grid_hw: (1, 3) must be multiples of 2, and not zero"),
        (0, [0, 0], "grid_hw: (0, 0) must be multiples of 2, and not zero"),
        (0, [1 << 20, 1 << 20], "grid_hw: (1048576, 1048576) are more than 262144 patches"),
    ] {
        assert_eq!(encode(&engine, vec![0.0; numbers], grid), message);
    }
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut pixels = vec![0.0; 4 * 1536];
        *pixels.last_mut().unwrap() = fault;
        assert_eq!(encode(&engine, pixels, [2, 2]), "pixel_values: holds NaN or infinity");
    }
}

/// Finite pixels far from any picture, and finite weights: it is said that the activations overflowed, or all is finite.
#[test]
fn pixels_beyond_all_pictures() {
    let engine = Model::new(IMAGE, "f32").open_fastest(1);
    let mut overflows = 0;
    for size in [1e10, 1e19, 1e30, f32::MAX] {
        let pixels: Vec<f32> = (0..4 * 1536).map(|i| if i % 3 == 0 { size } else { -size }).collect();
        match engine.encode(pixels, [2, 2], &mut |_| Ok(()), &mut |_, _| {}) {
            Ok(features) => assert!(features.is_finite()),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    message.contains("the activations overflowed although all weights are finite"),
                    "{message}"
                );
                overflows += 1;
            }
        }
    }
    assert_ne!(overflows, 0);
}

#[test]
fn features_of_another_width_are_refused_before_any_work() {
    let (wide, narrow) = (DEMO.open_fastest(1), Model::new(IMAGE, "f32").open_fastest(1));
    let mut seen = Seen::new(&wide, &[2, 1], &[see(&wide, [2, 2], 0)], 1);
    seen.spans[0].features = see(&narrow, [2, 2], 0);
    let mut state = wide.state();
    let error = wide.append(&mut state, seen.prompt(&wide), &mut || panic!("no work")).unwrap_err();
    assert_eq!(error.to_string(), "media[0]: comes from another model");
    assert_eq!(state.len(), 0);
}

#[test]
fn an_interruption_of_encoding_leaves_nothing_behind() {
    for model in [DEMO, Model::new(DEEPSTACK, "f32")] {
        let engine = model.open_fastest(2);
        let tower = engine.vision().unwrap();
        let (grid, blocks) = ([6, 8], tower.config.depth);
        let wanted = try_see(&engine, grid, 1).unwrap();
        let grid_of = wanted.grid;
        let pixels = picture(&tower.config, grid_of, 1);
        let mut told = Vec::new();
        for stop_at in 0..blocks + 2 {
            told.clear();
            let mut calls = 0;
            let mut proceed = |done| {
                told.push(done);
                calls += 1;
                if calls > stop_at { Err(Error::Interrupted) } else { Ok(()) }
            };
            let error = engine.encode(pixels.clone(), grid, &mut proceed, &mut |_, _| {}).unwrap_err();
            assert!(matches!(error, Error::Interrupted));
            assert_eq!(told.len(), stop_at + 1);
        }
        assert_eq!(
            told,
            [vec![0], (0..=blocks).collect()].concat(),
            "before patches, each block, the merger"
        );
        let again = try_see(&engine, grid, 1).unwrap();
        assert_same(&bits(&again.embeddings), &bits(&wanted.embeddings), "after interruptions");
    }
}

/// The passes that read a part of it are undone; the sequence is whole and can be read on.
#[test]
fn an_interruption_inside_an_image() {
    let engine = DEMO.open_fastest(2);
    let seen = Seen::new(&engine, &[20, 6], &[see(&engine, [10, 12], 1)], 31);
    let mut state = engine.state();
    let mut passes = 0;
    let mut proceed = || {
        passes += 1;
        if passes > 1 { Err(Error::Interrupted) } else { Ok(()) }
    };
    let error = engine.append(&mut state, seen.prompt(&engine), &mut proceed).unwrap_err();
    assert!(matches!(error, Error::Interrupted));
    assert_eq!((state.len(), state.next_position()), (0, 0), "the first pass ends inside the image");
    append(&engine, &mut state, &text(&engine, 5, 1));
    assert_eq!((state.len(), state.next_position()), (5, 5));
    assert!(logits(&engine, &state).iter().all(|&x| f32::from_bits(x).is_finite()));
}

/// Encoding and reading of several threads take turns on one engine.
#[test]
fn threads_look_at_pictures_of_their_own() {
    let engine = DEMO.open_fastest(2);
    let prompt = |seed: usize| Seen::new(&engine, &[3, 20], &[see(&engine, [6, 8], seed)], seed as u32);
    let wanted: Vec<_> = (0..4).map(|seed| Run::of(&engine, prompt(seed).prompt(&engine))).collect();
    let ids = text(&engine, 60, 40);
    let words = Run::at_once(&engine, &ids);
    thread::scope(|scope| {
        for (seed, wanted) in wanted.iter().enumerate() {
            let (engine, prompt) = (&engine, &prompt);
            scope.spawn(move || {
                for _ in 0..3 {
                    wanted.check(&Run::of(engine, prompt(seed).prompt(engine)), "beside others");
                }
            });
        }
        scope.spawn(|| words.check_pieces(&engine, &ids, (0..).map(|_| 1), "beside pictures"));
    });
}

#[test]
fn the_context_counts_the_tokens_of_images() {
    let engine = Model::new(IMAGE, "int8").open_fastest(2);
    let limit = engine.model.config.max_position_embeddings;
    let seen = Seen::new(&engine, &[3, 1], &[see(&engine, [6, 6], 1)], 41);
    let mut state = engine.state();
    append(&engine, &mut state, &text(&engine, limit - 12, 42));
    let before = arrays(&state);
    let error = engine.append(&mut state, seen.prompt(&engine), &mut || panic!("no work")).unwrap_err();
    assert!(matches!(error, Error::Context { needed, .. } if needed == limit + 1));
    assert_eq!(arrays(&state), before);
    engine.append(&mut state, seen.part(0..12).prompt(&engine), &mut || Ok(())).unwrap();
    assert_eq!(state.len(), limit);
    assert_eq!(state.next_position() as usize, limit - 12 + 3 + 3);
}
