//! The arithmetic: every operation written once over 16 lanes, run on a tier, split over a pool of threads.
//!
//! [`lanes`] says what a tier owes and how bits stay equal; [`linear`], [`norm`], [`conv`], [`delta_chunks`],
//! [`attention`], [`rope`] and [`activation`] are the operations of the model, each safe to call with slices whose
//! shapes it asserts. [`mod@reference`] has all of them once more as their formulas say.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod activation;
pub mod activations;
pub mod attention;
pub mod bf16;
pub mod conv;
pub mod cpu;
pub mod delta_chunks;
pub mod delta_rule;
pub mod delta_rule_arrays;
pub mod delta_rule_chunked;
mod disjoint;
mod elements;
pub mod experts;
pub mod gated_delta;
pub mod kv_cache;
pub mod lanes;
pub mod limits;
pub mod linear;
pub mod math;
pub mod norm;
mod pairs;
pub mod portable;
mod prefetch;
pub mod profile;
pub mod recorder;
pub mod reference;
pub mod rope;
pub mod routing;
mod shares;
pub mod tier;
mod tiles;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use cpu::Cpu;
pub use tier::Tier;
