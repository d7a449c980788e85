//! Products with asymmetric INT4 blocks of scales and offsets that no quantiser would choose.

use edgewise::kernels::reference;
use edgewise::tensor::Bytes;
use edgewise::weights::matrix::{Format, Matrix};
use half::f16;
use proptest::prelude::*;

use super::linear::multiply;
use super::support::{
    Random, SIZES, TOKENS, assert_close, assert_same_bits, cpus, fastest, portable, same_on_all,
};

/// Random nibbles; scales and offsets are what the two functions draw.
fn blocks(
    random: &mut Random,
    [rows, cols]: [usize; 2],
    scale: impl Fn(&mut Random) -> f32,
    offset: impl Fn(&mut Random) -> f32,
) -> Vec<u8> {
    let mut bytes = vec![0; Format::Int4Asym.bytes(rows, cols).unwrap()];
    for block in bytes.chunks_exact_mut(320) {
        block[..256].fill_with(|| random.bits() as u8);
        block[256..288].as_chunks_mut::<2>().0.fill_with(|| f16::from_f32(scale(random)).to_le_bytes());
        block[288..].as_chunks_mut::<2>().0.fill_with(|| f16::from_f32(offset(random)).to_le_bytes());
    }
    bytes
}

fn matrix([rows, cols]: [usize; 2], bytes: Vec<u8>) -> Matrix {
    Matrix::new(Format::Int4Asym, rows, cols, Bytes::new(bytes)).unwrap()
}

/// -1, 0 or 1 in every channel, so that the scale of a group is 1 / 127, or 0.
fn signs(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| (random.bits() % 3) as f32 - 1.0).collect()
}

#[test]
fn any_scales_and_offsets() {
    let (cpus, mut random) = (cpus(), Random::new(110));
    for size in [0.0, 0.1, 8.0, 300.0] {
        for (rows, tokens) in SIZES.into_iter().zip(TOKENS) {
            let shape = [rows, 100];
            let bytes = blocks(&mut random, shape, |r| r.uniform(-0.1, 0.1), |r| r.uniform(-size, size));
            let (weights, x) = (matrix(shape, bytes), random.numbers(tokens * shape[1]));
            let what = format!("offsets to {size}, {rows} rows x {tokens}");
            let found = same_on_all(&what, &cpus, |cpu| multiply(cpu, &x, &weights));
            let activations = reference::quantize_activations(&x, shape[1]);
            assert_close(&what, &found, &reference::quantized_matmul(&activations, &weights), 2e-5);
        }
    }
}

#[test]
fn without_offsets_it_is_int4_to_the_bit() {
    let (cpus, mut random) = (cpus(), Random::new(111));
    let shape = [40, 200];
    let bytes = blocks(&mut random, shape, |r| r.uniform(-0.1, 0.1), |_| 0.0);
    let symmetric = bytes.chunks_exact(320).flat_map(|block| &block[..288]).copied().collect::<Vec<_>>();
    let symmetric = Matrix::new(Format::Int4, shape[0], shape[1], Bytes::new(symmetric)).unwrap();
    let weights = matrix(shape, bytes);
    for tokens in TOKENS {
        let x = random.numbers(tokens * shape[1]);
        let found = same_on_all("asymmetric", &cpus, |cpu| multiply(cpu, &x, &weights));
        assert_same_bits("no offsets", &found, &multiply(&portable(), &x, &symmetric));
    }
}

/// Zero points of AWQ and GPTQ are whole: with scales of 1 the sums of a group are whole numbers too, and one of them leaves
/// nothing to round but the scale of activations.
#[test]
fn whole_offsets_are_exact() {
    let (cpus, mut random) = (cpus(), Random::new(112));
    let shape = [33, 32];
    let bytes = blocks(&mut random, shape, |_| 1.0, |r| (r.bits() % 17) as f32 - 8.0);
    let weights = matrix(shape, bytes);
    let values = weights.to_f32();
    assert!(values.iter().all(|w| w.fract() == 0.0 && w.abs() <= 16.0));
    let x = signs(&mut random, 9 * shape[1]);
    let found = same_on_all("whole", &cpus, |cpu| multiply(cpu, &x, &weights));
    for (i, found) in found.iter().enumerate() {
        let (x, w) = (&x[i / 33 * 32..][..32], &values[i % 33 * 32..][..32]);
        let sum: f32 = x.iter().zip(w).map(|(x, w)| 127.0 * x * w).sum();
        assert_eq!(*found, sum * (1.0 / 127.0));
    }
}

#[test]
fn rows_that_the_matrix_does_not_have_change_nothing() {
    let mut random = Random::new(113);
    let shape = [17, 64];
    let bytes = blocks(&mut random, shape, |r| r.uniform(-0.1, 0.1), |r| r.uniform(-2.0, 2.0));
    let mut other = bytes.clone();
    for block in other.chunks_exact_mut(320).skip(2) {
        for row in 1..16 {
            block[256 + 2 * row..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
            block[288 + 2 * row..][..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
        }
    }
    let x = random.numbers(3 * shape[1]);
    let expected = multiply(&portable(), &x, &matrix(shape, bytes));
    for cpu in cpus() {
        assert_same_bits("padding", &multiply(&cpu, &x, &matrix(shape, other.clone())), &expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(
        seed: u64, rows in 1_usize..60, cols in 1_usize..150, tokens in 1_usize..20, size in 0.0_f32..60.0,
    ) {
        let mut random = Random::new(seed);
        let bytes = blocks(&mut random, [rows, cols], |r| r.uniform(-0.1, 0.1), |r| r.uniform(-size, size));
        let (weights, x) = (matrix([rows, cols], bytes), random.numbers(tokens * cols));
        let found = same_on_all("any shape", &[portable(), fastest()], |cpu| multiply(cpu, &x, &weights));
        let alone: Vec<f32> = x.chunks(cols).flat_map(|row| multiply(&fastest(), row, &weights)).collect();
        assert_same_bits("alone", &alone, &found);
    }
}
