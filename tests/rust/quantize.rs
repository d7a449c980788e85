//! The block formats against a second reading of their description, and the promises of the quantiser.
// What is compared with `==` is promised to be exact.
#![allow(clippy::float_cmp)]

use edgewise::tensor::{Bytes, DType, TensorView};
use edgewise::threads::Pool;
use edgewise::weights::matrix::{Format, Matrix};
use edgewise::weights::quantize::{
    NotRepresentable, Rows, SquaredError, matrices, quantize_parallel, quantize_rows, quantize_tensor,
};
use half::{bf16, f16};
use proptest::prelude::*;

const BLOCKS: [Format; 2] = [Format::Int4, Format::Int8];

/// `[rows, cols]` weights in `format`.
pub fn quantize(format: Format, weights: &[f32], rows: usize, cols: usize) -> Vec<u8> {
    // Not zeros, so that a byte left unwritten shows.
    let mut out = vec![0xa5; format.bytes(rows, cols).unwrap()];
    quantize_rows(format, weights, rows, cols, &mut out).unwrap();
    out
}

/// The weights as a reader sees them.
pub fn restore(format: Format, data: Vec<u8>, rows: usize, cols: usize) -> Vec<f32> {
    Matrix::new(format, rows, cols, Bytes::new(data)).unwrap().to_f32()
}

pub fn round_trip(format: Format, weights: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    restore(format, quantize(format, weights, rows, cols), rows, cols)
}

/// One group of 32 through a matrix of one row.
fn group_round_trip(format: Format, group: &[f32]) -> Vec<f32> {
    round_trip(format, group, 1, group.len())
}

/// Level and scale of a weight, read straight from the description of the format.
fn naive(format: Format, data: &[u8], cols: usize, row: usize, col: usize) -> (i32, f32) {
    let blocks_per_panel = cols.div_ceil(32);
    let block_bytes = if format == Format::Int4 { 288 } else { 544 };
    let block = &data[((row / 16) * blocks_per_panel + col / 32) * block_bytes..][..block_bytes];
    let (r, quad, c) = (row % 16, col % 32 / 4, col % 4);
    let scales = &block[block_bytes - 32..];
    let scale = f16::from_bits(u16::from(scales[2 * r]) | u16::from(scales[2 * r + 1]) << 8).to_f32();
    let level = match format {
        Format::Int4 if quad < 4 => i32::from(block[64 * quad + 4 * r + c] % 16) - 8,
        Format::Int4 => i32::from(block[64 * (quad - 4) + 4 * r + c] / 16) - 8,
        _ => i32::from(block[64 * quad + 4 * r + c] as i8),
    };
    (level, scale)
}

/// Numbers in -1..1 that look random, the same everywhere.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

