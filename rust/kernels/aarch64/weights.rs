//! Where the byte vectors of a block of weights come from.
//!
//! Thirty-two registers hold no whole block and its sums. So products take a block's vectors one by one, in the order
//! in which they stand in memory, and expand them when they need them.
#![allow(unsafe_code, reason = "loads, from references to arrays")]

use std::arch::aarch64::{
    int8x16_t, uint8x16_t, vandq_u8, vdupq_n_s8, vdupq_n_u8, vld1q_s8, vld1q_u8, vreinterpretq_s8_s32,
    vreinterpretq_s8_u8, vreinterpretq_s32_s8, vreinterpretq_u8_s8, vshrq_n_u8, vzip1q_s32, vzip2q_s32,
};

use super::intrinsics;
use super::neon::Bytes4;
use crate::kernels::tiles::Block;

/// The eight byte vectors of a block. A register holds four rows of one, four columns each.
pub trait Weights: Copy {
    /// Rows `4 q..` of vectors `j` and `j + 4`.
    ///
    /// # Safety
    /// j < 4 and q < 4.
    unsafe fn pair(self, j: usize, q: usize) -> [int8x16_t; 2];

    /// The same rows of vectors `j` and `j + 1`, eight columns of a row together, two rows to a register; then of
    /// `j + 4` and `j + 5`.
    ///
    /// # Safety
    /// j < 3 and q < 4.
    #[inline(always)]
    unsafe fn zipped(self, j: usize, q: usize) -> [[int8x16_t; 2]; 2] {
        // SAFETY: by the contract.
        let (even, odd) = unsafe { (self.pair(j, q), self.pair(j + 1, q)) };
        [zip(even[0], odd[0]), zip(even[1], odd[1])]
    }
}

/// Lanes of `a` and `b` in turn.
#[inline(always)]
fn zip(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    intrinsics! {
        let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
        [vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))]
    }
}

/// An INT4 block as it is stored: low nibbles are vector j, high ones vector j + 4.
#[derive(Clone, Copy)]
pub(super) struct Nibbles<'a>(pub(super) &'a [u8; 256]);

impl Nibbles<'_> {
    /// # Safety
    /// j < 4 and q < 4.
    #[inline(always)]
    unsafe fn bytes(self, j: usize, q: usize) -> uint8x16_t {
        intrinsics! { vld1q_u8(self.0.as_ptr().add(64 * j + 16 * q)) }
    }
}

/// Low nibbles and high nibbles.
#[inline(always)]
fn expand(bytes: uint8x16_t) -> [int8x16_t; 2] {
    intrinsics! {
        let (low, high) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
        [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)]
    }
}

impl Weights for Nibbles<'_> {
    #[inline(always)]
    unsafe fn pair(self, j: usize, q: usize) -> [int8x16_t; 2] {
        // SAFETY: by the contract.
        expand(unsafe { self.bytes(j, q) })
    }

    /// Zips before it expands: half as many zips.
    #[inline(always)]
    unsafe fn zipped(self, j: usize, q: usize) -> [[int8x16_t; 2]; 2] {
        intrinsics! {
            let (even, odd) = (vreinterpretq_s8_u8(self.bytes(j, q)), vreinterpretq_s8_u8(self.bytes(j + 1, q)));
            let both = zip(even, odd);
            let (first, second) = (expand(vreinterpretq_u8_s8(both[0])), expand(vreinterpretq_u8_s8(both[1])));
            [[first[0], second[0]], [first[1], second[1]]]
        }
    }
}

/// An INT8 block as it is stored.
#[derive(Clone, Copy)]
pub(super) struct Levels<'a>(pub(super) &'a [u8; 512]);

impl Levels<'_> {
    /// # Safety
    /// j < 8 and q < 4.
    #[inline(always)]
    unsafe fn vector(self, j: usize, q: usize) -> int8x16_t {
        intrinsics! { vld1q_s8(self.0.as_ptr().add(64 * j + 16 * q).cast()) }
    }
}

impl Weights for Levels<'_> {
    #[inline(always)]
    unsafe fn pair(self, j: usize, q: usize) -> [int8x16_t; 2] {
        // SAFETY: by the contract.
        unsafe { [self.vector(j, q), self.vector(j + 4, q)] }
    }
}

/// A block that was loaded before.
#[derive(Clone, Copy)]
pub(super) struct Loaded<'a>(pub(super) &'a [Bytes4; 8]);

impl Weights for Loaded<'_> {
    #[inline(always)]
    unsafe fn pair(self, j: usize, q: usize) -> [int8x16_t; 2] {
        [self.0[j][q], self.0[j + 4][q]]
    }
}

/// The weights of rows `4 q..` of a block whose vectors begin at `place + 64 j`: vector j of them.
///
/// # Safety
/// `place` points to a block of format `B`, moved on by `16 q`.
#[inline(always)]
pub(super) unsafe fn strip<B: Block>(place: *const u8) -> [int8x16_t; 8] {
    // SAFETY: by the contract, a block holds four or eight vectors of 64 bytes.
    unsafe {
        let mut w = [vdupq_n_s8(0); 8];
        for j in 0..4 {
            if B::NIBBLES {
                [w[j], w[j + 4]] = expand(vld1q_u8(place.add(64 * j)));
            } else {
                w[j] = vld1q_s8(place.add(64 * j).cast());
                w[j + 4] = vld1q_s8(place.add(64 * j + 256).cast());
            }
        }
        w
    }
}

/// The same weights, eight columns of a row together: `[column / 8][row / 2]`.
///
/// # Safety
/// As [`strip`] has it.
#[inline(always)]
pub(super) unsafe fn zipped_strip<B: Block>(place: *const u8) -> [[int8x16_t; 2]; 4] {
    // SAFETY: as above.
    unsafe {
        let mut w = [[vdupq_n_s8(0); 2]; 4];
        for j in 0..2 {
            let load = |vector: usize| vld1q_s8(place.add(64 * vector).cast());
            let low = zip(load(2 * j), load(2 * j + 1));
            if B::NIBBLES {
                for rows in 0..2 {
                    [w[j][rows], w[j + 2][rows]] = expand(vreinterpretq_u8_s8(low[rows]));
                }
            } else {
                w[j] = low;
                w[j + 2] = zip(load(2 * j + 4), load(2 * j + 5));
            }
        }
        w
    }
}
