//! Integer products of processors without VNNI (Haswell to Zen 3, Comet Lake).
//!
//! A four-way int8 dot is `vpmaddubsw` (u8 x i8 pairs into i16), then `vpmaddwd` with ones (i16 pairs into i32):
//!
//! ```text
//! INT4   pairs += w x a, eight times        at most 8 x 2 x 15 x 127 = 30,480: no overflow
//!        sums += pairs of pairs             once for a block
//! INT8   sums += pairs of |w| x (a with w's sign)     |w| <= 127 keeps a pair at 32,258; eight times for a block
//! ```
#![allow(unsafe_code, reason = "intrinsics, argued by the tier's token")]

use std::arch::x86_64::{
    __m256i, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_sign_epi8, _mm256_srli_epi16,
};

use super::avx2::{Avx2, Int2};
use super::{Products, align_frame, intrinsics};
use crate::kernels::lanes::Op;

/// Proof that this CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Maddubs(());

impl Maddubs {
    /// The instructions, if this CPU and operating system support them.
    pub(super) fn detect() -> Option<Self> {
        let supported = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c");
        supported.then_some(Self(()))
    }
}

/// `sum`, whose value the compiler cannot see through: so it leaves sums of integers in the order in which they are written.
/// Free to regroup them, it adds up token by token, needs all weights of a block at once, and keeps them in memory.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order(mut sum: __m256i) -> __m256i {
    // SAFETY: no instruction at all. Not `pure`: then these are not moved past each other.
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags));
    }
    sum
}

impl Maddubs {
    /// Nibbles of columns `4 j..4 j + 4` of a block's rows.
    #[inline(always)]
    pub(super) fn nibbles(self, block: &[u8; 256], j: usize) -> Int2 {
        let bytes = block[64 * (j % 4)..].first_chunk::<64>().expect("64 bytes");
        intrinsics! {
            let bytes = bytes.as_ptr().cast::<__m256i>();
            let mut w = [_mm256_loadu_si256(bytes), _mm256_loadu_si256(bytes.add(1))];
            for half in 0..2 {
                w[half] = if j < 4 { w[half] } else { _mm256_srli_epi16::<4>(w[half]) };
                w[half] = _mm256_and_si256(w[half], _mm256_set1_epi8(15));
            }
            w
        }
    }

    /// Activations `4 j..4 j + 4`, eight times.
    #[inline(always)]
    pub(super) fn quad(self, a: &[i8; 32], j: usize) -> __m256i {
        let [a, b, c, d] = a.as_chunks().0[j];
        intrinsics! { _mm256_set1_epi32(i32::from_ne_bytes([a, b, c, d].map(i8::cast_unsigned))) }
    }

    /// What sums of each token start from.
    #[inline(always)]
    pub(super) fn splat<const T: usize>(self, starts: [i32; T]) -> [Int2; T] {
        intrinsics! {
            let mut sums = [[_mm256_setzero_si256(); 2]; T];
            for t in 0..T {
                sums[t] = [_mm256_set1_epi32(starts[t]); 2];
            }
            sums
        }
    }

    /// Adds the products of nibbles of columns `4 j..4 j + 4`, two by two.
    #[inline(always)]
    fn add_pairs<const T: usize>(self, pairs: &mut [Int2; T], w: Int2, a: [&[i8; 32]; T], j: usize) {
        for t in 0..T {
            let a = self.quad(a[t], j);
            for half in 0..2 {
                intrinsics! {
                    pairs[t][half] = in_order(_mm256_add_epi16(pairs[t][half], _mm256_maddubs_epi16(w[half], a)));
                }
            }
        }
    }

    /// Adds both halves of each 32 bits to what sums start from.
    #[inline(always)]
    fn add_up<const T: usize>(self, pairs: &[Int2; T], starts: [i32; T]) -> [Int2; T] {
        let mut sums = self.splat(starts);
        for t in 0..T {
            for half in 0..2 {
                intrinsics! {
                    let sum = _mm256_madd_epi16(pairs[t][half], _mm256_set1_epi16(1));
                    sums[t][half] = _mm256_add_epi32(sums[t][half], sum);
                }
            }
        }
        sums
    }
}

impl Products for Maddubs {
    const UNSIGNED: bool = false;
    const TILE: usize = 4;

    #[inline]
    fn run<O: Op>(tier: Avx2<Self>, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_features<O: Op>(tier: Avx2<Maddubs>, op: O) -> O::Output {
            align_frame();
            op.run(tier)
        }
        // SAFETY: the tier holds the proof.
        unsafe { with_features(tier, op) }
    }

    #[inline(always)]
    fn dots_u4<const T: usize>(self, w: &[Int2; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        let mut pairs = self.splat([0; T]);
        for j in 0..8 {
            self.add_pairs(&mut pairs, w[j], a, j);
        }
        self.add_up(&pairs, starts)
    }

    #[inline(always)]
    fn block_u4<const T: usize>(self, block: &[u8; 256], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        let mut pairs = self.splat([0; T]);
        for j in 0..8 {
            self.add_pairs(&mut pairs, self.nibbles(block, j), a, j);
        }
        self.add_up(&pairs, starts)
    }

    #[inline(always)]
    fn dots_i8<const T: usize>(self, w: &[Int2; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        let mut sums = self.splat(starts);
        for half in 0..2 {
            for j in 0..8 {
                let w = w[j][half];
                for t in 0..T {
                    let a = self.quad(a[t], j);
                    intrinsics! {
                        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
                        let products = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                        sums[t][half] = in_order(_mm256_add_epi32(sums[t][half], products));
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn add_words(self, sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
        intrinsics! { _mm256_add_epi32(sum, _mm256_madd_epi16(w, a)) }
    }
}
