//! The portable tier: plain Rust arrays. It defines what every other tier must compute.
//!
//! What is long without vector instructions stays a function of its own: in the places it is used from it would be
//! most of the library's code, and most of the time to build it.

use half::{bf16, f16};

use super::lanes::{LANES, Op, Pair, Simd};

/// The tier every CPU has.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn map2(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(never)]
fn widen(x: &[u8; 32], f: impl Fn(u16) -> f32) -> F {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(u16::from_le_bytes([x[2 * i], x[2 * i + 1]]));
    }
    out
}

/// Folds lanes by the fixed tree: i with i+8, then i+4, i+2, i+1.
#[inline(always)]
fn fold(mut a: F, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] = f(a[i], a[i + width]);
        }
        width /= 2;
    }
    a[0]
}

/// The exact sum over 32 columns of w x a for each row; `w(j, i)` is byte i of vector j.
#[inline(never)]
fn dot(w: &[[u8; 64]; 8], a: &[i8; 32], init: i32, value: impl Fn(u8) -> i32) -> I {
    let mut out = [init; LANES];
    for j in 0..8 {
        for row in 0..LANES {
            for c in 0..4 {
                out[row] += value(w[j][4 * row + c]) * i32::from(a[4 * j + c]);
            }
        }
    }
    out
}

/// The exact sum over 32 columns of w x a for each row, of bytes and numbers of 16 bits: see [`Simd::blocks_i16`].
#[inline(never)]
fn dot_i16(block: &[u8; 512], a: &[i16; 32]) -> I {
    let mut out = [0; LANES];
    for (i, byte) in block.iter().enumerate() {
        let (row, column) = (i % 32 / 2, i / 32 * 2 + i % 2);
        out[row] += i32::from(*byte as i8) * i32::from(a[column]);
    }
    out
}

impl Simd for Portable {
    type F = F;
    type I = I;
    type B = [u8; 64];
    const TILE: usize = 4;
    const WIDE: bool = false;

    #[inline(never)]
    fn apart<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        *x
    }
    #[inline(always)]
    fn load_f32_bytes(self, x: &[u8; 64]) -> F {
        let mut out = [0.0; LANES];
        for (o, b) in out.iter_mut().zip(x.chunks_exact(4)) {
            *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        out
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> F {
        widen(x, |bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn load_bytes(self, x: &[i8; LANES]) -> F {
        x.map(f32::from)
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> F {
        widen(x, |bits| bf16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn store(self, x: F, out: &mut [f32; LANES]) {
        *out = x;
    }
    #[inline(never)]
    fn store_f16(self, x: F, out: &mut [u8; 32]) {
        for i in 0..LANES {
            out[2 * i..2 * i + 2].copy_from_slice(&f16::from_f32(x[i]).to_le_bytes());
        }
    }
    #[inline(never)]
    fn store_bf16(self, x: F, out: &mut [u8; 32]) {
        for i in 0..LANES {
            out[2 * i..2 * i + 2].copy_from_slice(&bf16::from_f32(x[i]).to_le_bytes());
        }
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u8; 64]) -> [u8; 64] {
        *x
    }
    #[inline(never)]
    fn dot_pair(self, acc: F, w: [u8; 64], a: &Pair) -> F {
        let [even, odd] = a.map(f32::from_bits);
        let mut out = acc;
        for (out, w) in out.iter_mut().zip(w.as_chunks::<4>().0) {
            let number = |low, high| bf16::from_le_bytes([low, high]).to_f32();
            *out = number(w[0], w[1]).mul_add(even, number(w[2], w[3]).mul_add(odd, *out));
        }
        out
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(never)]
    fn fma(self, a: F, b: F, c: F) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn select_lt(self, a: F, b: F, x: F, y: F) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = if a[i] < b[i] { x[i] } else { y[i] };
        }
        out
    }

    #[inline(never)]
    fn round(self, a: F) -> I {
        a.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    fn to_f32(self, a: I) -> F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    fn reinterpret(self, a: I) -> F {
        a.map(|x| f32::from_bits(x.cast_unsigned()))
    }
    #[inline(always)]
    fn scale_exponent(self, a: F, n: I) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f32::from_bits(a[i].to_bits().wrapping_add((n[i] as u32) << 23));
        }
        out
    }
    #[inline(always)]
    fn store_i8(self, a: I, out: &mut [i8; LANES]) {
        for i in 0..LANES {
            out[i] = a[i] as i8;
        }
    }

    #[inline(always)]
    fn store_i16(self, a: [I; 2], out: &mut [i16; 2 * LANES]) {
        for i in 0..2 * LANES {
            out[i] = a[i / 4 % 2][i / 8 * 4 + i % 4] as i16;
        }
    }

    #[inline(never)]
    fn load_u4(self, block: &[u8; 256]) -> [[u8; 64]; 8] {
        let mut out = [[0; 64]; 8];
        for j in 0..4 {
            for i in 0..64 {
                let byte = block[64 * j + i];
                out[j][i] = byte & 15;
                out[j + 4][i] = byte >> 4;
            }
        }
        out
    }
    #[inline(always)]
    fn load_i8(self, block: &[u8; 512]) -> [[u8; 64]; 8] {
        let mut out = [[0; 64]; 8];
        for j in 0..8 {
            out[j].copy_from_slice(&block[64 * j..64 * j + 64]);
        }
        out
    }
    #[inline(always)]
    fn dot_u4(self, w: &[[u8; 64]; 8], a: &[i8; 32], start: i32) -> I {
        dot(w, a, start, i32::from)
    }
    #[inline(always)]
    fn dot_i8(self, w: &[[u8; 64]; 8], a: &[i8; 32], start: i32) -> I {
        dot(w, a, start, |byte| i32::from(byte as i8))
    }

    #[inline(always)]
    fn blocks_i16<const T: usize, const N: usize>(
        self,
        blocks: [&[u8; 512]; N],
        a: [&[i16; 32]; T],
    ) -> [[I; T]; N] {
        blocks.map(|block| a.map(|a| dot_i16(block, a)))
    }

    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        fold(a, |a, b| a + b)
    }
    #[inline(always)]
    fn max_lane(self, a: F) -> f32 {
        fold(a, |a, b| if a > b { a } else { b })
    }
}
