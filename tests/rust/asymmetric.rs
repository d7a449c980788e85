//! Asymmetric INT4 blocks: a second reading of their description, and the promises of their search.
#![allow(clippy::float_cmp, reason = "what is compared with `==` is promised to be exact")]

use edgewise::tensor::Bytes;
use edgewise::weights::matrix::{Format, Matrix};
use edgewise::weights::quantize::quantize_rows;
use half::f16;
use proptest::prelude::*;

use crate::quantize::{quantize, restore, round_trip};

const ASYM: Format = Format::Int4Asym;

/// Level, scale and offset of a weight, read straight from the description of the format.
fn naive(data: &[u8], cols: usize, row: usize, col: usize) -> (i32, f32, f32) {
    let block = &data[((row / 16) * cols.div_ceil(32) + col / 32) * 320..][..320];
    let (r, quad, c) = (row % 16, col % 32 / 4, col % 4);
    let half = |at: usize| f16::from_le_bytes([block[at + 2 * r], block[at + 2 * r + 1]]).to_f32();
    let byte = i32::from(block[64 * (quad % 4) + 4 * r + c]);
    (if quad < 4 { byte % 16 - 8 } else { byte / 16 - 8 }, half(256), half(288))
}

/// Numbers in -1..1 that look random, the same everywhere.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

