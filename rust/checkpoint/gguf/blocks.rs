//! The block types of GGUF files that are read, and what their bytes mean.
//!
//! Small types hold 32 weights a block, the K types and `IQ4_XS` 256 in parts of 32 (`Q6_K`: 16) with scales of their own. `d` and
//! `m` are f16, q a weight's level:
//!
//! | type     | weights | bytes | a weight                                              |
//! |----------|---------|-------|-------------------------------------------------------|
//! | `Q4_0`   | 32      | 18    | d (q - 8)                                             |
//! | `Q4_1`   | 32      | 20    | d q + m                                               |
//! | `Q5_0`   | 32      | 22    | d (q - 16)                                            |
//! | `Q5_1`   | 32      | 24    | d q + m                                               |
//! | `Q8_0`   | 32      | 34    | d q                                                   |
//! | `Q4_K`   | 256     | 144   | (d s) q - (m t), s and t of 6 bits for each 32        |
//! | `Q5_K`   | 256     | 176   | the same with 5 bits for q                            |
//! | `Q6_K`   | 256     | 210   | (d s) (q - 32), s of 8 bits for each 16               |
//! | `IQ4_NL` | 32      | 18    | d c\[q\], c a table of 16 levels                        |
//! | `IQ4_XS` | 256     | 136   | (d (s - 32)) c\[q\], s of 6 bits for each 32            |
//!
//! Products and sums are done in f32 in the order written here, as the package `gguf` does, so results are the same to the bit.
//!
//! Source: the structures of `ggml-common.h` and `dequantize_row_*` in `ggml-quants.c` of llama.cpp.

use half::f16;

/// Most weights of one block.
pub const MAX_BLOCK: usize = 256;
/// Weights that share a scale in the types of [`BlockType::levels`].
pub const GROUP: usize = 32;

/// What the levels of a group mean: weight = scale * level + minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Value of one level.
    pub scale: f32,
    /// The weight of level 0; 0 in types that have none.
    pub minimum: f32,
}

/// The levels of `IQ4_NL` and `IQ4_XS`.
const CODEBOOK: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// How a block of quantised weights is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs, reason = "the names by which the types are known")]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

