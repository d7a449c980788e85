use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The text model of the family's smallest published size.
pub(super) fn text_0_8b() -> Value {
    json!({
        "model_type": "qwen3_5_text", "vocab_size": 248_320, "hidden_size": 1024, "num_hidden_layers": 24,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "max_position_embeddings": 262_144, "attention_bias": false,
        "attn_output_gate": true, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 16, "intermediate_size": 3584, "eos_token_id": 248_044,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10], "mrope_interleaved": true
        },
        "tie_word_embeddings": true, "mtp_num_hidden_layers": 1, "dtype": "bfloat16"
    })
}

/// A model that sees, with a small tower that fits `text`.
pub(in crate::config) fn full(text: &Value) -> Value {
    json!({
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": text,
        "vision_config": {
            "deepstack_visual_indexes": [], "depth": 3, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 64,
            "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 128,
            "model_type": "qwen3_5_vision", "num_heads": 4, "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"], "patch_size": 16,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}, "spatial_merge_size": 2,
            "temporal_patch_size": 2
        },
        "image_token_id": 251, "video_token_id": 252, "vision_start_token_id": 248,
        "vision_end_token_id": 249
    })
}

/// A small text model as transformers saves it, with every layer listed.
pub(in crate::config) fn small() -> Value {
    let mut types = vec!["linear_attention"; 3];
    types.push("full_attention");
    json!({
        "attention_bias": false, "bos_token_id": null, "eos_token_id": null, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 128, "intermediate_size": 64, "layer_types": types,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_num_key_heads": 1, "linear_num_value_heads": 2,
        "linear_value_head_dim": 128, "max_position_embeddings": 4096, "model_type": "qwen3_5_text",
        "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "mrope_interleaved": true, "mrope_section": [3, 3, 2], "partial_rotary_factor": 0.25,
            "rope_theta": 10_000_000.0, "rope_type": "default"
        },
        "vocab_size": 256
    })
}

/// A small Qwen3-VL as transformers saves it: layers are not listed, nor is the part of a head that turns.
pub(in crate::config) fn qwen3_vl() -> Value {
    let text = json!({
        "attention_bias": false, "attention_dropout": 0.0, "head_dim": 32, "hidden_act": "silu",
        "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
        "max_position_embeddings": 4096, "model_type": "qwen3_vl_text", "num_attention_heads": 4,
        "num_hidden_layers": 4, "num_key_value_heads": 2, "pad_token_id": null, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "mrope_interleaved": true, "mrope_section": [6, 5, 5], "rope_theta": 5_000_000.0,
            "rope_type": "default"
        },
        "use_cache": true, "vocab_size": 512
    });
    let config = with(full(&text), "model_type", "qwen3_vl");
    with(config, "vision_config.deepstack_visual_indexes", json!([0, 2]))
}

/// `value` with the entry at the dotted `key` set.
pub(in crate::config) fn with(mut value: Value, key: &str, entry: impl Into<Value>) -> Value {
    let mut place = &mut value;
    for part in key.split('.') {
        place = &mut place[part];
    }
    *place = entry.into();
    value
}

/// `value` without the entry at the dotted `key`.
pub(in crate::config) fn without(mut value: Value, key: &str) -> Value {
    let (place, last) = key.rsplit_once('.').unwrap_or(("", key));
    let object =
        place.split('.').filter(|part| !part.is_empty()).fold(&mut value, |value, part| &mut value[part]);
    object.as_object_mut().unwrap().remove(last).unwrap();
    value
}

pub(in crate::config) fn parse(config: &Value) -> Result<ModelConfig> {
    ModelConfig::parse(Path::new("config.json"), config.to_string().as_bytes())
}

#[track_caller]
pub(in crate::config) fn expect(config: &Value, field: &str, reason: &str) {
    let message = parse(config).unwrap_err().to_string();
    let start = format!("config.json: '{field}': ");
    assert!(message.starts_with(&start) && message.contains(reason), "{message}");
}

