use serde_json::{Value, json};

use crate::config::tests::{expect, full, parse, small, with, without};
use crate::config::{FeedForwardKind, LayerKind, MoeConfig};

use FeedForwardKind::{Dense, Moe};

/// A small Qwen3.5 with experts, as transformers saves its text model.
fn qwen3_5_moe() -> Value {
    let mut config = without(small(), "intermediate_size");
    for (key, value) in [
        ("model_type", json!("qwen3_5_moe_text")),
        ("num_experts", json!(8)),
        ("num_experts_per_tok", json!(3)),
        ("moe_intermediate_size", json!(32)),
        ("shared_expert_intermediate_size", json!(48)),
    ] {
        config = with(config, key, value);
    }
    config
}

/// A small Qwen3-MoE as published: dense layers by list and step, no shared expert.
fn qwen3_moe() -> Value {
    json!({
        "model_type": "qwen3_moe", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "rope_theta": 1e6,
        "rope_scaling": null, "attention_bias": false, "use_sliding_window": false, "sliding_window": null,
        "max_window_layers": 48, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": false
    })
}

#[test]
fn every_layer_of_qwen3_5_moe_has_experts() {
    let config = parse(&qwen3_5_moe()).unwrap();
    assert_eq!(config.model_type, "qwen3_5_moe_text");
    let text = config.text;
    assert_eq!(text.feed_forwards, [Moe; 4]);
    assert_eq!(text.intermediate_size, None);
    let moe = MoeConfig { experts: 8, per_token: 3, width: 32, shared_width: Some(48), renormalise: true };
    assert_eq!(text.moe, Some(moe));
    assert!(text.zero_centred_norms && text.attention.output_gate && text.delta.is_some());
    let seeing = with(full(&qwen3_5_moe()), "model_type", "qwen3_5_moe");
    let seeing = parse(&seeing).unwrap();
    assert_eq!(seeing.text, text);
    assert!(seeing.vision.is_some());
}

#[test]
fn dense_models_have_none() {
    let text = parse(&small()).unwrap().text;
    assert_eq!((text.feed_forwards, text.moe, text.intermediate_size), (vec![Dense; 4], None, Some(64)));
}

#[test]
fn qwen3_next_is_hybrid_with_experts_where_listed() {
    let config = with(with(qwen3_5_moe(), "model_type", "qwen3_next"), "intermediate_size", 64);
    let text = parse(&config).unwrap().text;
    assert_eq!(text.feed_forwards, [Moe; 4]);
    assert!(text.moe.unwrap().renormalise && text.zero_centred_norms);
    let text = parse(&with(config.clone(), "norm_topk_prob", false)).unwrap().text;
    assert!(!text.moe.unwrap().renormalise);
    let listed = with(config.clone(), "mlp_only_layers", json!([0, 2]));
    assert_eq!(parse(&listed).unwrap().text.feed_forwards, [Dense, Moe, Dense, Moe]);
    let step = with(config, "decoder_sparse_step", 2);
    assert_eq!(parse(&step).unwrap().text.feed_forwards, [Dense, Moe, Dense, Moe]);
}

#[test]
fn qwen3_and_qwen3_moe_are_plain_attention() {
    let config = parse(&qwen3_moe()).unwrap().text;
    assert_eq!(config.layers, [LayerKind::Attention; 4]);
    assert!(!config.attention.output_gate && !config.zero_centred_norms);
    assert_eq!((config.rope.rotary_dim, config.rope.sections), (32, [16, 0, 0]));
    let moe = MoeConfig { experts: 8, per_token: 2, width: 32, shared_width: None, renormalise: true };
    assert_eq!((config.moe, config.intermediate_size), (Some(moe), None));
    // The model code's default, unlike in the other families.
    assert!(!parse(&without(qwen3_moe(), "norm_topk_prob")).unwrap().text.moe.unwrap().renormalise);
    let dense = parse(&with(qwen3_moe(), "model_type", "qwen3")).unwrap().text;
    assert_eq!((dense.moe, dense.intermediate_size), (None, Some(96)));
    expect(&with(qwen3_moe(), "use_sliding_window", true), "use_sliding_window", "true is not supported");
}

#[test]
fn experts_have_two_names() {
    let renamed = with(without(qwen3_moe(), "num_experts"), "num_local_experts", 8);
    assert_eq!(parse(&renamed).unwrap().text, parse(&qwen3_moe()).unwrap().text);
    expect(&without(qwen3_moe(), "num_experts"), "num_experts", "is missing");
}

#[test]
fn faulty_shapes_are_named() {
    for (key, value, reason) in [
        ("num_experts", json!(0), "a whole number from 1"),
        ("num_experts", json!(65_537), "a whole number from 1 to 65536"),
        ("num_experts_per_tok", json!(9), "9 of 8 experts cannot be chosen"),
        ("num_experts_per_tok", json!(null), "is missing"),
        ("moe_intermediate_size", json!(40), "must be a multiple of 16, not 40"),
        ("moe_intermediate_size", json!(null), "is missing"),
        ("decoder_sparse_step", json!(0), "a whole number from 1"),
        ("norm_topk_prob", json!(1), "must be true or false"),
        ("mlp_only_layers", json!(3), "must be a list"),
        ("mlp_only_layers", json!([0, 1, 2]), "is missing"),
    ] {
        let config = with(without(qwen3_moe(), "intermediate_size"), key, value);
        let field =
            if reason == "is missing" && key == "mlp_only_layers" { "intermediate_size" } else { key };
        expect(&config, field, reason);
    }
    let beyond = with(qwen3_moe(), "mlp_only_layers", json!([0, 4]));
    expect(&beyond, "mlp_only_layers[1]", "must be a layer below 4, not 4");
    let shared = without(qwen3_5_moe(), "shared_expert_intermediate_size");
    expect(&shared, "shared_expert_intermediate_size", "is missing");
}
