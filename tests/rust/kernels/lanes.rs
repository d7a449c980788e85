//! Every method of [`Simd`] on every tier against the portable tier, bit for bit.

use edgewise::kernels::lanes::{LANES, Op, Simd};
use edgewise::kernels::{Tier, bf16};

use super::support::{Random, same_bits, tiers};

type Vector = [f32; LANES];

/// What a method returned, under its name.
type Trace = Vec<(&'static str, Vector)>;

/// Zeros, subnormals, neighbours of 1, ties, huge numbers, infinities and NaN.
const SPECIAL: [f32; 24] = [
    0.0,
    -0.0,
    f32::from_bits(1),
    -f32::from_bits(1),
    f32::from_bits(0x007f_ffff),
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    1e-20,
    0.5,
    -0.5,
    1.0,
    -1.0,
    f32::from_bits(0x3f80_0001),
    f32::from_bits(0x3f7f_ffff),
    1.5,
    -2.5,
    3.0,
    1e20,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    -f32::NAN,
];

/// Runs `op` on every tier and compares its trace with that of the portable one.
fn compare<O: Op<Output = Trace>>(op: impl Fn() -> O) {
    let tiers = tiers();
    let expected = tiers[0].run(op());
    assert!(!expected.is_empty());
    for tier in &tiers[1..] {
        let found = tier.run(op());
        assert_eq!(found.len(), expected.len());
        for (i, ((name, f), (_, e))) in found.iter().zip(&expected).enumerate() {
            let same = f.iter().zip(e).all(|(f, e)| same_bits(*f, *e));
            assert!(same, "{name} of {}, entry {i}: {f:?} instead of {e:?}", tier.name());
        }
    }
}

/// Vectors of special numbers, of random bits and of ordinary random numbers.
fn vectors(random: &mut Random) -> Vec<Vector> {
    let special = (0..SPECIAL.len()).map(|i| std::array::from_fn(|lane| SPECIAL[(i + lane) % SPECIAL.len()]));
    let mut out: Vec<Vector> = special.collect();
    for _ in 0..40 {
        out.push(std::array::from_fn(|_| f32::from_bits(random.bits() as u32)));
        out.push(std::array::from_fn(|_| random.uniform(-4.0, 4.0)));
    }
    out
}

/// Vectors whose lanes fit an i32.
fn rounding_vectors(random: &mut Random) -> Vec<Vector> {
    let edges = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.499_999_97, 1e-40, -1e-40, 8_388_607.5];
    let mut out = vec![std::array::from_fn(|i| edges[i % edges.len()])];
    out.push(std::array::from_fn(|i| if i % 2 == 0 { 2_147_483_500.0 } else { -2_147_483_648.0 }));
    for i in 0..200 {
        let range = 2.0_f32.powi(i % 30);
        out.push(std::array::from_fn(|_| random.uniform(-range, range)));
    }
    out
}

fn stored<S: Simd>(s: S, x: S::F) -> Vector {
    let mut out = [0.0; LANES];
    s.store(x, &mut out);
    out
}

struct Arithmetic<'a>(&'a [Vector]);

impl Op for Arithmetic<'_> {
    type Output = Trace;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        let mut trace = Trace::new();
        for (i, a) in self.0.iter().enumerate() {
            let c = s.load(&self.0[(7 * i + 3) % self.0.len()]);
            trace.push(("load and store", stored(s, s.load(a))));
            trace.push(("splat", stored(s, s.splat(a[0]))));
            trace.push(("abs", stored(s, s.abs(s.load(a)))));
            trace.push(("sum", [s.sum(s.load(a)); LANES]));
            trace.push(("max_lane", [s.max_lane(s.load(a)); LANES]));
            for b in self.0 {
                let (a, b) = (s.load(a), s.load(b));
                trace.push(("add", stored(s, s.add(a, b))));
                trace.push(("sub", stored(s, s.sub(a, b))));
                trace.push(("mul", stored(s, s.mul(a, b))));
                trace.push(("div", stored(s, s.div(a, b))));
                trace.push(("fma", stored(s, s.fma(a, b, c))));
                trace.push(("max", stored(s, s.max(a, b))));
                trace.push(("min", stored(s, s.min(a, b))));
                trace.push(("select_lt", stored(s, s.select_lt(a, b, c, a))));
            }
        }
        trace
    }
}

#[test]
fn arithmetic() {
    let vectors = vectors(&mut Random::new(1));
    compare(|| Arithmetic(&vectors));
}

