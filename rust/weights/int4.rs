//! (being written)
/// Bytes of one block of 16 rows x 32 columns: 256 of nibbles, then 16 f16 scales.
pub const BLOCK_BYTES: usize = 288;
/// Row `row` as f32.
pub fn read_row(_blocks: &[u8], _cols: usize, _row: usize, _out: &mut [f32]) {
    unimplemented!()
}
