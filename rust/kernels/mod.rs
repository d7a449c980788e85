//! The arithmetic: every operation written once over 16 lanes, run on a tier, split over a pool of threads.
//!
//! [`lanes`] says what a tier owes and how bits stay equal; [`linear`], [`norm`], [`conv`], [`delta_rule`],
//! [`attention`], [`rope`] and [`activation`] are the operations of the model, each safe to call with slices whose
//! shapes it asserts.

pub mod activations;
pub mod cpu;
mod disjoint;
pub mod lanes;
pub mod linear;
mod math;
pub mod portable;
pub mod tier;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use cpu::Cpu;
pub use tier::Tier;
