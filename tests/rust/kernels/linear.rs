//! Matrix products in every format.

use edgewise::kernels::Cpu;
use edgewise::kernels::activations::QuantizedRows;
use edgewise::kernels::linear::{Input, Product, Store, linear};
use edgewise::kernels::reference;
use edgewise::tensor::Bytes;
use edgewise::weights::matrix::{Format, Matrix};
use edgewise::weights::quantize::quantize_rows;
use proptest::prelude::*;

use super::support::{
    Random, SIZES, TOKENS, assert_close, assert_same_bits, cpus, fastest, portable, same_on_all,
};

/// Widths that are whole blocks and spans, half a block more, less than lanes, and odd.
const COLS: [usize; 10] = [64, 48, 1, 96, 31, 100, 160, 128, 129, 300];

pub fn matrix(random: &mut Random, format: Format, rows: usize, cols: usize) -> Matrix {
    let weights = random.numbers(rows * cols);
    let mut bytes = vec![0; format.bytes(rows, cols).unwrap()];
    quantize_rows(format, &weights, rows, cols, &mut bytes).unwrap();
    Matrix::new(format, rows, cols, Bytes::new(bytes)).unwrap()
}

/// x `[tokens, cols]` times one matrix, set.
pub fn multiply(cpu: &Cpu, x: &[f32], weights: &Matrix) -> Vec<f32> {
    let tokens = x.len() / weights.cols();
    let mut quantized = QuantizedRows::default();
    if weights.format().is_quantized() {
        quantized.fill(cpu, x, weights.cols());
    }
    let input = Input { dense: x, quantized: Some(&quantized), tokens };
    let mut out = vec![f32::NAN; tokens * weights.rows()];
    linear(cpu, input, [Product { weights, out: &mut out, store: Store::Set }]);
    out
}

fn expected(x: &[f32], weights: &Matrix) -> Vec<f32> {
    if weights.format().is_quantized() {
        reference::quantized_matmul(&reference::quantize_activations(x, weights.cols()), weights)
    } else {
        reference::matmul(x, &weights.to_f32(), weights.cols())
    }
}

fn check(cpus: &[Cpu], random: &mut Random, format: Format, rows: usize, cols: usize, tokens: usize) {
    let weights = matrix(random, format, rows, cols);
    let x = random.numbers(tokens * cols);
    let what = format!("{} [{rows}, {cols}] x {tokens}", format.name());
    let found = same_on_all(&what, cpus, |cpu| multiply(cpu, &x, &weights));
    assert_close(&what, &found, &expected(&x, &weights), 1e-5);
}

fn check_sizes(format: Format) {
    let (cpus, mut random) = (cpus(), Random::new(10));
    let mut cols = COLS.iter().cycle();
    for rows in SIZES {
        for tokens in TOKENS {
            check(&cpus, &mut random, format, rows, *cols.next().unwrap(), tokens);
        }
    }
    // Enough panels for several work items.
    check(&cpus, &mut random, format, 1000, 48, 9);
    check(&cpus, &mut random, format, 200, 1024, 3);
    check(&cpus, &mut random, format, 1000, 48, 40);
}

#[test]
fn f32_sizes() {
    check_sizes(Format::F32);
}

#[test]
fn f16_sizes() {
    check_sizes(Format::F16);
}

#[test]
fn bf16_sizes() {
    check_sizes(Format::BF16);
}

#[test]
fn int8_sizes() {
    check_sizes(Format::Int8);
}

#[test]
fn int4_sizes() {
    check_sizes(Format::Int4);
}

#[test]
fn int4_s8_sizes() {
    check_sizes(Format::Int4S8);
}

#[test]
fn int4_asym_sizes() {
    check_sizes(Format::Int4Asym);
}