fn view(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> TensorView {
    TensorView {
        path: "w.safetensors".into(),
        name: "w".into(),
        dtype,
        shape: shape.to_vec(),
        bytes: Bytes::new(bytes),
    }
}

fn f32_view(shape: &[usize], weights: &[f32]) -> TensorView {
    view(DType::F32, shape, weights.iter().flat_map(|w| w.to_le_bytes()).collect())
}

/// A group whose levels and scale leave no choice: every level times 2^-exponent, the extreme first.
fn level_of(format: Format, row: usize, col: usize) -> i32 {
    match (format, col % 32) {
        (Format::Int4, 0) => -8,
        (Format::Int4, k) => (row * 5 + k * 3) as i32 % 15 - 7,
        (_, 0) => 127,
        (_, k) => (row * 31 + k * 57) as i32 % 253 - 126,
    }
}

fn scale_of(row: usize, col: usize) -> f32 {
    1.5 / (1 << ((row + 3 * (col / 32)) % 12)) as f32
}

#[test]
fn bytes_are_those_of_the_description() {
    for format in BLOCKS {
        for (rows, cols) in [(16, 32), (17, 65), (33, 96), (5, 7)] {
            let weights: Vec<_> = (0..rows * cols)
                .map(|i| (i / cols, i % cols))
                .map(|(row, col)| level_of(format, row, col) as f32 * scale_of(row, col))
                .collect();
            let data = quantize(format, &weights, rows, cols);
            for row in 0..rows.next_multiple_of(16) {
                for col in 0..cols.next_multiple_of(32) {
                    let (level, scale) = naive(format, &data, cols, row, col);
                    let inside = row < rows && col < cols;
                    let expected_level = if inside { level_of(format, row, col) } else { 0 };
                    let expected_scale = if row < rows { scale_of(row, col) } else { 0.0 };
                    assert_eq!((level, scale), (expected_level, expected_scale), "{format:?} {row} {col}");
                }
            }
            assert_eq!(restore(format, data, rows, cols), weights);
        }
    }
}

#[test]
fn first_bytes_of_a_block_written_out() {
    // Row 0 counts up: columns 0, 1, .. have levels -8, -7, .. -1, 0, .. 7, -8, .. ; row 1 is 2 everywhere.
    let mut weights: Vec<f32> = (0..32).map(|k| (k % 16 - 8) as f32 * 0.25).collect();
    weights.extend([2.0; 32]);
    let data = quantize(Format::Int4, &weights, 2, 32);
    assert_eq!(data[..4], [0x00, 0x11, 0x22, 0x33]);
    assert_eq!(data[64..68], [0x44, 0x55, 0x66, 0x77]);
    assert_eq!(data[192..196], [0xcc, 0xdd, 0xee, 0xff]);
    assert_eq!(data[4..8], [0x00; 4], "2 = -8 x -0.25");
    assert_eq!(data[8..64], [0x88; 56], "rows beyond the matrix");
    assert_eq!(data[256..262], [0x00, 0x34, 0x00, 0xb4, 0, 0], "0.25, -0.25, 0 as f16");

    let weights: Vec<f32> = (0..32).map(|k| if k == 0 { -127.0 } else { k as f32 }).collect();
    let data = quantize(Format::Int8, &weights, 1, 32);
    assert_eq!(data[..4], [0x7f, 0xff, 0xfe, 0xfd], "-127 = 127 x -1");
    assert_eq!(data[4..64], [0; 60]);
    assert_eq!(data[64..68], [0xfc, 0xfb, 0xfa, 0xf9]);
    assert_eq!(data[7 * 64..7 * 64 + 4], [0xe4, 0xe3, 0xe2, 0xe1]);
    assert_eq!(data[512..516], [0x00, 0xbc, 0, 0]);
}

#[test]
fn sizes_around_the_edges_of_blocks() {
    for format in BLOCKS {
        for rows in [0, 1, 15, 16, 17, 33] {
            for cols in [0, 1, 4, 31, 32, 33, 63, 65] {
                let weights = noise(rows * cols, 7);
                let data = quantize(format, &weights, rows, cols);
                let restored = restore(format, data.clone(), rows, cols);
                for (i, &stored) in restored.iter().enumerate() {
                    let (level, scale) = naive(format, &data, cols, i / cols, i % cols);
                    assert_eq!(stored, level as f32 * scale);
                }
                let of: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
                let bound = if format == Format::Int4 { 1e-2 } else { 3e-5 };
                assert!(squared_error(&weights, &restored) <= bound * of, "{format:?} [{rows}, {cols}]");
            }
        }
    }
}

#[test]
fn the_same_bits_on_every_machine() {
    let weights = noise(48 * 160, 3);
    let hash = |format| {
        let data = quantize(format, &weights, 48, 160);
        data.iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    // A change of the search is allowed to change these; a compiler or a CPU is not.
    assert_eq!(
        [hash(Format::Int4), hash(Format::Int8)],
        [5_311_485_219_306_599_904, 14_455_159_541_386_790_410]
    );
}

#[test]
fn zeros_and_negligible_groups_become_zeros() {
    let half_step = 2.0_f32.powi(-25);
    for format in BLOCKS {
        for w in [0.0, -0.0, half_step, -half_step, f32::MIN_POSITIVE, f32::from_bits(1)] {
            let data = quantize(format, &[w; 32], 1, 32);
            assert_eq!(naive(format, &data, 32, 0, 0), (0, 0.0), "{w:e}");
        }
    }
}

#[test]
fn no_group_needs_a_finer_scale_than_there_is() {
    let step = 2.0_f32.powi(-24);
    for format in BLOCKS {
        let group: Vec<_> = (0..32).map(|k| (k % 4 - 2) as f32 * 0.7 * step).collect();
        for (w, stored) in group.iter().zip(group_round_trip(format, &group)) {
            assert!((w - stored).abs() <= 0.5 * step, "{format:?} {w:e} {stored:e}");
        }
    }
}

#[test]
fn subnormal_scales_are_exact_too() {
    for format in BLOCKS {
        let (lowest, highest) = if format == Format::Int4 { (-8, 7) } else { (-127, 127) };
        for steps in [1, 2, 3, 5, 511, 1023] {
            let scale = f16::from_bits(steps).to_f32();
            let group: Vec<_> =
                (0..32).map(|k| (lowest + k * 5 % (highest - lowest + 1)) as f32 * scale).collect();
            assert_eq!(group_round_trip(format, &group), group, "{format:?} {scale:e}");
        }
    }
}

#[test]
fn the_largest_weights_that_fit() {
    for (format, largest) in [
        (Format::Int4, 8.0 * 65_504.0),
        (Format::Int8, 127.0 * 65_504.0),
        (Format::F16, 65_504.0),
        (Format::BF16, bf16::MAX.to_f32()),
        (Format::F32, f32::MAX),
    ] {
        for w in [largest, -largest] {
            assert_eq!(round_trip(format, &[w, 0.0], 1, 2), [w, 0.0], "{format:?}");
        }
    }
    let mut out = [0; 2];
    for (format, fits, too_large) in
        [(Format::F16, 65_519.0, 65_520.0), (Format::BF16, 3.394e38, f32::from_bits(0x7f7f_8000))]
    {
        assert!(quantize_rows(format, &[fits], 1, 1, &mut out).is_ok());
        assert!(quantize_rows(format, &[too_large], 1, 1, &mut out).is_err());
    }
}

#[test]
fn weights_that_do_not_fit_are_pointed_at() {
    for (format, bad) in [
        (Format::Int4, 524_033.0),
        (Format::Int8, 8_319_010.0),
        (Format::F16, 1e5),
        (Format::BF16, f32::MAX),
        (Format::F32, f32::NAN),
    ] {
        for value in [bad, -bad, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (row, column) in [(0, 0), (18, 39), (7, 33)] {
                let mut weights = noise(19 * 40, 1);
                weights[row * 40 + column] = value;
                weights[18 * 40 + 39] = value;
                let mut out = vec![0; format.bytes(19, 40).unwrap()];
                let found = quantize_rows(format, &weights, 19, 40, &mut out).unwrap_err();
                assert_eq!((found.row, found.column), (row, column), "{format:?} {value}");
                assert_eq!(found.value.to_bits(), value.to_bits());
            }
        }
    }
    let text = |value: f32| NotRepresentable { row: 3, column: 5, value }.to_string();
    assert_eq!(text(1e9), "the weight 1e9 at row 3, column 5 is too large for the format");
    assert_eq!(text(f32::NAN), "the weight NaN at row 3, column 5 is not a finite number");
}

#[test]
fn unquantised_formats_round_to_nearest_even() {
    for (format, inputs, expected) in [
        (
            Format::F16,
            [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -0.1],
            [1.0, 1.0 + 2.0 / 1024.0, -0.099_975_586],
        ),
        (
            Format::BF16,
            [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.1],
            [1.0, 1.0 + 2.0 / 128.0, -0.100_097_656],
        ),
        (Format::F32, [1.0 / 3.0, f32::from_bits(1), -0.0], [1.0 / 3.0, f32::from_bits(1), -0.0]),
    ] {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&round_trip(format, &inputs, 1, 3)), bits(&expected), "{format:?}");
    }
}

