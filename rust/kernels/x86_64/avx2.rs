//! AVX2 with FMA and F16C (Haswell, Zen and later): two registers hold the sixteen lanes.
//!
//! Integer products are those of [`maddubs`](super::maddubs), or of [`vnni`](super::vnni) where the CPU has them.
#![allow(unsafe_code, reason = "intrinsics, each argued by the token")]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_LT_OQ, _CMP_UNORD_Q, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32,
    _mm_loadl_epi64, _mm_loadu_si128, _mm_max_ps, _mm_max_ss, _mm_movehl_ps, _mm_shuffle_ps,
    _mm_storeu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256, _mm256_blendv_ps,
    _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps,
    _mm256_cvtepi8_epi16, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_cvtps_epi32, _mm256_cvtps_ph, _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_or_si256,
    _mm256_packs_epi16, _mm256_packs_epi32, _mm256_packus_epi32, _mm256_permute4x64_epi64,
    _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srli_epi16, _mm256_srli_epi32, _mm256_storeu_ps,
    _mm256_storeu_si256, _mm256_sub_ps,
};

use super::maddubs::Maddubs;
use super::vnni::Vnni;
use super::{Products, intrinsics};
use crate::kernels::lanes::{LANES, Op, Pair, Simd};

/// Sixteen f32: lanes 0..8 and 8..16.
pub type Half2 = [__m256; 2];
/// Sixteen i32, or 64 bytes.
pub type Int2 = [__m256i; 2];

/// The lanes in two registers, with integer products by `P`.
#[derive(Clone, Copy, Debug)]
pub struct Avx2<P>(pub(super) P);

impl Avx2<Maddubs> {
    /// The tier, if this CPU and operating system support it.
    pub fn detect() -> Option<Self> {
        Maddubs::detect().map(Self)
    }
}

impl Avx2<Vnni<false>> {
    /// The tier, if this CPU and operating system support it.
    pub fn detect() -> Option<Self> {
        Vnni::<false>::detect().map(Self)
    }
}

#[cfg(feature = "evex")]
impl Avx2<Vnni<true>> {
    /// The tier, if this CPU and operating system support it.
    pub fn detect() -> Option<Self> {
        Vnni::<true>::detect().map(Self)
    }
}

impl<P: Products> Avx2<P> {
    /// Runs `op` compiled for this tier.
    #[inline]
    pub fn run<O: Op>(self, op: O) -> O::Output {
        P::run(self, op)
    }

    /// Activations `2 j..2 j + 2`, eight times.
    #[inline(always)]
    fn pair(self, a: &[i16; 32], j: usize) -> __m256i {
        let low = i32::from(a[2 * j].cast_unsigned());
        intrinsics! { _mm256_set1_epi32(low | i32::from(a[2 * j + 1]) << 16) }
    }

    /// Weights of columns `2 j..2 j + 2` of a block's rows, widened.
    #[inline(always)]
    fn words(self, block: &[u8; 512], j: usize) -> Int2 {
        let bytes = block[32 * j..].first_chunk::<32>().expect("32 bytes");
        intrinsics! {
            let bytes = bytes.as_ptr().cast::<__m128i>();
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes)),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes.add(1))),
            ]
        }
    }
}

/// Eight bfloat16 in the low halves of eight words: the upper halves of `x`, rounded to nearest even.
#[inline]
#[target_feature(enable = "avx2")]
fn upper_halves(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let upper = _mm256_srli_epi32::<16>(bits);
    let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let quiet = _mm256_castsi256_ps(_mm256_or_si256(upper, _mm256_set1_epi32(0x40)));
    let rounded = _mm256_castsi256_ps(_mm256_srli_epi32::<16>(rounded));
    _mm256_castps_si256(_mm256_blendv_ps(rounded, quiet, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x)))
}

impl<P: Products> Simd for Avx2<P> {
    type F = Half2;
    type I = Int2;
    type B = Int2;
    const TILE: usize = P::TILE;
    const WIDE: bool = false;
    const UNSIGNED: bool = P::UNSIGNED;

