//! Tests of the public interface of the Rust core.

mod kernels;
