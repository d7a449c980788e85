//! Tests across modules, through the crate's public interface.

mod checkpoint;
mod convert;
mod kernels;
mod quantize;
mod sampler;
mod threads;
