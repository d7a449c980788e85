//! A checkpoint: named byte views over files that are not trusted.
mod mmap;
pub mod safetensors;
pub mod writer;