#[test]
fn panels_threads_and_slices_give_the_same_bytes() {
    let (rows, cols) = (16 * 9 + 5, 2080);
    let weights = noise(rows * cols, 11);
    let source = f32_view(&[rows, cols], &weights);
    for format in Format::ALL {
        let whole = quantize(format, &weights, rows, cols);
        let panels: Vec<u8> = weights
            .chunks(16 * cols)
            .flat_map(|panel| quantize(format, panel, panel.len() / cols, cols))
            .collect();
        assert_eq!(panels, whole);
        let mut errors = Vec::new();
        for threads in [1, 3] {
            let mut out = vec![0; whole.len()];
            let part = Rows { view: &source, start: 0, rows, cols };
            errors.push(quantize_parallel(&Pool::new(threads), format, part, &mut out).unwrap());
            assert_eq!(out, whole);
        }
        assert_eq!(errors[0], errors[1]);
        let expected = squared_error(&weights, &restore(format, whole, rows, cols));
        assert!((errors[0].lost - expected).abs() <= 1e-9 * expected, "{:?} {expected}", errors[0]);
    }
}

#[test]
fn every_matrix_of_a_stack_is_padded_for_itself() {
    let weights = noise(3 * 17 * 33, 5);
    let pool = Pool::new(2);
    for format in Format::ALL {
        let stack = quantize_tensor(&pool, &f32_view(&[3, 17, 33], &weights), format).unwrap();
        let each: Vec<u8> =
            weights.chunks(17 * 33).flat_map(|matrix| quantize(format, matrix, 17, 33)).collect();
        assert_eq!(stack, each);
        let convolution = quantize_tensor(&pool, &f32_view(&[17, 3, 11, 3, 1], &weights), format).unwrap();
        assert_eq!(convolution, quantize(format, &weights, 17, 99));
    }
}

