//! The weights of a text model: one field for each tensor, shapes in the comments.
//!
//! H hidden size, V vocabulary, I feed-forward width; Hk, Hv, Dk, Dv key and value heads of the delta rule and their
//! widths, C = 2 Hk Dk + Hv Dv its convolution channels; Hq, Hkv, D heads of attention and their width; E experts, X
//! an expert's width.

use std::collections::BTreeSet;

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
    pub feed_forward: FeedForwardWeights,
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

impl DeltaWeights {
    /// The matrices that read the layer's input.
    pub fn inputs(&self) -> [&Matrix; 4] {
        [&self.qkv, &self.z, &self.a, &self.b]
    }
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
    /// Those of queries and keys, in families that have them.
    pub norms: Option<HeadNorms>,
    /// `[H, Hq D]`
    pub out: Matrix,
}

/// Norms of each head.
#[derive(Debug)]
pub struct HeadNorms {
    /// `[D]`
    pub query: Vec<f32>,
    /// `[D]`
    pub key: Vec<f32>,
}

impl AttentionWeights {
    /// The matrices that read the layer's input.
    pub fn inputs(&self) -> [&Matrix; 3] {
        [&self.query, &self.key, &self.value]
    }
}

impl MixerWeights {
    /// Whether any matrix that reads the layer's input wants it as INT8.
    pub fn wants_quantized(&self) -> bool {
        match self {
            Self::GatedDelta(delta) => any_quantized(&delta.inputs()),
            Self::Attention(attention) => any_quantized(&attention.inputs()),
        }
    }
}

/// Whether any of `matrices` wants INT8 activations.
pub fn any_quantized(matrices: &[&Matrix]) -> bool {
    matrices.iter().any(|matrix| matrix.format().is_quantized())
}

/// The two kinds of feed-forward network.
#[derive(Debug)]
pub enum FeedForwardWeights {
    /// One network for every token.
    Dense(SwiGluWeights),
    /// Some small networks of many for each token.
    Moe(MoeWeights),
}

/// A mixture of experts.
#[derive(Debug)]
pub struct MoeWeights {
    /// Scores of the experts: `[E, H]`
    pub router: Matrix,
    /// Each `[X, H]`, `[X, H]`, `[H, X]`.
    pub experts: Vec<SwiGluWeights>,
    /// What every token goes through too.
    pub shared: Option<SharedExpert>,
    /// Whether chosen experts are asked for from disk before they are used: for files that memory cannot hold.
    pub prefetch: bool,
}

impl MixerWeights {
    /// All matrices with their names inside the layer.
    pub fn matrices(&self) -> Vec<(&'static str, &Matrix)> {
        match self {
            Self::GatedDelta(delta) => vec![
                ("linear_attn.in_proj_qkv", &delta.qkv),
                ("linear_attn.in_proj_z", &delta.z),
                ("linear_attn.in_proj_a", &delta.a),
                ("linear_attn.in_proj_b", &delta.b),
                ("linear_attn.out_proj", &delta.out),
            ],
            Self::Attention(attention) => vec![
                ("self_attn.q_proj", &attention.query),
                ("self_attn.k_proj", &attention.key),
                ("self_attn.v_proj", &attention.value),
                ("self_attn.o_proj", &attention.out),
            ],
        }
    }
}

impl FeedForwardWeights {
    /// Whether any matrix that reads the layer's input wants it as INT8.
    pub fn wants_quantized(&self) -> bool {
        match self {
            Self::Dense(network) => any_quantized(&[&network.gate, &network.up]),
            Self::Moe(moe) => moe.wants_quantized(),
        }
    }
}

impl MoeWeights {
    /// Whether any matrix that reads the layer's input wants it as INT8.
    pub fn wants_quantized(&self) -> bool {
        let shared =
            self.shared.iter().flat_map(|shared| [&shared.gate, &shared.network.gate, &shared.network.up]);
        let experts = self.experts.iter().flat_map(|expert| [&expert.gate, &expert.up]);
        let mut all = experts.chain(shared).chain([&self.router]);
        all.any(|matrix| matrix.format().is_quantized())
    }
}

