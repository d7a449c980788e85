//! The families of models that are read, and in what their configurations differ.

use super::fields::Fields;
use crate::checkpoint::json::quote;
use crate::error::Result;

/// What a family's files leave unsaid.
pub(super) struct Family {
    /// `model_type` of a full model.
    full: &'static str,
    /// `model_type` of a text model.
    pub(super) text: &'static str,
    /// Whether layers may be gated delta rules and attention may be gated; else all is plain attention.
    pub(super) hybrid: bool,
    /// Whether norms on the residual stream, queries and keys are stored as weight - 1.
    pub(super) zero_centred_norms: bool,
    /// Part of a head that turns, where no other stands.
    pub(super) rotary_factor: f64,
}

const FAMILIES: [Family; 2] = [
    Family {
        full: "qwen3_5",
        text: "qwen3_5_text",
        hybrid: true,
        zero_centred_norms: true,
        rotary_factor: 0.25,
    },
    Family {
        full: "qwen3_vl",
        text: "qwen3_vl_text",
        hybrid: false,
        zero_centred_norms: false,
        rotary_factor: 1.0,
    },
];

/// Where the text model's entries stand.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// Under `text_config`.
    Full,
    /// At the top.
    Text,
}

impl Family {
    /// The family and form that `model_type`, an entry of `outer`, names.
    pub(super) fn of(outer: &Fields, model_type: &str) -> Result<(&'static Self, Form)> {
        for family in &FAMILIES {
            if model_type == family.full {
                return Ok((family, Form::Full));
            }
            if model_type == family.text {
                return Ok((family, Form::Text));
            }
        }
        let known = FAMILIES.each_ref().map(|family| format!("{}, {}", family.full, family.text)).join(", ");
        let reason = format!("'{}' is not supported; known: {known}", quote(model_type));
        Err(outer.error("model_type", reason))
    }
}
