use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::{expect, full, parse, qwen3_vl, small, with, without};
use super::super::{LayerKind, ModelConfig};
use super::*;

/// The shapes of the published models.
const PUBLISHED: [(&str, &str); 4] = [
    ("0.8B", include_str!("../../../python/edgewise/shapes/0.8B.json")),
    ("2B", include_str!("../../../python/edgewise/shapes/2B.json")),
    ("4B", include_str!("../../../python/edgewise/shapes/4B.json")),
    ("9B", include_str!("../../../python/edgewise/shapes/9B.json")),
];

/// The entries of `vision_config` with a size that may vary.
const SIZES: [&str; 7] = [
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "patch_size",
    "num_position_embeddings",
];

fn vision(config: &Value) -> Vision {
    parse(config).unwrap().vision.unwrap()
}

fn tower_with(key: &str, entry: impl Into<Value>) -> Value {
    with(full(&small()), &format!("vision_config.{key}"), entry)
}

#[track_caller]
fn refused(key: &str, entry: impl Into<Value>, reason: &str) {
    expect(&tower_with(key, entry), &format!("vision_config.{key}"), reason);
}

#[test]
fn reads_the_published_models() {
    // Text width and layers; tower depth, width, inner width, heads and their dimension.
    let shapes = [
        (1024, 24, 12, 768, 3072, 12, 64),
        (2048, 24, 24, 1024, 4096, 16, 64),
        (2560, 32, 24, 1024, 4096, 16, 64),
        (4096, 32, 27, 1152, 4304, 16, 72),
    ];
    for ((name, json), shape) in PUBLISHED.into_iter().zip(shapes) {
        let config = ModelConfig::parse(Path::new(name), json.as_bytes()).unwrap();
        let Vision { tower, tokens } = config.vision.unwrap();
        let (width, layers, depth, hidden_size, intermediate_size, heads, head_dim) = shape;
        assert_eq!((config.text.hidden_size, config.text.layers.len()), (width, layers), "{name}");
        let expected = VisionConfig {
            depth,
            hidden_size,
            intermediate_size,
            heads,
            out_hidden_size: width,
            patch_size: 16,
            temporal_patch_size: 2,
            in_channels: 3,
            merge_size: 2,
            position_side: 48,
            rope_theta: 1e4,
            deepstack_layers: vec![],
        };
        assert_eq!(tower, expected, "{name}");
        assert_eq!((tower.head_dim(), tower.patch_values()), (head_dim, 1536));
        assert_eq!(tower.merged_width(), 4 * hidden_size);
        let expected =
            MediaTokens { image: 248_056, video: 248_057, vision_start: 248_053, vision_end: 248_054 };
        assert_eq!(tokens, expected);
        let attention = config.text.layers.iter().filter(|kind| **kind == LayerKind::Attention);
        assert_eq!(attention.count(), layers / 4);
    }
}

#[test]
fn reads_small_towers() {
    // Depth, width, heads, table of positions.
    for (depth, hidden, heads, positions, side) in [
        (3, 64, 4, 2304, 48),
        (2, 48, 3, 64, 8),
        (2, 48, 3, 196, 14),
        (3, 64, 4, 576, 24),
        (3, 128, 2, 144, 12),
    ] {
        let mut config = full(&small());
        for (key, size) in [
            ("depth", depth),
            ("hidden_size", hidden),
            ("num_heads", heads),
            ("num_position_embeddings", positions),
        ] {
            config = with(config, &format!("vision_config.{key}"), size);
        }
        let tower = vision(&without(config, "vision_config.deepstack_visual_indexes")).tower;
        assert_eq!((tower.depth, tower.position_side, tower.head_dim()), (depth, side, hidden / heads));
        assert!(tower.deepstack_layers.is_empty());
    }
}

#[test]
fn a_tower_is_optional() {
    assert_eq!(parse(&without(full(&small()), "vision_config")).unwrap().vision, None);
    assert_eq!(parse(&with(full(&small()), "vision_config", Value::Null)).unwrap().vision, None);
    expect(&with(full(&small()), "vision_config", 3), "vision_config", "must be an object, not 3");
}

#[test]
fn sizes_must_stand_and_make_sense() {
    for key in SIZES.into_iter().chain(["temporal_patch_size", "in_channels", "spatial_merge_size"]) {
        let place = format!("vision_config.{key}");
        expect(&without(full(&small()), &place), &place, "is missing");
        for wrong in [json!(0), json!(-4), json!(1.5), json!("4"), json!(u64::MAX), json!((1 << 24) + 1)] {
            refused(key, wrong, "must be a whole number from 1 to");
        }
    }
}

#[test]
fn some_sizes_have_one_known_value() {
    for (key, other, known) in
        [("temporal_patch_size", 1, 2), ("in_channels", 4, 3), ("spatial_merge_size", 3, 2)]
    {
        refused(key, other, &format!("{other} is not supported; known: {known}"));
    }
    refused("hidden_act", "quick_gelu", "'quick_gelu' is not supported; known: gelu_pytorch_tanh");
}

