//! Random numbers, the CPUs to compare, and comparisons that say where two results differ.

use std::io::Write as _;
use std::sync::Once;

use edgewise::kernels::{Cpu, Tier};

/// Sizes around the edges of lanes, panels and tiles.
pub const SIZES: [usize; 11] = [1, 15, 16, 17, 31, 32, 33, 47, 48, 64, 65];

/// Numbers of tokens around the edges of token tiles.
pub const TOKENS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 17];

/// A reproducible stream of numbers (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `low..high`.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.bits() >> 40) as f32 / (1_u64 << 24) as f32;
        low + (high - low) * unit
    }

    /// `n` numbers, uniform in `low..high`.
    pub fn between(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| self.uniform(low, high)).collect()
    }

    /// `n` numbers, uniform in -1..1.
    pub fn numbers(&mut self, n: usize) -> Vec<f32> {
        self.between(n, -1.0, 1.0)
    }
}

/// The tiers of this CPU; says once which they are.
#[allow(clippy::explicit_write, reason = "the test harness would hide what `eprintln!` prints")]
pub fn tiers() -> Vec<Tier> {
    static SAID: Once = Once::new();
    let tiers = Tier::available();
    SAID.call_once(|| {
        let names: Vec<_> = tiers.iter().map(|tier| tier.name()).collect();
        writeln!(std::io::stderr(), "kernel tests run on the tiers: {}", names.join(", ")).unwrap();
    });
    tiers
}

/// The fastest tier on one thread, for properties that need one CPU only.
pub fn fastest() -> Cpu {
    Cpu::new(*tiers().last().unwrap(), 1)
}

/// The tier that defines the results.
pub fn portable() -> Cpu {
    Cpu::new(tiers()[0], 1)
}

/// Every tier on one, two and three threads; the first is portable on one.
pub fn cpus() -> Vec<Cpu> {
    let on = |tier| [1, 2, 3].map(|threads| Cpu::new(tier, threads));
    tiers().into_iter().flat_map(on).collect()
}

/// Numbers as queries that meet an INT8 cache hold them: groups of 32 with steps of absmax / 127.
pub fn as_int8(x: &[f32]) -> Vec<f32> {
    let round = |group: &[f32]| -> Vec<f32> {
        let absmax = group.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        let inverse = if absmax > 0.0 { 127.0 / absmax } else { 0.0 };
        group.iter().map(|x| (x * inverse).round_ties_even() * (absmax / 127.0)).collect()
    };
    x.chunks(32).flat_map(round).collect()
}

/// Runs `op` on all `cpus`, asserts that the bits are the same, and returns the result.
pub fn same_on_all(what: &str, cpus: &[Cpu], op: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    let expected = op(&cpus[0]);
    for cpu in &cpus[1..] {
        let name = format!("{what} on {} with {} threads", cpu.tier.name(), cpu.pool.threads());
        assert_same_bits(&name, &op(cpu), &expected);
    }
    expected
}

/// Equal bits; any NaN equals any other, because the standard leaves its payload open.
pub fn assert_same_bits(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(same_bits(*f, *e), "{what}: element {i} of {} is {f:e}, not {e:e}", found.len());
    }
}

pub fn same_bits(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// |found - expected| <= tolerance x (1 + |expected|), and both finite.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let error = (f - e).abs();
        assert!(
            error <= tolerance * (1.0 + e.abs()),
            "{what}: element {i} of {} is {f:e}, not {e:e}: off by {error:e}",
            found.len()
        );
    }
}
