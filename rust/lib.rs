//! edgewise runs the Qwen3.5 family on a CPU.
//!
//! Data flows one way: a [`checkpoint`] is a set of named byte views over a mapped file; [`weights`] gives each
//! view its type (INT4, INT8, f16, bf16 or f32) and its place in the model; [`model`] turns token ids and a
//! sequence state into logits through the operations of [`kernels`], which run on a tier of vector instructions
//! and a pool of [`threads`]; [`generate`] picks the next token. Text, pixels and sockets live in Python.
//!
//! Weights, scratch memory and sequence state are three separate types: weights never change after loading, so
//! any number of sequences can share them.
#![deny(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod error;
mod floats;
pub mod generate;
#[allow(clippy::cast_ptr_alignment, reason = "the tiers use unaligned loads and stores")]
#[allow(clippy::large_stack_arrays, reason = "partial results of a tile live on the stack of the thread")]
#[allow(clippy::missing_panics_doc, reason = "all operations assert their shapes, as the module says")]
#[allow(clippy::unused_self, reason = "a tier's value is the proof of its CPU features")]
pub mod kernels;
mod large_pages;
pub mod memory;
pub mod model;
#[cfg(feature = "python")]
mod python;
pub mod tensor;
pub mod threads;
pub mod weights;

pub use error::{Error, Result};
