//! The engine's manners: what it refuses, what an interruption leaves behind, many threads at once.

use std::fs;
use std::path::Path;
use std::thread;

use edgewise::checkpoint::Checkpoint;
use edgewise::error::Error;
use edgewise::kernels::{Cpu, Tier};
use edgewise::model::Prompt;
use edgewise::model::open::{Options, open};
use edgewise::threads::Pool;
use edgewise::weights::convert::quantize_checkpoint;
use edgewise::weights::recipe::Recipe;

use crate::models::{DEMO, Model, Run, TINY, append, arrays, assert_same, logits, text};

/// Tokens between two questions whether to go on.
const CHUNK: usize = 256;

#[test]
fn an_empty_sequence_has_no_logits() {
    let engine = DEMO.open_fastest(1);
    let mut out = vec![0.0; engine.model.config.vocab_size];
    let error = engine.logits(&engine.state(), &mut out).unwrap_err();
    assert!(matches!(&error, Error::Argument { argument, .. } if argument == "sequence"), "{error}");
}

#[test]
fn appending_nothing_changes_nothing() {
    let engine = DEMO.open_fastest(1);
    let mut state = engine.state();
    append(&engine, &mut state, &[]);
    assert!(state.is_empty());
    append(&engine, &mut state, &[1, 2]);
    let before = logits(&engine, &state);
    append(&engine, &mut state, &[]);
    assert_eq!(state.len(), 2);
    assert_same(&logits(&engine, &state), &before, "after nothing");
}

#[test]
fn unknown_ids_are_refused_before_any_work() {
    let engine = DEMO.open_fastest(1);
    let vocab = engine.model.config.vocab_size as u32;
    let mut state = engine.state();
    append(&engine, &mut state, &[1, 2, 3]);
    let before = arrays(&state);
    for id in [vocab, u32::MAX] {
        let error = engine.append(&mut state, Prompt::text(&[4, id]), &mut || Ok(())).unwrap_err();
        assert!(error.to_string().contains(&format!("token id {id} is outside the vocabulary of {vocab}")));
    }
    assert_eq!(state.len(), 3);
    assert_eq!(arrays(&state), before);
}

#[test]
fn the_context_is_checked_before_any_work() {
    let engine = Model::new(TINY, "int4").open_fastest(2);
    let limit = engine.model.config.max_position_embeddings;
    let mut state = engine.state();
    append(&engine, &mut state, &[7]);
    let mut asked = 0;
    let mut proceed = || {
        asked += 1;
        Ok(())
    };
    let error = engine.append(&mut state, Prompt::text(&vec![1; limit]), &mut proceed).unwrap_err();
    assert!(
        matches!(error, Error::Context { needed, limit: found } if needed == limit + 1 && found == limit)
    );
    assert!(engine.all_logits(Prompt::text(&vec![1; limit + 1]), &mut proceed).is_err());
    assert_eq!((asked, state.len()), (0, 1));
}

#[test]
fn the_whole_context_can_be_used() {
    let engine = Model::new(TINY, "int4").open_fastest(2);
    let limit = engine.model.config.max_position_embeddings;
    let ids = text(&engine, limit, 11);
    let mut state = engine.state();
    append(&engine, &mut state, &ids[..limit - 1]);
    append(&engine, &mut state, &ids[limit - 1..]);
    assert_eq!(state.len(), limit);
    assert!(logits(&engine, &state).iter().all(|&x| f32::from_bits(x).is_finite()));
    assert!(matches!(
        engine.append(&mut state, Prompt::text(&[1]), &mut || Ok(())),
        Err(Error::Context { .. })
    ));
}

#[test]
fn an_interruption_keeps_whole_chunks() {
    let engine = Model::new(TINY, "int4").open_fastest(2);
    let ids = text(&engine, 3 * CHUNK, 12);
    let wanted = Run::at_once(&engine, &ids);
    for stop_before in 0..3 {
        let mut state = engine.state();
        let mut chunks = 0;
        let mut proceed = || {
            chunks += 1;
            if chunks > stop_before { Err(Error::Interrupted) } else { Ok(()) }
        };
        let error = engine.append(&mut state, Prompt::text(&ids), &mut proceed).unwrap_err();
        assert!(matches!(error, Error::Interrupted));
        assert_eq!(state.len(), stop_before * CHUNK);
        let rest = &ids[state.len()..];
        append(&engine, &mut state, rest);
        assert_same(&logits(&engine, &state), wanted.logits.last().unwrap(), "finished later");
        wanted.check_arrays(&arrays(&state), "finished later");
    }
}

#[test]
fn reserving_changes_no_bit() {
    let engine = DEMO.open_fastest(2);
    let ids = text(&engine, 200, 13);
    let wanted = Run::at_once(&engine, &ids);
    let mut state = engine.state();
    engine.reserve(&mut state, 1000).unwrap();
    let bytes = state.nbytes();
    append(&engine, &mut state, &ids);
    assert_eq!(state.nbytes(), bytes);
    wanted.check_arrays(&arrays(&state), "reserved");
}