use BlockType::{IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

impl BlockType {
    /// Every block type that is read.
    pub const ALL: [Self; 10] = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS];

    /// The name in llama.cpp.
    pub const fn name(self) -> &'static str {
        match self {
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
            IQ4_NL => "IQ4_NL",
            IQ4_XS => "IQ4_XS",
        }
    }

    /// Weights of a block.
    pub const fn weights(self) -> usize {
        match self {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | IQ4_NL => GROUP,
            Q4_K | Q5_K | Q6_K | IQ4_XS => MAX_BLOCK,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Q4_0 | IQ4_NL => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
            IQ4_XS => 136,
        }
    }

    /// `out.len()` weights from weight `start` on, of blocks one after another.
    ///
    /// # Panics
    /// If the weights reach outside `bytes`.
    pub fn read(self, bytes: &[u8], start: usize, out: &mut [f32]) {
        let len = self.weights();
        let mut block = [0.0; MAX_BLOCK];
        let (mut at, mut done) = (start, 0);
        while done < out.len() {
            let (index, skipped) = (at / len, at % len);
            let taken = (len - skipped).min(out.len() - done);
            self.read_block(&bytes[index * self.bytes()..(index + 1) * self.bytes()], &mut block[..len]);
            out[done..done + taken].copy_from_slice(&block[skipped..skipped + taken]);
            (at, done) = (at + taken, done + taken);
        }
    }

    /// The weights of one block.
    fn read_block(self, block: &[u8], out: &mut [f32]) {
        match self {
            Q4_1 | Q5_1 => read_with_minimum(self, block, out),
            Q4_K => read_k_parts(block, &block[16..], None, out),
            Q5_K => read_k_parts(block, &block[48..], Some(&block[16..48]), out),
            Q6_K => read_q6_k(block, out),
            Q4_0 | Q5_0 | Q8_0 | IQ4_NL | IQ4_XS => {
                let mut levels = [0; GROUP];
                for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
                    let scale = self.levels(block, group, &mut levels).map_or(f32::NAN, |line| line.scale);
                    for (out, level) in out.iter_mut().zip(levels) {
                        *out = scale * f32::from(level);
                    }
                }
            }
        }
    }

    /// Whether [`Self::levels`] gives anything.
    pub const fn has_levels(self) -> bool {
        matches!(self, Q4_0 | Q4_1 | Q5_0 | Q8_0 | Q4_K | IQ4_NL | IQ4_XS)
    }

    /// The levels of group `group` of a block and what they mean; `None` for types whose groups are smaller than 32, or have
    /// levels of 5 bits and a minimum, which none of our formats holds.
    ///
    /// # Panics
    /// If `block` is not one block, or has no such group.
    pub fn levels(self, block: &[u8], group: usize, levels: &mut [i8; GROUP]) -> Option<Line> {
        assert!(block.len() == self.bytes() && group < self.weights() / GROUP);
        let (mut scale, mut minimum) = (half_at(block, 0), 0.0);
        match self {
            Q4_0 => nibbles(&block[2..], levels, |q, _| q as i8 - 8),
            Q5_0 => {
                let high = high_bits(&block[2..6]);
                nibbles(&block[6..], levels, |q, i| (q | fifth_bit(high, i)) as i8 - 16);
            }
            Q8_0 => {
                for (level, &byte) in levels.iter_mut().zip(&block[2..]) {
                    *level = i8::from_le_bytes([byte]);
                }
            }
            IQ4_NL => nibbles(&block[2..], levels, |q, _| CODEBOOK[usize::from(q)]),
            IQ4_XS => {
                let quants = &block[8 + 16 * group..];
                nibbles(quants, levels, |q, _| CODEBOOK[usize::from(q)]);
                scale *= f32::from(iq4_xs_scale(block, group));
            }
            Q4_1 => {
                nibbles(&block[4..], levels, |q, _| q as i8);
                minimum = half_at(block, 2);
            }
            Q4_K => {
                k_nibbles(&block[16..], group, levels);
                let (s, t) = k_scale(&block[4..16], group);
                (scale, minimum) = (scale * f32::from(s), -(half_at(block, 2) * f32::from(t)));
            }
            Q5_1 | Q5_K | Q6_K => return None,
        }
        Some(Line { scale, minimum })
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Calls `level` with each of 32 nibbles, low ones first, and its place.
fn nibbles(bytes: &[u8], levels: &mut [i8; GROUP], level: impl Fn(u8, usize) -> i8) {
    let (low, high) = levels.split_at_mut(GROUP / 2);
    for (i, &byte) in bytes[..GROUP / 2].iter().enumerate() {
        low[i] = level(byte & 15, i);
        high[i] = level(byte >> 4, i + GROUP / 2);
    }
}

fn high_bits(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Bit `i` of `high`, as the fifth bit of a level.
fn fifth_bit(high: u32, i: usize) -> u8 {
    ((high >> i & 1) << 4) as u8
}

/// The nibbles of part `part` of `Q4_K`: low ones of 32 bytes, or high ones.
fn k_nibbles(quants: &[u8], part: usize, levels: &mut [i8; GROUP]) {
    for (level, byte) in levels.iter_mut().zip(&quants[GROUP * (part / 2)..]) {
        *level = (byte >> (4 * (part % 2)) & 15) as i8;
    }
}

fn read_with_minimum(kind: BlockType, block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (high, quants) = match kind {
        Q5_1 => (high_bits(&block[4..8]), &block[8..]),
        _ => (0, &block[4..]),
    };
    let mut levels = [0; GROUP];
    nibbles(quants, &mut levels, |q, i| (q | fifth_bit(high, i)) as i8);
    for (out, level) in out.iter_mut().zip(levels) {
        *out = d * f32::from(level) + m;
    }
}

/// `Q4_K` and `Q5_K`: eight parts of 32, two in the nibbles of 32 bytes each; `fifth` has bit p of part p.
fn read_k_parts(block: &[u8], quants: &[u8], fifth: Option<&[u8]>, out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (part, out) in out.chunks_exact_mut(GROUP).enumerate() {
        let (scale, minimum) = k_scale(&block[4..16], part);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        let bytes = &quants[GROUP * (part / 2)..];
        for (i, out) in out.iter_mut().enumerate() {
            let low = bytes[i] >> (4 * (part % 2)) & 15;
            let high = fifth.map_or(0, |fifth| (fifth[i] >> part & 1) << 4);
            *out = scale * f32::from(low | high) - minimum;
        }
    }
}

/// Scale and minimum of part `part`, 6 bits each: those of the first four parts whole, of the last four in two pieces.
fn k_scale(scales: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        return (scales[part] & 63, scales[part + 4] & 63);
    }
    let low = scales[part + 4];
    (low & 15 | scales[part - 4] >> 6 << 4, low >> 4 | scales[part] >> 6 << 4)
}

/// Two halves of 128 weights: 64 bytes of nibbles, 32 bytes with two high bits for four weights each, 8 scales.
fn read_q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, column) = (i / 128, i / 32 % 4, i % 32);
        let nibble = low[64 * half + 32 * (quarter % 2) + column] >> (4 * (quarter / 2)) & 15;
        let bits = high[32 * half + column] >> (2 * quarter) & 3;
        let level = (nibble | bits << 4) as i8 - 32;
        let scale = d * f32::from(i8::from_le_bytes([scales[i / 16]]));
        *out = scale * f32::from(level);
    }
}

