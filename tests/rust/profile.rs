//! What a token costs by count, and what the operations of its pass say they took.

use edgewise::kernels::profile::{Operation, Spent};
use edgewise::model::{Engine, LayerState, State};

use crate::models::{DEMO, Model, TINY, append, logits, text};

fn models() -> Vec<(String, Engine)> {
    let mut all = vec![("demo".to_owned(), DEMO.open_fastest(2))];
    for path in [TINY, "tests/golden/deepstack_qwen3_vl"] {
        for dtype in ["int4", "int8", "f32", "bf16"] {
            all.push((format!("{path} {dtype}"), Model::new(path, dtype).open_fastest(2)));
        }
    }
    all
}

/// What `work` took.
fn profile(engine: &Engine, work: impl FnOnce()) -> [(Operation, Spent); Operation::ALL.len()] {
    engine.cpu.profile.start();
    work();
    engine.cpu.profile.stop()
}

fn total(spent: &[(Operation, Spent)], of: impl Fn(&Spent) -> u64) -> u64 {
    spent.iter().map(|(_, spent)| of(spent)).sum()
}

fn kv_bytes(state: &State) -> usize {
    let fed = state.layers().iter().map(|layer| match layer {
        LayerState::Attention(cache) => cache.bytes_per_token() * cache.len(),
        LayerState::GatedDelta(_) => 0,
    });
    fed.sum()
}

#[test]
fn decoding_reads_the_bytes_that_are_counted() {
    for (name, engine) in models() {
        let mut state = engine.state();
        append(&engine, &mut state, &text(&engine, 70, 1));
        let spent = profile(&engine, || {
            append(&engine, &mut state, &[3]);
            logits(&engine, &state);
        });
        let counted = engine.costs().decode_bytes + kv_bytes(&state);
        assert_eq!(total(&spent, |spent| spent.bytes), counted as u64, "{name}: {spent:?}");
    }
}

#[test]
fn a_prompt_takes_the_operations_that_are_counted() {
    for (name, engine) in models() {
        let (prefill, skipped) = (engine.costs().prefill, engine.costs().skipped);
        // The first pass has 32 tokens at most, so this is one.
        let spent = profile(&engine, || append(&engine, &mut engine.state(), &text(&engine, 20, 1)));
        let counted = 20 * (prefill.int8 + prefill.f32) + skipped.int8 + skipped.f32;
        assert_eq!(total(&spent, |spent| spent.operations), counted as u64, "{name}");
        assert_eq!(prefill.int8 > 0, name.contains("int") || name == "demo", "{name}");
    }
}

#[test]
fn all_weights_are_in_the_layers_or_outside() {
    for (name, engine) in models() {
        let weights = &engine.model.weights;
        let mut bytes = 0;
        weights.each_matrix(&mut |_, matrix| bytes += matrix.bytes().len());
        weights.each_vector(&mut |_, vector| bytes += size_of_val(vector));
        let tied = std::ptr::eq(weights.head.bytes(), weights.embedding.bytes());
        let tables = if tied { 1 } else { 2 } * weights.head.bytes().len();
        let outside = tables + size_of_val(&weights.final_norm[..]);
        assert_eq!(engine.costs().layer_bytes, bytes - outside, "{name}");
    }
}

#[test]
fn every_operation_has_its_time() {
    for model in [DEMO, Model::new("tests/golden/moe_text", "int4")] {
        check_times(model);
    }
}

fn check_times(model: Model) {
    let engine = model.open_fastest(2);
    let has = |operation| match operation {
        // Outside the engine.
        Operation::Sampling => false,
        Operation::Routing => engine.model.config.moe.is_some(),
        // Between the products of experts there are no other operations.
        Operation::Activation => engine.model.config.moe.is_none(),
        _ => true,
    };
    let start = std::time::Instant::now();
    let spent = profile(&engine, || {
        let mut state = engine.state();
        append(&engine, &mut state, &text(&engine, 40, 1));
        logits(&engine, &state);
    });
    let seconds = start.elapsed().as_secs_f64();
    for (operation, spent) in &spent {
        assert_eq!(spent.calls > 0, has(*operation), "{model:?} {operation:?}");
        assert_eq!(spent.seconds > 0.0, spent.calls > 0, "{operation:?}");
    }
    assert!(spent.iter().map(|(_, spent)| spent.seconds).sum::<f64>() <= seconds);
}

#[test]
fn nothing_is_measured_unless_asked() {
    let engine = DEMO.open_fastest(1);
    append(&engine, &mut engine.state(), &[1, 2, 3]);
    assert_eq!(total(&engine.cpu.profile.stop(), |spent| spent.calls), 0);
    profile(&engine, || append(&engine, &mut engine.state(), &[1]));
    let again = profile(&engine, || {});
    assert_eq!(total(&again, |spent| spent.calls), 0, "each start begins anew");
}
