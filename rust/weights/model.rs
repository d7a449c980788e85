//! The weights of a text model: one field for each tensor, shapes in the comments.
//!
//! H hidden size, V vocabulary, I feed-forward width; Hk, Hv, Dk, Dv key and value heads of the delta rule and their
//! widths, C = 2 Hk Dk + Hv Dv its convolution channels; Hq, Hkv, D heads of attention and their width.

use super::matrix::Matrix;

/// Everything between token ids and logits. Never changes after loading.
#[derive(Debug)]
pub struct Weights {
    /// `[V, H]`
    pub embedding: Matrix,
    /// In order.
    pub layers: Vec<LayerWeights>,
    /// `[H]`
    pub final_norm: Vec<f32>,
    /// `[V, H]`; the embedding where it is tied.
    pub head: Matrix,
}

/// One decoder layer.
#[derive(Debug)]
pub struct LayerWeights {
    /// `[H]`
    pub input_norm: Vec<f32>,
    /// What mixes tokens.
    pub mixer: MixerWeights,
    /// `[H]`
    pub post_norm: Vec<f32>,
    /// What follows.
    pub feed_forward: SwiGluWeights,
}

/// The two kinds of token mixer.
#[derive(Debug)]
pub enum MixerWeights {
    /// Gated DeltaNet.
    GatedDelta(DeltaWeights),
    /// Gated attention.
    Attention(AttentionWeights),
}

/// Gated DeltaNet.
#[derive(Debug)]
pub struct DeltaWeights {
    /// Queries, keys and values before the convolution: `[C, H]`
    pub qkv: Matrix,
    /// Output gate: `[Hv Dv, H]`
    pub z: Matrix,
    /// Decay: `[Hv, H]`
    pub a: Matrix,
    /// Rate: `[Hv, H]`
    pub b: Matrix,
    /// Short convolution, oldest tap first: `[4, C]`
    pub conv: Vec<f32>,
    /// `e^A_log`: `[Hv]`
    pub decay_rate: Vec<f32>,
    /// `[Hv]`
    pub dt_bias: Vec<f32>,
    /// `[Dv]`
    pub norm: Vec<f32>,
    /// `[H, Hv Dv]`
    pub out: Matrix,
}

/// Gated attention.
#[derive(Debug)]
pub struct AttentionWeights {
    /// Each head's query, then its gate: `[Hq 2 D, H]`
    pub query: Matrix,
    /// `[Hkv D, H]`
    pub key: Matrix,
    /// `[Hkv D, H]`
    pub value: Matrix,
    /// `[D]`
    pub query_norm: Vec<f32>,
    /// `[D]`
    pub key_norm: Vec<f32>,
    /// `[H, Hq D]`
    pub out: Matrix,
}

/// SwiGLU.
#[derive(Debug)]
pub struct SwiGluWeights {
    /// `[I, H]`
    pub gate: Matrix,
    /// `[I, H]`
    pub up: Matrix,
    /// `[H, I]`
    pub down: Matrix,
}

impl Weights {
    /// Calls `visit` with each matrix and the part of its checkpoint name after the model's prefix; the head only if it
    /// is not the embedding.
    pub fn each_matrix<'a>(&'a self, visit: &mut dyn FnMut(String, &'a Matrix)) {
        visit("embed_tokens.weight".into(), &self.embedding);
        for (i, layer) in self.layers.iter().enumerate() {
            for (name, matrix) in layer.matrices() {
                visit(format!("layers.{i}.{name}.weight"), matrix);
            }
        }
        if !std::ptr::eq(self.head.bytes(), self.embedding.bytes()) {
            visit("lm_head.weight".into(), &self.head);
        }
    }

    /// Calls `visit` with each vector and its name.
    pub fn each_vector<'a>(&'a self, visit: &mut dyn FnMut(String, &'a [f32])) {
        for (i, layer) in self.layers.iter().enumerate() {
            for (name, vector) in layer.vectors() {
                visit(format!("layers.{i}.{name}"), vector);
            }
        }
        visit("norm.weight".into(), &self.final_norm);
    }

    /// The name of a tensor that holds a number that is not finite. Reads all weights.
    pub fn find_non_finite(&self) -> Option<String> {
        let mut search = NonFinite::default();
        self.each_vector(&mut |name, vector| search.vector(name, vector));
        self.each_matrix(&mut |name, matrix| search.matrix(name, matrix));
        search.found
    }
}

/// Looks for the first tensor that holds a number that is not finite.
#[derive(Debug, Default)]
pub(super) struct NonFinite {
    pub(super) found: Option<String>,
}

impl NonFinite {
    pub(super) fn vector(&mut self, name: String, vector: &[f32]) {
        if self.found.is_none() && !vector.iter().all(|x| x.is_finite()) {
            self.found = Some(name);
        }
    }

    pub(super) fn matrix(&mut self, name: String, matrix: &Matrix) {
        if self.found.is_none() && !matrix.is_finite() {
            self.found = Some(name);
        }
    }
}

impl LayerWeights {
    /// All matrices with their names inside the layer.
    pub fn matrices(&self) -> Vec<(&'static str, &Matrix)> {
        let mut all = match &self.mixer {
            MixerWeights::GatedDelta(delta) => vec![
                ("linear_attn.in_proj_qkv", &delta.qkv),
                ("linear_attn.in_proj_z", &delta.z),
                ("linear_attn.in_proj_a", &delta.a),
                ("linear_attn.in_proj_b", &delta.b),
                ("linear_attn.out_proj", &delta.out),
            ],
            MixerWeights::Attention(attention) => vec![
                ("self_attn.q_proj", &attention.query),
                ("self_attn.k_proj", &attention.key),
                ("self_attn.v_proj", &attention.value),
                ("self_attn.o_proj", &attention.out),
            ],
        };
        let ff = &self.feed_forward;
        all.extend([("mlp.gate_proj", &ff.gate), ("mlp.up_proj", &ff.up), ("mlp.down_proj", &ff.down)]);
        all
    }

    /// All vectors with their names inside the layer.
    pub fn vectors(&self) -> Vec<(&'static str, &[f32])> {
        let mut all = vec![
            ("input_layernorm.weight", &self.input_norm[..]),
            ("post_attention_layernorm.weight", &self.post_norm[..]),
        ];
        match &self.mixer {
            MixerWeights::GatedDelta(delta) => all.extend([
                ("linear_attn.conv1d.weight", &delta.conv[..]),
                ("linear_attn.A_log", &delta.decay_rate[..]),
                ("linear_attn.dt_bias", &delta.dt_bias[..]),
                ("linear_attn.norm.weight", &delta.norm[..]),
            ]),
            MixerWeights::Attention(attention) => all.extend([
                ("self_attn.q_norm.weight", &attention.query_norm[..]),
                ("self_attn.k_norm.weight", &attention.key_norm[..]),
            ]),
        }
        all
    }
}