fn iq4_xs_scale(block: &[u8], group: usize) -> i8 {
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * group) & 3;
    let low = block[4 + group / 2] >> (4 * (group % 2)) & 15;
    (low | (high as u8) << 4) as i8 - 32
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::safetensors::SafeTensors;

    /// What the package `gguf` makes of random blocks; see `tools/make_gguf_golden.py`.
    fn golden() -> SafeTensors {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        SafeTensors::open(&root.join("tests/golden/gguf/blocks.safetensors")).unwrap()
    }

    #[test]
    fn weights_are_those_of_the_gguf_package_to_the_bit() {
        let golden = golden();
        for kind in BlockType::ALL {
            let blocks = golden.get(&format!("{}.blocks", kind.name())).unwrap().unwrap();
            let expected =
                golden.get(&format!("{}.weights", kind.name())).unwrap().unwrap().to_f32().unwrap();
            assert_eq!(blocks.bytes.len() / kind.bytes() * kind.weights(), expected.len());
            let mut weights = vec![0.0; expected.len()];
            kind.read(&blocks.bytes, 0, &mut weights);
            for (i, (x, y)) in weights.iter().zip(&expected).enumerate() {
                assert_eq!(x.to_bits(), y.to_bits(), "{} {i}: {x} {y}", kind.name());
            }
        }
    }

    #[test]
    fn reading_may_begin_and_end_inside_blocks() {
        let golden = golden();
        for kind in BlockType::ALL {
            let bytes = golden.get(&format!("{}.blocks", kind.name())).unwrap().unwrap().bytes;
            let mut all = vec![0.0; 3 * kind.weights()];
            kind.read(&bytes, 0, &mut all);
            for (start, len) in [(0, 1), (5, kind.weights()), (kind.weights() - 1, 2), (kind.weights(), 0)] {
                let mut part = vec![0.0; len];
                kind.read(&bytes, start, &mut part);
                assert_eq!(part, all[start..start + len], "{} {start} {len}", kind.name());
            }
        }
    }

    #[test]
    fn levels_on_their_line_are_the_weights() {
        let golden = golden();
        for kind in BlockType::ALL {
            let bytes = golden.get(&format!("{}.blocks", kind.name())).unwrap().unwrap().bytes;
            let block = &bytes[..kind.bytes()];
            let mut weights = vec![0.0; kind.weights()];
            kind.read(block, 0, &mut weights);
            let mut levels = [0; GROUP];
            for (group, weights) in weights.chunks_exact(GROUP).enumerate() {
                let Some(Line { scale, minimum }) = kind.levels(block, group, &mut levels) else {
                    assert!(!kind.has_levels());
                    continue;
                };
                assert!(kind.has_levels());
                assert_eq!(levels.map(|level| scale * f32::from(level) + minimum).as_slice(), weights);
            }
        }
    }
}
