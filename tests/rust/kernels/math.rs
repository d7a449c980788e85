//! Accuracy of the functions on lanes against f64, and their behaviour at the edges.

use edgewise::kernels::Tier;
use edgewise::kernels::lanes::{LANES, Op, Simd};
use edgewise::kernels::math::{exp, gelu_erf, gelu_tanh, sigmoid, silu, softplus};
use edgewise::kernels::reference;

use super::support::{assert_same_bits, tiers};

#[derive(Clone, Copy, Debug)]
enum Function {
    Exp,
    Sigmoid,
    Silu,
    GeluTanh,
}

struct Evaluate<'a>(Function, &'a [f32]);

impl Op for Evaluate<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = vec![0.0; self.1.len()];
        let outputs = out.as_chunks_mut::<LANES>().0;
        for (x, out) in self.1.as_chunks::<LANES>().0.iter().zip(outputs) {
            let x = s.load(x);
            let y = match self.0 {
                Function::Exp => exp(s, x),
                Function::Sigmoid => sigmoid(s, x),
                Function::Silu => silu(s, x),
                Function::GeluTanh => gelu_tanh(s, x),
            };
            s.store(y, out);
        }
        out
    }
}

fn evaluate(tier: Tier, function: Function, x: f32) -> f32 {
    tier.run(Evaluate(function, &[x; LANES]))[0]
}

/// Every `stride`-th f32 of both signs with an absolute value in 2^-40..=`limit`.
fn dense(limit: f32, stride: usize) -> Vec<f32> {
    let positive = (2.0_f32.powi(-40).to_bits()..=limit.to_bits()).step_by(stride).map(f32::from_bits);
    let mut numbers: Vec<f32> = positive.flat_map(|x| [x, -x]).collect();
    numbers.truncate(numbers.len() / LANES * LANES);
    numbers
}

/// The largest distance from `exact` in units in the last place, and where it is.
fn worst(function: Function, numbers: &[f32], exact: impl Fn(f64) -> f64) -> (f64, f32) {
    let found = tiers().last().unwrap().run(Evaluate(function, numbers));
    let mut worst = (0.0, 0.0);
    for (&x, found) in numbers.iter().zip(found) {
        let exact = exact(f64::from(x));
        let unit = 2.0_f64.powi((exact.abs().log2().floor() as i32).max(-126) - 23);
        let error = (f64::from(found) - exact).abs() / unit;
        assert!(error.is_finite(), "{function:?}({x:e})");
        if error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

#[test]
fn exp_is_within_its_claim() {
    let numbers: Vec<f32> = dense(88.0, 101).into_iter().map(|x| x.max(-87.0)).collect();
    let (error, x) = worst(Function::Exp, &numbers, f64::exp);
    assert!(error <= 2.0, "{error} units at {x:e}");
}

#[test]
fn sigmoid_and_silu_are_close() {
    let numbers = dense(87.0, 211);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let (error, x) = worst(Function::Sigmoid, &numbers, sigmoid);
    assert!(error <= 4.0, "{error} units at {x:e}");
    let (error, x) = worst(Function::Silu, &numbers, |x| x * sigmoid(x));
    assert!(error <= 4.0, "{error} units at {x:e}");
}

/// An error in the argument grows with it, where the result is small beside it; so it is measured by the argument.
#[test]
fn gelus_are_close() {
    let numbers = dense(60.0, 211);
    let tanh = tiers().last().unwrap().run(Evaluate(Function::GeluTanh, &numbers));
    let erf = numbers.iter().map(|&x| gelu_erf(x)).collect();
    let check = |found: Vec<f32>, exact: fn(f64) -> f64| {
        for (&x, found) in numbers.iter().zip(found) {
            let error = (f64::from(found) - exact(f64::from(x))).abs();
            assert!(error <= 2e-7 * f64::from(x.abs()), "gelu({x:e}) is off by {error:e}");
        }
    };
    check(tanh, reference::gelu_tanh);
    check(erf, reference::gelu_erf);
}

#[test]
fn softplus_is_close() {
    for x in dense(100.0, 10_007) {
        let exact = f64::from(x).max(0.0) + (-f64::from(x).abs()).exp().ln_1p();
        let error = (f64::from(softplus(x)) - exact).abs();
        assert!(error <= 4e-7 * exact + 1e-44, "softplus({x:e}) is off by {error:e}");
    }
    assert!(softplus(f32::NAN).is_nan());
}

#[test]
fn functions_have_the_same_bits_on_every_tier() {
    let mut numbers = dense(f32::MAX, 10_007);
    numbers.extend(
        [[f32::NAN; LANES], [f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0.0; LANES]].concat(),
    );
    for function in [Function::Exp, Function::Sigmoid, Function::Silu, Function::GeluTanh] {
        let expected = tiers()[0].run(Evaluate(function, &numbers));
        for tier in &tiers()[1..] {
            let found = tier.run(Evaluate(function, &numbers));
            assert_same_bits(&format!("{function:?} on {}", tier.name()), &found, &expected);
        }
    }
}

#[test]
fn edges() {
    for tier in tiers() {
        let at = |function, x| evaluate(tier, function, x);
        assert_eq!(at(Function::Exp, 0.0), 1.0);
        assert_eq!(at(Function::Exp, -0.0), 1.0);
        assert_eq!(at(Function::Exp, f32::NEG_INFINITY), 0.0);
        assert_eq!(at(Function::Exp, -87.1), 0.0);
        assert!(at(Function::Exp, -87.0) > 0.0);
        assert_eq!(at(Function::Exp, f32::INFINITY), at(Function::Exp, 88.0));
        assert_eq!(at(Function::Sigmoid, 0.0), 0.5);
        assert_eq!(at(Function::Sigmoid, 100.0), 1.0);
        assert!(at(Function::Sigmoid, -100.0) < 1e-37);
        assert_eq!(at(Function::Silu, 0.0), 0.0);
        assert_eq!(at(Function::Silu, 100.0), 100.0);
        for function in [Function::Exp, Function::Sigmoid, Function::Silu, Function::GeluTanh] {
            assert!(at(function, f32::NAN).is_nan(), "{function:?} on {}", tier.name());
        }
    }
}
