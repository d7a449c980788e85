//! AVX-512 with VNNI (Ice Lake, Zen 4 and later): one register holds the sixteen lanes, and `vpdpbusd` adds four
//! int8 products to each of them. Where the CPU has it too (Cooper Lake, Sapphire Rapids, Zen 4 and later), `vdpbf16ps` adds two
//! products of bfloat16.
#![allow(unsafe_code, reason = "intrinsics, each argued by the token")]

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _CMP_LT_OQ, _CMP_UNORD_Q, _mm_loadu_si128,
    _mm_storeu_si128, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_abs_ps, _mm512_add_epi32,
    _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepi8_epi16, _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtepu32_epi64,
    _mm512_cvtneps_pbh, _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_cvtps_ph, _mm512_div_ps,
    _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_extractf64x4_pd, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_blend_epi32, _mm512_mask_blend_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_packs_epi32, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_slli_epi32, _mm512_srli_epi16, _mm512_srli_epi32, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_sub_ps, _mm512_xor_si512,
};

use super::avx2::{Avx2, Half2};
use super::intrinsics;
use super::maddubs::Maddubs;
use crate::kernels::lanes::{LANES, Op, Pair, Simd};

/// Proof that this CPU has AVX-512 F, BW, VL and VNNI, what the AVX2 tier needs, and `BF16` if that is true.
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const BF16: bool> {
    half: Avx2<Maddubs>,
}

/// AVX-512 with VNNI.
pub type Avx512Vnni = Avx512<false>;
/// The same with `vdpbf16ps`.
pub type Avx512Bf16 = Avx512<true>;

impl Avx512Bf16 {
    /// The tier, if this CPU and operating system support it.
    pub fn detect() -> Option<Self> {
        let Avx512Vnni { half } = Avx512Vnni::detect()?;
        std::arch::is_x86_feature_detected!("avx512bf16").then_some(Self { half })
    }

    /// Runs `op` compiled for this tier; for [`Avx512Vnni`], if it takes no products of bfloat16.
    #[inline]
    pub fn run<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")]
        fn with_features<O: Op>(tier: Avx512Bf16, op: O) -> O::Output {
            super::align_frame();
            op.run(tier)
        }
        if !O::PAIRS {
            return Avx512Vnni { half: self.half }.run(op);
        }
        // SAFETY: `self` proves the features.
        unsafe { with_features(self, op) }
    }
}

impl Avx512Vnni {
    /// The tier, if this CPU and operating system support it.
    pub fn detect() -> Option<Self> {
        let half = Avx2::<Maddubs>::detect()?;
        let supported = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512vnni");
        supported.then_some(Self { half })
    }

    /// Runs `op` compiled for this tier.
    #[inline]
    pub fn run<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn with_features<O: Op>(tier: Avx512Vnni, op: O) -> O::Output {
            super::align_frame();
            op.run(tier)
        }
        // SAFETY: `self` proves the features.
        unsafe { with_features(self, op) }
    }
}

impl<const BF16: bool> Avx512<BF16> {
    /// Lanes 0..8 and 8..16.
    #[inline(always)]
    fn halves(self, a: __m512) -> Half2 {
        intrinsics! {
            let high = _mm512_extractf64x4_pd::<1>(std::arch::x86_64::_mm512_castps_pd(a));
            [_mm512_castps512_ps256(a), std::arch::x86_64::_mm256_castpd_ps(high)]
        }
    }

    /// Adds the products of column vector `J` of some blocks of nibbles with each group of activations to `sums`.
    #[inline(always)]
    fn column<const T: usize, const N: usize, const J: usize>(
        self,
        blocks: [&[u8; 256]; N],
        a: [&[i8; 32]; T],
        sums: &mut [[__m512i; T]; N],
    ) {
        intrinsics! {
            let low = _mm512_set1_epi8(15);
            let mut w = [low; N];
            for n in 0..N {
                let bytes = _mm512_loadu_si512(blocks[n].as_ptr().add(64 * (J % 4)).cast());
                w[n] = _mm512_and_si512(if J < 4 { bytes } else { _mm512_srli_epi16::<4>(bytes) }, low);
            }
            for t in 0..T {
                let quad = in_register(_mm512_set1_epi32(a[t].as_ptr().cast::<i32>().add(J).read_unaligned()));
                for n in 0..N {
                    sums[n][t] = in_register(_mm512_dpbusd_epi32(sums[n][t], w[n], quad));
                }
            }
        }
    }