impl MoeWeights {
    /// Bytes to read and operations to do (multiplications and additions, counted apart) where `tokens` tokens go to the experts
    /// `chosen`, counted once for each token.
    pub fn work(&self, chosen: &[u32], tokens: usize) -> (usize, usize) {
        let shared = self.shared.as_ref().map(|shared| &shared.network);
        let operations =
            |network: &SwiGluWeights| network.all().map(Matrix::operations).iter().sum::<usize>();
        let different: BTreeSet<_> = chosen.iter().collect();
        let networks = different.iter().map(|&&expert| &self.experts[expert as usize]).chain(shared);
        let routed: usize = chosen.iter().map(|&expert| operations(&self.experts[expert as usize])).sum();
        (networks.map(SwiGluWeights::nbytes).sum(), routed + tokens * shared.map_or(0, operations))
    }

    /// Begins to read these experts from disk, each of their matrices at once, where the file is larger than memory.
    ///
    /// Reading on demand would wait for one piece after the other, and a disk that answers many requests at a time would
    /// idle.
    pub fn will_need(&self, chosen: &[u32]) {
        if self.prefetch {
            for expert in chosen {
                let expert = &self.experts[*expert as usize];
                expert.all().into_iter().for_each(Matrix::will_need);
            }
        }
    }
}

/// The expert of all tokens, behind a gate.
#[derive(Debug)]
pub struct SharedExpert {
    /// The gate, before its sigmoid: `[1, H]`
    pub gate: Matrix,
    /// The network.
    pub network: SwiGluWeights,
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

    /// The mixtures of experts, by layer that has one.
    pub fn moes(&self) -> impl Iterator<Item = &MoeWeights> {
        self.layers.iter().filter_map(|layer| match &layer.feed_forward {
            FeedForwardWeights::Moe(moe) => Some(moe),
            FeedForwardWeights::Dense(_) => None,
        })
    }

    /// Decides about [`MoeWeights::prefetch`].
    pub fn set_prefetch(&mut self, prefetch: bool) {
        for layer in &mut self.layers {
            if let FeedForwardWeights::Moe(moe) = &mut layer.feed_forward {
                moe.prefetch = prefetch;
            }
        }
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
    /// All matrices with their names inside the layer. Those of experts carry the names of separate tensors, however
    /// they are stored.
    pub fn matrices(&self) -> Vec<(String, &Matrix)> {
        let mixer = self.mixer.matrices().into_iter();
        let mut all: Vec<_> = mixer.map(|(name, matrix)| (name.to_owned(), matrix)).collect();
        match &self.feed_forward {
            FeedForwardWeights::Dense(network) => all.extend(network.matrices("mlp")),
            FeedForwardWeights::Moe(moe) => {
                all.push(("mlp.gate".to_owned(), &moe.router));
                for (i, expert) in moe.experts.iter().enumerate() {
                    all.extend(expert.matrices(&format!("mlp.experts.{i}")));
                }
                if let Some(shared) = &moe.shared {
                    all.push(("mlp.shared_expert_gate".to_owned(), &shared.gate));
                    all.extend(shared.network.matrices("mlp.shared_expert"));
                }
            }
        }
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
            MixerWeights::Attention(attention) => {
                if let Some(norms) = &attention.norms {
                    all.push(("self_attn.q_norm.weight", &norms.query[..]));
                    all.push(("self_attn.k_norm.weight", &norms.key[..]));
                }
            }
        }
        all
    }
}

impl SwiGluWeights {
    /// Gate, up and down projection.
    pub fn all(&self) -> [&Matrix; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Bytes of the three matrices.
    pub fn nbytes(&self) -> usize {
        self.all().into_iter().map(|matrix| matrix.bytes().len()).sum()
    }

    /// The matrices with their names below `prefix`.
    fn matrices(&self, prefix: &str) -> [(String, &Matrix); 3] {
        [("gate_proj", &self.gate), ("up_proj", &self.up), ("down_proj", &self.down)]
            .map(|(name, matrix)| (format!("{prefix}.{name}"), matrix))
    }
}
