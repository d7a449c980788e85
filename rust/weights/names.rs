//! From named tensors to the fields of [`Weights`]: every checkpoint name and every quirk of the families stands here.
//!
//! Quirks: the norms on the residual stream, queries and keys of hybrid models are zero-centred, so 1 is added to their
//! weights (the gated norm of the delta layers is not, nor is any norm of other models); the convolution is stored
//! `[C, 1, 4]` and used `[4, C]`; `A_log` is used as its exponential; a tied head is the embedding; experts are tensors of
//! their own, or stand stacked with gate and up projection in one. How Qwen3-Next's fused projections come apart is told
//! in [`fused`](super::fused).

use super::matrix::Matrix;
use super::model::{
    AttentionWeights, DeltaWeights, FeedForwardWeights, HeadNorms, LayerWeights, MixerWeights, MoeWeights,
    SharedExpert, SwiGluWeights, Weights,
};
use crate::config::{FeedForwardKind, LayerKind, TextConfig};
use crate::error::Result;
use crate::kernels::conv::{TAPS, taps_first};

/// Where tensors come from: a checkpoint, or random numbers of the right shapes.
pub trait Source {
    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool;
    /// The stack of matrices `name` `[count, rows, cols]`.
    fn stack(&mut self, name: &str, shape: [usize; 3]) -> Result<Vec<Matrix>>;
    /// The weight matrix `name` `[rows, cols]`.
    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix>;
    /// The vector (or small tensor, flattened) `name`.
    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;
}

/// Builds all weights of a text model. Names are those of a text-only checkpoint without their `model.` prefix.
pub fn load(config: &TextConfig, source: &mut dyn Source) -> Result<Weights> {
    let vocabulary = [config.vocab_size, config.hidden_size];
    let embedding = source.matrix("embed_tokens.weight", vocabulary)?;
    let layers = (0..config.layers.len())
        .map(|i| Layer { config, prefix: format!("layers.{i}"), source }.load(i))
        .collect::<Result<_>>()?;
    let final_norm = norm(config, source.vector("norm.weight", &[config.hidden_size])?);
    let head = if config.tie_word_embeddings {
        embedding.clone()
    } else {
        source.matrix("lm_head.weight", vocabulary)?
    };
    Ok(Weights { embedding, layers, final_norm, head })
}

/// The tensors of one layer.
struct Layer<'a> {
    config: &'a TextConfig,
    prefix: String,
    source: &'a mut dyn Source,
}

impl Layer<'_> {
    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.source.matrix(&format!("{}.{name}.weight", self.prefix), shape)
    }

    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.source.vector(&format!("{}.{name}", self.prefix), shape)
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Vec<f32>> {
        Ok(norm(self.config, self.vector(&format!("{name}.weight"), &[width])?))
    }

    fn load(mut self, index: usize) -> Result<LayerWeights> {
        let hidden = self.config.hidden_size;
        Ok(LayerWeights {
            input_norm: self.norm("input_layernorm", hidden)?,
            mixer: match self.config.layers[index] {
                LayerKind::GatedDelta => MixerWeights::GatedDelta(self.gated_delta()?),
                LayerKind::Attention => MixerWeights::Attention(self.attention()?),
            },
            post_norm: self.norm("post_attention_layernorm", hidden)?,
            feed_forward: match self.config.feed_forwards[index] {
                FeedForwardKind::Dense => FeedForwardWeights::Dense(
                    self.swiglu("mlp", self.config.intermediate_size.unwrap_or_default())?,
                ),
                FeedForwardKind::Moe => FeedForwardWeights::Moe(self.moe()?),
            },
        })
    }

    fn gated_delta(&mut self) -> Result<DeltaWeights> {
        let (hidden, delta) = (self.config.hidden_size, self.config.delta_shapes());
        let (heads, channels) = (delta.value_heads, delta.conv_dim());
        let out_width = heads * delta.value_dim;
        let value_dim = delta.value_dim;
        Ok(DeltaWeights {
            qkv: self.matrix("linear_attn.in_proj_qkv", [channels, hidden])?,
            z: self.matrix("linear_attn.in_proj_z", [out_width, hidden])?,
            a: self.matrix("linear_attn.in_proj_a", [heads, hidden])?,
            b: self.matrix("linear_attn.in_proj_b", [heads, hidden])?,
            conv: taps_first(&self.vector("linear_attn.conv1d.weight", &[channels, 1, TAPS])?, channels),
            decay_rate: self.vector("linear_attn.A_log", &[heads])?.into_iter().map(libm::expf).collect(),
            dt_bias: self.vector("linear_attn.dt_bias", &[heads])?,
            norm: self.vector("linear_attn.norm.weight", &[value_dim])?,
            out: self.matrix("linear_attn.out_proj", [hidden, out_width])?,
        })
    }

    fn attention(&mut self) -> Result<AttentionWeights> {
        let (hidden, attention) = (self.config.hidden_size, &self.config.attention);
        let (query_width, head_dim) = (attention.query_width(), attention.head_dim);
        let query_key_norms = self.config.query_key_norms;
        let (kv_width, out_width) = (attention.kv_heads * head_dim, attention.heads * head_dim);
        Ok(AttentionWeights {
            query: self.matrix("self_attn.q_proj", [query_width, hidden])?,
            key: self.matrix("self_attn.k_proj", [kv_width, hidden])?,
            value: self.matrix("self_attn.v_proj", [kv_width, hidden])?,
            norms: query_key_norms.then(|| self.head_norms(head_dim)).transpose()?,
            out: self.matrix("self_attn.o_proj", [hidden, out_width])?,
        })
    }

    fn head_norms(&mut self, head_dim: usize) -> Result<HeadNorms> {
        Ok(HeadNorms {
            query: self.norm("self_attn.q_norm", head_dim)?,
            key: self.norm("self_attn.k_norm", head_dim)?,
        })
    }

    fn swiglu(&mut self, prefix: &str, width: usize) -> Result<SwiGluWeights> {
        let hidden = self.config.hidden_size;
        Ok(SwiGluWeights {
            gate: self.matrix(&format!("{prefix}.gate_proj"), [width, hidden])?,
            up: self.matrix(&format!("{prefix}.up_proj"), [width, hidden])?,
            down: self.matrix(&format!("{prefix}.down_proj"), [hidden, width])?,
        })
    }

    fn moe(&mut self) -> Result<MoeWeights> {
        let (hidden, moe) = (self.config.hidden_size, self.config.moe_shapes());
        Ok(MoeWeights {
            router: self.matrix("mlp.gate", [moe.experts, hidden])?,
            experts: self.experts()?,
            shared: moe.shared_width.map(|width| self.shared_expert(width)).transpose()?,
            prefetch: false,
        })
    }

    fn shared_expert(&mut self, width: usize) -> Result<SharedExpert> {
        Ok(SharedExpert {
            gate: self.matrix("mlp.shared_expert_gate", [1, self.config.hidden_size])?,
            network: self.swiglu("mlp.shared_expert", width)?,
        })
    }

    /// Experts in one of two layouts: stacked, each one's gate above its up projection, or tensors of their own.
    fn experts(&mut self) -> Result<Vec<SwiGluWeights>> {
        let (hidden, moe) = (self.config.hidden_size, self.config.moe_shapes());
        let gate_up = format!("{}.{STACKED_GATE_UP}", self.prefix);
        if !self.source.has(&gate_up) {
            let one = |i| self.swiglu(&format!("mlp.experts.{i}"), moe.width);
            return (0..moe.experts).map(one).collect();
        }
        let gate_up = self.source.stack(&gate_up, [moe.experts, 2 * moe.width, hidden])?;
        let down = format!("{}.mlp.experts.down_proj", self.prefix);
        let down = self.source.stack(&down, [moe.experts, hidden, moe.width])?;
        let split = |(gate_up, down): (Matrix, Matrix)| {
            let (gate, up) = gate_up.split_rows(moe.width)?;
            Ok(SwiGluWeights { gate, up, down })
        };
        gate_up.into_iter().zip(down).map(split).collect()
    }
}

