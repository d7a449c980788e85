//! Copies of a state that a pass leaves in its middle are those of shorter texts, and disturb nothing.

use edgewise::error::Error;
use edgewise::kernels::Tier;
use edgewise::model::{Engine, LayerState, Progress, Prompt, State, Turn};

use crate::models::{DEMO, Model, Run, TINY, append, arrays, assert_same, logits, text};
use crate::pictures::{Seen, see};

/// Appends `prompt` to `state`, `sizes` tokens at a time, beside another text that takes a token in each step; returns the
/// copies after `places`.
fn read(
    engine: &Engine,
    state: &mut State,
    prompt: Prompt<'_>,
    places: &[usize],
    sizes: impl Fn(usize) -> usize,
) -> Vec<State> {
    let mut progress = Progress::keeping(prompt, places.to_vec()).unwrap();
    let (other, mut beside, mut its_progress) = (text(engine, 60, 77), engine.state(), Progress::default());
    let (mut kept, mut round) = (Vec::new(), 0);
    while progress.done() < prompt.ids().len() {
        let mut turns = [
            Turn::new(&mut beside, Prompt::text(&other), &mut its_progress, round % 3),
            Turn::new(state, prompt, &mut progress, sizes(round)),
        ];
        engine.step(&mut turns);
        assert!(turns.iter().all(|turn| turn.outcome.is_ok()));
        kept.extend(progress.take_kept());
        round += 1;
    }
    kept
}

/// What is told and kept of a state.
fn check(engine: &Engine, state: &State, wanted: &State, what: &str) {
    assert_eq!((state.len(), state.next_position()), (wanted.len(), wanted.next_position()), "{what}");
    for ((name, found), (_, wanted)) in arrays(state).iter().zip(&arrays(wanted)) {
        assert_same(found, wanted, &format!("{what}: {name}"));
    }
    assert_same(&logits(engine, state), &logits(engine, wanted), &format!("{what}: logits"));
}

/// Copies after `places` of a text of `tokens`, and where it ends, against texts of just so many tokens.
fn check_text(engine: &Engine, tokens: usize, places: &[usize], size: usize, what: &str) {
    let ids = text(engine, tokens, 3);
    let fresh = |tokens: usize| {
        let mut state = engine.state();
        append(engine, &mut state, &ids[..tokens]);
        state
    };
    let mut state = engine.state();
    let kept = read(engine, &mut state, Prompt::text(&ids), places, |_| size);
    assert_eq!(kept.iter().map(State::len).collect::<Vec<_>>(), places, "{what}");
    let whole = fresh(tokens);
    check(engine, &state, &whole, &format!("{what}: the end"));
    for mut copy in kept {
        let place = copy.len();
        check(engine, &copy, &fresh(place), &format!("{what}: after {place}"));
        append(engine, &mut copy, &ids[place..]);
        check(engine, &copy, &whole, &format!("{what}: going on after {place}"));
        check(engine, &state, &whole, &format!("{what}: the end, when a copy went on"));
    }
}

/// Around the edges of pages of the cache and blocks of the delta rule (64), and of steps.
const PLACES: [&[usize]; 5] = [&[99], &[1, 2, 3], &[63, 64, 65, 128], &[101], &[]];

#[test]
fn they_are_those_of_shorter_texts() {
    let kv = |kv_dtype| Model { kv_dtype, ..Model::new(TINY, "int4") };
    for model in [DEMO, Model::new(TINY, "f32"), kv("f16"), kv("f32"), kv("int8")] {
        let tiers = Tier::available();
        let fastest = tiers.len() - 1;
        for (tier, threads) in (0..tiers.len()).map(|tier| (tier, 2)).chain([(fastest, 1), (fastest, 3)]) {
            let engine = model.open(tiers[tier], threads);
            for places in PLACES {
                let tokens = 101.max(places.last().map_or(0, |place| place + 2) / 2 * 2);
                let what = format!("{model:?}, {}, {threads} threads, {places:?}", tiers[tier].name());
                check_text(&engine, tokens, places, tokens, &what);
            }
            check_text(&engine, 200, &[1, 40, 41, 64, 120, 199], 40, &format!("{model:?} in pieces"));
        }
    }
}

#[test]
fn in_every_family() {
    for path in ["moe_text", "qwen3_next_text", "qwen3", "qwen3_moe", "yarn", "deepstack_qwen3_vl"] {
        for dtype in ["f32", "int4"] {
            let path: &'static str = format!("tests/golden/{path}").leak();
            let engine = Model::new(path, dtype).open_fastest(2);
            check_text(&engine, 70, &[20, 65], 70, &format!("{path} {dtype}"));
        }
    }
}

/// More than share a parallel region, in one member and over several.
#[test]
fn after_every_token() {
    let engine = Model::new(TINY, "int4").open_fastest(2);
    let all: Vec<usize> = (1..=40).collect();
    check_text(&engine, 40, &all, 40, "after every token");
    let texts: Vec<_> = (0..20).map(|seed| text(&engine, 12, seed)).collect();
    let mut states: Vec<_> = texts.iter().map(|_| engine.state()).collect();
    let keeping = |ids: &Vec<u32>| Progress::keeping(Prompt::text(ids), vec![5, 11]).unwrap();
    let mut progresses: Vec<_> = texts.iter().map(keeping).collect();
    let each = texts.iter().zip(&mut states).zip(&mut progresses);
    let mut turns: Vec<_> =
        each.map(|((ids, state), progress)| Turn::new(state, Prompt::text(ids), progress, 12)).collect();
    engine.step(&mut turns);
    assert!(turns.iter().all(Turn::is_done));
    for ((ids, state), mut progress) in texts.iter().zip(&states).zip(progresses) {
        let kept = progress.take_kept();
        for (copy, tokens) in kept.iter().chain([state]).zip([5, 11, 12]) {
            let mut fresh = engine.state();
            append(&engine, &mut fresh, &ids[..tokens]);
            check(&engine, copy, &fresh, "beside many");
        }
    }
}

