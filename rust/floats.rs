//! Large zeroed arrays that belong together, side by side in memory of large pages.
//!
//! A sequence's states are tens of arrays of a megabyte. From the heap each would be touched in thousands of pages of 4 KB,
//! each a fault that the first pass of every sequence, and every copy of one, waits for; and the heap gives such arrays back
//! to the system as soon as they are free. In one mapping the system can use pages of 2 MB instead, and the last
//! mappings that became free are kept for the next ones of their size: every turn of a conversation begins a state, copies another
//! and frees both.
#![allow(unsafe_code, reason = "parts of one mapping, each owned by one array")]

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use memmap2::MmapMut;

/// What a large page is on most systems. A mapping that does not begin at one has none.
const LARGE_PAGE: usize = 2 << 20;
/// Arrays begin at a cache line.
const LINE: usize = 64 / size_of::<f32>();

/// The largest mapping that is kept.
const LARGEST_SPARE: usize = 64 << 20;
/// How many are.
const SPARES: usize = 2;

/// The mappings that became free last.
static SPARE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

/// An array of numbers in a mapping that it shares with others.
pub struct Floats {
    start: NonNull<f32>,
    len: usize,
    /// Keeps the numbers alive; never read or written but through `start`.
    mapping: Option<Arc<MmapMut>>,
}

// SAFETY: an array owns its numbers as a `Vec<f32>` does: no other array reaches them, and the mapping is of no thread.
unsafe impl Send for Floats {}
// SAFETY: the same; a shared array is only read.
unsafe impl Sync for Floats {}

impl Floats {
    /// Arrays of zeros of these lengths.
    pub fn zeroed(lens: &[usize]) -> Vec<Self> {
        let (mapping, fresh) = mapping(lens, true);
        let mut arrays = Self::parts(mapping, lens);
        if !fresh {
            for array in &mut arrays {
                array.fill(0.0);
            }
        }
        arrays
    }

    /// The same for a number of arrays known beforehand.
    pub fn zeroed_array<const N: usize>(lens: [usize; N]) -> [Self; N] {
        Self::zeroed(&lens).try_into().expect("one for each length")
    }

    /// Copies of `arrays`. A cache keeps many of them, and before it hands out so many large pages, a system that has run for a
    /// while has to move others: turns of a conversation waited 40 ms longer. So copies do without.
    pub fn copies(arrays: &[&Self]) -> Vec<Self> {
        let lens: Vec<usize> = arrays.iter().map(|array| array.len).collect();
        let mut copies = Self::parts(mapping(&lens, false).0, &lens);
        copies.iter_mut().zip(arrays).for_each(|(copy, array)| copy.copy_from_slice(array));
        copies
    }

    /// Arrays of these lengths, of whatever numbers `mapping` holds.
    fn parts(mut mapping: MmapMut, lens: &[usize]) -> Vec<Self> {
        let skipped = if mapping.len() > LARGE_PAGE { mapping.as_ptr().align_offset(LARGE_PAGE) } else { 0 };
        let room = &mut mapping[skipped..];
        assert!(bytes(lens) <= room.len());
        #[allow(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
        let start = NonNull::new(room.as_mut_ptr().cast::<f32>()).expect("no mapping begins at address 0");
        let mapping = Arc::new(mapping);
        let mut offset = 0;
        let array = |&len: &usize| {
            // SAFETY: the arrays end within the mapping, as asserted.
            let start = unsafe { start.add(offset) };
            offset += len.next_multiple_of(LINE);
            Self { start, len, mapping: Some(Arc::clone(&mapping)) }
        };
        lens.iter().map(array).collect()
    }
}

/// Keeps the mapping that the last of its arrays leaves. Those of other sizes make room for the next one.
impl Drop for Floats {
    fn drop(&mut self) {
        let mapping = self.mapping.take().and_then(Arc::into_inner);
        if let Some(mapping) = mapping.filter(|mapping| mapping.len() <= LARGEST_SPARE)
            && let Ok(mut spare) = SPARE.try_lock()
        {
            spare.truncate(SPARES - 1);
            spare.insert(0, mapping);
        }
    }
}

/// Bytes of arrays of these lengths.
fn bytes(lens: &[usize]) -> usize {
    size_of::<f32>() * lens.iter().map(|len| len.next_multiple_of(LINE)).sum::<usize>()
}

/// Memory for arrays of these lengths, from its first large page on if it is large, and whether it is fresh, all zeros.
fn mapping(lens: &[usize], large_pages: bool) -> (MmapMut, bool) {
    let bytes = bytes(lens);
    let room = bytes.max(1) + if bytes >= LARGE_PAGE { LARGE_PAGE } else { 0 };
    // In a child whose parent was at it when it forked the lock stays taken.
    if let Ok(mut spare) = SPARE.try_lock() {
        match spare.iter().position(|spare| spare.len() == room) {
            Some(place) => return (spare.swap_remove(place), false),
            None => spare.clear(),
        }
    }
    let Ok(mapping) = MmapMut::map_anon(room) else {
        handle_alloc_error(Layout::array::<u8>(room).unwrap_or(Layout::new::<u8>()));
    };
    if large_pages && bytes >= LARGE_PAGE {
        advise_large_pages(&mapping);
    }
    (mapping, true)
}

/// A hint, which older and other systems do not take.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn advise_large_pages(mapping: &MmapMut) {
    let _hint = mapping.advise(memmap2::Advice::HugePage);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn advise_large_pages(_mapping: &MmapMut) {}

/// An array of no numbers, in no mapping.
impl Default for Floats {
    fn default() -> Self {
        Self { start: NonNull::dangling(), len: 0, mapping: None }
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` numbers from `start` on are this array's, see `zeroed`, and live as long as the mapping.
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
        for lens in [&[0, 1, 17, 16][..], &[LARGE_PAGE / 4, 3, LARGE_PAGE], &[]] {
            let mut arrays = Floats::zeroed(lens);
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
    fn copies_are_equal_and_apart() {
        let mut arrays = Floats::zeroed(&[20, 3]);
        arrays[0].fill(1.0);
        arrays[1].fill(2.0);
        let copies = Floats::copies(&[&arrays[0], &arrays[1]]);
        arrays[0].fill(3.0);
        assert_eq!((&copies[0][..], &copies[1][..]), (&[1.0; 20][..], &[2.0; 3][..]));
    }

    #[test]
    fn memory_used_again_is_zero() {
        for _ in 0..3 {
            let mut arrays = Floats::zeroed(&[1000, LARGE_PAGE / 4 + 1]);
            assert!(arrays.iter().all(|array| array.iter().all(|&x| x == 0.0)));
            for array in &mut arrays {
                array.fill(1.0);
            }
        }
    }

    #[test]
    fn large_ones_begin_at_a_large_page() {
        let arrays = Floats::zeroed(&[LARGE_PAGE, 5]);
        assert_eq!(arrays[0].as_ptr().align_offset(LARGE_PAGE), 0);
    }

    #[test]
    fn an_array_outlives_its_neighbours() {
        let mut arrays = Floats::zeroed(&[100, 100]);
        let mut last = arrays.pop().unwrap();
        drop(arrays);
        last.fill(7.0);
        assert_eq!(std::thread::spawn(move || last.to_vec()).join().unwrap(), [7.0; 100]);
    }
}
