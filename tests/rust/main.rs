//! Tests across modules, through the crate's public interface.

mod asymmetric;
mod bit_identity;
mod calibration;
mod checkpoint;
mod convert;
mod engine;
mod float_mode;
mod int4_s8;
mod kept;
mod kernels;
mod models;
mod pictures;
mod prefix_cache;
mod profile;
mod quantize;
mod sampler;
mod step;
mod threads;
mod vision;