#[test]
fn shapes_as_matrices() {
    for (shape, expected) in [
        (&[][..], [1, 1, 1]),
        (&[7], [1, 1, 7]),
        (&[7, 8], [1, 7, 8]),
        (&[7, 8, 9], [7, 8, 9]),
        (&[7, 2, 3, 4], [1, 7, 24]),
        (&[7, 0, 3, 4, 5], [1, 7, 0]),
    ] {
        assert_eq!(matrices(shape), Some(expected));
    }
    assert_eq!(matrices(&[usize::MAX, 2]), None);
    assert_eq!(matrices(&[2, 1 << 40, 1 << 40, 0, 1]), None);
}

#[test]
fn tensors_at_fault_are_named() {
    let pool = Pool::new(2);
    let mut weights = noise(100 * 2048, 2);
    weights[77 * 2048 + 5] = f32::INFINITY;
    weights[90 * 2048] = f32::NAN;
    for format in Format::ALL {
        let message =
            quantize_tensor(&pool, &f32_view(&[100, 2048], &weights), format).unwrap_err().to_string();
        let expected = "w.safetensors: tensor 'w': the weight inf at row 77, column 5 is not a finite number";
        assert_eq!(message, expected);
        let integers = view(DType::I64, &[1, 2], vec![0; 16]);
        let message = quantize_tensor(&pool, &integers, format).unwrap_err().to_string();
        assert!(message.contains("tensor 'w': cannot read I64 as floating point"), "{message}");
    }
}

#[test]
fn relative_error_of_nothing_is_none() {
    assert_eq!(SquaredError::default().relative(), 0.0);
    assert_eq!(SquaredError { lost: 1.0, of: 4.0 }.relative(), 0.25);
}

