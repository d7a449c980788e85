//! Picking tokens.
pub mod sampler;
