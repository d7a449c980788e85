//! Exponentials of logits: the same bits on every CPU, and fast over a whole vocabulary.
//!
//! The exponential is branch-free multiplications and additions in f32 (never fused: Rust does not contract),
//! so the compiler may compute any number of them at once without changing a bit. `libm::expf` would be as
//! reproducible, but is one scalar call per token.

/// Logits whose weights are computed together: enough to fill the vector registers of any CPU.
pub(super) const BLOCK: usize = 32;

/// Independent sums in [`sum_of_weights`], so that additions overlap; combined at the end, lowest first.
const LANES: usize = 8;

/// Below this the weight is 0: a probability under 1.7e-38 is never drawn in a lifetime, and no subnormal
/// number, which some CPUs flush, can appear.
pub(super) const LOWEST_EXPONENT: f32 = -87.0;

/// exp((logit - highest) / temperature), the unnormalised probability. `highest` is the highest logit and
/// `temperature` > 0, so the result is in [0, 1], and exactly 1 for the highest.
#[inline(always)]
pub(super) fn weight(logit: f32, highest: f32, temperature: f32) -> f32 {
    exp_nonpositive((logit - highest) / temperature)
}

/// `logits` in blocks, the last filled up with -inf, which weighs nothing.
pub(super) fn blocks(logits: &[f32]) -> impl Iterator<Item = [f32; BLOCK]> {
    let (full, rest) = logits.as_chunks::<BLOCK>();
    let last = (!rest.is_empty()).then(|| {
        let mut padded = [f32::NEG_INFINITY; BLOCK];
        padded[..rest.len()].copy_from_slice(rest);
        padded
    });
    full.iter().copied().chain(last)
}

/// [`weight`] of each logit of a block.
#[inline(always)]
pub(super) fn weights(mut block: [f32; BLOCK], highest: f32, temperature: f32) -> [f32; BLOCK] {
    for value in &mut block {
        *value = weight(*value, highest, temperature);
    }
    block
}

/// The sum of [`weight`] over `logits`, `[vocab]`: at least 1.
pub(super) fn sum_of_weights(logits: &[f32], highest: f32, temperature: f32) -> f64 {
    let mut sums = [0.0_f64; LANES];
    for block in blocks(logits) {
        for few in weights(block, highest, temperature).as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                sums[lane] += f64::from(few[lane]);
            }
        }
    }
    sums.iter().sum()
}

/// exp(x) for x <= 0, within 2 units in the last place; 0 at and below [`LOWEST_EXPONENT`].
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor series to r^7 (remainder below 6e-9); 2^n by
/// writing the exponent's bits.
#[inline(always)]
fn exp_nonpositive(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits of the sum.
    const TO_INTEGER: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has 9 significant bits, so its product with n is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 7] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];

    let bounded = if x > LOWEST_EXPONENT { x } else { LOWEST_EXPONENT };
    let shifted = bounded * std::f32::consts::LOG2_E + TO_INTEGER;
    let n = shifted - TO_INTEGER;
    let r = (bounded - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = TAYLOR[1..].iter().fold(TAYLOR[0], |sum, coefficient| sum * r + coefficient);
    // The low bits of `shifted` are n in two's complement; 127 is the exponent's bias.
    let power_of_two = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let value = (series * r + 1.0) * power_of_two;
    if x > LOWEST_EXPONENT { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for step in 1..870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = libm::exp(f64::from(x));
            let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            worst = worst.max((f64::from(exp_nonpositive(x)) - exact).abs() / unit);
        }
        assert!(worst < 2.0, "{worst} units in the last place");
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-0.0), 1.0);
        assert_eq!(exp_nonpositive(-1e-30), 1.0);
        for x in [-87.0, -1e30, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp_nonpositive(x), 0.0);
        }
        assert!(exp_nonpositive((-87.0_f32).next_up()).is_normal());
    }

    #[test]
    fn exp_never_decreases() {
        let mut last = 0.0;
        for step in (0..900_000).rev() {
            let value = exp_nonpositive(-(step as f32) * 1e-4);
            assert!(value >= last, "at -{step}e-4");
            last = value;
        }
    }

    #[test]
    fn extreme_logits_and_temperatures_give_weights_in_range() {
        for temperature in [f32::from_bits(1), 1e-30, 1.0, f32::MAX] {
            for logit in [f32::NEG_INFINITY, f32::MIN, -1.0, 0.0, f32::MAX] {
                let weight = weight(logit, f32::MAX, temperature);
                assert!((0.0..=1.0).contains(&weight));
            }
            assert_eq!(weight(f32::MAX, f32::MAX, temperature), 1.0);
        }
    }

    #[test]
    fn the_sum_covers_every_place() {
        for len in [1, 7, 8, 9, 31, 32, 33, 100] {
            let logits = vec![2.5; len];
            assert_eq!(sum_of_weights(&logits, 2.5, 0.7), len as f64);
        }
    }
}