/// The experts' gate and up projections in one tensor `[E, 2 X, H]`.
const STACKED_GATE_UP: &str = "mlp.experts.gate_up_proj";

/// The factors of a norm from its stored weight.
fn norm(config: &TextConfig, mut weight: Vec<f32>) -> Vec<f32> {
    if config.zero_centred_norms {
        for w in &mut weight {
            *w += 1.0;
        }
    }
    weight
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ModelConfig;
    use crate::tensor::Bytes;
    use crate::weights::matrix::Format;

    /// Gives zeros for matrices and halves for vectors.
    struct Halves;

    impl Source for Halves {
        fn has(&self, _: &str) -> bool {
            false
        }

        fn stack(&mut self, name: &str, [count, rows, cols]: [usize; 3]) -> Result<Vec<Matrix>> {
            (0..count).map(|_| self.matrix(name, [rows, cols])).collect()
        }

        fn matrix(&mut self, _: &str, [rows, cols]: [usize; 2]) -> Result<Matrix> {
            Matrix::new(Format::F32, rows, cols, Bytes::new(vec![0; 4 * rows * cols]))
        }

        fn vector(&mut self, _: &str, shape: &[usize]) -> Result<Vec<f32>> {
            Ok(vec![0.5; shape.iter().product()])
        }
    }

    fn norms(model_type: &str) -> Vec<(String, f32)> {
        let json = serde_json::json!({
            "model_type": model_type, "vocab_size": 16, "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "layer_types": ["full_attention"], "max_position_embeddings": 16,
            "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6,
            "rope_theta": 1e4, "partial_rotary_factor": 0.5
        });
        let config = ModelConfig::parse(Path::new("config.json"), json.to_string().as_bytes()).unwrap();
        let weights = load(&config.text, &mut Halves).unwrap();
        let mut norms = Vec::new();
        weights.each_vector(&mut |name, vector| norms.push((name, vector[0])));
        norms
    }

    #[test]
    fn norms_are_zero_centred_in_hybrid_families_only() {
        for (model_type, factor, count) in
            [("qwen3_5_text", 1.5f32, 5), ("qwen3_vl_text", 0.5, 5), ("qwen3", 0.5, 5), ("llama", 0.5, 3)]
        {
            let norms = norms(model_type);
            assert_eq!(norms.len(), count, "two of the layer, the last, and perhaps queries and keys");
            for (name, x) in norms {
                assert_eq!(x.to_bits(), factor.to_bits(), "{model_type} {name}");
            }
        }
    }
}