/// The squared error of the usual rule: absmax on the last level, scale rounded to f16, no search.
fn plain_error(group: &[f32], target: f32) -> f64 {
    let extreme = group.iter().fold(0.0_f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    let scale = f16::from_f32(extreme / target).to_f32();
    let (lowest, highest) = if target.abs() < 9.0 { (-8.0, 7.0) } else { (-127.0, 127.0) };
    let nearest =
        |w: f32| if scale == 0.0 { 0.0 } else { (w / scale).round().clamp(lowest, highest) * scale };
    let stored: Vec<_> = group.iter().map(|&w| nearest(w)).collect();
    squared_error(group, &stored)
}

#[test]
fn the_search_pays() {
    let weights: Vec<f32> = (0..8).fold(vec![0.0; 32 * 500], |sum, seed| {
        sum.iter().zip(noise(32 * 500, seed)).map(|(a, b)| a + b).collect()
    });
    for (format, target, most) in [(Format::Int4, 7.0, 0.75), (Format::Int8, 127.0, 0.85)] {
        let plain: f64 = weights.chunks(32).map(|group| plain_error(group, target)).sum();
        let searched = squared_error(&weights, &round_trip(format, &weights, 500, 32));
        assert!(searched <= most * plain, "{format:?}: {}", searched / plain);
    }
}

/// Groups of very different size and shape.
fn groups() -> impl Strategy<Value = Vec<f32>> {
    let exponent = -28..16;
    (exponent, prop::collection::vec((-1.0_f32..1.0, 0..4_i32), 1..=32)).prop_map(|(exponent, group)| {
        group.into_iter().map(|(w, power)| w.powi(power.max(1)) * 2.0_f32.powi(exponent)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn each_weight_is_on_the_nearest_level(group in groups()) {
        for format in BLOCKS {
            let (lowest, highest) = if format == Format::Int4 { (-8, 7) } else { (-127, 127) };
            let data = quantize(format, &group, 1, group.len());
            for (k, &w) in group.iter().enumerate() {
                let (level, scale) = naive(format, &data, group.len(), 0, k);
                prop_assert!((lowest..=highest).contains(&level));
                let error = (w - level as f32 * scale).abs();
                let clipped = scale != 0.0 && !(lowest as f32..=highest as f32).contains(&(w / scale));
                if clipped {
                    prop_assert!(level == lowest || level == highest);
                } else if scale != 0.0 {
                    prop_assert!(error <= scale.abs() * 0.500_01, "{format:?} {w:e} level {level} scale {scale:e}");
                }
            }
        }
    }

    #[test]
    fn never_worse_than_zeros_or_the_plain_rule(group in groups()) {
        let zeros: f64 = group.iter().map(|&w| f64::from(w).powi(2)).sum();
        for format in BLOCKS {
            let error = squared_error(&group, &group_round_trip(format, &group));
            prop_assert!(error <= zeros * 1.000_01, "{format:?}");
        }
        let error = squared_error(&group, &group_round_trip(Format::Int4, &group));
        // Below this the scale may be subnormal, and rounding it to f16 outweighs everything else.
        let normal = group.iter().any(|w| w.abs() >= 2.0_f32.powi(-11));
        for target in [-8.0, 7.0, -7.0].into_iter().filter(|_| normal) {
            // Least squares before the scale is rounded to f16: that rounding is all that can stand against it.
            let plain = plain_error(&group, target);
            prop_assert!(error <= plain * 1.000_1 + 1e-6 * zeros, "{target}: {error:e} {plain:e}");
        }
    }

    #[test]
    fn multiples_of_an_f16_come_back_exactly(
        scale in 1_u16..0x7c00, negative: bool, levels in prop::collection::vec(-8..=7_i32, 1..=32),
    ) {
        let scale = f16::from_bits(scale | u16::from(negative) << 15).to_f32();
        let group: Vec<_> = levels.iter().map(|&level| level as f32 * scale).collect();
        prop_assert_eq!(group_round_trip(Format::Int4, &group), group);
    }

    #[test]
    fn int8_is_exact_where_the_extreme_is_a_high_level(
        scale in 1_u16..0x7c00, extreme in 120..=127_i32, levels in prop::collection::vec(-120..=120_i32, 31),
    ) {
        let scale = f16::from_bits(scale).to_f32();
        let group: Vec<_> = levels.iter().chain([&extreme]).map(|&level| level as f32 * scale).collect();
        prop_assert_eq!(group_round_trip(Format::Int8, &group), group);
    }

    #[test]
    fn storing_twice_changes_nothing(group in groups()) {
        // INT8 finds levels again if the extreme's is at least 120, which subnormal scales do not promise.
        for format in [Format::F32, Format::F16, Format::BF16, Format::Int4] {
            let once = group_round_trip(format, &group);
            prop_assert_eq!(group_round_trip(format, &once), once);
        }
    }
}