#[track_caller]
fn expect_text(text: &str, reason: &str) {
    let message = ModelConfig::parse(Path::new("config.json"), text.as_bytes()).unwrap_err().to_string();
    assert!(message.starts_with("config.json: ") && message.contains(reason), "{message}");
}

#[test]
fn reads_a_full_model() {
    let config = parse(&full(&text_0_8b())).unwrap();
    assert_eq!(config.model_type, "qwen3_5");
    assert_eq!(config.eos_token_ids, [248_044]);
    let text = config.text;
    assert_eq!((text.vocab_size, text.hidden_size, text.intermediate_size), (248_320, 1024, Some(3584)));
    assert_eq!(text.max_position_embeddings, 262_144);
    assert_eq!(text.layers.len(), 24);
    assert_eq!(text.rms_norm_eps.to_bits(), 1e-6f32.to_bits());
    let delta = DeltaConfig { key_heads: 16, value_heads: 16, key_dim: 128, value_dim: 128, conv_kernel: 4 };
    assert_eq!(delta.conv_dim(), 6144);
    assert_eq!(text.delta, Some(delta));
    assert_eq!(text.attention, AttentionConfig { heads: 8, kv_heads: 2, head_dim: 256, output_gate: true });
    assert_eq!(text.rope, RopeConfig { theta: 1e7, rotary_dim: 64, sections: [11, 11, 10], yarn: None });
    assert!(text.tie_word_embeddings && text.zero_centred_norms);
}

#[test]
fn reads_a_text_model() {
    let config = parse(&small()).unwrap();
    assert_eq!(config.model_type, "qwen3_5_text");
    assert!(config.vision.is_none() && !config.text.tie_word_embeddings && config.eos_token_ids.is_empty());
    assert!(config.text.attention.output_gate);
    assert_eq!(config.text.rope.rotary_dim, 16);
}

#[test]
fn reads_qwen3_vl() {
    let config = parse(&qwen3_vl()).unwrap();
    assert_eq!(config.model_type, "qwen3_vl");
    let text = &config.text;
    assert_eq!(text.layers, [LayerKind::Attention; 4]);
    assert_eq!(text.delta, None);
    assert!(!text.zero_centred_norms);
    assert_eq!(text.attention, AttentionConfig { heads: 4, kv_heads: 2, head_dim: 32, output_gate: false });
    assert_eq!(text.rope, RopeConfig { theta: 5e6, rotary_dim: 32, sections: [6, 5, 5], yarn: None });
    let alone = parse(&qwen3_vl()["text_config"]).unwrap();
    assert_eq!((alone.model_type.as_str(), alone.vision), ("qwen3_vl_text", None));
    assert_eq!(alone.text, config.text);
}

#[test]
fn qwen3_vl_is_plain_attention() {
    let text = qwen3_vl()["text_config"].clone();
    let listed = with(text.clone(), "layer_types", vec!["full_attention"; 4]);
    assert_eq!(parse(&listed).unwrap(), parse(&text).unwrap());
    assert_eq!(parse(&with(text.clone(), "full_attention_interval", 4)).unwrap(), parse(&text).unwrap());
    expect(
        &with(listed, "layer_types", vec!["linear_attention"; 4]),
        "layer_types[0]",
        "must be full_attention, not the text 'linear_attention'",
    );
    let reason = "true is not supported in qwen3_vl_text";
    expect(&with(text, "attn_output_gate", true), "attn_output_gate", reason);
}

/// A small Llama as older versions of transformers saved it.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 96,
        "intermediate_size": 256, "max_position_embeddings": 2048, "mlp_bias": false,
        "num_attention_heads": 6, "num_hidden_layers": 3, "num_key_value_heads": 3, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100_000,
        "tie_word_embeddings": true, "vocab_size": 256
    })
}

