//! Every kernel on every tier of this CPU: the same bits as the portable tier on one thread, close to the reference.
#![allow(clippy::float_cmp, reason = "exact results are what these tests are about")]

mod asymmetric;
mod attention;
mod delta_chunks;
mod delta_rule;
mod elementwise;
mod experts;
mod gated_delta;
mod golden;
mod int4_s8;
mod lanes;
mod linear;
mod math;
mod rope;
mod routing;
pub mod support;
mod vision;
