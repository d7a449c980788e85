//! Tests of the whole crate, in one binary.

mod threads;
