//! Memory for encoding one image or pair of frames. It is taken for the call and given back after it.

use super::grid::Grid;
use crate::config::VisionConfig;
use crate::error::Result;
use crate::floats::Floats;
use crate::kernels::activations::QuantizedRows;
use crate::kernels::kv_cache::{KvCache, KvType};
use crate::kernels::lanes::LANES;
use crate::kernels::rope::RopeTable;

/// Patches that go through matrices at once; a multiple of the patches of a token.
pub const ROWS: usize = 256;

/// Buffers for all patches, then those for [`ROWS`] of them.
#[derive(Debug)]
pub struct Buffers {
    /// The residual stream, `[patches, width]`
    pub x: Floats,
    /// `[patches, heads, padded head]`
    pub queries: Floats,
    /// Keys and values of one block.
    pub cache: KvCache,
    /// `[patches, heads, head]`
    pub attended: Floats,
    pub rope: RopeTable,
    /// `[rows, width]`
    pub normed: Floats,
    /// `[rows, 3 width]`, `[rows, intermediate]` or `[tokens, merged]`
    pub wide: Floats,
    /// `[rows, heads, padded head]`
    pub keys: Floats,
    /// `[rows, heads, padded head]`
    pub values: Floats,
    pub quantized: QuantizedRows,
}

impl Buffers {
    /// Buffers for encoding `x`, with keys and values in `kv_type`.
    pub fn new(config: &VisionConfig, grid: Grid, x: Floats, kv_type: KvType) -> Result<Self> {
        let (patches, width) = (grid.patches(), config.hidden_size);
        let rows = ROWS.min(patches);
        let head = padded(config.head_dim());
        let heads = config.heads * head;
        let wide = (3 * width).max(config.intermediate_size);
        let widest = wide.max(config.merged_width());
        let mut rope = RopeTable::two_axes(config.rope_theta, config.head_dim(), patches)?;
        let places = (0..patches).map(|i| grid.place(i));
        rope.fill(places.map(|(row, column)| [0, row as u32, column as u32]));
        let mut cache = KvCache::new(kv_type, config.heads, head);
        cache.reserve(patches)?;
        let of = |rows: usize, width: usize| rows.saturating_mul(width);
        let [queries, attended, normed, wide, keys, values] = Floats::try_zeroed_array([
            of(patches, heads),
            of(patches, width),
            of(rows, width),
            of(rows, wide),
            of(rows, heads),
            of(rows, heads),
        ])?;
        let quantized = QuantizedRows::with_capacity(rows, widest);
        Ok(Self { x, queries, cache, attended, rope, normed, wide, keys, values, quantized })
    }
}

/// A head's width filled up to whole vectors.
pub fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}
