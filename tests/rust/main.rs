//! Tests of the crate through its public interface; one binary.

mod sampler;
