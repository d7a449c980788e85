//! Integer products of processors with the dot product of bytes (ARMv8.2: Cortex-A55, A76 and later, Raspberry Pi 5).
//!
//! `sdot` adds four products to each 32-bit lane, and takes the four activations by their place in a register. So a
//! register of weights, four rows by four columns, is one instruction for each token:
//!
//! ```text
//! for each quad j of columns, for each 4 rows:   load 16 bytes, two expansions      shared by the tile
//!   for each token:  sums += low . a[j];  sums += high . a[j + 4]
//! ```
#![allow(unsafe_code, reason = "sdot, argued by the token, and loads")]

use std::arch::aarch64::{int8x16_t, int32x4_t, vdupq_n_s32, vld1q_s8};
use std::arch::asm;

use super::Products;
use super::intrinsics;
use super::neon::{Int4, Neon};
use super::weights::Weights;
use crate::kernels::lanes::Op;

/// Proof that this CPU has `sdot`.
#[derive(Clone, Copy, Debug)]
pub struct DotProd(());

impl DotProd {
    /// The instructions, if this CPU and operating system support them.
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }

    /// sum + four products in each lane: w's four bytes there x bytes `4 PLACE..` of `a`.
    #[inline(always)]
    fn sdot<const PLACE: u8>(self, sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        let out;
        // SAFETY: `self` proves the instruction, which works on registers only.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {a:v}.4b[{place}]",
                sum = inlateout(vreg) sum => out,
                w = in(vreg) w,
                a = in(vreg) a,
                place = const PLACE,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out
    }

    /// Adds the products with columns `4 J..4 J + 4` and, of the block's other half, `16 + 4 J..` to `sums`.
    #[inline(always)]
    fn columns<W: Weights, const T: usize, const J: u8>(
        self,
        w: W,
        a: &[[int8x16_t; 2]; T],
        sums: &mut [Int4; T],
    ) {
        for q in 0..4 {
            // SAFETY: J is below 4 in all calls, and so is q.
            let [low, high] = unsafe { w.pair(usize::from(J), q) };
            for t in 0..T {
                sums[t][q] = self.sdot::<J>(sums[t][q], low, a[t][0]);
            }
            for t in 0..T {
                sums[t][q] = self.sdot::<J>(sums[t][q], high, a[t][1]);
            }
        }
    }

    #[inline(always)]
    fn dots<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], mut sums: [Int4; T]) -> [Int4; T] {
        let mut halves = [[load_half(a[0], 0); 2]; T];
        for t in 0..T {
            halves[t] = [load_half(a[t], 0), load_half(a[t], 1)];
        }
        self.columns::<W, T, 0>(w, &halves, &mut sums);
        self.columns::<W, T, 1>(w, &halves, &mut sums);
        self.columns::<W, T, 2>(w, &halves, &mut sums);
        self.columns::<W, T, 3>(w, &halves, &mut sums);
        sums
    }
}

/// Activations `16 half..`.
#[inline(always)]
fn load_half(a: &[i8; 32], half: usize) -> int8x16_t {
    intrinsics! {
        let values = a[16 * half..].first_chunk::<16>().expect("16 activations");
        vld1q_s8(values.as_ptr())
    }
}

impl Products for DotProd {
    // Of four tokens, sums and results do not stay in registers: for a block of INT4 and a token that takes 81.5
    // instructions in place of 78, of INT8 69 in place of 66.
    const TILE: usize = 3;

    #[inline]
    fn run<O: Op>(tier: Neon<Self>, op: O) -> O::Output {
        #[target_feature(enable = "dotprod")]
        fn with_features<O: Op>(tier: Neon<DotProd>, op: O) -> O::Output {
            op.run(tier)
        }
        if !O::BLOCKS {
            return Neon::baseline().run(op);
        }
        // SAFETY: the tier holds the proof.
        unsafe { with_features(tier, op) }
    }

    #[inline(always)]
    fn dots_u4<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T], offsets: [i32; T]) -> [Int4; T] {
        intrinsics! {
            let mut sums = [[vdupq_n_s32(0); 4]; T];
            for t in 0..T {
                sums[t] = [vdupq_n_s32(offsets[t]); 4];
            }
            self.dots(w, a, sums)
        }
    }

    #[inline(always)]
    fn dots_i8<W: Weights, const T: usize>(self, w: W, a: [&[i8; 32]; T]) -> [Int4; T] {
        intrinsics! { self.dots(w, a, [[vdupq_n_s32(0); 4]; T]) }
    }
}
