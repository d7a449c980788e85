//! The contract of equal bits with images: the same pixels and tokens give the same bits whatever the tier, the number of
//! threads and the way they were fed.

use std::sync::Arc;

use edgewise::kernels::Tier;
use edgewise::model::vision::Features;
use edgewise::model::{Engine, Stage, State};

use super::{DEEPSTACK, IMAGE, models};
use crate::models::{DEMO, Model, Run, append, arrays, assert_same, bits, logits, text};
use crate::pictures::{Seen, see};

/// Tokens of the first pass of an engine.
const FIRST_PASS: usize = 32;

/// One token, a broad and a high image with more than a page of keys, and more patches than matrices see at once.
const GRIDS: [[usize; 2]; 4] = [[2, 2], [4, 18], [18, 2], [16, 18]];

fn check_features(found: &Features, wanted: &Features, what: &str) {
    assert_same(&bits(&found.embeddings), &bits(&wanted.embeddings), &format!("{what}: embeddings"));
    assert_eq!(found.deepstack.len(), wanted.deepstack.len());
    for (j, (found, wanted)) in found.deepstack.iter().zip(&wanted.deepstack).enumerate() {
        assert_same(&bits(found), &bits(wanted), &format!("{what}: deepstack {j}"));
    }
}

/// An engine on every tier and 1 to 3 threads.
fn engines(model: Model) -> impl Iterator<Item = (String, Engine)> {
    Tier::available().into_iter().flat_map(move |tier| {
        [1, 2, 3].map(|threads| {
            (format!("{model:?}, {}, {threads} threads", tier.name()), model.open(tier, threads))
        })
    })
}

#[test]
fn features_are_the_same_everywhere() {
    for (i, model) in models().into_iter().enumerate() {
        let plain = model.open(Tier::available()[0], 1);
        // The largest takes longer than all others together; one model must do.
        let grids = if i == 0 { &GRIDS[..] } else { &GRIDS[..3] };
        let wanted: Vec<_> = grids.iter().enumerate().map(|(i, &grid)| see(&plain, grid, i)).collect();
        assert!(wanted.iter().all(|features| features.is_finite()));
        for (name, engine) in engines(model) {
            for (i, (&grid, wanted)) in grids.iter().zip(&wanted).enumerate() {
                check_features(&see(&engine, grid, i), wanted, &format!("{name}, {grid:?}"));
            }
        }
    }
}

/// Feeds `seen` cut at `cuts`; compares the logits after each piece, and the state at the end.
fn check_pieces(
    engine: &Engine,
    seen: &Seen,
    wanted: &Run,
    cuts: impl IntoIterator<Item = usize>,
    what: &str,
) {
    let mut state = engine.state();
    for cut in cuts.into_iter().chain([seen.ids.len()]) {
        let cut = seen.whole(cut);
        if cut <= state.len() {
            continue;
        }
        let part = seen.part(state.len()..cut);
        engine.append(&mut state, part.prompt(engine), &mut || Ok(())).unwrap();
        assert_same(&logits(engine, &state), &wanted.logits[cut - 1], &format!("{what}: after {cut} tokens"));
    }
    wanted.check_arrays(&arrays(&state), what);
}

/// Two images with a token between them, words before and behind.
fn two_images(engine: &Engine) -> Seen {
    Seen::new(engine, &[5, 1, 9], &[see(engine, [6, 10], 1), see(engine, [8, 4], 2)], 21)
}

#[test]
fn prompts_with_two_images() {
    for model in models() {
        let plain = model.open(Tier::available()[0], 1);
        let seen = two_images(&plain);
        let wanted = Run::of(&plain, seen.prompt(&plain));
        let borders = || seen.spans.iter().flat_map(|span| [span.range().start, span.range().end]);
        for (name, engine) in engines(model) {
            wanted.check(&Run::of(&engine, seen.prompt(&engine)), &name);
            check_pieces(&engine, &seen, &wanted, borders(), &format!("{name}, at the borders"));
            let around = borders().flat_map(|at| [at - 1, at, at + 1]);
            check_pieces(&engine, &seen, &wanted, around, &format!("{name}, around the borders"));
            check_pieces(&engine, &seen, &wanted, 1..seen.ids.len(), &format!("{name}, one by one"));
        }
    }
}

/// The tokens of each pass of a run of `seen`.
fn passes(engine: &Engine, seen: &Seen) -> Vec<usize> {
    let mut passes = Vec::new();
    let width = engine.model.config.hidden_size;
    let mut watch = |stage, x: &[f32]| {
        if stage == Stage::Embedding {
            passes.push(x.len() / width);
        }
    };
    engine.trace(seen.prompt(engine), &mut || Ok(()), &mut watch).unwrap();
    passes
}