/// ARM's tiers go over a panel by chunks of 16 blocks, with tiles of up to 12 tokens.
#[test]
fn wide_rows_in_tiles_of_all_sizes() {
    let (cpus, mut random) = (cpus(), Random::new(14));
    let cols = [512, 544, 1100, 1, 480, 1024];
    for format in [Format::Int4, Format::Int4S8, Format::Int4Asym, Format::Int8] {
        for (tokens, cols) in (1..=13).chain([23, 24]).zip(cols.iter().cycle()) {
            check(&cpus, &mut random, format, 37, *cols, tokens);
        }
    }
}

#[test]
fn a_token_alone_gets_the_same_bits_as_among_others() {
    let mut random = Random::new(11);
    for cpu in [portable(), fastest()] {
        for format in Format::ALL {
            let weights = matrix(&mut random, format, 40, 80);
            let x = random.numbers(17 * 80);
            let together = multiply(&cpu, &x, &weights);
            let alone: Vec<f32> = x.chunks(80).flat_map(|row| multiply(&cpu, row, &weights)).collect();
            assert_same_bits(format.name(), &alone, &together);
            let pieces = [multiply(&cpu, &x[..80 * 6], &weights), multiply(&cpu, &x[80 * 6..], &weights)];
            assert_same_bits(format.name(), &pieces.concat(), &together);
        }
    }
}

#[test]
fn several_products_of_one_input_add_or_set() {
    let mut random = Random::new(12);
    let (tokens, cols) = (5, 64);
    let weights =
        [Format::Int4, Format::F32, Format::Int8].map(|format| matrix(&mut random, format, 300, cols));
    let x = random.numbers(tokens * cols);
    let before = random.numbers(tokens * 300);
    let alone = weights.each_ref().map(|weights| multiply(&portable(), &x, weights));
    let added: Vec<f32> = before.iter().zip(&alone[1]).map(|(a, b)| a + b).collect();
    for cpu in cpus() {
        let mut quantized = QuantizedRows::default();
        quantized.fill(&cpu, &x, cols);
        let mut outs = [before.clone(), before.clone(), before.clone()];
        let [a, b, c] = &mut outs;
        let products = [
            Product { weights: &weights[0], out: a, store: Store::Set },
            Product { weights: &weights[1], out: b, store: Store::Add },
            Product { weights: &weights[2], out: c, store: Store::Set },
        ];
        linear(&cpu, Input { dense: &x, quantized: Some(&quantized), tokens }, products);
        assert_same_bits("set", &outs[0], &alone[0]);
        assert_same_bits("add", &outs[1], &added);
        assert_same_bits("set", &outs[2], &alone[2]);
    }
}

#[test]
fn no_tokens_are_no_work() {
    let weights = matrix(&mut Random::new(13), Format::Int4, 20, 40);
    assert!(multiply(&fastest(), &[], &weights).is_empty());
}

/// The INT8 activations are the reference's to the last bit, tiny and zero groups included.
#[test]
fn activations_are_quantized_as_defined() {
    let mut random = Random::new(14);
    for cols in [1, 16, 31, 32, 48, 100, 4096] {
        for size in [1.0, 1e-3, 1e4, 1e-30, 1e-31, 1e-38, 1e-44, 1e38, 0.0] {
            let x = random.between(9 * cols, -size, size);
            let expected = reference::quantize_activations(&x, cols);
            for cpu in cpus() {
                let mut rows = QuantizedRows::default();
                rows.fill(&cpu, &x, cols);
                assert_eq!(rows.groups(), expected, "{cols} columns up to {size:e} on {}", cpu.tier.name());
            }
        }
    }
}

