//! Named views become typed weights.
pub mod convert;
pub mod fused;
pub mod gguf;
pub mod imports;
pub mod int4;
pub mod int4_asym;
pub mod int4_s8;
pub mod int8;
pub mod matrix;
pub mod model;
pub mod moments;
pub mod names;
pub mod quantize;
pub mod random;
pub mod recipe;
pub mod stored;
pub mod vision;
