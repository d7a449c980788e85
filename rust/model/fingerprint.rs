//! A number for a model, so that a file made with one is not read with another; and a number for the bytes of such a file.
//!
//! Both are meant against mix-ups and accidents, not against somebody who wants to deceive.

use super::Engine;
use crate::weights::matrix::Matrix;

/// Bytes taken from a matrix at each of [`SAMPLES`] places.
const SAMPLE: usize = 64;
/// Places of a matrix that are looked at. Reading all of it would make the file of a large model be read from disk.
const SAMPLES: usize = 16;
const LANES: usize = 4;

/// A running digest: four interleaved FNV-1a over words of 8 bytes, each pushed on by a rotation.
#[derive(Clone, Debug)]
pub struct Digest {
    lanes: [u64; LANES],
}

impl Digest {
    /// Of nothing.
    pub fn new() -> Self {
        Self { lanes: std::array::from_fn(|lane| 0xcbf2_9ce4_8422_2325 ^ lane as u64) }
    }

    /// Takes in `bytes`, and where they end.
    pub fn add(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<{ 8 * LANES }>();
        let mut last = [0; 8 * LANES];
        last[..rest.len()].copy_from_slice(rest);
        let mut length = [0; 8 * LANES];
        length[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        for block in blocks.iter().chain([&last, &length]) {
            for (lane, word) in self.lanes.iter_mut().zip(block.as_chunks::<8>().0) {
                let mixed = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(0x0000_0100_0000_01b3);
                *lane = mixed.rotate_left(29);
            }
        }
    }

    /// 32 hexadecimal digits.
    pub fn text(&self) -> String {
        let [a, b, c, d] = self.lanes;
        let mix = |x: u64, y: u64| (x ^ y.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{:016x}{:016x}", mix(a, b) ^ c, mix(c, d) ^ a)
    }
}

impl Engine {
    /// A number for all that a state depends on: configuration (`config` is the text of `config.json`), type of the KV cache,
    /// and weights. Of matrices a few bytes are looked at, of experts none.
    pub fn fingerprint(&self, config: &str) -> String {
        let mut digest = Digest::new();
        let text = &self.model.config;
        let yarn = text.rope.yarn.as_ref().map_or(1.0, |yarn| yarn.factor);
        for part in [config.as_bytes(), self.kv_type().name().as_bytes(), &yarn.to_le_bytes()] {
            digest.add(part);
        }
        let mut add_vector = |name: String, vector: &[f32]| {
            digest.add(name.as_bytes());
            digest.add(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        };
        self.model.weights.each_vector(&mut add_vector);
        let vision = self.model.vision.as_ref().map(|tower| &tower.weights);
        if let Some(vision) = vision {
            vision.each_vector(&mut add_vector);
        }
        let mut add_matrix = |name: String, matrix: &Matrix| add(&mut digest, &name, matrix);
        self.model.weights.each_matrix(&mut add_matrix);
        if let Some(vision) = vision {
            vision.each_matrix(&mut add_matrix);
        }
        digest.text()
    }
}

/// Takes in a matrix's name, shape and format, and some of its bytes.
fn add(digest: &mut Digest, name: &str, matrix: &Matrix) {
    let (format, rows, cols) = (matrix.format().name(), matrix.rows(), matrix.cols());
    digest.add(format!("{name} {format} {rows} {cols}").as_bytes());
    if name.contains(".experts.") {
        return;
    }
    let bytes = matrix.bytes();
    for place in 0..SAMPLES {
        let start = bytes.len() / SAMPLES * place;
        digest.add(&bytes[start..(start + SAMPLE).min(bytes.len())]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u8]]) -> String {
        let mut digest = Digest::new();
        for part in parts {
            digest.add(part);
        }
        digest.text()
    }

    #[test]
    fn every_bit_border_and_place_counts() {
        let bytes: Vec<u8> = (0..100_u32).map(|i| (i * 37) as u8).collect();
        let wanted = of(&[&bytes]);
        assert_eq!(wanted.len(), 32);
        assert_eq!(wanted, of(&[&bytes]));
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[i] ^= 1 << bit;
                assert_ne!(of(&[&other]), wanted, "byte {i} bit {bit}");
            }
        }
        assert_ne!(of(&[&bytes[..50], &bytes[50..]]), wanted);
        assert_ne!(of(&[&bytes[..99]]), wanted);
        assert_ne!(of(&[b"a\0"]), of(&[b"a"]));
    }
}
