//! Reads the recordings of the original model code in `tests/golden`.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

pub fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

/// All f32 arrays of a safetensors file.
pub fn arrays(name: &str) -> HashMap<String, Vec<f32>> {
    elements(name, "F32", f32::from_le_bytes)
}

/// All int64 arrays of a safetensors file.
pub fn integers(name: &str) -> HashMap<String, Vec<i64>> {
    elements(name, "I64", i64::from_le_bytes)
}

fn elements<T, const N: usize>(name: &str, dtype: &str, read: fn([u8; N]) -> T) -> HashMap<String, Vec<T>> {
    let bytes = std::fs::read(path(name)).unwrap();
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: HashMap<String, Value> = serde_json::from_slice(header).unwrap();
    let array = |entry: &Value| {
        let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
        data[offset(0)..offset(1)].as_chunks().0.iter().map(|bytes| read(*bytes)).collect()
    };
    let wanted = header.iter().filter(|(_, entry)| entry["dtype"] == dtype);
    wanted.map(|(name, entry)| (name.clone(), array(entry))).collect()
}