fn hash(data: &[u8]) -> u64 {
    data.iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn bytes_are_those_of_the_description() {
    // Every row has all levels; scale and offset differ from row to row and block to block.
    for (rows, cols) in [(16, 32), (17, 64), (33, 96)] {
        let level = |row: usize, col: usize| ((row * 5 + col * 3) % 16) as i32 - 8;
        let scale = |row: usize, col: usize| 1.5 / (1 << ((row + col / 32) % 10)) as f32;
        let offset = |row: usize, col: usize| (row % 7) as f32 * 0.5 - (col / 32) as f32;
        let places = (0..rows * cols).map(|i| (i / cols, i % cols));
        let weights: Vec<_> =
            places.map(|(r, c)| (level(r, c) as f32 + offset(r, c)) * scale(r, c)).collect();
        let data = quantize(ASYM, &weights, rows, cols);
        assert_eq!(data.len(), rows.div_ceil(16) * cols / 32 * 320);
        for row in 0..rows.next_multiple_of(16) {
            for col in 0..cols {
                let expected = if row < rows {
                    (level(row, col), scale(row, col), offset(row, col))
                } else {
                    (0, 0.0, 0.0)
                };
                assert_eq!(naive(&data, cols, row, col), expected, "{row} {col}");
            }
        }
        assert_eq!(restore(ASYM, data, rows, cols), weights);
    }
}

#[test]
fn first_bytes_of_a_block_written_out() {
    // Row 0 counts up from 1: code 0 is 1, code 15 is 16 in steps of 1. Row 1 is 3 everywhere.
    let mut weights: Vec<f32> = (0..32).map(|k| (k % 16 + 1) as f32).collect();
    weights.extend([3.0; 32]);
    let data = quantize(ASYM, &weights, 2, 32);
    assert_eq!(data[..4], [0x00, 0x11, 0x22, 0x33]);
    assert_eq!(data[192..196], [0xcc, 0xdd, 0xee, 0xff]);
    assert_eq!(data[4..8], [0x99; 4], "level 1");
    assert_eq!(data[8..64], [0x88; 56], "rows beyond the matrix");
    assert_eq!(data[256..262], [0x00, 0x3c, 0x00, 0x42, 0, 0], "1, 3, 0 as f16");
    assert_eq!(data[288..294], [0x80, 0x48, 0, 0, 0, 0], "9, 0, 0 as f16");
}

#[test]
fn sizes_around_the_edges_of_blocks() {
    for rows in [0, 1, 15, 16, 17, 33] {
        for cols in [0, 1, 4, 31, 32, 33, 63, 65] {
            let weights = noise(rows * cols);
            let data = quantize(ASYM, &weights, rows, cols);
            let restored = restore(ASYM, data.clone(), rows, cols);
            for (i, &stored) in restored.iter().enumerate() {
                let (level, scale, offset) = naive(&data, cols, i / cols, i % cols);
                assert_eq!(stored, (level as f32 + offset) * scale);
            }
            let of: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
            assert!(squared_error(&weights, &restored) <= 1e-2 * of, "[{rows}, {cols}]");
        }
    }
}

#[test]
fn the_same_bits_on_every_machine() {
    // A change of the search is allowed to change this; a compiler or a CPU is not.
    assert_eq!(hash(&quantize(ASYM, &noise(48 * 160), 48, 160)), 13_634_515_737_646_043_129);
}

/// On weights with a mean, and a little on those without.
#[test]
fn it_loses_less_than_symmetric_levels() {
    let normal: Vec<f32> = noise(8 * 16_000).chunks(8).map(|part| part.iter().sum()).collect();
    for (mean, most) in [(0.0, 0.8), (1.0, 0.65), (4.0, 0.25)] {
        let weights: Vec<f32> = normal.iter().map(|w| w + mean).collect();
        let [asym, symmetric] = [ASYM, Format::Int4]
            .map(|format| squared_error(&weights, &round_trip(format, &weights, 500, 32)));
        assert!(asym <= most * symmetric, "{mean}: {}", asym / symmetric);
    }
}

#[test]
fn equal_weights_are_stored_as_their_f16() {
    for w in [0.0, 1.0, -3.0, 0.1, 65_504.0, 2.0_f32.powi(-24)] {
        let stored = round_trip(ASYM, &[w; 32], 1, 32);
        assert_eq!(stored, [f16::from_f32(w).to_f32(); 32]);
    }
}

#[test]
fn the_largest_weights_that_fit() {
    let largest = 7.0 * 65_504.0;
    for group in [[largest, -largest], [largest, 0.0], [-largest, 0.0]] {
        for (w, stored) in group.iter().zip(round_trip(ASYM, &group, 1, 2)) {
            assert!((w - stored).abs() <= 1e-3 * largest, "{w} {stored}");
        }
    }
    let mut out = [0; 320];
    for bad in [458_529.0, f32::NAN, f32::NEG_INFINITY] {
        let found = quantize_rows(ASYM, &[0.0, bad], 1, 2, &mut out).unwrap_err();
        assert_eq!((found.row, found.column), (0, 1));
    }
}

#[test]
fn scales_and_offsets_of_a_file_must_be_finite() {
    let data = quantize(ASYM, &noise(20 * 64), 20, 64);
    let is_finite = |data: Vec<u8>| Matrix::new(ASYM, 20, 64, Bytes::new(data)).unwrap().is_finite();
    assert!(is_finite(data.clone()));
    for at in [256, 286, 288, 318, 3 * 320 + 256, 3 * 320 + 318] {
        for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
            let mut data = data.clone();
            data[at..at + 2].copy_from_slice(&bad.to_le_bytes());
            assert!(!is_finite(data), "{at}");
        }
    }
    let nibbles: Vec<u8> = data.chunks(320).flat_map(|b| [&[0xff; 256], &b[256..]].concat()).collect();
    assert!(is_finite(nibbles), "nibbles may have any bits");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// What AWQ, GPTQ and others hold comes back to the bit, also if a tensor has to go through f32.
    #[test]
    fn grids_with_whole_zero_points_come_back_exactly(
        bits in 0x0800_u16..0x6800, negative: bool, zero in 0..=15_i32,
        codes in prop::collection::vec(0..=15_i32, 31),
    ) {
        let scale = f16::from_bits(bits | u16::from(negative) << 15).to_f32();
        let different = i32::from(codes[0] == 0);
        let codes = codes.into_iter().chain([different]);
        let group: Vec<_> = codes.map(|code| (code - zero) as f32 * scale).collect();
        prop_assert_eq!(round_trip(ASYM, &group, 1, 32), group);
    }

    /// Every weight is on its nearest level, but for those beyond the last ones.
    #[test]
    fn each_weight_is_on_the_nearest_level(
        exponent in -10..10_i32, mean in -8.0_f32..8.0, group in prop::collection::vec(-1.0_f32..1.0, 32),
    ) {
        let group: Vec<_> = group.iter().map(|w| (w + mean) * 2.0_f32.powi(exponent)).collect();
        let data = quantize(ASYM, &group, 1, 32);
        for (k, &w) in group.iter().enumerate() {
            let (level, scale, offset) = naive(&data, 32, 0, k);
            prop_assert!(scale != 0.0);
            let place = w / scale - offset;
            let inside = (-8.0..=7.0).contains(&place);
            prop_assert!(!inside || (place - level as f32).abs() <= 0.501, "{w:e} {level} {scale:e} {offset:e}");
            prop_assert!(inside || level == -8 || level == 7);
        }
    }
}
