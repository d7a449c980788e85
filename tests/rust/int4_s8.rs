//! INT4 with scales of 8 bits: what its bytes mean, and what it loses.
#![allow(clippy::float_cmp, reason = "what is compared with `==` is promised to be exact")]

use edgewise::tensor::Bytes;
use edgewise::weights::matrix::{Format, Matrix};
use edgewise::weights::quantize::quantize_rows;
use half::f16;

use super::quantize::{noise, quantize, restore, squared_error};

const S8: Format = Format::Int4S8;

/// Level, scale and unit of a weight, read straight from the description of the format.
fn naive(data: &[u8], cols: usize, row: usize, col: usize) -> (i32, i32, f32) {
    let blocks = cols.div_ceil(32);
    let panel = &data[row / 16 * (272 * blocks + 64)..][..272 * blocks + 64];
    let (block, units) = (&panel[272 * (col / 32)..][..272], &panel[272 * blocks..]);
    let (r, quad, c) = (row % 16, col % 32 / 4, col % 4);
    let byte = block[64 * (quad % 4) + 4 * r + c];
    let nibble = if quad < 4 { byte % 16 } else { byte / 16 };
    let unit = f32::from_le_bytes([0, 1, 2, 3].map(|i| units[4 * r + i]));
    (i32::from(nibble) - 8, i32::from(block[256 + r] as i8), unit)
}

/// Levels and scales that leave no choice: in each row some group's largest weight is 889 units, and each group has an extreme that
/// only one level can hold.
fn chosen(row: usize, col: usize) -> (i32, i32) {
    let (group, k) = (col / 32, col % 32);
    match (group == row % 2, k) {
        (true, 0) => (-7, 127),
        (true, k) => ((row * 5 + k * 3) as i32 % 15 - 7, 127),
        (false, 0) => (-8, [-90, 33, 7, -1][(row + group) % 4]),
        (false, k) => ((row * 5 + k * 3) as i32 % 15 - 7, [-90, 33, 7, -1][(row + group) % 4]),
    }
}

#[test]
fn bytes_are_those_of_the_description() {
    for (rows, cols) in [(16, 64), (17, 65), (33, 96), (5, 39)] {
        let unit = |row: usize| 0.5_f32.powi(row as i32 % 7 + 9);
        let weights: Vec<f32> = (0..rows * cols)
            .map(|i| (i / cols, i % cols))
            .map(|(row, col)| {
                let (level, scale) = chosen(row, col);
                (level * scale) as f32 * unit(row)
            })
            .collect();
        let data = quantize(S8, &weights, rows, cols);
        for row in 0..rows.next_multiple_of(16) {
            for col in 0..cols.next_multiple_of(32) {
                let (level, scale, found_unit) = naive(&data, cols, row, col);
                let wanted = chosen(row, col);
                assert_eq!(found_unit, if row < rows { unit(row) } else { 0.0 });
                assert_eq!(scale, if row < rows { wanted.1 } else { 0 }, "{row} {col}");
                assert_eq!(level, if row < rows && col < cols { wanted.0 } else { 0 }, "{row} {col}");
            }
        }
        assert_eq!(restore(S8, data, rows, cols), weights);
    }
}

#[test]
fn sizes_around_the_edges_of_blocks() {
    for rows in [0, 1, 15, 16, 17, 33] {
        for cols in [0, 1, 4, 31, 32, 33, 63, 65] {
            let weights = noise(rows * cols, 7);
            let data = quantize(S8, &weights, rows, cols);
            let restored = restore(S8, data.clone(), rows, cols);
            for (i, &stored) in restored.iter().enumerate() {
                let (level, scale, unit) = naive(&data, cols, i / cols, i % cols);
                assert_eq!(stored, (level * scale) as f32 * unit);
            }
            let of: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
            assert!(squared_error(&weights, &restored) <= 1e-2 * of, "[{rows}, {cols}]");
        }
    }
}

/// What the format loses, in parts of what INT4 with f16 scales does.
fn loss_ratio(weights: &[f32], rows: usize, cols: usize) -> f64 {
    let [ours, halves] =
        [S8, Format::Int4].map(|format| restore(format, quantize(format, weights, rows, cols), rows, cols));
    squared_error(weights, &ours) / squared_error(weights, &halves)
}

