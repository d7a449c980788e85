//! A checkpoint: named byte views over files that are not trusted.
pub mod safetensors;
pub mod writer;
mod mmap;
