//! Several sequences in one step: each has the bits it has alone, and fails alone.

use edgewise::error::Error;
use edgewise::kernels::Tier;
use edgewise::model::{Engine, Progress, Prompt, State, Turn};

use crate::models::{DEMO, Model, Run, TINY, append, arrays, assert_same, bits, text};
use crate::pictures::{Seen, see};

/// A text under way.
struct Text {
    ids: Vec<u32>,
    state: State,
    progress: Progress,
    alone: Run,
}

impl Text {
    fn new(engine: &Engine, tokens: usize, seed: u32) -> Self {
        let ids = text(engine, tokens, seed);
        let alone = Run::at_once(engine, &ids);
        Self { ids, state: engine.state(), progress: Progress::default(), alone }
    }
}

/// Moves each of `texts` on by some tokens, and compares the logits of those that have any.
fn step(engine: &Engine, texts: &mut [Text], tokens: impl Fn(usize) -> usize, what: &str) {
    let mut turns: Vec<Turn<'_>> = texts
        .iter_mut()
        .enumerate()
        .map(|(i, text)| Turn::new(&mut text.state, Prompt::text(&text.ids), &mut text.progress, tokens(i)))
        .collect();
    engine.step(&mut turns);
    for turn in &turns {
        assert!(turn.outcome.is_ok(), "{what}: {:?}", turn.outcome);
    }
    let begun: Vec<&Text> = texts.iter().filter(|text| !text.state.is_empty()).collect();
    let states: Vec<&State> = begun.iter().map(|text| &text.state).collect();
    let vocab = engine.model.config.vocab_size;
    let mut scores = vec![0.0; states.len() * vocab];
    engine.logits_of_all(&states, &mut scores).unwrap();
    for (text, scores) in begun.iter().zip(scores.chunks_exact(vocab)) {
        let last = text.state.len() - 1;
        assert_same(&bits(scores), &text.alone.logits[last], &format!("{what}: after token {last}"));
    }
}

/// Texts of different lengths, taken in pieces that differ from text to text and from step to step.
fn check_steps(engine: &Engine, count: usize, what: &str) {
    let mut texts: Vec<_> = (0..count).map(|i| Text::new(engine, 5 + 9 * i, i as u32)).collect();
    let mut round = 0;
    while texts.iter().any(|text| text.progress.done() < text.ids.len()) {
        // Mostly single tokens, as decoding has them, beside a longer piece; some stay away.
        step(engine, &mut texts, |i| [1, 0, 1, 23, 1, 7][(i + round) % 6], what);
        round += 1;
    }
    for text in &texts {
        text.alone.check_arrays(&arrays(&text.state), what);
    }
}

#[test]
fn each_has_the_bits_it_has_alone() {
    let kv8 = Model { kv_dtype: "int8", ..DEMO };
    let models = [DEMO, kv8, Model::new(TINY, "f32"), Model::new(TINY, "int4")];
    for model in models {
        let tiers = Tier::available();
        let fastest = tiers.len() - 1;
        let cases = (0..tiers.len()).map(|tier| (tier, 2)).chain([(fastest, 1), (fastest, 3)]);
        for (tier, threads) in cases {
            let engine = model.open(tiers[tier], threads);
            check_steps(&engine, 5, &format!("{model:?}, {}, {threads} threads", tiers[tier].name()));
        }
    }
}

#[test]
fn in_every_family() {
    for path in ["moe_text", "qwen3_next_text", "qwen3", "qwen3_moe", "llama", "yarn", "deepstack_qwen3_vl"] {
        for dtype in ["f32", "int4"] {
            let path: &'static str = format!("tests/golden/{path}").leak();
            check_steps(&Model::new(path, dtype).open_fastest(2), 4, &format!("{path} {dtype}"));
        }
    }
}

#[test]
fn more_than_a_pass_has_room_for() {
    let engine = Model::new(TINY, "int4").open_fastest(2);
    let mut texts: Vec<_> = (0..5).map(|seed| Text::new(&engine, 150, seed)).collect();
    assert!(texts.len() * 140 > 2 * engine.most_tokens());
    step(&engine, &mut texts, |_| 140, "in several passes");
    step(&engine, &mut texts, |i| i, "the rest");
    assert_eq!(texts[4].state.len(), 144);
}

