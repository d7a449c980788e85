//! The engine's contract: the same tokens give the same bits whatever the tier, the number of threads and the way they
//! were fed.

use edgewise::kernels::Tier;
use edgewise::kernels::attention::SPAN;
use edgewise::kernels::kv_cache::PAGE;
use proptest::prelude::*;

use crate::models::{DEMO, Model, Run, TINY, append, arrays, assert_same, logits, text};

/// More than a span of attention (512), two chunks of prefill (256) and several pages of the KV cache (64).
const LONG: usize = SPAN + PAGE + 5;
/// More than two pages.
const SHORT: usize = 2 * PAGE + 9;

/// Sizes around every boundary: tiles of tokens, pages, chunks.
const AWKWARD: [usize; 20] = [1, 2, 3, 5, 4, 8, 9, 7, 24, 1, 63, 1, 65, 16, 17, 31, 1, 257, 12, 1];

/// All tiers and 1 to 3 threads, each fed at once, in pieces and one by one, against the plainest run of all.
fn check_everything(model: Model, tokens: usize) {
    let plain = model.open(Tier::available()[0], 1);
    let ids = text(&plain, tokens, 1);
    let wanted = Run::at_once(&plain, &ids);
    assert!(wanted.logits.iter().flatten().all(|&x| f32::from_bits(x).is_finite()));
    for tier in Tier::available() {
        for threads in [1, 2, 3] {
            let engine = model.open(tier, threads);
            let name = |fed| format!("{model:?}, {}, {threads} threads, {fed}", tier.name());
            wanted.check(&Run::at_once(&engine, &ids), &name("at once"));
            wanted.check_pieces(&engine, &ids, AWKWARD, &name("in pieces"));
            wanted.check_pieces(&engine, &ids, (0..).map(|_| 1), &name("one by one"));
        }
    }
}

#[test]
fn tiers_are_told() {
    let names: Vec<_> = Tier::available().into_iter().map(Tier::name).collect();
    eprintln!("tiers of this CPU: {}", names.join(", "));
    assert_eq!(names[0], "portable");
    // It stands for `avxvnni` where the CPU has AVX-512 only.
    assert_eq!(names.contains(&"avxvnni-evex"), cfg!(feature = "evex") && names.contains(&"avx512vnni"));
}

#[test]
fn f32_weights() {
    check_everything(Model::new(TINY, "f32"), SHORT);
}

#[test]
fn bf16_weights() {
    check_everything(Model::new(TINY, "bf16"), SHORT);
}

#[test]
fn f16_weights() {
    check_everything(Model { recipe: Some("f16"), ..Model::new(TINY, "auto") }, SHORT);
}

#[test]
fn int8_weights() {
    check_everything(Model::new(TINY, "int8"), SHORT);
}

#[test]
fn int4_weights() {
    check_everything(Model::new(TINY, "int4"), LONG);
}

#[test]
fn asymmetric_int4_weights() {
    for path in [TINY, "tests/golden/moe_text"] {
        let recipe = Some("tests/int4_asym.json");
        check_everything(Model { recipe, ..Model::new(path, "auto") }, SHORT);
    }
}

#[test]
fn int4_weights_with_a_cache_of_f32() {
    check_everything(Model { kv_dtype: "f32", ..Model::new(TINY, "int4") }, SHORT);
}

#[test]
fn f32_weights_with_a_cache_of_f16() {
    check_everything(Model { kv_dtype: "f16", ..Model::new(TINY, "f32") }, SHORT);
    check_everything(Model { kv_dtype: "bf16", ..Model::new(TINY, "f32") }, SHORT);
}

/// Heads of 32, 64 and 16 channels, and other numbers of heads for each KV head.
#[test]
fn a_cache_of_int8() {
    check_everything(Model { kv_dtype: "int8", ..Model::new(TINY, "int4") }, LONG);
    for path in ["tests/golden/dense_text_d128", "tests/golden/dense_text_kv_groups/v2x_tied"] {
        check_everything(Model { kv_dtype: "int8", ..Model::new(path, "f32") }, SHORT);
    }
    check_everything(Model { kv_dtype: "int8", ..DEMO }, LONG);
}

#[test]
fn wide_delta_heads() {
    check_everything(Model::new("tests/golden/dense_text_d128", "int4"), SHORT);
}

/// One, two and four query heads for each KV head, tied and separate heads, widths that fill no block.
#[test]
fn other_shapes() {
    for path in [
        "tests/golden/dense_text_kv_groups/v2x_tied",
        "tests/golden/dense_text_kv_groups/v2x_untied",
        "tests/golden/dense_text_kv_groups/veq_tied",
        "tests/golden/dense_text_kv_groups/veq_untied",
    ] {
        for dtype in ["f32", "int4"] {
            check_everything(Model::new(path, dtype), 80);
        }
    }
}