    /// Adds the products of eight byte vectors with each group of 32 activations to where it starts.
    ///
    /// Token by token inside each column vector: the chains of different tokens hide each other's latency in program order,
    /// so the processor's scheduler need not look far.
    #[inline(always)]
    fn dots<const T: usize>(self, w: &[__m512i; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [__m512i; T] {
        intrinsics! {
            let mut sums = [_mm512_set1_epi32(0); T];
            for t in 0..T {
                sums[t] = _mm512_set1_epi32(starts[t]);
            }
            for j in 0..8 {
                for t in 0..T {
                    let quad = a[t].as_ptr().cast::<i32>().add(j).read_unaligned();
                    sums[t] = _mm512_dpbusd_epi32(sums[t], w[j], _mm512_set1_epi32(quad));
                }
            }
            sums
        }
    }
}

/// `x`, in a register and in its place among its like: left to itself, the compiler loads an activation again for each of its
/// uses, and expands all weights of a block before it uses one.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_register(mut x: __m512i) -> __m512i {
    // SAFETY: no instruction at all. Not `pure`: then these are not moved past each other.
    unsafe {
        std::arch::asm!("/* {0} */", inout(zmm_reg) x, options(nomem, nostack, preserves_flags));
    }
    x
}

/// Sixteen bfloat16: the upper halves of `x`, rounded to nearest even.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_halves(x: __m512) -> __m256i {
    let bits = _mm512_castps_si512(x);
    let upper = _mm512_srli_epi32::<16>(bits);
    let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, _mm512_srli_epi32::<16>(rounded), quiet))
}

/// Bits as numbers.
#[inline(always)]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, and any bits are numbers.
    unsafe { std::mem::transmute(bits) }
}