#[test]
fn reads_llama() {
    let config = parse(&llama()).unwrap();
    assert_eq!((config.model_type.as_str(), config.vision), ("llama", None));
    let text = config.text;
    assert_eq!(text.attention, AttentionConfig { heads: 6, kv_heads: 3, head_dim: 16, output_gate: false });
    assert!(!text.query_key_norms && !text.zero_centred_norms && text.tie_word_embeddings);
    assert_eq!((text.layers, text.delta, text.moe), (vec![LayerKind::Attention; 3], None, None));
    let rope = RopeConfig { theta: 1e5, rotary_dim: 16, sections: [8, 0, 0], yarn: None };
    assert_eq!(text.rope, rope);
    assert!(
        parse(&qwen3_vl()).unwrap().text.query_key_norms && parse(&small()).unwrap().text.query_key_norms
    );
}

#[test]
fn what_files_of_llama_may_leave_out() {
    let of = |config: &Value| parse(config).unwrap().text;
    assert_eq!(of(&without(llama(), "num_key_value_heads")).attention.kv_heads, 6);
    assert_eq!(of(&with(llama(), "head_dim", 32)).attention.head_dim, 32);
    assert_eq!(of(&with(llama(), "head_dim", Value::Null)).attention.head_dim, 16);
    assert!((of(&without(llama(), "rope_theta")).rope.theta - 1e4).abs() < f64::EPSILON);
    expect(&with(llama(), "hidden_size", 97), "hidden_size", "97 is not a multiple of num_attention_heads 6");
    expect(&with(llama(), "hidden_size", 60), "head_dim", "must be a multiple of 16, not 10");
    expect(&with(llama(), "hidden_size", 6 * 4096), "head_dim", "must be at most");
    for key in ["head_dim", "num_key_value_heads"] {
        expect(&without(small(), key), key, "is missing");
    }
}

#[test]
fn llamas_of_another_arithmetic_are_refused() {
    for key in ["attention_bias", "mlp_bias"] {
        expect(&with(llama(), key, true), key, "true is not supported");
    }
    expect(&with(llama(), "pretraining_tp", 2), "pretraining_tp", "2 is not supported; known: 1");
    expect(&with(llama(), "hidden_act", "gelu"), "hidden_act", "'gelu' is not supported");
    for (key, name) in [("rope_type", "llama3"), ("type", "linear"), ("rope_type", "dynamic")] {
        let scaled = with(llama(), "rope_scaling", json!({key: name, "factor": 8.0}));
        expect(&scaled, &format!("rope_scaling.{key}"), &format!("'{name}' is not supported"));
    }
}

#[test]
fn delta_shapes_are_needed_where_a_layer_is_linear() {
    let attention = with(small(), "layer_types", vec!["full_attention"; 4]);
    assert_eq!(parse(&attention).unwrap().text.delta, None);
    assert_eq!(parse(&without(attention, "linear_num_key_heads")).unwrap().text.delta, None);
    let last = json!(["full_attention", "full_attention", "full_attention", "linear_attention"]);
    let last = with(small(), "layer_types", last);
    assert!(parse(&last).unwrap().text.delta.is_some());
    expect(&without(last, "linear_num_key_heads"), "linear_num_key_heads", "is missing");
}

#[test]
fn other_models_are_refused_by_name() {
    let known = "is not supported; known: qwen3_5, qwen3_5_text, qwen3_5_moe, qwen3_5_moe_text, qwen3_next, qwen3_vl, \
                 qwen3_vl_text, qwen3, qwen3_moe, llama";
    for name in ["qwen4_exp", "mistral", ""] {
        expect(&with(full(&small()), "model_type", name), "model_type", &format!("'{name}' {known}"));
    }
    expect(&without(small(), "model_type"), "model_type", "is missing");
    expect(&with(small(), "model_type", "qwen3_5"), "text_config", "is missing");
    let nested = with(full(&small()), "text_config.model_type", "qwen3_5_moe_text");
    expect(&nested, "text_config.model_type", "'qwen3_5_moe_text' is not supported; known: qwen3_5_text");
    let mixed = with(qwen3_vl(), "text_config.model_type", "qwen3_5_text");
    expect(&mixed, "text_config.model_type", "'qwen3_5_text' is not supported; known: qwen3_vl_text");
}

