//! States by the beginnings of texts: the longest that fits is found, and bytes are counted and bounded.

use edgewise::model::{Engine, PrefixCache, State, TextPath};
use proptest::prelude::*;

use crate::models::{DEMO, Model, Run, TINY, append, arrays, assert_same, logits, text};

fn path(ids: &[u32]) -> TextPath {
    let mut path = TextPath::default();
    path.extend(ids);
    path
}

fn state(engine: &Engine, ids: &[u32]) -> State {
    let mut state = engine.state();
    append(engine, &mut state, ids);
    state
}

/// Texts of which many begin like others.
fn ids(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i * 31 + if i >= 20 * (seed % 4) { seed } else { 0 }) % 500).collect()
}

#[test]
fn what_is_found_goes_on_with_the_same_bits() {
    for model in [DEMO, Model { kv_dtype: "int8", ..Model::new(TINY, "int4") }] {
        let engine = model.open_fastest(2);
        let ids = text(&engine, 200, 5);
        let wanted = Run::at_once(&engine, &ids);
        let cache = PrefixCache::new(usize::MAX);
        let mut read = engine.state();
        for tokens in [1, 64, 65, 130] {
            let done = read.len();
            append(&engine, &mut read, &ids[done..tokens]);
            cache.put(&path(&ids), &read).unwrap();
        }
        append(&engine, &mut read, &ids[130..]);
        for (most, tokens) in [(200, 130), (129, 65), (64, 64), (63, 1)] {
            let mut found = cache.find(&path(&ids), 0, most).unwrap();
            assert_eq!(found.len(), tokens);
            append(&engine, &mut found, &ids[tokens..]);
            assert_same(&logits(&engine, &found), wanted.logits.last().unwrap(), "after it was found");
            wanted.check_arrays(&arrays(&found), "after it was found");
        }
        assert!(cache.find(&path(&ids), 130, 200).is_none());
        assert!(cache.find(&path(&ids), 0, 0).is_none());
    }
}

#[test]
fn pictures_are_told_apart_by_their_digest_alone() {
    let engine = Model::new(TINY, "int4").open_fastest(1);
    let ids = [1, 2, 7, 7, 3];
    let cache = PrefixCache::new(usize::MAX);
    let marked = |digest: u8| {
        let mut path = path(&ids);
        path.mark(2, 2, [digest; 16]).unwrap();
        path
    };
    cache.put(&marked(1), &state(&engine, &ids)).unwrap();
    assert_eq!(cache.known(&marked(1), 5), 5);
    assert_eq!(cache.known(&marked(1), 4), 4);
    assert_eq!(cache.known(&marked(2), 5), 2);
    assert_eq!(cache.known(&path(&ids), 5), 2);
    assert!(cache.find(&marked(1), 0, 5).is_some());
    assert!(cache.find(&marked(2), 0, 5).is_none());
    cache.clear();
    assert_eq!((cache.nbytes(), cache.len(), cache.known(&marked(1), 5)), (0, 0, 0));
}

/// States of one text share it, also when it was said once more what stands in it.
#[test]
fn entries_of_one_text_count_it_once() {
    let engine = DEMO.open_fastest(1);
    let all = ids(3, 200);
    let mut text = path(&all);
    text.mark(10, 4, [7; 16]).unwrap();
    let cache = PrefixCache::new(usize::MAX);
    cache.put(&text, &state(&engine, &all[..64])).unwrap();
    let one = cache.nbytes();
    text.extend(&[]);
    text.mark(10, 4, [7; 16]).unwrap();
    text.truncate(200);
    let second = state(&engine, &all[..128]);
    let alone = PrefixCache::new(usize::MAX);
    alone.put(&text, &second).unwrap();
    cache.put(&text, &second).unwrap();
    assert_eq!(cache.len(), 2);
    assert!(cache.nbytes() <= one + alone.nbytes() - 200 * size_of::<u128>());
}