/// Sixteen bfloat16 as bits.
#[inline(always)]
fn as_bits(numbers: __m256bh) -> __m256i {
    // SAFETY: both are 32 bytes, and any bits are integers.
    unsafe { std::mem::transmute(numbers) }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const TILE: usize = 8;
    const DOUBLE_TILE: usize = 6;
    const WIDE: bool = true;
    const UNSIGNED: bool = true;

    #[inline]
    fn apart<O: Op>(self, op: O) -> O::Output {
        let half = self.half;
        if BF16 { Avx512Bf16 { half }.run(op) } else { Avx512Vnni { half }.run(op) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        intrinsics! { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        intrinsics! { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 64]) -> __m512 {
        intrinsics! { _mm512_castsi512_ps(_mm512_loadu_si512(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> __m512 {
        intrinsics! { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[i8; LANES]) -> __m512 {
        intrinsics! { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> __m512 {
        intrinsics! {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn store(self, x: __m512, out: &mut [f32; LANES]) {
        intrinsics! { _mm512_storeu_ps(out.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn store_f16(self, x: __m512, out: &mut [u8; 32]) {
        intrinsics! { _mm256_storeu_si256(out.as_mut_ptr().cast::<__m256i>(), _mm512_cvtps_ph::<0>(x)) }
    }
    #[inline(always)]
    fn store_bf16(self, x: __m512, out: &mut [u8; 32]) {
        intrinsics! {
            let halves = if BF16 { as_bits(_mm512_cvtneps_pbh(x)) } else { upper_halves(x) };
            _mm256_storeu_si256(out.as_mut_ptr().cast(), halves);
        }
    }
    #[inline(always)]
    fn store_pairs(self, x: __m512, out: &mut [Pair; LANES / 2]) {
        let p = out.as_mut_ptr();
        intrinsics! {
            if BF16 {
                _mm512_storeu_si512(p.cast(), _mm512_cvtepu32_epi64(as_bits(_mm512_cvtneps_pbh(x))));
            } else {
                let numbers = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(upper_halves(x)));
                _mm512_storeu_si512(p.cast(), numbers);
            }
        }
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u8; 64]) -> __m512i {
        intrinsics! { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn dot_pair(self, acc: __m512, w: __m512i, a: &Pair) -> __m512 {
        intrinsics! {
            let [first, second] = [_mm512_set1_epi32(a[0].cast_signed()), _mm512_set1_epi32(a[1].cast_signed())];
            if BF16 {
                return _mm512_dpbf16_ps(acc, as_bf16(w), as_bf16(first));
            }
            let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w));
            let odd = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(-1 << 16)));
            let acc = _mm512_fmadd_ps(odd, _mm512_castsi512_ps(second), acc);
            _mm512_fmadd_ps(even, _mm512_castsi512_ps(first), acc)
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsics! { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        intrinsics! { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        intrinsics! { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512i {
        intrinsics! { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        intrinsics! { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        intrinsics! { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn reinterpret(self, a: __m512i) -> __m512 {
        intrinsics! { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn scale_exponent(self, a: __m512, n: __m512i) -> __m512 {
        intrinsics! { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32::<23>(n))) }
    }
    #[inline(always)]
    fn store_i8(self, a: __m512i, out: &mut [i8; LANES]) {
        intrinsics! { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(a)) }
    }

    #[inline(always)]
    fn store_i16(self, a: [__m512i; 2], out: &mut [i16; 2 * LANES]) {
        intrinsics! { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_packs_epi32(a[0], a[1])) }
    }

    #[inline(always)]
    fn load_u4(self, block: &[u8; 256]) -> [__m512i; 8] {
        intrinsics! {
            let low = _mm512_set1_epi8(15);
            let mut out = [low; 8];
            for j in 0..4 {
                let bytes = _mm512_loadu_si512(block.as_ptr().add(64 * j).cast());
                out[j] = _mm512_and_si512(bytes, low);
                out[j + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
            }
            out
        }
    }
    /// `vpdpbusd` wants unsigned weights: w + 128, taken back by what sums start from.
    #[inline(always)]
    fn load_i8(self, block: &[u8; 512]) -> [__m512i; 8] {
        intrinsics! {
            let sign = _mm512_set1_epi8(i8::MIN);
            let mut out = [sign; 8];
            for j in 0..8 {
                out[j] = _mm512_xor_si512(_mm512_loadu_si512(block.as_ptr().add(64 * j).cast()), sign);
            }
            out
        }
    }
    #[inline(always)]
    fn dot_u4(self, w: &[__m512i; 8], a: &[i8; 32], start: i32) -> __m512i {
        self.dots(w, [a], [start])[0]
    }
    #[inline(always)]
    fn dot_i8(self, w: &[__m512i; 8], a: &[i8; 32], start: i32) -> __m512i {
        self.dots(w, [a], [start])[0]
    }

    #[inline(always)]
    fn dots_u4<const T: usize>(self, w: &[__m512i; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [__m512i; T] {
        self.dots(w, a, starts)
    }
    #[inline(always)]
    fn dots_i8<const T: usize>(self, w: &[__m512i; 8], a: [&[i8; 32]; T], starts: [i32; T]) -> [__m512i; T] {
        self.dots(w, a, starts)
    }

    /// Of two blocks column by column, so that both take an activation when it is loaded: half as many loads are left beside
    /// as many products. Both fit the registers if each vector of weights is expanded, used and forgotten.
    #[inline(always)]
    fn blocks_u4<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 256]; N],
        a: [&[i8; 32]; T],
        starts: [i32; T],
    ) -> [[__m512i; T]; N] {
        let mut sums = [[self.splat_i32(0); T]; N];
        if N == 1 {
            sums[0] = self.block_u4(blocks[0], a, starts);
            return sums;
        }
        intrinsics! {
            for t in 0..T {
                for n in 0..N {
                    sums[n][t] = _mm512_set1_epi32(starts[t]);
                }
            }
            // One after the other by name: a loop over so much the compiler leaves a loop.
            self.column::<T, N, 0>(blocks, a, &mut sums);
            self.column::<T, N, 1>(blocks, a, &mut sums);
            self.column::<T, N, 2>(blocks, a, &mut sums);
            self.column::<T, N, 3>(blocks, a, &mut sums);
            self.column::<T, N, 4>(blocks, a, &mut sums);
            self.column::<T, N, 5>(blocks, a, &mut sums);
            self.column::<T, N, 6>(blocks, a, &mut sums);
            self.column::<T, N, 7>(blocks, a, &mut sums);
            sums
        }
    }

    #[inline(always)]
    fn blocks_i8<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 512]; N],
        a: [&[i8; 32]; T],
        starts: [i32; T],
    ) -> [[__m512i; T]; N] {
        intrinsics! {
            let sign = _mm512_set1_epi8(i8::MIN);
            let mut sums = [[sign; T]; N];
            for t in 0..T {
                for n in 0..N {
                    sums[n][t] = _mm512_set1_epi32(starts[t]);
                }
            }
            for j in 0..8 {
                let mut w = [sign; N];
                for n in 0..N {
                    let bytes = blocks[n].as_ptr().add(64 * j);
                    w[n] = _mm512_xor_si512(_mm512_loadu_si512(bytes.cast()), sign);
                }
                for t in 0..T {
                    let quad = _mm512_set1_epi32(a[t].as_ptr().cast::<i32>().add(j).read_unaligned());
                    for n in 0..N {
                        sums[n][t] = _mm512_dpbusd_epi32(sums[n][t], w[n], quad);
                    }
                }
            }
            sums
        }
    }
    #[inline(always)]
    fn blocks_i16<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 512]; N],
        a: [&[i16; 32]; T],
    ) -> [[__m512i; T]; N] {
        intrinsics! {
            let mut sums = [[_mm512_set1_epi32(0); T]; N];
            for j in 0..16 {
                let mut w = [sums[0][0]; N];
                for n in 0..N {
                    let bytes = blocks[n].as_ptr().add(32 * j);
                    w[n] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes.cast()));
                }
                for t in 0..T {
                    let pair = _mm512_set1_epi32(a[t].as_ptr().cast::<i32>().add(j).read_unaligned());
                    for n in 0..N {
                        sums[n][t] = _mm512_dpwssd_epi32(sums[n][t], w[n], pair);
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        self.half.sum(self.halves(a))
    }
    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        self.half.max_lane(self.halves(a))
    }
}