#[test]
fn layers_are_listed_or_derived() {
    use LayerKind::{Attention, GatedDelta};
    let derived = without(small(), "layer_types");
    assert_eq!(parse(&derived).unwrap().text.layers, [GatedDelta, GatedDelta, GatedDelta, Attention]);
    assert_eq!(parse(&small()).unwrap().text.layers, parse(&derived).unwrap().text.layers);
    let every_second = with(derived, "full_attention_interval", 2);
    assert_eq!(parse(&every_second).unwrap().text.layers, [GatedDelta, Attention, GatedDelta, Attention]);
    expect(&with(every_second, "full_attention_interval", 0), "full_attention_interval", "from 1 to");
    expect(&with(small(), "num_hidden_layers", 5), "layer_types", "has 4 entries for 5 layers");
    expect(&with(small(), "num_hidden_layers", 1025), "num_hidden_layers", "from 1 to 1024");
    let types = ["full_attention", "sliding_attention", "full_attention", "full_attention"];
    expect(&with(small(), "layer_types", json!(types)), "layer_types[1]", "not the text 'sliding_attention'");
    expect(&with(small(), "layer_types", json!([1, 2, 3, 4])), "layer_types[0]", "not 1");
}

#[test]
fn tying_is_decided_by_the_outermost_value() {
    let tied = |outer: Option<bool>, inner: Option<bool>| {
        let config = with(full(&small()), "tie_word_embeddings", outer);
        parse(&with(config, "text_config.tie_word_embeddings", inner)).unwrap().text.tie_word_embeddings
    };
    assert!(!tied(None, None));
    assert!(tied(None, Some(true)) && tied(Some(true), None));
    assert!(tied(Some(true), Some(false)) && !tied(Some(false), Some(true)));
    assert!(parse(&with(small(), "tie_word_embeddings", true)).unwrap().text.tie_word_embeddings);
    expect(&with(small(), "tie_word_embeddings", "true"), "tie_word_embeddings", "not the text 'true'");
}

#[test]
fn end_tokens_come_as_number_list_or_null() {
    let ids = |outer: Value, inner: Value| {
        let config = with(full(&small()), "eos_token_id", outer);
        parse(&with(config, "text_config.eos_token_id", inner)).unwrap().eos_token_ids
    };
    assert_eq!(ids(json!(null), json!(7)), [7]);
    assert_eq!(ids(json!([1, 2]), json!(7)), [1, 2]);
    assert_eq!(ids(json!([]), json!([3, 4])), [3, 4]);
    assert!(ids(json!(null), json!(null)).is_empty());
    for wrong in [json!(-1), json!(1.5), json!("1"), json!([1, "2"]), json!(4_294_967_296u64), json!({})] {
        expect(&with(small(), "eos_token_id", wrong), "eos_token_id", "must be a token id or a list");
    }
}

#[test]
fn older_rope_settings_are_read() {
    let old = without(small(), "rope_parameters");
    let old = with(with(old, "rope_theta", 5e6), "partial_rotary_factor", 0.5);
    let rope = parse(&old).unwrap().text.rope;
    assert_eq!(rope, RopeConfig { theta: 5e6, rotary_dim: 32, sections: [16, 0, 0], yarn: None });
    let scaling = json!({"type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": true});
    let scaled = with(old.clone(), "rope_scaling", scaling);
    assert_eq!(parse(&scaled).unwrap().text.rope.sections, [6, 5, 5]);
    assert_eq!(parse(&with(old.clone(), "rope_scaling", Value::Null)).unwrap().text.rope, rope);
    expect(&without(old, "rope_theta"), "rope_theta", "is missing");
    expect(&without(small(), "rope_parameters.rope_theta"), "rope_parameters.rope_theta", "is missing");
}

