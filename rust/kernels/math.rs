//! Functions on lanes and on slices, each with one fixed order of operations.

use super::lanes::{LANES, Simd};

/// e^x to within 2 units in the last place; 0 below -87, e^88 above 88, NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7 (the remainder is below 2^-27);
/// 2^n by the exponent field. The bounds keep the result a normal number.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
    let lowest = s.splat(-87.0);
    let bounded = s.min(s.splat(88.0), s.max(lowest, x));
    let n = s.round(s.mul(bounded, s.splat(std::f32::consts::LOG2_E)));
    let n_f32 = s.to_f32(n);
    let r = s.fma(n_f32, s.splat(-LN2_HIGH), bounded);
    let r = s.fma(n_f32, s.splat(-LN2_LOW), r);
    let mut p = s.splat(TAYLOR[0]);
    for i in 1..6 {
        p = s.fma(p, r, s.splat(TAYLOR[i]));
    }
    let p = s.fma(p, s.mul(r, r), s.add(r, s.splat(1.0)));
    s.select_lt(x, lowest, s.splat(0.0), s.scale_exponent(p, n))
}

/// 1 / (1 + e^-x), to within 4 units in the last place for |x| <= 87.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

/// x sigmoid(x), to within 4 units in the last place for |x| <= 87.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// x Phi(x) by the approximation 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which is x sigmoid of twice that argument.
///
/// Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415).
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const SLOPE: f32 = -2.0 * 0.797_884_6;
    let cubic = s.fma(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
    let e = exp(s, s.mul(s.mul(s.splat(SLOPE), x), cubic));
    s.div(x, s.add(s.splat(1.0), e))
}

/// x Phi(x) by the error function, for one number. Plain `libm`, which is the same code on every machine.
pub fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// ln(1 + e^x), for one number. Plain `libm`, which is the same code on every machine.
pub fn softplus(x: f32) -> f32 {
    x.max(0.0) + libm::log1pf(libm::expf(-x.abs()))
}

/// The sum of squares of `x`, by lanes, a tail padded with zeros.
#[inline(always)]
pub fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut acc = s.splat(0.0);
    for chunk in chunks {
        let v = s.load(chunk);
        acc = s.fma(v, v, acc);
    }
    if !tail.is_empty() {
        let v = s.load(&padded(tail));
        acc = s.fma(v, v, acc);
    }
    s.sum(acc)
}

/// x . y, by lanes, a tail padded with zeros; `y` has the length of `x`.
#[inline(always)]
pub fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    let ((chunks, tail), (others, other_tail)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut acc = s.splat(0.0);
    for (x, y) in chunks.iter().zip(others) {
        acc = s.fma(s.load(x), s.load(y), acc);
    }
    if !tail.is_empty() {
        acc = s.fma(s.load(&padded(tail)), s.load(&padded(other_tail)), acc);
    }
    s.sum(acc)
}

/// The sum of `x`, by lanes, a tail padded with zeros.
#[inline(always)]
pub fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut acc = s.splat(0.0);
    for chunk in chunks {
        acc = s.add(acc, s.load(chunk));
    }
    if !tail.is_empty() {
        acc = s.add(acc, s.load(&padded(tail)));
    }
    s.sum(acc)
}

/// `x`, shorter than the lanes, filled up with zeros.
#[inline(always)]
pub fn padded(x: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    out[..x.len()].copy_from_slice(x);
    out
}

/// `zip_lanes!(s, out = [x in a, y in b] => expression)`: `out[i] = expression`, on lanes, a tail padded with zeros.
///
/// The inputs have the length of `out`. A macro and not a function that takes a closure: a closure is a function of its own,
/// which would be compiled without the tier's instructions.
macro_rules! zip_lanes {
    ($s:ident, $out:ident = [$($x:ident in $input:expr),+] => $value:expr) => {{
        let (width, whole) = ($out.len(), $out.len() / LANES);
        // So that the compiler need not check each place.
        $(assert!($input.as_chunks::<LANES>().0.len() >= whole);)+
        for i in 0..whole {
            $(let $x = $s.load(&$input.as_chunks().0[i]);)+
            $s.store($value, &mut $out.as_chunks_mut().0[i]);
        }
        let whole = whole * LANES;
        if whole < width {
            $(let $x = $s.load(&$crate::kernels::math::padded(&$input[whole..]));)+
            let mut last = [0.0; LANES];
            $s.store($value, &mut last);
            $out[whole..].copy_from_slice(&last[..width - whole]);
        }
    }};
}
pub(super) use zip_lanes;
