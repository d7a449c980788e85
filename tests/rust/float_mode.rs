//! The caller's floating-point mode does not reach the results.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code, reason = "sets the mode that other libraries leave behind")]

use std::arch::asm;

use crate::models::{DEMO, Model, TINY, append, arrays, logits, text};

/// Rounding up, flush-to-zero and denormals-are-zero of MXCSR.
const OTHER_MODE: u32 = 0x4000 | 0x8000 | 0x0040;

/// Runs `work` with `bits` set in this thread's MXCSR.
fn in_mode<T>(bits: u32, work: impl FnOnce() -> T) -> T {
    let mut before: u32 = 0;
    // SAFETY: stores the register in a variable of its size.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut before) };
    let changed = before | bits;
    // SAFETY: only documented mode bits are added; the old value comes back below.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const changed) };
    let out = work();
    // SAFETY: the value read above.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const before) };
    out
}

#[test]
fn bits_do_not_depend_on_the_mode_of_the_caller() {
    for model in [DEMO, Model::new(TINY, "f32"), Model::new(TINY, "int4")] {
        let run = |bits: u32| {
            in_mode(bits, || {
                let engine = model.open_fastest(2);
                let ids = text(&engine, 40, 5);
                let mut state = engine.state();
                append(&engine, &mut state, &ids[..30]);
                for id in &ids[30..] {
                    append(&engine, &mut state, &[*id]);
                }
                (logits(&engine, &state), arrays(&state))
            })
        };
        assert!(run(0) == run(OTHER_MODE), "{model:?}: other bits");
    }
}
