//! Moments of what matrices read: against the model's own trace, equal however they are computed; and levels by them.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use edgewise::checkpoint::Checkpoint;
use edgewise::kernels::Tier;
use edgewise::model::{Engine, Prompt};
use edgewise::tensor::{Bytes, DType, TensorView};
use edgewise::threads::Pool;
use edgewise::weights::convert::{Report, quantize_calibrated, quantize_checkpoint};
use edgewise::weights::matrix::Format;
use edgewise::weights::moments::{InputStatistics, Moments, SPAN};
use edgewise::weights::quantize::{Rows, quantize_parallel, quantize_parallel_for};
use edgewise::weights::recipe::Recipe;

use crate::models::{Model, TINY, append, text};

const TIED: &str = "tests/golden/dense_text_kv_groups/v2x_tied";
const MOE: &str = "tests/golden/moe_text";
const WINDOW: usize = 70;
const TOKENS: usize = 150;

fn statistics(engine: &Engine, ids: &[u32]) -> InputStatistics {
    engine.input_statistics(ids, WINDOW, &mut |_| Ok(())).unwrap()
}

/// Sums over `rows` `[tokens, cols]` by their definition.
fn sums(rows: &[f32], cols: usize) -> Vec<f64> {
    let mut sums = vec![0.0; cols.div_ceil(SPAN) * SPAN * SPAN];
    for row in rows.chunks_exact(cols) {
        for (i, &a) in row.iter().enumerate() {
            for (j, &b) in row.iter().enumerate().skip(i).take(SPAN - i % SPAN) {
                sums[i / SPAN * SPAN * SPAN + i % SPAN * SPAN + j % SPAN] += f64::from(a) * f64::from(b);
            }
        }
    }
    sums
}

#[test]
fn the_heads_input_is_that_of_the_trace() {
    let engine = Model::new(TINY, "f32").open_fastest(2);
    let ids = text(&engine, TOKENS, 3);
    let mut rows = Vec::new();
    for window in ids.chunks(WINDOW) {
        let trace = engine.trace(Prompt::text(window), &mut || Ok(()), &mut |_, _| {}).unwrap();
        rows.extend(trace.final_norm);
    }
    let width = engine.model.config.hidden_size;
    let wanted = Moments::from_sums(width, &sums(&rows, width)).unwrap();
    let found = statistics(&engine, &ids);
    assert_eq!(found.tokens(), TOKENS);
    assert_eq!(found.find("lm_head.weight", width).unwrap(), Some(&wanted));
}

#[test]
fn a_tied_embedding_is_both_a_head_and_rows() {
    let engine = Model::new(TIED, "f32").open_fastest(2);
    let ids = text(&engine, WINDOW, 3);
    let rows = engine.trace(Prompt::text(&ids), &mut || Ok(()), &mut |_, _| {}).unwrap().final_norm;
    let width = engine.model.config.hidden_size;
    let sums = sums(&rows, width);
    let found = statistics(&engine, &ids);
    let found = found.find("model.embed_tokens.weight", width).unwrap();
    assert_eq!(found, Moments::of_read_rows(width, &sums).as_ref());
    assert_ne!(found, Moments::from_sums(width, &sums).as_ref());
}

#[test]
fn all_tiers_threads_and_passes_give_the_same() {
    for path in [TINY, MOE] {
        let model = Model::new(path, "f32");
        let plain = model.open(Tier::available()[0], 1);
        let ids = text(&plain, TOKENS, 4);
        let wanted = statistics(&plain, &ids);
        for tier in Tier::available() {
            for threads in [1, 3] {
                let engine = model.open(tier, threads);
                // The length of the next passes depends on what was computed before.
                append(&engine, &mut engine.state(), &ids[..threads * 40]);
                assert!(statistics(&engine, &ids) == wanted, "{path}, {}, {threads} threads", tier.name());
            }
        }
    }
}

#[test]
fn other_sequences_do_not_count() {
    let engine = Model::new(TINY, "f32").open_fastest(2);
    let ids = text(&engine, TOKENS, 6);
    let wanted = statistics(&engine, &ids);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                append(&engine, &mut engine.state(), &ids[..20]);
            }
        });
        let also = scope.spawn(|| (0..10).all(|_| statistics(&engine, &ids) == wanted));
        let equal = (0..10).all(|_| statistics(&engine, &ids) == wanted) && also.join().unwrap();
        done.store(true, Ordering::Relaxed);
        assert!(equal);
    });
}

