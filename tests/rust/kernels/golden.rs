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
    let bytes = std::fs::read(path(name)).unwrap();
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: HashMap<String, Value> = serde_json::from_slice(header).unwrap();
    let floats = header.into_iter().filter(|(_, entry)| entry["dtype"] == "F32");
    floats.map(|(name, entry)| (name, array(&entry, data))).collect()
}

fn array(entry: &Value, data: &[u8]) -> Vec<f32> {
    let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
    data[offset(0)..offset(1)].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
