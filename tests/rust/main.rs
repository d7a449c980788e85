//! Tests across modules, through the crate's public interface.

mod checkpoint;
mod sampler;
mod threads;