#[test]
fn heads_must_fit() {
    refused("num_heads", 64, "64 heads of 1 channels; a head must have a multiple of 4 and at most 256");
    expect(&tower_with("num_heads", 3), "vision_config.hidden_size", "64 is not a multiple of num_heads 3");
    let wide = with(tower_with("hidden_size", 2048), "vision_config.num_heads", 8);
    assert_eq!(vision(&wide).tower.head_dim(), 256);
    let wider = with(wide, "vision_config.hidden_size", 2080);
    expect(&wider, "vision_config.num_heads", "8 heads of 260 channels");
}

#[test]
fn features_are_as_wide_as_the_text() {
    refused("out_hidden_size", 64, "64 is not the text model's hidden_size 128");
}

#[test]
fn positions_are_a_square() {
    assert_eq!(vision(&tower_with("num_position_embeddings", 1)).tower.position_side, 1);
    refused("num_position_embeddings", 2303, "2303 is not the square of a whole number");
}

#[test]
fn products_are_bounded() {
    refused("patch_size", 1 << 23, "3 x 2 x 8388608 x 8388608 is more than");
    let wide = with(tower_with("hidden_size", 1 << 23), "vision_config.num_heads", 1 << 15);
    expect(&wide, "vision_config.hidden_size", "8388608 x 2 x 2 is more than");
}

#[test]
fn rotary_settings() {
    let theta = |config: &Value| vision(config).tower.rope_theta.to_bits();
    let default = 1e4f64.to_bits();
    assert_eq!(theta(&without(full(&small()), "vision_config.rope_parameters")), default);
    assert_eq!(theta(&without(full(&small()), "vision_config.rope_parameters.rope_theta")), default);
    assert_eq!(theta(&without(full(&small()), "vision_config.rope_parameters.rope_type")), default);
    assert_eq!(theta(&tower_with("rope_parameters.rope_type", "default")), default);
    assert_eq!(theta(&tower_with("rope_parameters.rope_theta", 500)), 500f64.to_bits());
    refused("rope_parameters.rope_type", "yarn", "'yarn' is not supported; known: axial");
    refused("rope_parameters.rope_theta", 0, "must be a number above 0");
}

#[test]
fn text_beside_a_tower_names_its_axes() {
    let config = without(full(&small()), "text_config.rope_parameters.mrope_section");
    expect(&config, "text_config.rope_parameters.mrope_section", "is missing");
    assert!(parse(&without(config, "vision_config")).is_ok());
}

#[test]
fn deepstack_layers_ascend_inside_the_tower() {
    assert_eq!(vision(&qwen3_vl()).tower.deepstack_layers, [0, 2]);
    assert_eq!(vision(&tower_with("deepstack_visual_indexes", json!([1]))).tower.deepstack_layers, [1]);
    assert!(vision(&tower_with("deepstack_visual_indexes", Value::Null)).tower.deepstack_layers.is_empty());
    for (wrong, place, reason) in [
        (json!([3]), 0, "must be a block above the one before and below 3, not 3"),
        (json!([1, 0]), 1, "not 0"),
        (json!([0, 2, 2]), 2, "not 2"),
        (json!([0, -1]), 1, "not -1"),
        (json!([0, "1"]), 1, "not the text '1'"),
        (json!([u64::MAX]), 0, "not 18446744073709551615"),
    ] {
        let place = format!("vision_config.deepstack_visual_indexes[{place}]");
        expect(&tower_with("deepstack_visual_indexes", wrong), &place, reason);
    }
    let many = with(tower_with("depth", 5), "vision_config.deepstack_visual_indexes", json!([0, 1, 2, 3, 4]));
    expect(&many, "vision_config.deepstack_visual_indexes", "has 5 entries for 4 decoder layers");
}

#[test]
fn tokens_are_four_different_ones_of_the_vocabulary() {
    let keys = ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"];
    for key in keys {
        expect(&without(full(&small()), key), key, "is missing");
        for wrong in [json!(256), json!(-1), json!(u64::MAX), json!("7"), json!([7])] {
            expect(&with(full(&small()), key, wrong), key, "must be a token id below vocab_size 256");
        }
    }
    for (i, key) in keys.into_iter().enumerate() {
        for other in &keys[..i] {
            let id = full(&small())[other].clone();
            let reason = format!("{id} is {other} too");
            expect(&with(full(&small()), key, id), key, &reason);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_size_keeps_the_promises(
        sizes in prop::array::uniform3((0..SIZES.len(), prop_oneof![0u64..512, any::<u64>()])),
    ) {
        let mut config = full(&small());
        for (place, size) in sizes {
            config = with(config, &format!("vision_config.{}", SIZES[place]), size);
        }
        if let Ok(config) = parse(&config) {
            let tower = config.vision.unwrap().tower;
            prop_assert_eq!(tower.head_dim() * tower.heads, tower.hidden_size);
            prop_assert!(tower.head_dim() % 4 == 0 && tower.head_dim() <= MAX_HEAD_DIM);
            prop_assert!(tower.merged_width() <= MAX_SIZE && tower.patch_values() <= MAX_SIZE);
        }
    }
}