#[test]
fn threads_share_an_engine() {
    let engine = DEMO.open_fastest(2);
    let texts: Vec<_> = (20..24).map(|seed| text(&engine, 120, seed)).collect();
    let wanted: Vec<_> = texts.iter().map(|ids| Run::at_once(&engine, ids)).collect();
    thread::scope(|scope| {
        for (ids, wanted) in texts.iter().zip(&wanted) {
            let engine = &engine;
            scope.spawn(move || wanted.check_pieces(engine, ids, (0..).map(|i| 1 + i % 5), "beside others"));
        }
    });
}

#[test]
fn converted_while_opening_or_before_is_the_same() {
    let source = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(TINY)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for recipe in ["int4", "careful", "int8", "bf16", "f16", "f32"] {
        let file = folder.path().join(format!("{recipe}.safetensors"));
        let parsed = Recipe::by_name_or_file(recipe).unwrap();
        quantize_checkpoint(&source, &file, &parsed, &Pool::new(2), &mut |_, _, _| Ok(())).unwrap();
        let cpu = Cpu::new(*Tier::available().last().unwrap(), 2);
        let options = Options::parse("auto", "f32", None).unwrap();
        let stored = open(&file, &options, cpu, &mut |_, _, _| Ok(())).unwrap().engine;
        let model = Model { kv_dtype: "f32", recipe: Some(recipe), ..Model::new(TINY, "auto") };
        let converted = model.open_fastest(1);
        let ids = text(&stored, 100, 14);
        Run::at_once(&converted, &ids).check(&Run::at_once(&stored, &ids), recipe);
    }
}

#[test]
fn widened_weights_are_those_of_the_file() {
    let (stored, widened) = (DEMO.open_fastest(1), Model::new(DEMO.path, "f32").open_fastest(1));
    let mut compared = 0;
    let mut wanted = Vec::new();
    stored.model.weights.each_matrix(&mut |name, matrix| wanted.push((name, matrix.to_f32())));
    widened.model.weights.each_matrix(&mut |name, matrix| {
        assert_eq!(matrix.format().name(), "f32");
        assert_eq!(wanted[compared], (name, matrix.to_f32()));
        compared += 1;
    });
    assert_eq!(compared, wanted.len());
}

#[test]
fn a_file_of_our_own_is_not_converted_again() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DEMO.path);
    for dtype in ["int4", "int8", "bf16"] {
        let options = Options::parse(dtype, "auto", None).unwrap();
        let cpu = Cpu::new(Tier::available()[0], 1);
        let error = open(&path, &options, cpu, &mut |_, _, _| Ok(())).unwrap_err();
        assert!(
            error.to_string().starts_with("dtype: an edgewise file is opened as it is stored"),
            "{error}"
        );
    }
}

#[test]
fn unknown_options_are_named() {
    for (dtype, kv, recipe, message) in [
        ("int5", "auto", None, "dtype: 'int5' is not one of"),
        ("auto", "int4", None, "kv_dtype: 'int4' is not one of auto, f32, f16, bf16, int8"),
        ("int4", "auto", Some("careful"), "recipe: it decides the formats"),
        ("auto", "auto", Some("none"), "recipe: 'none' is neither"),
    ] {
        let error = Options::parse(dtype, kv, recipe).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn progress_ends_at_the_total_and_can_stop_the_opening() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TINY);
    let options = Options::parse("int4", "auto", None).unwrap();
    let cpu = || Cpu::new(Tier::available()[0], 1);
    let mut seen = Vec::new();
    let mut watch = |done, total, _: &str| {
        seen.push((done, total));
        Ok(())
    };
    open(&path, &options, cpu(), &mut watch).unwrap();
    assert!(seen.is_sorted());
    assert!(seen.iter().all(|&(done, total)| done <= total && total == seen[0].1));
    assert_eq!(seen.last().unwrap().0, seen[0].1, "all bytes are done at the end");
    let error = open(&path, &options, cpu(), &mut |_, _, _| Err(Error::Interrupted)).unwrap_err();
    assert!(matches!(error, Error::Interrupted));
}

#[test]
fn a_missing_path_is_an_io_error() {
    let options = Options::parse("auto", "auto", None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none");
    let cpu = || Cpu::new(Tier::available()[0], 1);
    assert!(matches!(open(&missing, &options, cpu(), &mut |_, _, _| Ok(())), Err(Error::Io { .. })));
    fs::create_dir(&missing).unwrap();
    assert!(matches!(open(&missing, &options, cpu(), &mut |_, _, _| Ok(())), Err(Error::File { .. })));
}
