//! Stored floating-point types as lanes: f32, f16, bf16, little endian, at any alignment.
#![allow(unsafe_code, reason = "reads from raw places; the callers know that 16 elements are there")]

use super::lanes::Simd;

/// A stored floating-point type.
pub trait Element {
    /// Bytes of one element.
    const SIZE: usize;

    /// Widens 16 elements.
    ///
    /// # Safety
    /// `x` points to 16 readable elements.
    unsafe fn load<S: Simd>(s: S, x: *const u8) -> S::F;
}

/// IEEE single precision.
pub struct F32;
impl Element for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, x: *const u8) -> S::F {
        // SAFETY: 64 bytes, by the contract.
        s.load_f32_bytes(unsafe { &*x.cast::<[u8; 64]>() })
    }
}

/// IEEE half precision.
pub struct F16;
impl Element for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, x: *const u8) -> S::F {
        // SAFETY: 32 bytes, by the contract.
        s.load_f16(unsafe { &*x.cast::<[u8; 32]>() })
    }
}

/// The upper half of an f32.
pub struct Bf16;
impl Element for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, x: *const u8) -> S::F {
        // SAFETY: 32 bytes, by the contract.
        s.load_bf16(unsafe { &*x.cast::<[u8; 32]>() })
    }
}