#[test]
fn other_rope_settings_are_refused() {
    let rope = |key: &str, value: Value| with(small(), &format!("rope_parameters.{key}"), value);
    expect(
        &rope("rope_type", json!("llama3")),
        "rope_parameters.rope_type",
        "'llama3' is not supported; known: default, yarn",
    );
    expect(&rope("type", json!("linear")), "rope_parameters.type", "'linear' is not supported");
    expect(&rope("type", json!("yarn")), "rope_parameters.type", "'yarn' is not what rope_type says");
    expect(
        &rope("mrope_interleaved", json!(false)),
        "rope_parameters.mrope_interleaved",
        "false is not supported",
    );
    for theta in [json!(0), json!(-1), json!("1e7")] {
        expect(&rope("rope_theta", theta), "rope_parameters.rope_theta", "must be a number above 0");
    }
    for factor in [json!(1.5), json!(0), json!(0.01), json!(0.05)] {
        expect(&rope("partial_rotary_factor", factor), "rope_parameters.partial_rotary_factor", "");
    }
    for sections in
        [json!([3, 3, 3]), json!([4, 4]), json!([2, 2, 2, 2]), json!([u64::MAX, 9, 0]), json!([8.0, 0, 0])]
    {
        expect(&rope("mrope_section", sections), "rope_parameters.mrope_section", "with the sum 8");
    }
    let both = with(small(), "rope_scaling", json!({"rope_type": "default"}));
    expect(&both, "rope_scaling", "stands beside rope_parameters");
    let nested = with(full(&small()), "text_config.rope_parameters.rope_type", "dynamic");
    expect(&nested, "text_config.rope_parameters.rope_type", "'dynamic'");
}

#[test]
fn without_sections_time_has_all_frequencies() {
    let config = without(small(), "rope_parameters.mrope_section");
    assert_eq!(parse(&config).unwrap().text.rope.sections, [8, 0, 0]);
    assert!(parse(&with(config, "rope_parameters.mrope_interleaved", false)).is_ok());
}

#[test]
fn sizes_must_stand_and_make_sense() {
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_conv_kernel_dim",
    ] {
        let key = format!("text_config.{key}");
        expect(&without(full(&small()), &key), &key, "is missing");
        expect(&with(full(&small()), &key, Value::Null), &key, "is missing");
        for wrong in
            [json!(0), json!(-64), json!(64.5), json!("64"), json!([64]), json!(u64::MAX), json!(1 << 25)]
        {
            expect(&with(full(&small()), &key, wrong), &key, "must be a whole number from 1 to");
        }
    }
}

#[test]
fn heads_must_fit() {
    expect(
        &with(small(), "num_key_value_heads", 3),
        "num_attention_heads",
        "not a multiple of num_key_value_heads 3",
    );
    expect(
        &with(small(), "linear_num_key_heads", 4),
        "linear_num_value_heads",
        "not a multiple of linear_num_key_heads",
    );
    for key in ["head_dim", "linear_key_head_dim", "linear_value_head_dim"] {
        expect(&with(small(), key, 40), key, "must be a multiple of 16, not 40");
    }
    expect(
        &with(small(), "linear_conv_kernel_dim", 3),
        "linear_conv_kernel_dim",
        "3 is not supported; known: 4",
    );
}

