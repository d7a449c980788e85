//! Tiers of x86-64 processors.

pub mod avx2;
pub mod avx512;

/// Calls intrinsics of the tier whose token the surrounding method received.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: `self` exists only after its constructor detected the features of every intrinsic in this file;
        // loads and stores go through references to arrays of exactly the width they touch, and are unaligned ones.
        unsafe { $($body)* }
    };
}
use intrinsics;
