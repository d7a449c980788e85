//! One test for each way a header can be wrong, and mutated valid files.

use proptest::prelude::*;

use super::*;

/// A file with this header text and this many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn parse(bytes: &[u8]) -> Result<Header> {
    Header::parse(Path::new("m.safetensors"), bytes)
}

/// The message for a file with this header and `data` bytes of data.
fn fault(header: &str, data: usize) -> String {
    parse(&file(header, data)).unwrap_err().to_string()
}

/// The header entry of one tensor.
fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

#[track_caller]
fn expect(message: &str, start: &str, part: &str) {
    assert!(message.starts_with(start) && message.contains(part), "{message}");
}

/// Expects a message about tensor `a`.
#[track_caller]
fn expect_a(message: &str, part: &str) {
    expect(message, "m.safetensors: tensor 'a': ", part);
}

fn valid() -> String {
    header(&[
        entry("b", "BF16", "[2,3]", 8, 20),
        entry("a", "F32", "[2]", 0, 8),
        r#""__metadata__":{"format":"pt"}"#.to_owned(),
        entry("empty", "I64", "[0,4]", 20, 20),
        entry("scalar", "U8", "[]", 20, 21),
    ])
}

#[test]
fn reads_a_valid_header() {
    let bytes = file(&format!("{}   ", valid()), 21);
    let header = parse(&bytes).unwrap();
    let data = bytes.len() - 21;
    let b = &header.tensors()["b"];
    assert_eq!(b, &Entry { dtype: Ok(DType::BF16), shape: vec![2, 3], range: data + 8..data + 20 });
    assert!(header.tensors()["scalar"].shape.is_empty());
    assert_eq!(header.tensors()["empty"].range.len(), 0);
    assert_eq!(header.metadata()["format"], "pt");
    assert_eq!(header.tensors().len(), 4);
}

#[test]
fn an_empty_header_is_valid() {
    assert!(parse(&file("{}", 0)).unwrap().tensors().is_empty());
}

#[test]
fn too_short_for_the_length_word() {
    expect(&parse(&[1; 7]).unwrap_err().to_string(), "m.safetensors: has 7 bytes, too few", "");
}

#[test]
fn header_length_above_the_limit() {
    for length in [u64::MAX, u64::MAX / 2, MAX_HEADER as u64 + 1] {
        let mut bytes = file("{}", 0);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        expect(&parse(&bytes).unwrap_err().to_string(), "m.safetensors: header length ", "above the limit");
    }
}

#[test]
fn header_longer_than_the_file() {
    let mut bytes = file("{}", 0);
    bytes[0] = 3;
    expect(&parse(&bytes).unwrap_err().to_string(), "m.safetensors: header length 3 ", "truncated");
    expect(&parse(&bytes[..8]).unwrap_err().to_string(), "m.safetensors: header length 3 ", "truncated");
}

#[test]
fn other_formats_are_recognised() {
    let hint = |start: &[u8]| parse(&[start, &[b'x'; 100]].concat()).unwrap_err().to_string();
    assert!(hint(b"version https://git-lfs.github.com/spec/v1\n").contains("Git LFS pointer"));
    assert!(hint(b"GGUF\x03\0\0\0").contains("GGUF"));
    assert!(hint(b"PK\x03\x04abcd").contains("zip"));
    assert!(hint(b"{\"metadata\":").contains("JSON"));
    assert!(hint(b"<!DOCTYPE html>").contains("web page"));
}

#[test]
fn header_must_begin_with_a_brace() {
    for text in [" {}", "[]", "null", ""] {
        expect(&fault(text, 0), "m.safetensors: header does not begin with '{'", "");
    }
}