/// Stretched positions, most of them beyond the length of training.
#[test]
fn yarn() {
    for dtype in ["f32", "int4"] {
        check_everything(Model::new("tests/golden/yarn", dtype), 200);
    }
}

/// Routing and expert groups depend on which tokens share a pass.
#[test]
fn experts() {
    for path in ["tests/golden/moe_text", "tests/golden/qwen3_next_text", "tests/golden/qwen3_moe"] {
        for (dtype, tokens) in [("f32", 80), ("int4", SHORT)] {
            check_everything(Model::new(path, dtype), tokens);
        }
    }
}

/// Nothing but attention, with and without norms of queries and keys.
#[test]
fn attention_alone() {
    for path in ["tests/golden/qwen3", "tests/golden/llama"] {
        for dtype in ["f32", "int4"] {
            check_everything(Model::new(path, dtype), SHORT);
        }
    }
    check_everything(Model { kv_dtype: "int8", ..Model::new("tests/golden/llama", "int4") }, SHORT);
}

#[test]
fn demo_model() {
    check_everything(DEMO, LONG);
}

#[test]
fn a_fork_does_not_disturb_its_origin() {
    for model in [Model::new(TINY, "int4"), DEMO] {
        let engine = model.open_fastest(2);
        let (common, left, right) = (text(&engine, 100, 2), text(&engine, 70, 3), text(&engine, 70, 4));
        let whole = |tail: &[u32]| Run::at_once(&engine, &[&common, tail].concat());
        let (wanted_left, wanted_right) = (whole(&left), whole(&right));

        let mut origin = engine.state();
        append(&engine, &mut origin, &common);
        let kept = origin.clone();
        let mut fork = origin.clone();
        for (i, (&l, &r)) in left.iter().zip(&right).enumerate() {
            append(&engine, &mut origin, &[l]);
            append(&engine, &mut fork, &[r]);
            let at = common.len() + i;
            assert_same(&logits(&engine, &origin), &wanted_left.logits[at], "the origin went on");
            assert_same(&logits(&engine, &fork), &wanted_right.logits[at], "the fork went on");
        }
        wanted_left.check_arrays(&arrays(&origin), "origin");
        wanted_right.check_arrays(&arrays(&fork), "fork");
        let wanted_kept = Run::at_once(&engine, &common);
        wanted_kept.check_arrays(&arrays(&kept), "an untouched clone");
        assert_same(&logits(&engine, &kept), &wanted_kept.logits[common.len() - 1], "an untouched clone");
    }
}

#[test]
fn interleaved_sequences_do_not_meet() {
    let engine = Model::new(TINY, "int4").open_fastest(2);
    let texts: Vec<_> = (5..8).map(|seed| text(&engine, 150, seed)).collect();
    let wanted: Vec<_> = texts.iter().map(|ids| Run::at_once(&engine, ids)).collect();
    let mut states: Vec<_> = texts.iter().map(|_| engine.state()).collect();
    for start in (0..150).step_by(10) {
        for ((ids, state), wanted) in texts.iter().zip(&mut states).zip(&wanted) {
            append(&engine, state, &ids[start..start + 10]);
            assert_same(&logits(&engine, state), &wanted.logits[start + 9], "interleaved");
        }
    }
    for (state, wanted) in states.iter().zip(&wanted) {
        wanted.check_arrays(&arrays(state), "interleaved");
    }
}

#[test]
fn another_length_of_the_future_changes_no_past() {
    let engine = DEMO.open_fastest(2);
    let ids = text(&engine, 300, 9);
    let wanted = Run::at_once(&engine, &ids);
    for tokens in [1, 2, 7, 8, 9, 63, 64, 65, 255, 256, 257] {
        let shorter = Run::at_once(&engine, &ids[..tokens]);
        for (i, found) in shorter.logits.iter().enumerate() {
            assert_same(found, &wanted.logits[i], &format!("token {i} of {tokens}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_pieces_give_the_same_bits(
        sizes in proptest::collection::vec(1..100usize, 1..12),
        threads in 1..4usize,
        seed: u32,
        int4: bool,
    ) {
        let engine = Model::new(TINY, if int4 { "int4" } else { "f32" }).open_fastest(threads);
        let ids = text(&engine, sizes.iter().sum(), seed);
        Run::at_once(&engine, &ids).check_pieces(&engine, &ids, sizes, "random pieces");
    }
}