    #[inline]
    fn apart<O: Op>(self, op: O) -> O::Output {
        self.run(op)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Half2 {
        intrinsics! { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Half2 {
        intrinsics! { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 64]) -> Half2 {
        intrinsics! {
            let p = x.as_ptr().cast::<__m256i>();
            [_mm256_castsi256_ps(_mm256_loadu_si256(p)), _mm256_castsi256_ps(_mm256_loadu_si256(p.add(1)))]
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Half2 {
        intrinsics! {
            let p = x.as_ptr().cast();
            [_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))]
        }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[i8; LANES]) -> Half2 {
        intrinsics! {
            let p = x.as_ptr();
            let [low, high] = [_mm_loadl_epi64(p.cast()), _mm_loadl_epi64(p.add(8).cast())];
            [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))]
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Half2 {
        intrinsics! {
            let p = x.as_ptr().cast();
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1)));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }
    #[inline(always)]
    fn store(self, x: Half2, out: &mut [f32; LANES]) {
        intrinsics! {
            _mm256_storeu_ps(out.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x[1]);
        }
    }
    #[inline(always)]
    fn store_f16(self, x: Half2, out: &mut [u8; 32]) {
        intrinsics! {
            let p = out.as_mut_ptr().cast();
            _mm_storeu_si128(p, _mm256_cvtps_ph::<0>(x[0]));
            _mm_storeu_si128(p.add(1), _mm256_cvtps_ph::<0>(x[1]));
        }
    }
    #[inline(always)]
    fn store_bf16(self, x: Half2, out: &mut [u8; 32]) {
        intrinsics! {
            // Packing works inside 128-bit halves: afterwards the quarters are lanes 0-3, 8-11, 4-7, 12-15.
            let words = _mm256_packus_epi32(upper_halves(x[0]), upper_halves(x[1]));
            let sorted = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), sorted);
        }
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u8; 64]) -> Int2 {
        intrinsics! {
            let p = x.as_ptr().cast::<__m256i>();
            [_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))]
        }
    }
    #[inline(always)]
    fn dot_pair(self, acc: Half2, w: Int2, a: &Pair) -> Half2 {
        let mut out = acc;
        intrinsics! {
            let [a_even, a_odd] = [_mm256_set1_ps(f32::from_bits(a[0])), _mm256_set1_ps(f32::from_bits(a[1]))];
            for i in 0..2 {
                let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w[i]));
                let odd = _mm256_castsi256_ps(_mm256_and_si256(w[i], _mm256_set1_epi32(-1 << 16)));
                out[i] = _mm256_fmadd_ps(even, a_even, _mm256_fmadd_ps(odd, a_odd, out[i]));
            }
        }
        out
    }

    #[inline(always)]
    fn add(self, a: Half2, b: Half2) -> Half2 {
        intrinsics! { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: Half2, b: Half2) -> Half2 {
        intrinsics! { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: Half2, b: Half2) -> Half2 {
        intrinsics! { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: Half2, b: Half2) -> Half2 {
        intrinsics! { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn fma(self, a: Half2, b: Half2, c: Half2) -> Half2 {
        intrinsics! { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn max(self, a: Half2, b: Half2) -> Half2 {
        intrinsics! { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn min(self, a: Half2, b: Half2) -> Half2 {
        intrinsics! { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn abs(self, a: Half2) -> Half2 {
        intrinsics! {
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
            [_mm256_and_ps(a[0], mask), _mm256_and_ps(a[1], mask)]
        }
    }
    #[inline(always)]
    fn select_lt(self, a: Half2, b: Half2, x: Half2, y: Half2) -> Half2 {
        intrinsics! {
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
            ]
        }
    }

    #[inline(always)]
    fn round(self, a: Half2) -> Int2 {
        intrinsics! { [_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])] }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Int2 {
        intrinsics! { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    fn to_f32(self, a: Int2) -> Half2 {
        intrinsics! { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    fn reinterpret(self, a: Int2) -> Half2 {
        intrinsics! { [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])] }
    }
    #[inline(always)]
    fn scale_exponent(self, a: Half2, n: Int2) -> Half2 {
        intrinsics! {
            let low = _mm256_add_epi32(_mm256_castps_si256(a[0]), _mm256_slli_epi32::<23>(n[0]));
            let high = _mm256_add_epi32(_mm256_castps_si256(a[1]), _mm256_slli_epi32::<23>(n[1]));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    fn store_i8(self, a: Int2, out: &mut [i8; LANES]) {
        intrinsics! {
            // Packing works inside 128-bit halves: afterwards the dwords hold lanes 0-3, 8-11, (again), 4-7, 12-15.
            let words = _mm256_packs_epi32(a[0], a[1]);
            let bytes = _mm256_packs_epi16(words, words);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
            let sorted = _mm256_permutevar8x32_epi32(bytes, order);
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_castsi256_si128(sorted));
        }
    }

    #[inline(always)]
    fn store_i16(self, a: [Int2; 2], out: &mut [i16; 2 * LANES]) {
        intrinsics! {
            let p = out.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(p, _mm256_packs_epi32(a[0][0], a[1][0]));
            _mm256_storeu_si256(p.add(1), _mm256_packs_epi32(a[0][1], a[1][1]));
        }
    }

    #[inline(always)]
    fn load_u4(self, block: &[u8; 256]) -> [Int2; 8] {
        intrinsics! {
            let low = _mm256_set1_epi8(15);
            let mut out = [[low; 2]; 8];
            for j in 0..4 {
                for half in 0..2 {
                    let bytes = _mm256_loadu_si256(block.as_ptr().add(64 * j + 32 * half).cast());
                    out[j][half] = _mm256_and_si256(bytes, low);
                    out[j + 4][half] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
                }
            }
            out
        }
    }
    #[inline(always)]
    fn load_i8(self, block: &[u8; 512]) -> [Int2; 8] {
        intrinsics! {
            let mut out = [[_mm256_setzero_si256(); 2]; 8];
            for j in 0..8 {
                for half in 0..2 {
                    out[j][half] = _mm256_loadu_si256(block.as_ptr().add(64 * j + 32 * half).cast());
                }
            }
            out
        }
    }
    #[inline(always)]
    fn dot_u4(self, w: &[Int2; 8], a: &[i8; 32], start: i32) -> Int2 {
        self.0.dots_u4(w, [a], [start])[0]
    }
    #[inline(always)]
    fn dot_i8(self, w: &[Int2; 8], a: &[i8; 32], start: i32) -> Int2 {
        self.0.dots_i8(w, [a], [start])[0]
    }
    #[inline(always)]
    fn dots_u4<const T: usize>(self, w: &[Int2; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        self.0.dots_u4(w, a, starts)
    }
    #[inline(always)]
    fn dots_i8<const T: usize>(self, w: &[Int2; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        self.0.dots_i8(w, a, starts)
    }
    #[inline(always)]
    fn block_u4<const T: usize>(self, block: &[u8; 256], a: [&[i8; 32]; T], starts: [i32; T]) -> [Int2; T] {
        self.0.block_u4(block, a, starts)
    }
    #[inline(always)]
    fn blocks_i16<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 512]; N],
        a: [&[i16; 32]; T],
    ) -> [[Int2; T]; N] {
        let mut sums = [[self.splat_i32(0); T]; N];
        for n in 0..N {
            for j in 0..16 {
                let w = self.words(blocks[n], j);
                for t in 0..T {
                    let a = self.pair(a[t], j);
                    for half in 0..2 {
                        sums[n][t][half] = self.0.add_words(sums[n][t][half], w[half], a);
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn sum(self, a: Half2) -> f32 {
        intrinsics! {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn max_lane(self, a: Half2) -> f32 {
        intrinsics! {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
