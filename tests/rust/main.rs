//! Tests across modules, through the crate's public interface.

mod bit_identity;
mod checkpoint;
mod engine;
mod models;
mod sampler;
mod threads;
