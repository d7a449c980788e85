//! A `config.json`: text, vision and `quantization_config`.
#![no_main]

use std::path::Path;

use edgewise::config::ModelConfig;
use edgewise_fuzz::Limited;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|json: &[u8]| {
    if let Ok(config) = ModelConfig::parse(Path::new("config.json"), json) {
        assert!(config.text.hidden_size > 0 && config.text.vocab_size > 0 && !config.text.layers.is_empty());
        assert_eq!(config.text.layers.len(), config.text.feed_forwards.len());
    }
});
