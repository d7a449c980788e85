//! Tests across modules, through the crate's public interface.

mod checkpoint;
mod convert;
mod quantize;
mod sampler;
mod threads;