#[test]
fn scales_of_8_bits_lose_hardly_more_than_f16() {
    let (rows, cols) = (32, 1024);
    let weights: Vec<f32> = noise(3 * rows * cols, 4).chunks(3).map(|x| x.iter().sum()).collect();
    let even = loss_ratio(&weights, rows, cols);
    assert!((0.99..1.005).contains(&even), "{even}");
    // One group in each row is larger than the others: those are left with fewer multiples of the unit.
    for (times, bound) in [(4.0, 1.02), (20.0, 1.2), (100.0, 2.5)] {
        let mut uneven = weights.clone();
        for row in uneven.chunks_mut(cols) {
            row[64..96].iter_mut().for_each(|w| *w *= times);
        }
        let (ours, halves) = (
            restore(S8, quantize(S8, &uneven, rows, cols), rows, cols),
            restore(Format::Int4, quantize(Format::Int4, &uneven, rows, cols), rows, cols),
        );
        // Of the small groups alone.
        let lost = |stored: &[f32]| -> f64 {
            let rows = uneven.chunks(cols).zip(stored.chunks(cols));
            rows.map(|(w, s)| squared_error(&w[..64], &s[..64]) + squared_error(&w[96..], &s[96..])).sum()
        };
        let ratio = lost(&ours) / lost(&halves);
        assert!((0.99..bound).contains(&ratio), "{times}: {ratio}");
    }
}

#[test]
fn the_same_bits_on_every_machine() {
    let data = quantize(S8, &noise(48 * 160, 3), 48, 160);
    let hash = data
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    // A change of the search is allowed to change this; a compiler or a CPU is not.
    assert_eq!(hash, 4_973_592_704_201_799_321);
}

#[test]
fn powers_of_two_move_into_the_unit() {
    let (rows, cols) = (16, 96);
    let weights = noise(rows * cols, 12);
    let plain = quantize(S8, &weights, rows, cols);
    for power in [-12, -1, 1, 15] {
        let factor = 2.0_f32.powi(power);
        let scaled: Vec<f32> = weights.iter().map(|w| w * factor).collect();
        let found = quantize(S8, &scaled, rows, cols);
        assert_eq!(found[..3 * 272], plain[..3 * 272], "2^{power}");
        for row in 0..rows {
            assert_eq!(naive(&found, cols, row, 0).2, naive(&plain, cols, row, 0).2 * factor);
        }
    }
}

#[test]
fn rows_of_nothing_are_zeros() {
    for w in [0.0, -0.0, 1e-31, f32::MIN_POSITIVE, f32::from_bits(1)] {
        let data = quantize(S8, &[w; 64], 2, 32);
        assert_eq!(restore(S8, data.clone(), 2, 32), [0.0; 64], "{w:e}");
        assert_eq!(data[272..], [0; 64]);
    }
    // A group beside a far larger one keeps a scale of one unit, if that is less wrong than zeros.
    let mut weights = [1.0; 64];
    weights[32..].fill(1.0 / 300.0);
    let stored = restore(S8, quantize(S8, &weights, 1, 64), 1, 64);
    assert!(stored[32..].iter().all(|w| (w * 300.0 - 1.0).abs() < 0.2), "{:?}", &stored[32..]);
}

#[test]
fn the_largest_weights_that_fit() {
    let largest = 8.0 * f16::MAX.to_f32();
    for w in [largest, -largest] {
        let stored = restore(S8, quantize(S8, &[w, 0.0], 1, 2), 1, 2);
        assert!((stored[0] / w - 1.0).abs() < 0.005 && stored[1] == 0.0, "{stored:?}");
    }
    let mut out = vec![0; S8.bytes(19, 40).unwrap()];
    for bad in [524_033.0, -524_033.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut weights = noise(19 * 40, 1);
        weights[18 * 40 + 39] = bad;
        let found = quantize_rows(S8, &weights, 19, 40, &mut out).unwrap_err();
        assert_eq!((found.row, found.column, found.value.to_bits()), (18, 39, bad.to_bits()));
    }
}

#[test]
fn units_that_are_not_finite_are_found() {
    let (rows, cols) = (20, 70);
    let data = quantize(S8, &noise(rows * cols, 8), rows, cols);
    let panel = 3 * 272 + 64;
    assert_eq!(data.len(), 2 * panel);
    let finite = |data: Vec<u8>| Matrix::new(S8, rows, cols, Bytes::new(data)).unwrap().is_finite();
    assert!(finite(data.clone()));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 1].map(|i| i * panel).into_iter().flat_map(|start| [start + 3 * 272, start + panel - 4])
        {
            let mut data = data.clone();
            data[at..at + 4].copy_from_slice(&bad.to_le_bytes());
            assert!(!finite(data), "{bad} at {at}");
        }
    }
    // Any byte is a scale.
    let mut odd = data;
    odd[256..272].fill(0x80);
    assert!(finite(odd));
}

#[test]
fn sizes_that_overflow_are_none() {
    for (rows, cols) in [(usize::MAX, 32), (16, usize::MAX), (1 << 40, 1 << 40)] {
        assert_eq!(S8.bytes(rows, cols), None);
    }
    assert_eq!(S8.bytes(0, 0), Some(0));
    assert_eq!(S8.bytes(40, 0), Some(0));
    assert_eq!(S8.bytes(17, 33), Some(2 * (2 * 272 + 64)));
}