/// The order of sums is part of the contract, so it is written out here a second time.
#[test]
fn sum_folds_by_the_fixed_tree() {
    struct Sum(Vector);
    impl Op for Sum {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            s.sum(s.load(&self.0))
        }
    }
    let mut random = Random::new(2);
    for _ in 0..100 {
        let a: Vector =
            std::array::from_fn(|_| random.uniform(-1.0, 1.0) * 10_f32.powi((random.bits() % 7) as i32));
        let b: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let c: [f32; 4] = std::array::from_fn(|i| b[i] + b[i + 4]);
        let expected = (c[0] + c[2]) + (c[1] + c[3]);
        for tier in tiers() {
            assert_eq!(tier.run(Sum(a)).to_bits(), expected.to_bits(), "{}", tier.name());
        }
    }
}

struct Rounding<'a>(&'a [Vector]);

impl Op for Rounding<'_> {
    type Output = Trace;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        let same = s.to_f32(s.splat_i32(-32_512));
        let rounded = self.0.iter().map(|a| ("round and to_f32", stored(s, s.to_f32(s.round(s.load(a))))));
        let bits = stored(s, s.reinterpret(s.splat_i32(0x4b40_0007)));
        let steps = stored(s, s.above(s.splat_i32(0x4b40_0007), 12_582_912.0));
        rounded.chain([("splat_i32", stored(s, same)), ("reinterpret", bits), ("above", steps)]).collect()
    }
}

#[test]
fn rounding_to_integers() {
    let vectors = rounding_vectors(&mut Random::new(3));
    compare(|| Rounding(&vectors));
    let rounded = Tier::available()[0].run(Rounding(&vectors));
    for ((_, found), a) in rounded.iter().zip(&vectors) {
        // An i32 has no signed zero.
        assert_eq!(*found, a.map(|x| x.round_ties_even() + 0.0));
    }
}

struct Exponents<'a>(&'a [(Vector, Vector)]);

impl Op for Exponents<'_> {
    type Output = Trace;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        let scale = |(a, n): &(Vector, Vector)| stored(s, s.scale_exponent(s.load(a), s.round(s.load(n))));
        self.0.iter().map(|pair| ("scale_exponent", scale(pair))).collect()
    }
}

#[test]
fn scaling_by_powers_of_two() {
    let mut random = Random::new(4);
    let mut pairs: Vec<(Vector, Vector)> = (-126..=127)
        .map(|n| (std::array::from_fn(|_| random.uniform(1.0, 2.0)), [n as f32; LANES]))
        .collect();
    pairs.push(([f32::NAN; LANES], [0.0; LANES]));
    compare(|| Exponents(&pairs));
    for ((_, found), (a, n)) in Tier::available()[0].run(Exponents(&pairs)).iter().zip(&pairs) {
        let expected = a[0] * 2.0_f32.powi(n[0] as i32);
        assert!(same_bits(found[0], expected), "{} x 2^{}", a[0], n[0]);
    }
}

struct StoreI8<'a>(&'a [Vector]);

impl Op for StoreI8<'_> {
    type Output = Trace;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        let mut bytes = [0; LANES];
        let mut stored = |a: &Vector| {
            s.store_i8(s.round(s.load(a)), &mut bytes);
            bytes.map(f32::from)
        };
        self.0.iter().map(|a| ("store_i8", stored(a))).collect()
    }
}

#[test]
fn storing_bytes() {
    let all: Vec<Vector> =
        (0..LANES).map(|v| std::array::from_fn(|i| (v * LANES + i) as f32 - 128.0)).collect();
    compare(|| StoreI8(&all));
    for ((_, found), expected) in Tier::available()[0].run(StoreI8(&all)).iter().zip(&all) {
        assert_eq!(found, expected);
    }
}

/// All 65,536 halves and bfloat16 at once.
struct Widen;

impl Op for Widen {
    type Output = Trace;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        let mut trace = Trace::new();
        for first in (0..=u16::MAX).step_by(LANES) {
            let mut bytes = [0; 32];
            for (i, b) in bytes.chunks_exact_mut(2).enumerate() {
                b.copy_from_slice(&(first + i as u16).to_le_bytes());
            }
            trace.push(("load_f16", stored(s, s.load_f16(&bytes))));
            trace.push(("load_bf16", stored(s, s.load_bf16(&bytes))));
        }
        trace
    }
}

#[test]
fn widening_every_half_and_bfloat16() {
    compare(|| Widen);
}

struct Narrow<'a>(&'a [Vector]);