/// Reads texts until passes are at their longest.
fn grow(engine: &Engine) {
    for _ in 0..8 {
        append(engine, &mut engine.state(), &text(engine, 256, 1));
    }
}

/// The first pass of an engine ends inside an image, after each of its tokens in turn; a grown engine reads all at once.
#[test]
fn passes_that_end_inside_an_image() {
    for model in [DEMO, Model::new(IMAGE, "f32"), Model::new(IMAGE, "int8"), Model::new(DEEPSTACK, "f32")] {
        let grown = model.open_fastest(2);
        grow(&grown);
        let images = [see(&grown, [6, 10], 3), see(&grown, [4, 12], 4)];
        let mut inside = 0;
        for lead in 0..=FIRST_PASS {
            let seen = Seen::new(&grown, &[lead, 2, 5], &images, 22);
            assert_eq!(passes(&grown, &seen), [seen.ids.len()], "a grown engine takes one pass");
            let fresh = || model.open_fastest(2);
            assert_eq!(passes(&fresh(), &seen), [FIRST_PASS, seen.ids.len() - FIRST_PASS]);
            inside += usize::from(seen.whole(FIRST_PASS) != FIRST_PASS);

            let wanted = Run::of(&grown, seen.prompt(&grown));
            let name = format!("{model:?}, {lead} tokens before the images");
            wanted.check(&Run::of(&fresh(), seen.prompt(&grown)), &name);
            let (engine, mut state) = (fresh(), grown.state());
            engine.append(&mut state, seen.prompt(&engine), &mut || Ok(())).unwrap();
            wanted.check_arrays(&arrays(&state), &name);
        }
        assert_eq!(inside, 15 - 1 + 12 - 1);
    }
}

/// A large image goes through several passes, and text goes on behind it.
#[test]
fn an_image_of_many_passes() {
    for model in [DEMO, Model::new(DEEPSTACK, "int4")] {
        let engine = model.open_fastest(2);
        let images = [see(&engine, [36, 40], 5)];
        let seen = Seen::new(&engine, &[3, 70], &images, 23);
        let longest = |engine: &Engine| passes(engine, &seen).into_iter().max().unwrap();
        let fresh = model.open_fastest(1);
        let wanted = Run::of(&fresh, seen.prompt(&fresh));
        grow(&engine);
        assert!(longest(&engine) > FIRST_PASS && longest(&engine) < images[0].tokens());
        wanted.check(&Run::of(&engine, seen.prompt(&engine)), &format!("{model:?}"));
        check_pieces(&engine, &seen, &wanted, [1, 3, 363, 364, 400], &format!("{model:?}"));
    }
}

/// Two questions about one image.
#[test]
fn a_fork_behind_an_image() {
    for model in [DEMO, Model::new(DEEPSTACK, "f32")] {
        let engine = model.open_fastest(2);
        let seen = Seen::new(&engine, &[4, 2], &[see(&engine, [6, 6], 6)], 24);
        let mut origin = engine.state();
        engine.append(&mut origin, seen.prompt(&engine), &mut || Ok(())).unwrap();
        for seed in [25, 26] {
            let question = text(&engine, 40, seed);
            let mut fork: State = origin.clone();
            append(&engine, &mut fork, &question);
            let ids = [&seen.ids[..], &question].concat();
            let wanted = Run::of(&engine, engine.prompt(&ids, &seen.spans).unwrap());
            assert_same(&logits(&engine, &fork), wanted.logits.last().unwrap(), "fork");
            wanted.check_arrays(&arrays(&fork), "fork");
            assert_eq!(fork.next_position(), 4 + 3 + 2 + 40);
        }
    }
}

/// Features are of the image alone, and the same image may stand in a prompt more than once.
#[test]
fn one_image_in_two_places() {
    let engine = DEMO.open_fastest(2);
    let image = see(&engine, [6, 6], 7);
    let shared = Seen::new(&engine, &[3, 2, 4], &[Arc::clone(&image), image], 27);
    let twice = Seen::new(&engine, &[3, 2, 4], &[see(&engine, [6, 6], 7), see(&engine, [6, 6], 7)], 27);
    let wanted = Run::of(&engine, shared.prompt(&engine));
    wanted.check(&Run::of(&engine, twice.prompt(&engine)), "two objects");
    let other = Seen::new(&engine, &[3, 2, 4], &[see(&engine, [6, 6], 7), see(&engine, [6, 6], 8)], 27);
    let other = Run::of(&engine, other.prompt(&engine));
    assert_eq!(other.logits[..14], wanted.logits[..14], "what stands before the second image");
    assert_ne!(other.logits[14..], wanted.logits[14..], "another image gives other logits");
}
