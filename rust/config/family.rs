//! The families of models that are read, and in what their configurations differ.

use super::fields::Fields;
use crate::checkpoint::json::quote;
use crate::error::Result;

/// What a family's files leave unsaid.
pub(super) struct Family {
    /// `model_type` of a full model, if there is one that sees.
    full: Option<&'static str>,
    /// `model_type` of a text model.
    pub(super) text: &'static str,
    /// Whether layers may be gated delta rules and attention may be gated; else all is plain attention.
    pub(super) hybrid: bool,
    /// Whether norms on the residual stream, queries and keys are stored as weight - 1.
    pub(super) zero_centred_norms: bool,
    /// Whether queries and keys go through a norm before they turn.
    pub(super) query_key_norms: bool,
    /// Part of a head that turns, where no other stands.
    pub(super) rotary_factor: f64,
    /// Base of the frequencies in older files, which leave it out, and perhaps `head_dim` and `num_key_value_heads` too; none where
    /// every file has these entries.
    pub(super) older_theta: Option<f64>,
    /// Which layers have experts.
    pub(super) experts: Experts,
}

/// How a family uses mixtures of experts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Experts {
    /// Not at all.
    Never,
    /// In every layer, beside a shared expert; weights of the chosen ones sum to 1.
    Always,
    /// Where `decoder_sparse_step` and `mlp_only_layers` say so.
    Listed {
        /// Whether there is a shared expert.
        shared: bool,
        /// What `norm_topk_prob` is where it does not stand.
        renormalise: bool,
    },
}

/// Qwen3 with all that later families changed; the others differ from it in what they name.
const QWEN3: Family = Family {
    full: None,
    text: "qwen3",
    hybrid: false,
    zero_centred_norms: false,
    query_key_norms: true,
    rotary_factor: 1.0,
    older_theta: None,
    experts: Experts::Never,
};
/// What Qwen3 began with, without its norms of queries and keys.
const LLAMA: Family = Family { text: "llama", query_key_norms: false, older_theta: Some(1e4), ..QWEN3 };
/// Qwen3.5 without what its siblings change.
const QWEN3_5: Family = Family {
    full: Some("qwen3_5"),
    text: "qwen3_5_text",
    hybrid: true,
    zero_centred_norms: true,
    rotary_factor: 0.25,
    ..QWEN3
};

const FAMILIES: [Family; 7] = [
    QWEN3_5,
    Family { full: Some("qwen3_5_moe"), text: "qwen3_5_moe_text", experts: Experts::Always, ..QWEN3_5 },
    Family {
        full: None,
        text: "qwen3_next",
        experts: Experts::Listed { shared: true, renormalise: true },
        ..QWEN3_5
    },
    Family { full: Some("qwen3_vl"), text: "qwen3_vl_text", ..QWEN3 },
    QWEN3,
    Family { text: "qwen3_moe", experts: Experts::Listed { shared: false, renormalise: false }, ..QWEN3 },
    LLAMA,
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
            if family.full == Some(model_type) {
                return Ok((family, Form::Full));
            }
            if family.text == model_type {
                return Ok((family, Form::Text));
            }
        }
        let known: Vec<_> = model_types().collect();
        let reason = format!("'{}' is not supported; known: {}", quote(model_type), known.join(", "));
        Err(outer.error("model_type", reason))
    }
}

/// Every `model_type` that is read.
pub(super) fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.full.into_iter().chain([family.text]))
}