impl Op for Narrow<'_> {
    type Output = Trace;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        let mut halves = [0; 32];
        let mut narrow = |a: &Vector| {
            s.store_f16(s.load(a), &mut halves);
            std::array::from_fn(|i| half::f16::from_le_bytes([halves[2 * i], halves[2 * i + 1]]).to_f32())
        };
        self.0.iter().map(|a| ("store_f16", narrow(a))).collect()
    }
}

/// Every half, the midpoint to the next one, and the f32 on both sides of the midpoint.
#[test]
fn narrowing_around_every_half() {
    let mut numbers = Vec::new();
    for bits in 0..0x7c00 {
        let half = half::f16::from_bits(bits).to_f32();
        let next = if bits == 0x7bff { 65_536.0 } else { half::f16::from_bits(bits + 1).to_f32() };
        let middle = half.midpoint(next);
        for x in [half, middle, middle.next_down(), middle.next_up()] {
            numbers.extend([x, -x]);
        }
    }
    numbers.extend([SPECIAL, SPECIAL].concat());
    let (vectors, rest) = numbers.as_chunks::<LANES>();
    assert!(rest.is_empty());
    compare(|| Narrow(vectors));
}

/// Numbers as bfloat16, and the sums of a chain of products of pairs.
struct Pairs<'a>(&'a [[Vector; 3]]);

impl Op for Pairs<'_> {
    type Output = Trace;
    const PAIRS: bool = true;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        let mut trace = Trace::new();
        let mut sum = s.splat(0.0);
        for (i, [low, high, a]) in self.0.iter().enumerate() {
            if i % 5 == 0 {
                sum = s.splat(0.0);
            }
            let (mut halves, mut pairs) = ([[0; 32]; 2], [[0; 2]; LANES / 2]);
            bf16::narrow(s, s.load(low), &mut halves[0]);
            bf16::narrow(s, s.load(high), &mut halves[1]);
            trace.push(("store_bf16", stored(s, s.load_bf16(&halves[0]))));
            bf16::pairs(s, s.load(a), &mut pairs);
            let mut w = [0; 64];
            w[..32].copy_from_slice(&halves[0]);
            w[32..].copy_from_slice(&halves[1]);
            for pair in &pairs {
                sum = s.dot_pair(sum, s.load_pairs(&w), pair);
                trace.push(("dot_pair", stored(s, sum)));
            }
        }
        trace
    }
}

/// Special numbers, random bits, and numbers whose products are as small as they can be without being subnormal.
#[test]
fn products_of_pairs_of_bfloat16() {
    let mut random = Random::new(7);
    let mut vectors = vectors(&mut random);
    for _ in 0..200 {
        vectors.push(std::array::from_fn(|_| bf16::FLOOR * random.uniform(-2.0, 2.0)));
        vectors.push(std::array::from_fn(|_| {
            random.uniform(-1.0, 1.0) * 2.0_f32.powi((random.bits() % 80) as i32 - 60)
        }));
    }
    let pick = |i: usize| vectors[i % vectors.len()];
    let all: Vec<_> = (0..2000).map(|i| [pick(i), pick(7 * i + 1), pick(11 * i + 5)]).collect();
    compare(|| Pairs(&all));
}

/// Every normal bfloat16, the midpoint to the next one, and the f32 on both sides of the midpoint, with both signs.
#[test]
fn rounding_around_every_bfloat16() {
    let mut numbers = Vec::new();
    for bits in 0x0080..0x7f80 {
        let number = half::bf16::from_bits(bits).to_f32();
        let middle = f32::from_bits(number.to_bits() + 0x8000);
        for x in [number, middle, middle.next_down(), middle.next_up()] {
            numbers.extend([x, -x]);
        }
    }
    let vectors: Vec<_> = numbers.as_chunks::<LANES>().0.iter().map(|a| [*a, *a, [1.0; LANES]]).collect();
    compare(|| Pairs(&vectors));
    let rounded = Tier::available()[0].run(Pairs(&vectors));
    let rounded = rounded.iter().filter(|(name, _)| *name == "store_bf16").flat_map(|(_, found)| *found);
    for (found, x) in rounded.zip(numbers) {
        let expected = if x.abs() < 2.0_f32.powi(-56) { 0.0 } else { half::bf16::from_f32(x).to_f32() };
        assert_eq!(found, expected, "{x:e}");
    }
}

