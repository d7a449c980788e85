//! The floating-point mode of a thread: rounding to nearest even, subnormal numbers kept.
//!
//! Equal bits need equal modes. A library built with fast-math options switches its thread to flushing subnormal
//! numbers to zero when it is loaded, and threads inherit the mode of the one that starts them.
#![allow(unsafe_code, reason = "reads and writes the control register of floating-point arithmetic")]

/// While it lives, this thread computes in the standard mode; then it returns to what it was.
pub struct StandardFloat {
    /// The mode before, if it was another.
    before: Option<Mode>,
}

#[cfg(target_arch = "x86_64")]
type Mode = u32;
#[cfg(not(target_arch = "x86_64"))]
type Mode = u64;

impl StandardFloat {
    /// Switches this thread to the standard mode.
    #[inline]
    pub fn enter() -> Self {
        let before = read();
        if before & RELEVANT == STANDARD {
            return Self { before: None };
        }
        write((before & !RELEVANT) | STANDARD);
        Self { before: Some(before) }
    }
}

impl Drop for StandardFloat {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            write(before);
        }
    }
}

/// Bits that change results: x86 flush-to-zero, rounding and denormals-are-zero of MXCSR.
#[cfg(target_arch = "x86_64")]
const RELEVANT: Mode = 0xe040;
/// Bits that change results, of FPCR: another form of halves, default NaN, flush-to-zero, rounding, flush-to-zero of halves;
/// since ARMv8.7 single elements that keep the rest of their register, another handling of NaN, and inputs flushed to zero.
#[cfg(target_arch = "aarch64")]
const RELEVANT: Mode = 0x07c8_0007;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const RELEVANT: Mode = 0;
const STANDARD: Mode = 0;

#[cfg(target_arch = "x86_64")]
#[inline]
fn read() -> Mode {
    let mut mode: Mode = 0;
    // SAFETY: stores MXCSR, which every x86-64 processor has, in a variable of its size.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack, preserves_flags)) };
    mode
}

#[cfg(target_arch = "x86_64")]
fn write(mode: Mode) {
    // SAFETY: the value comes from MXCSR with only documented bits cleared, or is that value itself.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, preserves_flags)) };
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn read() -> Mode {
    let mode: Mode;
    // SAFETY: FPCR may be read by every program.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) mode, options(nomem, nostack, preserves_flags)) };
    mode
}

#[cfg(target_arch = "aarch64")]
fn write(mode: Mode) {
    // SAFETY: FPCR may be written by every program; the value comes from it with only mode bits cleared.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) mode, options(nomem, nostack, preserves_flags)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read() -> Mode {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write(_: Mode) {}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::hint::black_box;

    use super::{RELEVANT, read, write};
    use crate::threads::Pool;

    /// Flush-to-zero.
    #[cfg(target_arch = "x86_64")]
    const FLUSH: super::Mode = 0x8000;
    #[cfg(target_arch = "aarch64")]
    const FLUSH: super::Mode = 1 << 24;

    /// Half of the smallest normal number, computed where the compiler cannot see it.
    fn subnormal() -> f32 {
        black_box(f32::MIN_POSITIVE) * black_box(0.5)
    }

    #[test]
    fn runs_keep_subnormal_numbers_and_give_the_mode_back() {
        let before = read();
        write((before & !RELEVANT) | FLUSH);
        let outside = subnormal();
        let seen = std::sync::Mutex::new(Vec::new());
        for threads in [1, 2] {
            Pool::new(threads).run(64, &|_| seen.lock().unwrap().push(subnormal()));
        }
        let after = read();
        write(before);
        assert_eq!(outside.to_bits(), 0, "the test's premise");
        assert_eq!(after & RELEVANT, FLUSH);
        assert!(seen.into_inner().unwrap().iter().all(|x| *x > 0.0));
    }
}