#[test]
fn pictures_beside_text() {
    for path in ["tests/golden/image", "tests/golden/deepstack_qwen3_vl"] {
        let engine = Model::new(path, "int4").open_fastest(2);
        let seen = Seen::new(&engine, &[3, 8], &[see(&engine, [8, 10], 1)], 1);
        let prompt = seen.prompt(&engine);
        let alone = Run::of(&engine, prompt);
        let mut other = Text::new(&engine, 60, 3);
        let (mut state, mut progress) = (engine.state(), Progress::default());
        while progress.done() < prompt.ids().len() {
            let mut turns = [
                Turn::new(&mut state, prompt, &mut progress, 7),
                Turn::new(&mut other.state, Prompt::text(&other.ids), &mut other.progress, 1),
            ];
            engine.step(&mut turns);
            assert!(turns.iter().all(|turn| turn.outcome.is_ok()));
        }
        alone.check_arrays(&arrays(&state), path);
        other.alone.check_pieces(&engine, &other.ids, [other.state.len()], path);
    }
}

#[test]
fn a_prompt_given_up_inside_a_picture_ends_before_it() {
    let engine = Model::new("tests/golden/image", "int4").open_fastest(2);
    let seen = Seen::new(&engine, &[3, 8], &[see(&engine, [8, 10], 1)], 1);
    let (prompt, mut state, mut progress) = (seen.prompt(&engine), engine.state(), Progress::default());
    let mut lengths = Vec::new();
    for tokens in [2, 5, 3] {
        engine.step(&mut [Turn::new(&mut state, prompt, &mut progress, tokens)]);
        lengths.push(state.len());
    }
    assert_eq!(lengths, [2, 7, 10]);
    progress.leave_image(&mut state);
    assert_eq!(state.len(), 2);
    let mut fresh = engine.state();
    append(&engine, &mut fresh, &prompt.ids()[..2]);
    assert_eq!(arrays(&state), arrays(&fresh));
}

/// Nothing stood before it: the state is that before the first token again.
#[test]
fn a_prompt_given_up_inside_a_picture_in_the_first_turn_leaves_nothing() {
    for path in ["tests/golden/image", "tests/golden/deepstack_qwen3_vl"] {
        let engine = Model::new(path, "int4").open_fastest(2);
        let seen = Seen::new(&engine, &[3, 8], &[see(&engine, [8, 10], 1)], 1);
        let (prompt, mut state, mut progress) = (seen.prompt(&engine), engine.state(), Progress::default());
        let empty = arrays(&state);
        for tokens in [5, 3] {
            engine.step(&mut [Turn::new(&mut state, prompt, &mut progress, tokens)]);
        }
        assert_eq!(state.len(), 8);
        progress.leave_image(&mut state);
        assert_eq!((state.len(), state.next_position()), (0, 0));
        assert_eq!(arrays(&state), empty);
        let (ids, mut fresh) = (text(&engine, 9, 5), engine.state());
        append(&engine, &mut state, &ids);
        append(&engine, &mut fresh, &ids);
        assert_eq!(arrays(&state), arrays(&fresh));
    }
}

#[test]
fn one_that_fails_does_not_hurt_others() {
    let engine = Model::new(TINY, "int4").open_fastest(2);
    let limit = engine.model.config.max_position_embeddings;
    let (mut good, mut also_good) = (Text::new(&engine, 40, 1), Text::new(&engine, 40, 2));
    let (unknown, long) = (vec![1, u32::MAX], vec![1; limit + 1]);
    let (mut first, mut second) = (engine.state(), engine.state());
    let (mut one, mut two) = (Progress::default(), Progress::default());
    let mut turns = [
        Turn::new(&mut first, Prompt::text(&unknown), &mut one, 2),
        Turn::new(&mut good.state, Prompt::text(&good.ids), &mut good.progress, 40),
        Turn::new(&mut second, Prompt::text(&long), &mut two, 2),
        Turn::new(&mut also_good.state, Prompt::text(&also_good.ids), &mut also_good.progress, 39),
    ];
    engine.step(&mut turns);
    assert!(matches!(&turns[0].outcome, Err(Error::Argument { argument, .. }) if argument == "ids"));
    assert!(matches!(turns[2].outcome, Err(Error::Context { .. })));
    assert_eq!(turns.each_ref().map(Turn::is_done), [false, true, false, false]);
    assert!(first.is_empty() && second.is_empty());
    good.alone.check_arrays(&arrays(&good.state), "beside failures");
    step(&engine, &mut [good, also_good], |_| 5, "afterwards");
}

#[test]
fn nothing_to_do_is_done() {
    let engine = DEMO.open_fastest(1);
    engine.step(&mut []);
    engine.logits_of_all(&[], &mut []).unwrap();
    let (mut state, mut progress) = (engine.state(), Progress::default());
    let mut turns = [Turn::new(&mut state, Prompt::text(&[]), &mut progress, 5)];
    engine.step(&mut turns);
    assert!(turns[0].is_done());
    assert!(engine.logits_of_all(&[&state], &mut []).is_err());
}
