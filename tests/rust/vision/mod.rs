//! The vision tower and what the engine does with what it sees.

mod bits;
mod interrupted;
mod manners;
mod prompt;
mod tower;
mod weights;

use crate::models::{DEMO, Model};

/// Three blocks of 64, one family with the text model of 64; f32 weights.
const IMAGE: &str = "tests/golden/image";
/// Features of two blocks go into the decoder too.
const DEEPSTACK: &str = "tests/golden/deepstack_qwen3_vl";
/// Experts in every layer.
const MOE: &str = "tests/golden/moe_image";

/// The demo, and the recorded models in the formats that matter to the tower.
fn models() -> Vec<Model> {
    vec![
        DEMO,
        Model::new(IMAGE, "f32"),
        Model::new(IMAGE, "int8"),
        Model::new(DEEPSTACK, "bf16"),
        Model::new(DEEPSTACK, "int4"),
        Model::new(MOE, "int4"),
    ]
}
