//! Integer products of processors that have VNNI for 256 bits, but no AVX-512 (AVX-VNNI: Alder Lake with its small cores,
//! Alder Lake-N, Meteor Lake and later).
//!
//! `vpdpbusd` adds four products u8 x i8 to each 32-bit lane, `vpdpwssd` two of i16. A block is multiplied column by column:
//!
//! ```text
//! for each quad j of columns:          w = 16 rows in two registers: nibbles, or bytes made unsigned by 128 more
//!   for each token:  sums += w . a[j]                  2 products beside one load of four activations into all lanes
//! ```
//!
//! Beside `maddubs` a product of nibbles saves its addition, of bytes also a change of sign and a second product. A block of INT4
//! and a token take 26.5 instructions of arithmetic in a tile of four (16 products, 4 of f32, 6.5 to expand weights and scales),
//! where `maddubs` takes 44.5; some of the ports that multiply also add.
//!
//! AVX-512 has the same instructions in another encoding (`EVEX`). The tier in that encoding is there for tests on its
//! processors, in builds with the feature `evex`. What differs is a prefix of two instructions.
#![allow(unsafe_code, reason = "products argued by the token, and loads")]

use std::arch::asm;
use std::arch::x86_64::{__m256i, _mm256_set1_epi8, _mm256_xor_si256};

use super::avx2::{Avx2, Int2};
use super::maddubs::Maddubs;
use super::{Products, align_frame, intrinsics};
use crate::kernels::lanes::Op;

/// Proof that this CPU has what [`Maddubs`] needs and VNNI for 256 bits, in the encoding of AVX-512 if `EVEX`.
#[derive(Clone, Copy, Debug)]
pub struct Vnni<const EVEX: bool>(Maddubs);

impl Vnni<false> {
    /// The instructions, if this CPU and operating system support them.
    pub(super) fn detect() -> Option<Self> {
        let plain = Maddubs::detect()?;
        std::arch::is_x86_feature_detected!("avxvnni").then_some(Self(plain))
    }
}

#[cfg(feature = "evex")]
impl Vnni<true> {
    /// The instructions, if this CPU and operating system support them.
    pub(super) fn detect() -> Option<Self> {
        let plain = Maddubs::detect()?;
        let supported = std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512vnni");
        supported.then_some(Self(plain))
    }
}

/// An instruction that adds products to sums. Written as `asm!`, so that both encodings are compiled alike, for sixteen
/// registers; and not `pure`, so that these are not moved past each other: free to regroup them, the compiler adds up token by
/// token, needs all weights of a block at once, and keeps them in memory.
macro_rules! multiply_add {
    ($name:ident, $encoding:literal, $instruction:literal) => {
        /// # Safety
        /// This CPU has the instruction in this encoding.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn $name(mut sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
            // SAFETY: it is there, by the contract, and works on registers only.
            unsafe {
                asm!(
                    concat!($encoding, " ", $instruction, " {sum}, {w}, {a}"),
                    sum = inout(ymm_reg) sum,
                    w = in(ymm_reg) w,
                    a = in(ymm_reg) a,
                    options(nomem, nostack, preserves_flags),
                );
            }
            sum
        }
    };
}
multiply_add!(add_bytes, "{{vex}}", "vpdpbusd");
multiply_add!(add_words, "{{vex}}", "vpdpwssd");
multiply_add!(add_bytes_evex, "{{evex}}", "vpdpbusd");
multiply_add!(add_words_evex, "{{evex}}", "vpdpwssd");

impl<const EVEX: bool> Vnni<EVEX> {
    #[inline(always)]
    fn add_bytes(self, sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
        intrinsics! { if EVEX { add_bytes_evex(sum, w, a) } else { add_bytes(sum, w, a) } }
    }

    /// w + 128, which tells signed bytes as unsigned ones; what sums start from takes it back.
    #[inline(always)]
    fn unsigned(self, w: Int2) -> Int2 {
        intrinsics! {
            let sign = _mm256_set1_epi8(i8::MIN);
            [_mm256_xor_si256(w[0], sign), _mm256_xor_si256(w[1], sign)]
        }
    }

    /// Adds the products of columns `4 j..4 j + 4` of 16 rows, unsigned, and each token's activations.
    #[inline(always)]
    fn add_columns<const T: usize>(self, sums: &mut [Int2; T], w: Int2, a: [&[i8; 32]; T], j: usize) {
        for t in 0..T {
            let a = self.0.quad(a[t], j);
            for half in 0..2 {
                sums[t][half] = self.add_bytes(sums[t][half], w[half], a);
            }
        }
    }
}

impl<const EVEX: bool> Products for Vnni<EVEX> {
    const UNSIGNED: bool = true;
    const TILE: usize = 4;

    #[inline]
    fn run<O: Op>(tier: Avx2<Self>, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_features<O: Op, const EVEX: bool>(tier: Avx2<Vnni<EVEX>>, op: O) -> O::Output {
            align_frame();
            op.run(tier)
        }
        if !O::BLOCKS {
            return Avx2(tier.0.0).run(op);
        }
        // SAFETY: the tier holds the proof.
        unsafe { with_features(tier, op) }
    }

    #[inline(always)]
    fn dots_u4<const T: usize>(self, w: &[Int2; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        let mut sums = self.0.splat(starts);
        for j in 0..8 {
            self.add_columns(&mut sums, w[j], a, j);
        }
        sums
    }

    #[inline(always)]
    fn block_u4<const T: usize>(self, block: &[u8; 256], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        let mut sums = self.0.splat(starts);
        for j in 0..8 {
            self.add_columns(&mut sums, self.0.nibbles(block, j), a, j);
        }
        sums
    }

    #[inline(always)]
    fn dots_i8<const T: usize>(self, w: &[Int2; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        let mut sums = self.0.splat(starts);
        for j in 0..8 {
            self.add_columns(&mut sums, self.unsigned(w[j]), a, j);
        }
        sums
    }

    #[inline(always)]
    fn add_words(self, sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
        intrinsics! { if EVEX { add_words_evex(sum, w, a) } else { add_words(sum, w, a) } }
    }
}
