//! Random numbers: PCG XSL 128/64 (MCG), seeded as `rand_core` documents.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// A stream of uniform numbers, one 64-bit output of the generator each.
#[derive(Clone)]
pub(super) struct Uniform(Pcg64Mcg);

impl Uniform {
    /// The stream of `seed`: `SeedableRng::seed_from_u64`, which stretches it to the generator's 128 bits of
    /// state with a PCG32, so that neighbouring seeds give unrelated streams.
    pub(super) fn new(seed: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed))
    }

    /// The next number in [0, 1): the top 53 bits of one output, over 2^53.
    pub(super) fn next(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
        (self.0.next_u64() >> 11) as f64 * STEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed apart from this crate, from the two generators' definitions: a dependency that changes the
    /// streams of seeds must not go unnoticed.
    #[test]
    fn streams_of_seeds_are_fixed() {
        for (seed, expected) in [
            (0, [3_026_398_378_201_021_u64, 7_547_648_818_887_747, 3_171_382_761_219_902]),
            (1, [7_716_621_919_182_308, 1_238_980_658_357_607, 4_237_540_709_505_645]),
            (u64::MAX, [3_030_320_312_767_911, 6_939_133_632_610_721, 8_239_194_300_924_771]),
        ] {
            let mut uniform = Uniform::new(seed);
            let numbers = [0; 3].map(|_| uniform.next());
            let bits = numbers.map(|number| (number * (1_u64 << 53) as f64) as u64);
            assert_eq!(bits, expected, "seed {seed}");
        }
    }

    #[test]
    fn numbers_fill_the_unit_interval_evenly() {
        let mut uniform = Uniform::new(7);
        let mut bins = [0_u32; 16];
        for _ in 0..16_000 {
            let number = uniform.next();
            assert!((0.0..1.0).contains(&number));
            bins[(number * 16.0) as usize] += 1;
        }
        let chi_square: f64 = bins.iter().map(|&count| (f64::from(count) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi_square < 37.7, "{chi_square}: above the 99.9th percentile for 15 degrees of freedom");
    }
}
