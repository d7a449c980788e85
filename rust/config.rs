//! temporary
#[allow(missing_docs)]
mod t {
    #[derive(Clone, Debug, PartialEq, Eq, Copy)]
    pub enum LayerKind {
        GatedDelta,
        Attention,
    }
    #[derive(Clone, Debug)]
    pub struct DeltaConfig {
        pub key_heads: usize,
        pub value_heads: usize,
        pub key_dim: usize,
        pub value_dim: usize,
        pub conv_kernel: usize,
    }
    impl DeltaConfig {
        pub fn conv_dim(&self) -> usize {
            2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
        }
    }
    #[derive(Clone, Debug)]
    pub struct AttentionConfig {
        pub heads: usize,
        pub kv_heads: usize,
        pub head_dim: usize,
        pub output_gate: bool,
    }
    impl AttentionConfig {
        pub fn query_width(&self) -> usize {
            self.heads * self.head_dim * (1 + usize::from(self.output_gate))
        }
    }
    #[derive(Clone, Debug)]
    pub struct RopeConfig {
        pub theta: f64,
        pub rotary_dim: usize,
        pub sections: [usize; 3],
    }
    #[derive(Clone, Debug)]
    pub struct TextConfig {
        pub vocab_size: usize,
        pub hidden_size: usize,
        pub intermediate_size: usize,
        pub max_position_embeddings: usize,
        pub layers: Vec<LayerKind>,
        pub rms_norm_eps: f32,
        pub delta: DeltaConfig,
        pub attention: AttentionConfig,
        pub rope: RopeConfig,
        pub tie_word_embeddings: bool,
    }
    #[derive(Clone, Debug)]
    pub struct ModelConfig {
        pub model_type: String,
        pub text: TextConfig,
        pub has_vision: bool,
        pub eos_token_ids: Vec<u32>,
    }
    impl ModelConfig {
        pub fn parse(_path: &std::path::Path, _json: &[u8]) -> crate::Result<Self> {
            unimplemented!()
        }
    }
}
pub use t::*;
