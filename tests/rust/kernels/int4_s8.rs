//! Products with INT4 blocks of scales and units that no quantiser would choose.

use edgewise::kernels::reference;
use edgewise::tensor::Bytes;
use edgewise::weights::matrix::{Format, Matrix};
use half::f16;

use super::linear::multiply;
use super::support::{Random, SIZES, TOKENS, assert_close, assert_same_bits, cpus, portable, same_on_all};

/// Random nibbles and scales, -128 among them; units are what the function draws.
fn panels(
    random: &mut Random,
    [rows, cols]: [usize; 2],
    unit: impl Fn(&mut Random) -> f32,
) -> (Matrix, Vec<u8>) {
    let format = Format::Int4S8;
    let mut bytes = vec![0; format.bytes(rows, cols).unwrap()];
    let size = format.panel_bytes(cols).unwrap();
    let mut halves = Vec::new();
    for panel in bytes.chunks_exact_mut(size) {
        let (blocks, units) = panel.split_at_mut(size - format.unit_bytes());
        for block in blocks.chunks_exact_mut(272) {
            block.fill_with(|| random.bits() as u8);
            halves.extend(&block[..256]);
            halves.extend(block[256..].iter().flat_map(|&s| f16::from_f32(f32::from(s as i8)).to_le_bytes()));
        }
        units.as_chunks_mut::<4>().0.fill_with(|| unit(random).to_le_bytes());
    }
    (Matrix::new(format, rows, cols, Bytes::new(bytes)).unwrap(), halves)
}

#[test]
fn any_scales_and_units() {
    let (cpus, mut random) = (cpus(), Random::new(120));
    for cols in [100, 544] {
        for (rows, tokens) in SIZES.into_iter().zip(TOKENS) {
            let (weights, _) = panels(&mut random, [rows, cols], |r| r.uniform(-1e-3, 1e-3));
            let x = random.numbers(tokens * cols);
            let what = format!("[{rows}, {cols}] x {tokens}");
            let found = same_on_all(&what, &cpus, |cpu| multiply(cpu, &x, &weights));
            let activations = reference::quantize_activations(&x, cols);
            assert_close(&what, &found, &reference::quantized_matmul(&activations, &weights), 2e-5);
        }
    }
}

#[test]
fn with_units_of_1_it_is_int4_with_whole_scales_to_the_bit() {
    let (cpus, mut random) = (cpus(), Random::new(121));
    let shape = [40, 600];
    let (weights, halves) = panels(&mut random, shape, |_| 1.0);
    let halves = Matrix::new(Format::Int4, shape[0], shape[1], Bytes::new(halves)).unwrap();
    assert_same_bits("weights", &weights.to_f32(), &halves.to_f32());
    for tokens in TOKENS {
        let x = random.numbers(tokens * shape[1]);
        let found = same_on_all("units", &cpus, |cpu| multiply(cpu, &x, &weights));
        assert_same_bits("units of 1", &found, &multiply(&portable(), &x, &halves));
    }
}