#[test]
fn around_pictures() {
    for path in ["tests/golden/image", "tests/golden/deepstack_qwen3_vl"] {
        let engine = Model::new(path, "int4").open_fastest(2);
        let images = [see(&engine, [8, 10], 1), see(&engine, [4, 6], 2)];
        let seen = Seen::new(&engine, &[3, 8, 2], &images, 1);
        let prompt = seen.prompt(&engine);
        let [first, second] = [seen.spans[0].range(), seen.spans[1].range()];
        let places = [first.start, first.end, first.end + 2, second.start, second.end, seen.ids.len()];
        for size in [7, seen.ids.len()] {
            let mut state = engine.state();
            let kept = read(&engine, &mut state, prompt, &places, |_| size);
            assert_eq!(kept.len(), places.len());
            Run::of(&engine, prompt).check_arrays(&arrays(&state), path);
            for copy in kept {
                let part = seen.part(0..copy.len());
                let mut fresh = engine.state();
                engine.append(&mut fresh, part.prompt(&engine), &mut || Ok(())).unwrap();
                check(&engine, &copy, &fresh, path);
            }
        }
    }
}

/// Where the delta layers' states are in memory.
fn addresses(state: &State) -> Vec<*const f32> {
    let delta = |layer: &LayerState| match layer {
        LayerState::GatedDelta(delta) => Some(delta.memory.as_ptr()),
        LayerState::Attention(_) => None,
    };
    state.layers().iter().filter_map(delta).collect()
}

#[test]
fn a_clone_shares_until_one_side_moves_on() {
    let engine = Model::new(TINY, "int4").open_fastest(2);
    let ids = text(&engine, 90, 5);
    let mut state = engine.state();
    append(&engine, &mut state, &ids[..70]);
    let kept = state.clone();
    assert_eq!(addresses(&kept), addresses(&state));
    append(&engine, &mut state, &ids[70..71]);
    assert!(addresses(&kept).iter().all(|address| !addresses(&state).contains(address)));
    let own = addresses(&state);
    append(&engine, &mut state, &ids[71..]);
    assert_eq!(addresses(&state), own, "nobody shares it any more");
    for (state, tokens) in [(&kept, 70), (&state, 90)] {
        let mut fresh = engine.state();
        append(&engine, &mut fresh, &ids[..tokens]);
        check(&engine, state, &fresh, "after a clone");
    }
    let taken_over = addresses(&kept);
    let mut last = kept;
    append(&engine, &mut last, &ids[70..]);
    assert_eq!(addresses(&last), taken_over, "the other one was left long ago");
}

#[test]
fn what_is_given_up_leaves_copies_so_far() {
    let engine = Model::new("tests/golden/image", "int4").open_fastest(2);
    let seen = Seen::new(&engine, &[3, 8], &[see(&engine, [8, 10], 1)], 1);
    let (prompt, mut state) = (seen.prompt(&engine), engine.state());
    let mut progress = Progress::keeping(prompt, vec![2, 3, 25]).unwrap();
    for tokens in [2, 5, 3] {
        engine.step(&mut [Turn::new(&mut state, prompt, &mut progress, tokens)]);
    }
    progress.leave_image(&mut state);
    let kept = progress.take_kept();
    // The step that got into the image is taken back as a whole; what it kept before the image is right all the same.
    assert_eq!(kept.iter().chain([&state]).map(State::len).collect::<Vec<_>>(), [2, 3, 2]);
    for state in kept.iter().chain([&state]) {
        let mut fresh = engine.state();
        append(&engine, &mut fresh, &prompt.ids()[..state.len()]);
        check(&engine, state, &fresh, "what is left");
    }
    assert!(progress.take_kept().is_empty());
}

#[test]
fn an_error_keeps_nothing_and_changes_nothing() {
    let engine = Model::new(TINY, "int4").open_fastest(1);
    let mut state = engine.state();
    append(&engine, &mut state, &[1, 2, 3]);
    let before = state.clone();
    let unknown = [1, 2, u32::MAX, 4];
    let prompt = Prompt::text(&unknown);
    let mut progress = Progress::keeping(prompt, vec![2]).unwrap();
    let mut turns = [Turn::new(&mut state, prompt, &mut progress, 4)];
    engine.step(&mut turns);
    assert!(matches!(&turns[0].outcome, Err(Error::Argument { argument, .. }) if argument == "ids"));
    assert!(progress.take_kept().is_empty());
    check(&engine, &state, &before, "after an error");
}

#[test]
fn places_that_do_not_exist_are_refused() {
    let engine = Model::new("tests/golden/image", "int4").open_fastest(1);
    let seen = Seen::new(&engine, &[3, 8], &[see(&engine, [8, 10], 1)], 1);
    let prompt = seen.prompt(&engine);
    let tokens = prompt.ids().len();
    let refused = |places: &[usize], at: usize| match Progress::keeping(prompt, places.to_vec()) {
        Err(Error::Argument { argument, .. }) => assert_eq!(argument, format!("places[{at}]")),
        other => panic!("{places:?}: {other:?}"),
    };
    refused(&[0], 0);
    refused(&[2, 2], 1);
    refused(&[3, 2], 1);
    refused(&[1, tokens + 1], 1);
    refused(&[2, 4], 1);
    refused(&[usize::MAX], 0);
    assert!(Progress::keeping(prompt, vec![1, 3, 23, tokens]).is_ok());
}