#[test]
fn header_not_utf8() {
    let mut bytes = file(r#"{"a":1}"#, 0);
    bytes[10] = 0xff;
    expect(&parse(&bytes).unwrap_err().to_string(), "m.safetensors: header is not UTF-8", "");
}

#[test]
fn header_not_json() {
    expect(&fault("{", 0), "m.safetensors: header: EOF", "line 1 column 1");
    expect(&fault("{} x", 0), "m.safetensors: header: trailing characters", "");
    expect(&fault(r#"{"a" 1}"#, 0), "m.safetensors: ", "expected `:`");
}

#[test]
fn entry_of_the_wrong_form() {
    expect_a(&fault(r#"{"a":3}"#, 0), "expected an object of dtype, shape and data_offsets");
    expect_a(&fault(r#"{"a":{"shape":[],"data_offsets":[0,1]}}"#, 1), "missing field `dtype`");
    expect_a(&fault(r#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#, 1), "missing field `shape`");
    expect_a(&fault(r#"{"a":{"dtype":"U8","shape":[]}}"#, 1), "missing field `data_offsets`");
    expect_a(&fault(r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0]}}"#, 1), "invalid length 1");
    assert!(parse(&file(r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1,2]}}"#, 1)).is_err());
    expect_a(&fault(r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":0}}"#, 1), "unknown field `x`");
    expect_a(&fault(r#"{"a":{"dtype":8,"shape":[],"data_offsets":[0,1]}}"#, 1), "expected a string");
    expect_a(&fault(&header(&[entry("a", "U8", "[-1]", 0, 1)]), 1), "invalid value: integer `-1`");
    expect_a(&fault(&header(&[entry("a", "U8", "[1.5]", 0, 1)]), 1), "floating point");
    expect_a(&fault(&header(&[entry("a", "U8", "7", 0, 1)]), 1), "expected a list of sizes");
}

#[test]
fn repeated_names() {
    let twice = header(&[entry("a", "U8", "[1]", 0, 1), entry("a", "U8", "[1]", 0, 1)]);
    expect_a(&fault(&twice, 1), "'a' stands twice");
    let fields = r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#;
    expect_a(&fault(fields, 1), "duplicate field `dtype`");
    let metadata = r#"{"__metadata__":{},"__metadata__":{}}"#;
    expect(&fault(metadata, 0), "m.safetensors: header: __metadata__: ", "stands twice");
    expect(&fault(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0), "m.safetensors: ", "'k' stands twice");
}

#[test]
fn metadata_holds_texts_only() {
    for value in ["1", "null", "[]", r#"{"x":"y"}"#] {
        let text = format!(r#"{{"__metadata__":{{"k":{value}}}}}"#);
        expect(&fault(&text, 0), "m.safetensors: header: __metadata__: 'k': ", "expected a string");
    }
    expect(
        &fault(r#"{"__metadata__":"x"}"#, 0),
        "m.safetensors: header: __metadata__: ",
        "expected an object",
    );
}

#[test]
fn unusable_names() {
    let long = "x".repeat(MAX_NAME + 1);
    let message = fault(&header(&[entry(&long, "U8", "[1]", 0, 1)]), 1);
    assert!(message.contains("the limit is 1024") && message.len() < 600, "{message}");
    let message = fault(&header(&[entry(r"a\u001b[2J", "U8", "[1]", 0, 1)]), 1);
    assert!(message.contains("cannot name a tensor") && !message.contains('\u{1b}'), "{message}");
}

#[test]
fn offsets_out_of_range() {
    expect_a(&fault(&header(&[entry("a", "U8", "[9]", 0, 9)]), 8), "ends at byte 9, the file holds 8");
    expect_a(&fault(&header(&[entry("a", "U8", "[1]", 2, 1)]), 8), "run backwards");
    let huge = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,18446744073709551615]}}"#;
    expect_a(&fault(huge, 8), "ends at byte 18446744073709551615");
    let huger = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,18446744073709551616]}}"#;
    expect_a(&fault(huger, 8), "header: ");
}

#[test]
fn overlap_hole_and_rest() {
    let two = |b| header(&[entry("b", "U8", "[4]", 0, 4), entry("a", "U8", "[4]", b, b + 4)]);
    assert!(parse(&file(&two(4), 8)).is_ok());
    expect_a(&fault(&two(3), 7), "overlaps");
    expect_a(&fault(&two(5), 9), "hole");
    expect_a(&fault(&header(&[entry("a", "U8", "[4]", 1, 5)]), 5), "hole");
    expect(&fault(&two(4), 9), "m.safetensors: holds 9 bytes of data, its tensors cover 8", "");
    expect(&fault("{}", 1), "m.safetensors: holds 1 bytes of data, its tensors cover 0", "");
    let shared = header(&[entry("b", "U8", "[4]", 0, 4), entry("a", "U8", "[4]", 0, 4)]);
    expect(&fault(&shared, 4), "m.safetensors: tensor 'b': ", "overlaps");
    let inside = header(&[entry("b", "U8", "[4]", 0, 4), entry("a", "U8", "[0]", 2, 2)]);
    expect_a(&fault(&inside, 4), "overlaps");
}

#[test]
fn shape_and_size_disagree() {
    let message = fault(&header(&[entry("a", "F32", "[2,3]", 0, 20)]), 20);
    expect_a(&message, "shape [2, 3] of F32 needs 24 bytes, its data has 20");
    expect_a(&fault(&header(&[entry("a", "F32", "[0]", 0, 4)]), 4), "needs 0 bytes");
}

#[test]
fn absurd_shapes() {
    let max = u64::MAX;
    for shape in
        [format!("[{max},2]"), format!("[{max}]"), format!("[0,{max},2]"), "[4294967296,4294967296,0]".into()]
    {
        expect_a(&fault(&header(&[entry("a", "F32", &shape, 0, 4)]), 4), "is too large");
    }
    let flat = format!("[{}1]", "1,".repeat(MAX_RANK));
    expect_a(&fault(&header(&[entry("a", "U8", &flat, 0, 1)]), 1), "more than 32 dimensions");
}

#[test]
fn deep_nesting() {
    let deep = format!(r#"{{"a":{}"#, "[".repeat(200_000));
    expect(&fault(&deep, 0), "m.safetensors: ", "");
    let deep =
        format!(r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{}"#, "[".repeat(200_000));
    expect_a(&fault(&deep, 0), "unknown field `x`");
}

#[test]
fn a_foreign_type_is_listed_but_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let header = header(&[entry("a", "F8_E5M2", "[4]", 0, 4), entry("b", "U8", "[2]", 4, 6)]);
    std::fs::write(&path, file(&header, 6)).unwrap();
    let tensors = SafeTensors::open(&path).unwrap();
    assert_eq!(tensors.header().tensors()["a"].dtype, Err("F8_E5M2".to_owned()));
    assert_eq!(&tensors.get("b").unwrap().unwrap().bytes[..], [4, 5]);
    assert!(tensors.get("c").unwrap().is_none());
    let message = tensors.get("a").unwrap_err().to_string();
    assert!(message.ends_with("m: tensor 'a': its type F8_E5M2 is not supported"), "{message}");
}

/// Whatever is accepted keeps the promises of [`Header`].
fn check_promises(bytes: &[u8], header: &Header) {
    let mut covered = 0;
    for entry in header.tensors().values() {
        assert!(entry.range.start <= entry.range.end && entry.range.end <= bytes.len());
        if let Ok(dtype) = entry.dtype {
            assert_eq!(entry.range.len(), entry.shape.iter().product::<usize>() * dtype.size());
        }
        covered += entry.range.len();
    }
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(covered, bytes.len() - 8 - length);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file(&valid(), 21);
        for (place, value) in edits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(header) = parse(&bytes) {
            check_promises(&bytes, &header);
        }
    }

    #[test]
    fn mutated_numbers_keep_the_promises(
        begin in 0u64..24, end in 0u64..24, rows in 0u64..5, cols in prop_oneof![0u64..5, any::<u64>()],
        dtype in prop::sample::select(vec!["U8", "F16", "F32", "F64", "BOOL"]),
    ) {
        let shape = format!("[{rows},{cols}]");
        let a = format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#);
        let bytes = file(&header(&[a, entry("b", "U8", "[4]", 0, 4)]), 20);
        if let Ok(header) = parse(&bytes) {
            check_promises(&bytes, &header);
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(parse(&bytes).is_err() || bytes.starts_with(&[2, 0, 0, 0, 0, 0, 0, 0]));
    }
}
