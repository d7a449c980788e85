//! Large zeroed arrays that belong together, side by side in memory of large pages.
//!
//! A sequence's states are tens of arrays of a megabyte. Each by itself would be touched in thousands of pages of 4 KB, each a
//! fault that the first pass of a sequence waits for, and the heap gives such arrays back to the system as soon as they are
//! free. As one piece the system can hold them in pages of 2 MB instead. The piece is of the heap all the same, which so can use
//! again what pictures or other texts left.
#![allow(unsafe_code, reason = "parts of one mapping, each owned by one array")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::large_pages;

/// Numbers of a cache line: arrays begin at one.
pub const LINE: usize = 64 / size_of::<f32>();

/// An array of numbers in a piece of memory that it shares with others.
pub struct Floats {
    start: NonNull<f32>,
    len: usize,
    /// Keeps the numbers alive.
    _piece: Option<Arc<Piece>>,
}

// SAFETY: an array owns its numbers as a `Vec<f32>` does: no other array reaches them, and the piece is of no thread.
unsafe impl Send for Floats {}
// SAFETY: the same; a shared array is only read.
unsafe impl Sync for Floats {}

impl Floats {
    /// Arrays of zeros of these lengths, which a model's weights vouch for.
    pub fn zeroed_array<const N: usize>(lens: [usize; N]) -> [Self; N] {
        Self::try_zeroed_array(lens).unwrap_or_else(|_| handle_alloc_error(Layout::new::<f32>()))
    }

    /// The same where a caller chose the lengths.
    pub fn try_zeroed_array<const N: usize>(lens: [usize; N]) -> Result<[Self; N]> {
        Ok(Self::try_zeroed(&lens, true)?.try_into().expect("one for each length"))
    }

    /// The same for any number of them, where large pages are not always worth their price.
    pub fn try_zeroed(lens: &[usize], large_pages: bool) -> Result<Vec<Self>> {
        Ok(Self::parts(Piece::zeroed(lens, large_pages)?, lens))
    }

    /// Arrays of these lengths in `piece`.
    fn parts(piece: Piece, lens: &[usize]) -> Vec<Self> {
        let piece = Arc::new(piece);
        let mut offset = 0;
        let array = |&len: &usize| {
            assert!(offset + len <= piece.len);
            // SAFETY: the array ends within the piece, as asserted.
            let start = unsafe { piece.start.add(offset) };
            offset += len.next_multiple_of(LINE);
            Self { start, len, _piece: Some(Arc::clone(&piece)) }
        };
        lens.iter().map(array).collect()
    }
}

/// Memory of some arrays. Only they read and write it.
struct Piece {
    /// At a cache line.
    start: NonNull<f32>,
    /// Numbers from there on.
    len: usize,
    memory: *mut u8,
    layout: Layout,
}

// SAFETY: memory of the allocator is of no thread.
unsafe impl Send for Piece {}
// SAFETY: a shared piece gives access to nothing.
unsafe impl Sync for Piece {}

impl Piece {
    /// Zeros for arrays of these lengths.
    fn zeroed(lens: &[usize], large_pages: bool) -> Result<Self> {
        let whole_lines = |len: usize| len.checked_add(LINE - 1).map_or(usize::MAX, |len| len / LINE * LINE);
        let len = lens.iter().fold(0, |sum: usize, &len| sum.saturating_add(whole_lines(len)));
        // Room to begin at a line: the allocator is asked for no alignment, since with one it fills memory with zeros that the
        // system gave as zeros.
        let numbers = len.saturating_add(LINE);
        let refused = || Error::Memory { needed: numbers.saturating_mul(size_of::<f32>()) };
        let layout = Layout::array::<f32>(numbers).map_err(|_| refused())?;
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(refused());
        }
        if large_pages {
            large_pages::advise(memory, layout.size());
        }
        // SAFETY: less than a line is skipped, for which there is room.
        let start = unsafe { memory.add(memory.align_offset(LINE * size_of::<f32>())) };
        #[allow(clippy::cast_ptr_alignment, reason = "it is at a cache line")]
        let start = NonNull::new(start.cast()).expect("memory is not at address 0");
        Ok(Self { start, len, memory, layout })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: it was allocated like this, and the arrays in it are gone.
        unsafe { dealloc(self.memory, self.layout) }
    }
}

/// An array of no numbers, in no memory.
impl Default for Floats {
    fn default() -> Self {
        Self { start: NonNull::dangling(), len: 0, _piece: None }
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` numbers from `start` on are this array's, see `parts`, and live as long as the piece.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and nobody else writes or reads them meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_zero_apart_and_aligned() {
        for lens in [&[0, 1, 17, 16][..], &[1 << 19, 3, 1 << 21], &[]] {
            let mut arrays = Floats::try_zeroed(lens, true).unwrap();
            for (i, (array, &len)) in arrays.iter_mut().zip(lens).enumerate() {
                assert_eq!((array.len(), array.as_ptr().align_offset(64)), (len, 0));
                assert!(array.iter().all(|&x| x == 0.0));
                array.fill(i as f32 + 1.0);
            }
            for (i, array) in arrays.iter().enumerate() {
                assert!(array.iter().all(|x| x.to_bits() == (i as f32 + 1.0).to_bits()));
            }
        }
    }

    #[test]
    fn what_no_system_has_is_refused() {
        for lens in [[usize::MAX, 1], [usize::MAX / 4, 0], [1 << 60, 1 << 60]] {
            assert!(matches!(Floats::try_zeroed_array(lens), Err(Error::Memory { .. })), "{lens:?}");
            assert!(matches!(Floats::try_zeroed(&lens, false), Err(Error::Memory { .. })), "{lens:?}");
        }
    }

    #[test]
    fn an_array_outlives_its_neighbours() {
        let mut arrays = Floats::try_zeroed(&[100, 100], false).unwrap();
        let mut last = arrays.pop().unwrap();
        drop(arrays);
        last.fill(7.0);
        assert_eq!(std::thread::spawn(move || last.to_vec()).join().unwrap(), [7.0; 100]);
    }
}
