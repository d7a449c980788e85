//! One output array, written in parallel at places that do not overlap.
#![allow(unsafe_code, reason = "the bridge between borrowed outputs and threads that write parts of them")]

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that several threads write at once. Who asks for a part promises that no part is asked for twice.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out only `&mut` to elements that, by the contract of `part`, no other thread holds.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// The whole of `slice`, to be handed out in parts.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// Where the elements from `start` on stand, to be asked for only.
    pub fn address(&self, start: usize) -> *const u8 {
        self.start.wrapping_add(start).cast_const().cast()
    }

    /// Elements `range`.
    ///
    /// # Panics
    /// If `range` reaches outside.
    ///
    /// # Safety
    /// While the result lives, no overlapping part may be asked for, on this thread or another.
    #[allow(clippy::mut_from_ref, reason = "that is its purpose; the caller promises disjointness")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds, and unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
