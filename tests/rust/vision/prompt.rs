//! Where features may stand in a prompt, and where their rows end up.

use std::sync::Arc;

use edgewise::config::VisionConfig;
use edgewise::kernels::rope::Position;
use edgewise::model::vision::{Features, Grid};
use edgewise::model::{Prompt, Span};
use proptest::prelude::*;

use super::IMAGE;
use crate::models::Model;

/// Numbers of a feature.
const WIDTH: usize = 3;
const TEXT: u32 = 5;
const PLACE: u32 = 9;

fn config() -> VisionConfig {
    Model::new(IMAGE, "f32").open_fastest(1).model.vision.unwrap().config
}

/// Features of `rows` x `columns` tokens; every number is another.
fn features(config: &VisionConfig, rows: usize, columns: usize, first: f32) -> Arc<Features> {
    let grid = Grid::new(config, 2 * rows, 2 * columns).unwrap();
    let layer = |j: usize| (0..rows * columns * WIDTH).map(|i| first + (1000 * j + i) as f32).collect();
    Arc::new(Features { grid, embeddings: layer(0), deepstack: vec![layer(1), layer(2)] })
}

#[test]
fn spans_that_do_not_fit() {
    let config = config();
    let span = |start| Span { start, features: features(&config, 2, 3, 0.0) };
    let ids = [vec![TEXT; 2], vec![PLACE; 12], vec![TEXT; 1]].concat();
    let fault = |spans: &[Span]| Prompt::new(&ids, spans, &[PLACE]).unwrap_err().to_string();
    assert!(Prompt::new(&ids, &[span(2), span(8)], &[TEXT, PLACE]).is_ok());
    assert!(Prompt::new(&ids, &[span(5)], &[PLACE]).is_ok(), "other placeholders may stay words");
    assert_eq!(fault(&[span(2), span(7)]), "media[1]: takes 6 tokens from index 7, but only 8..15 are left");
    assert_eq!(fault(&[span(8), span(2)]), "media[1]: takes 6 tokens from index 2, but only 14..15 are left");
    assert_eq!(fault(&[span(10)]), "media[0]: takes 6 tokens from index 10, but only 0..15 are left");
    for start in [15, usize::MAX - 5, usize::MAX] {
        assert!(fault(&[span(start)]).starts_with("media[0]: takes 6 tokens from index"));
    }
    assert_eq!(fault(&[span(1)]), "media[0]: id 5 at index 1 is no placeholder of images");
    assert_eq!(fault(&[span(9)]), "media[0]: id 5 at index 14 is no placeholder of images");
    assert!(Prompt::new(&ids, &[span(2)], &[]).is_err(), "a model without placeholders");
}

/// Rows of embeddings, of two decoder layers, and positions, of the tokens between each two borders.
fn run(prompt: Prompt<'_>, borders: &[usize]) -> (Vec<Vec<f32>>, Vec<Position>, u32) {
    let (mut rows, mut positions, mut next) = (vec![Vec::new(); 4], Vec::new(), 0);
    for border in borders.windows(2) {
        let pass = prompt.pass(border[0]..border[1]);
        assert_eq!(pass.ids(), &prompt.ids()[border[0]..border[1]]);
        let mut hidden = vec![-1.0; pass.ids().len() * WIDTH];
        pass.put_embeddings(&mut hidden);
        rows[0].extend_from_slice(&hidden);
        for layer in 0..3 {
            pass.add_deepstack(layer, &mut hidden);
            rows[layer + 1].extend_from_slice(&hidden);
        }
        pass.positions(&mut next, &mut positions);
    }
    (rows, positions, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_cut_gives_the_same_rows(
        images in prop::collection::vec((0..4_usize, 1..5_usize, 1..5_usize), 0..4),
        tail in 0..4_usize,
        cuts in prop::collection::vec(any::<usize>(), 0..8),
    ) {
        let config = config();
        let (mut ids, mut spans, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (text, rows, columns)) in images.into_iter().enumerate() {
            ids.extend(vec![TEXT; text]);
            expected.extend(vec![-1.0; text * WIDTH]);
            let features = features(&config, rows, columns, 10_000.0 * (i + 1) as f32);
            expected.extend_from_slice(&features.embeddings);
            spans.push(Span { start: ids.len(), features });
            ids.extend(vec![PLACE; rows * columns]);
        }
        ids.extend(vec![TEXT; tail]);
        expected.extend(vec![-1.0; tail * WIDTH]);
        let prompt = Prompt::new(&ids, &spans, &[PLACE]).unwrap();

        let whole = run(prompt, &[0, ids.len()]);
        prop_assert_eq!(&whole.0[0], &expected);
        let text = |x: f32| x < 0.0;
        for (i, &x) in expected.iter().enumerate() {
            let first = if text(x) { x } else { x + x + 1000.0 };
            let second = if text(x) { x } else { first + x + 2000.0 };
            prop_assert_eq!((whole.0[1][i], whole.0[2][i], whole.0[3][i]), (first, second, second));
        }
        let mut borders: Vec<_> = cuts.iter().map(|cut| cut % (ids.len() + 1)).chain([0, ids.len()]).collect();
        borders.sort_unstable();
        prop_assert_eq!(run(prompt, &borders), whole);
    }
}
