//! From logits to the next token id.
//!
//! [`Sampler::sample`] takes one token's logits through these steps, the order in which transformers'
//! `generate` applies its logits processors and warpers (`GenerationMixin._get_logits_processor`):
//!
//! 1. **penalties** (`penalties`): repetition on every token seen, then frequency and presence on generated
//!    ones; suppressed ids are taken out;
//! 2. **temperature**: the distance to the highest logit is divided by it; 0 stops here and takes the highest;
//! 3. **top-k**, 4. **top-p**, 5. **min-p** (`filters`): each sees what the one before it left, renormalised;
//! 6. **draw** (`draw`): one 64-bit number of a seeded generator (`rng`) decides.
//!
//! Every filter keeps a prefix of the tokens in descending order of logit (equal logits: lowest id first), and
//! the draw walks the same order. So nothing is sorted but the top k (`ranking`) or the narrow band of logits
//! in which a walk ends (`bands`), and a random number means the same place in the distribution whatever
//! filters are on.
//!
//! All arithmetic is plain f32 and f64 in a fixed order with this module's own exponential (`softmax`) and
//! `libm`'s logarithm: the same logits, parameters and seed give the same tokens on every CPU.
//!
//! Log-probabilities (`logprobs`) describe the model, not the sampler: they come from the raw logits.
#![allow(clippy::float_cmp, reason = "ties and neutral parameters are exact, never approximate")]
#![allow(clippy::needless_bitwise_bool, reason = "loops over a vocabulary must not branch on each token")]

mod bands;
mod draw;
mod filters;
mod logprobs;
mod params;
mod penalties;
mod ranking;
mod rng;
pub mod sampler;
mod scan;
mod softmax;

pub use params::SamplingParams;
pub use sampler::{Choice, Sampler};