/// Groups of other sizes than their span's largest, also by exact powers of two and the floats beside these.
#[test]
fn small_groups_have_finer_steps() {
    let mut random = Random::new(16);
    let (cols, mut x) = (5 * 128 - 7, Vec::new());
    for power in 0..20 {
        let mut row = random.between(cols, -1.0, 1.0);
        for (g, group) in row.chunks_mut(32).enumerate().filter(|(g, _)| g % 4 > 0) {
            let factor = 0.5_f32.powi(power * (g % 4) as i32);
            for x in &mut *group {
                *x *= factor;
            }
            let edge = [factor, factor.next_up(), factor.next_down()][g % 3];
            group[group.len() / 2] = edge;
        }
        for x in row.iter_mut().step_by(128) {
            *x = -1.0;
        }
        x.extend(row);
    }
    let expected = reference::quantize_activations(&x, cols);
    for cpu in cpus() {
        let mut rows = QuantizedRows::default();
        rows.fill(&cpu, &x, cols);
        assert_eq!(rows.groups(), expected, "on {}", cpu.tier.name());
    }
    for (row, groups) in x.chunks(cols).zip(expected.chunks(cols.div_ceil(32))) {
        for (x, group) in row.chunks(32).zip(groups) {
            let largest = x.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            let step = (largest / 63.5).max(0.5_f32.powi(15) / 127.0) * 1.000_001;
            assert!(group.step() <= step, "steps of {:e} for numbers up to {largest:e}", group.step());
            for (x, level) in x.iter().zip(group.values) {
                let error = (x - f32::from(level) * group.step()).abs();
                assert!(error <= 0.500_01 * group.step(), "{x:e} is {level} x {:e}", group.step());
            }
        }
    }
}

/// The largest sums that blocks can have: floats hold them and a step's last bit.
#[test]
fn the_largest_sums_are_exact() {
    for format in [Format::Int4, Format::Int8] {
        let extreme = if format == Format::Int4 { -8.0 } else { 127.0 };
        let weights = vec![extreme; 16 * 128];
        let mut bytes = vec![0; format.bytes(16, 128).unwrap()];
        quantize_rows(format, &weights, 16, 128, &mut bytes).unwrap();
        let weights = Matrix::new(format, 16, 128, Bytes::new(bytes)).unwrap();
        let x: Vec<f32> = (0..128).map(|i| 127.0 * 0.5_f32.powi(i / 32)).collect();
        let sum = extreme * 127.0 * 32.0 * (1.0 + 0.5 + 0.25 + 0.125);
        for cpu in cpus() {
            assert_same_bits(format.name(), &multiply(&cpu, &x, &weights), &[sum; 16]);
        }
    }
}

/// A cast would turn NaN into 0 and infinity into 127: a fault upstream must not end as plausible numbers.
#[test]
fn non_finite_activations_poison_their_token_only() {
    let mut random = Random::new(15);
    let (tokens, cols, faulty) = (6, 180, 2);
    let clean = random.numbers(tokens * cols);
    for cpu in cpus() {
        for format in Format::ALL {
            let weights = matrix(&mut random, format, 33, cols);
            let expected = multiply(&cpu, &clean, &weights);
            for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for column in [0, 17, 79, 179] {
                    let mut x = clean.clone();
                    x[faulty * cols + column] = fault;
                    let found = multiply(&cpu, &x, &weights);
                    for (token, (found, expected)) in found.chunks(33).zip(expected.chunks(33)).enumerate() {
                        if token == faulty {
                            assert!(found.iter().all(|y| !y.is_finite()), "{} {fault}", format.name());
                        } else {
                            assert_same_bits(format.name(), found, expected);
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape(seed: u64, format in 0..Format::ALL.len(), rows in 1_usize..90, cols in 1_usize..300, tokens in 1_usize..20) {
        let cpus = [portable(), fastest()];
        check(&cpus, &mut Random::new(seed), Format::ALL[format], rows, cols, tokens);
    }

    /// Integer arithmetic is exact, so scaling the input by a power of two scales the output by it.
    #[test]
    fn powers_of_two_pass_through(seed: u64, power in -20_i32..20) {
        let mut random = Random::new(seed);
        let weights = matrix(&mut random, Format::Int4, 20, 70);
        let x = random.numbers(3 * 70);
        let factor = 2.0_f32.powi(power);
        let scaled: Vec<f32> = x.iter().map(|x| x * factor).collect();
        let expected: Vec<f32> = multiply(&fastest(), &x, &weights).iter().map(|y| y * factor).collect();
        assert_same_bits("scaled", &multiply(&fastest(), &scaled, &weights), &expected);
    }
}