/// The formula, written out a second time.
#[test]
fn a_pair_takes_its_second_product_first() {
    struct Pair(Vector, Vector);
    impl Op for Pair {
        type Output = f32;
        const PAIRS: bool = true;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            let (mut w, mut pairs) = ([0; 64], [[0; 2]; LANES / 2]);
            bf16::narrow(s, s.load(&self.0), w.first_chunk_mut().unwrap());
            bf16::pairs(s, s.load(&self.1), &mut pairs);
            let mut out = s.splat(0.0);
            for pair in &pairs[..4] {
                out = s.dot_pair(out, s.load_pairs(&w), pair);
            }
            stored(s, out)[3]
        }
    }
    let mut random = Random::new(8);
    for _ in 0..100 {
        let mut vector = || std::array::from_fn(|_| half::bf16::from_f32(random.uniform(-9.0, 9.0)).to_f32());
        let (w, a): (Vector, Vector) = (vector(), vector());
        let expected = (0..4).fold(0.0, |sum, i| w[6].mul_add(a[2 * i], w[7].mul_add(a[2 * i + 1], sum)));
        for tier in tiers() {
            assert_eq!(tier.run(Pair(w, a)).to_bits(), f32::to_bits(expected), "{}", tier.name());
        }
    }
}

struct LoadBytes<'a>(&'a [[u8; 64]]);

impl Op for LoadBytes<'_> {
    type Output = Trace;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        self.0.iter().map(|bytes| ("load_f32_bytes", stored(s, s.load_f32_bytes(bytes)))).collect()
    }
}

#[test]
fn loading_f32_at_any_alignment() {
    let mut random = Random::new(5);
    let bytes: Vec<u8> = (0..65 * 64).map(|_| random.bits() as u8).collect();
    for offset in 0..4 {
        let blocks = bytes[offset..].as_chunks::<64>().0;
        compare(|| LoadBytes(blocks));
    }
}

/// Blocks of weights and groups of activations.
struct Dots<'a> {
    nibbles: &'a [[u8; 256]],
    levels: &'a [[u8; 512]],
    activations: &'a [[i8; 32]],
}

impl Op for Dots<'_> {
    type Output = Trace;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Trace {
        let mut trace = Trace::new();
        for a in self.activations {
            let sum: i32 = a.iter().map(|&a| i32::from(a)).sum();
            for block in self.nibbles {
                trace.push(("dot_u4", stored(s, s.to_f32(s.dot_u4(&s.load_u4(block), a, -8 * sum)))));
            }
            for block in self.levels {
                let start = if S::UNSIGNED { -128 * sum } else { 0 };
                trace.push(("dot_i8", stored(s, s.to_f32(s.dot_i8(&s.load_i8(block), a, start)))));
            }
        }
        trace
    }
}

/// Extremes first: they are where 16-bit intermediate sums would overflow.
#[test]
fn integer_dots() {
    let mut random = Random::new(6);
    let mut nibbles = vec![[0x00; 256], [0xff; 256], [0x0f; 256], [0xf0; 256]];
    let mut levels = vec![[127; 512], [129; 512], [0; 512]];
    let mut activations =
        vec![[127; 32], [-127; 32], std::array::from_fn(|i| if i % 2 == 0 { 127 } else { -127 })];
    for _ in 0..40 {
        nibbles.push(std::array::from_fn(|_| random.bits() as u8));
        levels.push(std::array::from_fn(|_| ((random.bits() % 255) as i32 - 127) as u8));
        activations.push(std::array::from_fn(|_| ((random.bits() % 255) as i32 - 127) as i8));
    }
    compare(|| Dots { nibbles: &nibbles, levels: &levels, activations: &activations });

    let dots = Dots { nibbles: &nibbles, levels: &levels, activations: &activations };
    let trace = Tier::available()[0].run(dots);
    let mut entries = trace.iter();
    for a in &activations {
        for block in &nibbles {
            assert_eq!(entries.next().unwrap().1, dot_by_layout(a, |row, column| nibble(block, row, column)));
        }
        for block in &levels {
            assert_eq!(entries.next().unwrap().1, dot_by_layout(a, |row, column| level(block, row, column)));
        }
    }
}

fn dot_by_layout(a: &[i8; 32], weight: impl Fn(usize, usize) -> i32) -> Vector {
    std::array::from_fn(|row| {
        (0..32).map(|column| weight(row, column) * i32::from(a[column])).sum::<i32>() as f32
    })
}

/// Low nibbles hold columns 0..16, high ones 16..32, four columns of 16 rows in each vector of 64 bytes.
fn nibble(block: &[u8; 256], row: usize, column: usize) -> i32 {
    let byte = block[column % 16 / 4 * 64 + 4 * row + column % 4];
    i32::from(if column < 16 { byte & 15 } else { byte >> 4 }) - 8
}

fn level(block: &[u8; 512], row: usize, column: usize) -> i32 {
    i32::from(block[column / 4 * 64 + 4 * row + column % 4] as i8)
}