#[test]
fn products_are_bounded() {
    let many = 1 << 24;
    let heads = with(with(small(), "num_attention_heads", many), "num_key_value_heads", many);
    expect(&heads, "num_attention_heads", "2 x 16777216 x 64 is more than");
    expect(
        &with(small(), "linear_num_value_heads", many),
        "linear_num_value_heads",
        "16777216 x 128 is more than",
    );
    let keys = with(small(), "linear_num_key_heads", 1 << 20);
    expect(&with(keys, "linear_num_value_heads", 1 << 20), "linear_num_key_heads", "2 x 1048576 x 128");
    let wide = with(with(small(), "linear_key_head_dim", 4096), "linear_value_head_dim", 4096);
    expect(
        &with(wide, "linear_num_value_heads", 32),
        "linear_num_value_heads",
        "32 x 4096 x 4096 is more than",
    );
    let both = with(with(small(), "linear_num_key_heads", 1 << 15), "linear_num_value_heads", (1 << 15) * 3);
    expect(&both, "linear_num_value_heads", "20971520 channels are too many");
}

#[test]
fn switches_that_change_the_arithmetic() {
    expect(&with(small(), "hidden_act", "gelu"), "hidden_act", "'gelu' is not supported; known: silu");
    expect(&with(small(), "attention_bias", true), "attention_bias", "true is not supported");
    assert!(!parse(&with(small(), "attn_output_gate", false)).unwrap().text.attention.output_gate);
    for eps in [json!(0), json!(-1e-6), json!("1e-6")] {
        expect(&with(small(), "rms_norm_eps", eps), "rms_norm_eps", "must be a number above 0");
    }
    for eps in [json!(1e-60), json!(1e60)] {
        expect(&with(small(), "rms_norm_eps", eps), "rms_norm_eps", "is out of range");
    }
    for place in ["quantization_config", "text_config.quantization_config"] {
        let config = with(full(&small()), place, json!({"quant_method": "hqq"}));
        expect(&config, &format!("{place}.quant_method"), "'hqq' are not supported; known: gptq, awq");
        assert!(parse(&with(full(&small()), place, json!({"quant_method": "fp8"}))).is_ok());
    }
}

#[test]
fn not_a_configuration() {
    expect_text("", "EOF");
    expect_text("[]", "must hold a JSON object");
    expect_text("{\"model_type\": NaN}", "NaN and Infinity are not JSON numbers");
    expect_text("{\"model_type\": \"qwen3_5\", \"model_type\": \"x\"}", "'model_type' stands twice");
    expect_text("{\"model_type\": 3}", "'model_type': must be a text, not 3");
    expect_text(&"[".repeat(1_000_000), "recursion limit");
    expect_text(&" ".repeat(MAX_JSON + 1), "the limit for a configuration");
    expect_text(
        "{\"model_type\": \"qwen3_5\", \"text_config\": []}",
        "'text_config': must be an object, not a list",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn mutated_text_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut text = full(&small()).to_string().into_bytes();
        for (place, value) in edits {
            let place = place.index(text.len());
            text[place] = value;
        }
        if let Ok(config) = ModelConfig::parse(Path::new("config.json"), &text) {
            let delta = config.text.delta;
            prop_assert_eq!(delta.is_some(), config.text.layers.contains(&LayerKind::GatedDelta));
            prop_assert!(delta.is_none_or(|delta| delta.value_heads % delta.key_heads == 0));
        }
    }

    #[test]
    fn any_size_keeps_the_promises(place in 0usize..13, size in prop_oneof![0u64..512, any::<u64>()]) {
        let small_model = small();
        let entries = small_model.as_object().unwrap().iter();
        let keys: Vec<_> = entries.filter(|(_, value)| value.is_u64()).map(|(key, _)| key.clone()).collect();
        prop_assert_eq!(keys.len(), 13);
        if let Ok(config) = parse(&with(small(), &keys[place], size)) {
            let text = config.text;
            prop_assert_eq!(text.attention.heads % text.attention.kv_heads, 0);
            prop_assert!(text.delta.unwrap().conv_dim() <= MAX_SIZE);
            prop_assert_eq!(text.rope.sections.iter().sum::<usize>(), text.rope.rotary_dim / 2);
            prop_assert!(text.rope.rotary_dim <= text.attention.head_dim);
        }
    }
}
