//! One pass over the whole vocabulary: the highest logit, and whether all of them are usable.

use crate::{Error, Result};

/// Values examined side by side; written as arrays so that the compiler uses vector registers.
const LANES: usize = 16;

/// The highest of `logits`, `[vocab]`. -inf (a token ruled out) is allowed, but not for all.
///
/// # Errors
/// [`Error::NonFinite`] if a logit is NaN or +inf, or none is finite.
pub(super) fn highest(logits: &[f32]) -> Result<f32> {
    let mut high = [f32::NEG_INFINITY; LANES];
    let mut unusable = [false; LANES];
    let (blocks, rest) = logits.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            let value = block[lane];
            high[lane] = if value > high[lane] { value } else { high[lane] };
            unusable[lane] |= is_unusable(value);
        }
    }
    let highest = high.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if unusable.contains(&true) || rest.iter().any(|&value| is_unusable(value)) {
        return Err(unusable_error(logits));
    }
    if highest == f32::NEG_INFINITY {
        return Err(Error::NonFinite {
            what: "logits",
            reason: "no token is left: every logit is -inf or suppressed".into(),
        });
    }
    Ok(highest)
}

/// The lowest of `logits` above -inf; +inf if there is none. No logit is NaN.
pub(super) fn lowest(logits: &[f32]) -> f32 {
    let lower = |low: f32, value: f32| if value < low && value > f32::NEG_INFINITY { value } else { low };
    let mut low = [f32::INFINITY; LANES];
    let (blocks, rest) = logits.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            low[lane] = lower(low[lane], block[lane]);
        }
    }
    low.iter().chain(rest).copied().fold(f32::INFINITY, lower)
}

/// The lowest id whose logit is `highest`, which must be one of `logits`.
pub(super) fn first_equal(logits: &[f32], highest: f32) -> Option<usize> {
    let (blocks, _) = logits.as_chunks::<LANES>();
    let block =
        blocks.iter().position(|block| block.iter().fold(false, |any, &value| any | (value == highest)));
    let start = block.unwrap_or(blocks.len()) * LANES;
    logits[start..].iter().position(|&value| value == highest).map(|offset| start + offset)
}

/// NaN or +inf: the only values that are not below or at the largest finite one.
fn is_unusable(value: f32) -> bool {
    value.is_nan() | (value > f32::MAX)
}

#[cold]
fn unusable_error(logits: &[f32]) -> Error {
    let found = logits.iter().enumerate().find(|&(_, &value)| is_unusable(value));
    let reason =
        found.map_or_else(String::new, |(id, value)| format!("token {id} of {} has {value}", logits.len()));
    Error::NonFinite { what: "logits", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_highest_wherever_it_stands() {
        for len in [1, 15, 16, 17, 40] {
            for place in 0..len {
                let mut logits = vec![-3.0; len];
                logits[place] = -1.0;
                assert_eq!(highest(&logits).unwrap(), -1.0);
                assert_eq!(first_equal(&logits, -1.0), Some(place));
                assert_eq!(
                    first_equal(&logits, -3.0),
                    if len == 1 { None } else { Some(usize::from(place == 0)) }
                );
            }
        }
    }

    #[test]
    fn lowest_ignores_minus_infinity() {
        for len in [1, 16, 40] {
            for place in 0..len {
                let mut logits = vec![f32::NEG_INFINITY; len];
                assert_eq!(lowest(&logits), f32::INFINITY);
                logits[0] = 8.0;
                logits[place] = -1.0;
                assert_eq!(lowest(&logits), -1.0);
            }
        }
    }

    #[test]
    fn names_the_unusable_token_wherever_it_stands() {
        for value in [f32::NAN, f32::INFINITY] {
            for place in 0..40 {
                let mut logits = vec![0.0; 40];
                logits[place] = value;
                let message = highest(&logits).unwrap_err().to_string();
                assert!(message.contains(&format!("token {place} of 40 has {value}")), "{message}");
            }
        }
    }

    #[test]
    fn minus_infinity_is_allowed_but_not_alone() {
        assert_eq!(highest(&[f32::NEG_INFINITY, -7.0]).unwrap(), -7.0);
        assert!(matches!(highest(&[f32::NEG_INFINITY; 20]), Err(Error::NonFinite { .. })));
    }
}
