//! The grid of patches of one image or pair of frames.

use crate::config::VisionConfig;
use crate::error::{Error, Result};

/// The most patches encoded at once: attention compares each with each.
const MAX_PATCHES: usize = 1 << 18;

/// Rows and columns of patches, both multiples of `merge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    rows: usize,
    columns: usize,
    /// Patches of a token's side.
    merge: usize,
}

impl Grid {
    /// A grid of `rows` x `columns` patches for the tower of `config`. Errors call it `grid_hw`.
    pub fn new(config: &VisionConfig, rows: usize, columns: usize) -> Result<Self> {
        let merge = config.merge_size;
        let fits = |side: usize| side > 0 && side.is_multiple_of(merge);
        let fault = |reason: String| Err(Error::argument("grid_hw", reason));
        if !fits(rows) || !fits(columns) {
            return fault(format!("({rows}, {columns}) must be multiples of {merge}, and not zero"));
        }
        match rows.checked_mul(columns) {
            Some(patches) if patches <= MAX_PATCHES => Ok(Self { rows, columns, merge }),
            _ => fault(format!("({rows}, {columns}) are more than {MAX_PATCHES} patches")),
        }
    }

    /// Rows of patches.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Columns of patches.
    pub fn columns(self) -> usize {
        self.columns
    }

    /// Patches in all.
    pub fn patches(self) -> usize {
        self.rows * self.columns
    }

    /// Tokens in all.
    pub fn tokens(self) -> usize {
        self.merged_rows() * self.merged_columns()
    }

    /// Rows of tokens.
    pub fn merged_rows(self) -> usize {
        self.rows / self.merge
    }

    /// Columns of tokens.
    pub fn merged_columns(self) -> usize {
        self.columns / self.merge
    }

    /// Row and column of patch `index`: tokens row by row, inside each its patches row by row.
    pub fn place(self, index: usize) -> (usize, usize) {
        let area = self.merge * self.merge;
        let (token, inner) = (index / area, index % area);
        let (row, column) = (token / self.merged_columns(), token % self.merged_columns());
        (row * self.merge + inner / self.merge, column * self.merge + inner % self.merge)
    }
}