#[test]
fn nothing_is_recorded_before_and_after() {
    let engine = Model::new(TINY, "f32").open_fastest(1);
    let ids = text(&engine, TOKENS, 5);
    let wanted = statistics(&engine, &ids);
    append(&engine, &mut engine.state(), &ids);
    assert!(statistics(&engine, &ids) == wanted);
    let stopped = engine.input_statistics(&ids, WINDOW, &mut |done| {
        if done == 0 { Ok(()) } else { Err(edgewise::error::Error::Interrupted) }
    });
    assert!(stopped.is_err());
    assert!(!engine.cpu.recorder.is_on());
    let none = engine.input_statistics(&ids, 0, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(none.contains("window"), "{none}");
}

#[test]
fn every_matrix_of_the_text_model_but_down_projections_of_experts_is_known() {
    for (path, missing) in [(TINY, &[][..]), (TIED, &[][..]), (MOE, &["experts.", "shared_expert.down"][..])]
    {
        let engine = Model::new(path, "f32").open_fastest(1);
        let found = statistics(&engine, &text(&engine, 80, 6));
        engine.model.weights.each_matrix(&mut |name, matrix| {
            let known = found.find(&name, matrix.cols()).unwrap().is_some();
            // The embedding is read by rows; where the head is a matrix of its own, nothing is multiplied with it.
            let idle = name.starts_with("embed_tokens") && !engine.model.config.tie_word_embeddings
                || name.contains("down_proj") && missing.iter().any(|part| name.contains(part));
            assert_eq!(known, !idle, "{path} {name}");
        });
    }
}

fn quantized(
    path: &str,
    recipe: &str,
    statistics: Option<&InputStatistics>,
    threads: usize,
) -> (Vec<u8>, Report) {
    let folder = tempfile::tempdir().unwrap();
    let (file, recipe) = (folder.path().join("out"), Recipe::by_name_or_file(recipe).unwrap());
    let source = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (pool, mut progress) = (Pool::new(threads), |_: u64, _: u64, _: &str| Ok(()));
    let report = match statistics {
        None => quantize_checkpoint(&source, &file, &recipe, &pool, &mut progress),
        Some(statistics) => quantize_calibrated(&source, &file, &recipe, statistics, &pool, &mut progress),
    };
    (fs::read(&file).unwrap(), report.unwrap())
}

#[test]
fn a_calibrated_file_differs_and_does_not_depend_on_threads() {
    for (path, recipe, format) in
        [(TINY, "int4", "int4_s8"), (MOE, "int4", "int4_s8"), (TINY, "tests/int4_asym.json", "int4_asym")]
    {
        let engine = Model::new(path, "f32").open_fastest(2);
        let statistics = statistics(&engine, &text(&engine, TOKENS, 7));
        let (wanted, report) = quantized(path, recipe, Some(&statistics), 1);
        assert!(quantized(path, recipe, Some(&statistics), 3).0 == wanted, "{path}");
        let (plain, plain_report) = quantized(path, recipe, None, 2);
        assert!(plain != wanted && plain.len() == wanted.len(), "{path}");
        assert_eq!(plain_report.formats[format].calibrated, 0);
        let tally = &report.formats[format];
        assert!(tally.calibrated > 0 && tally.calibrated < tally.tensors, "{tally:?}");
        // No search by another measure can lose less in the plain one.
        assert!(tally.error.lost > plain_report.formats[format].error.lost);
        assert_eq!(report.formats["int8"].error, plain_report.formats["int8"].error);
    }
}

#[test]
fn statistics_of_another_model_are_refused() {
    let engine = Model::new("tests/golden/dense_text_d128", "f32").open_fastest(1);
    let statistics = statistics(&engine, &text(&engine, 40, 8));
    let folder = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(Path::new("python/edgewise/demo/../../../tools/demo/checkpoint")).unwrap();
    let file = folder.path().join("out");
    let recipe = Recipe::by_name("int4").unwrap();
    let result =
        quantize_calibrated(&source, &file, &recipe, &statistics, &Pool::new(1), &mut |_, _, _| Ok(()));
    let message = result.unwrap_err().to_string();
    assert!(message.contains("statistics: they tell of"), "{message}");
    assert!(!file.exists());
}

#[test]
fn formats_without_levels_to_choose_are_as_without_moments() {
    let (rows, cols) = (20, 48);
    let data: Vec<u8> =
        (0..rows * cols).flat_map(|i| ((i * 7919 % 101) as f32 / 50.0 - 1.0).to_le_bytes()).collect();
    let view = TensorView {
        path: Path::new("f").into(),
        name: "t".into(),
        dtype: DType::F32,
        shape: vec![rows, cols],
        bytes: Bytes::new(data),
    };
    let moments = Moments::from_sums(cols, &sums(&vec![0.5; 4 * cols], cols)).unwrap();
    let source = Rows { view: &view, start: 0, rows, cols };
    let calibrated = [Format::Int4, Format::Int4Asym, Format::Int4S8];
    for format in Format::ALL.into_iter().filter(|format| !calibrated.contains(format)) {
        let mut plain = vec![0; format.bytes(rows, cols).unwrap()];
        let mut calibrated = plain.clone();
        let pool = Pool::new(2);
        let first = quantize_parallel(&pool, format, source, &mut plain).unwrap();
        let second = quantize_parallel_for(&pool, format, Some(&moments), source, &mut calibrated).unwrap();
        assert_eq!((plain, first), (calibrated, second), "{}", format.name());
    }
}