#[test]
fn what_is_too_large_drives_nothing_out() {
    let engine = Model::new(TINY, "int4").open_fastest(1);
    let probe = PrefixCache::new(usize::MAX);
    probe.put(&path(&ids(1, 10)), &state(&engine, &ids(1, 10))).unwrap();
    let cache = PrefixCache::new(probe.nbytes());
    cache.put(&path(&ids(1, 10)), &state(&engine, &ids(1, 10))).unwrap();
    cache.put(&path(&ids(2, 300)), &state(&engine, &ids(2, 300))).unwrap();
    assert_eq!((cache.len(), cache.nbytes()), (1, probe.nbytes()));
    assert!(cache.find(&path(&ids(1, 10)), 0, 10).is_some());
}

#[test]
fn tiny_states_are_bounded_in_number() {
    let engine = Model::new(TINY, "int4").open_fastest(1);
    let cache = PrefixCache::new(usize::MAX);
    let state = state(&engine, &[1]);
    for i in 0..400 {
        cache.put(&path(&[i]), &state).unwrap();
    }
    assert_eq!(cache.len(), 256);
    assert!(cache.find(&path(&[143]), 0, 1).is_none());
    assert!(cache.find(&path(&[144]), 0, 1).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn as_a_list_that_is_searched(
        steps in prop::collection::vec((0..12_u32, 1..150_usize, any::<bool>()), 1..30),
        limit in 100_000..2_000_000_usize,
    ) {
        let engine = Model::new(TINY, "int4").open_fastest(1);
        let cache = PrefixCache::new(limit);
        let mut stored: Vec<Vec<u32>> = Vec::new();
        for (seed, tokens, put) in steps {
            let ids = ids(seed, tokens);
            if put {
                cache.put(&path(&ids), &state(&engine, &ids)).unwrap();
                stored.push(ids.clone());
            }
            prop_assert!(cache.nbytes() <= limit);
            let longest = stored.iter().filter(|text| ids.starts_with(text)).map(Vec::len).max();
            let found = cache.find(&path(&ids), 0, tokens);
            if let Some(found) = &found {
                // Not longer than the longest ever stored; shorter if that was dropped meanwhile.
                prop_assert!(Some(found.len()) <= longest);
                let wanted = state(&engine, &ids[..found.len()]);
                prop_assert_eq!(arrays(found), arrays(&wanted));
            }
            if put && limit > 600_000 {
                prop_assert_eq!(found.map(|found| found.len()), Some(tokens), "just stored");
            }
        }
        cache.clear();
        prop_assert_eq!(cache.nbytes(), 0);
    }
}

#[test]
fn what_has_to_go_is_handed_out() {
    let engine = Model::new(TINY, "int4").open_fastest(1);
    let probe = PrefixCache::new(usize::MAX);
    probe.put(&path(&ids(1, 100)), &state(&engine, &ids(1, 100))).unwrap();
    let cache = PrefixCache::new(2 * probe.nbytes());
    let mut gone = Vec::new();
    for seed in 1..=4 {
        let text = ids(seed, 100);
        cache.exchange(&path(&text), &state(&engine, &text), |path, state| gone.push((path, state))).unwrap();
        assert!(cache.nbytes() <= cache.limit());
    }
    assert_eq!(gone.len(), 2);
    for (seed, (path, gone)) in (1..).zip(&gone) {
        assert_eq!(path.ids(gone.len()).unwrap(), ids(seed, 100));
        assert_same(
            &logits(&engine, gone),
            &logits(&engine, &state(&engine, &ids(seed, 100))),
            "of what was dropped",
        );
    }
    let left: Vec<_> = cache.texts().into_iter().map(|(path, tokens)| path.ids(tokens).unwrap()).collect();
    assert_eq!(left, [ids(3, 100), ids(4, 100)]);
    assert!(cache.find(&path(&ids(3, 100)), 0, 100).is_some());
    let last = cache.texts().into_iter().map(|(path, tokens)| path.ids(tokens).unwrap()).next_back();
    assert_eq!(last.unwrap(), ids(3, 100), "what was used last");
}

#[test]
fn ids_of_a_path() {
    let mut path = path(&[1, 2, 7, 7, 3]);
    path.mark(2, 2, [9; 16]).unwrap();
    assert_eq!(path.ids(2).unwrap(), [1, 2]);
    assert!(path.ids(0).unwrap().is_empty());
    assert!(path.ids(3).is_none(), "a picture");
    assert!(path.ids(6).is_none(), "not so many");
}
