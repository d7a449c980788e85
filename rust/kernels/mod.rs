//! The arithmetic: every operation written once over 16 lanes, run on a tier, split over a pool of threads.
//!
//! [`lanes`] says what a tier owes and how bits stay equal; [`linear`], [`norm`], [`conv`], [`delta_rule`],
//! [`attention`], [`rope`] and [`activation`] are the operations of the model, each safe to call with slices whose
//! shapes it asserts.

pub mod activation;
pub mod activations;
pub mod attention;
pub mod conv;
pub mod cpu;
pub mod delta_rule;
mod disjoint;
mod elements;
pub mod kv_cache;
pub mod lanes;
pub mod linear;
mod math;
pub mod norm;
pub mod portable;
pub mod rope;
pub mod tier;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use cpu::Cpu;
pub use tier::Tier;
