//! The header of a safetensors file, from its first byte.
#![no_main]

use std::path::Path;

use edgewise::checkpoint::safetensors::Header;
use edgewise_fuzz::Limited;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = Header::parse(Path::new("f.safetensors"), file) else { return };
    let mut end = None;
    let mut entries: Vec<_> = header.tensors().values().collect();
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    for entry in entries {
        assert!(entry.range.start <= entry.range.end && entry.range.end <= file.len(), "{entry:?}");
        assert!(end.is_none_or(|end| end == entry.range.start), "a hole or an overlap before {entry:?}");
        end = Some(entry.range.end);
        if let Ok(dtype) = &entry.dtype {
            let elements =
                entry.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).expect("no overflow");
            assert_eq!(entry.range.len(), elements * dtype.size(), "{entry:?}");
        }
    }
});
