use super::*;

/// A file being written byte by byte.
#[derive(Clone, Default)]
struct Builder {
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Builder {
    fn key(mut self, key: &str, code: u32, value: &[u8]) -> Self {
        self.keys.push([string(key), code.to_le_bytes().to_vec(), value.to_vec()].concat());
        self
    }

    /// A tensor with the shortest stride first.
    fn tensor(mut self, name: &str, dims: &[u64], code: u32, offset: u64) -> Self {
        let mut entry = string(name);
        entry.extend((dims.len() as u32).to_le_bytes());
        entry.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        entry.extend(code.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = (0..bytes).map(|i| i as u8).collect();
        self
    }

    fn header(&self, version: u32, tensors: u64, keys: u64) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(version.to_le_bytes());
        out.extend(tensors.to_le_bytes());
        out.extend(keys.to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        out
    }

    fn build(&self) -> Vec<u8> {
        let mut out = self.header(3, self.tensors.len() as u64, self.keys.len() as u64);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(&self.data);
        out
    }
}

fn parse(bytes: Vec<u8>) -> Result<File> {
    File::parse(Path::new("f.gguf"), Bytes::new(bytes))
}

fn message(bytes: Vec<u8>) -> String {
    let message = parse(bytes).unwrap_err().to_string();
    message
        .strip_prefix("f.gguf: ")
        .unwrap_or_else(|| panic!("does not begin with the file: {message}"))
        .to_owned()
}

/// Two tensors and a key of each kind.
fn small() -> Builder {
    let text = string("qwen3");
    let array = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &string("a"), &string("bc")].concat();
    Builder::default()
        .key("general.architecture", 8, &text)
        .key("u8", 0, &[200])
        .key("i8", 1, &[0xff])
        .key("f32", 6, &0.5f32.to_le_bytes())
        .key("flag", 7, &[1])
        .key("u64", 10, &(1u64 << 40).to_le_bytes())
        .key("f64", 12, &0.1f64.to_le_bytes())
        .key("texts", 9, &array)
        .key(
            "sizes",
            9,
            &[&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &3u32.to_le_bytes(), &3u32.to_le_bytes()]
                .concat(),
        )
        .tensor("a", &[3, 2], 0, 0)
        .tensor("b", &[32], 2, 32)
        .data(50)
}

#[test]
fn tensors_and_keys() {
    for version in [2, 3] {
        let mut bytes = small().build();
        bytes[4] = version;
        let file = parse(bytes).unwrap();
        let (a, b) = (&file.tensors["a"], &file.tensors["b"]);
        assert_eq!((&a.shape, a.dtype.clone()), (&vec![2, 3], Ok(DType::F32)));
        assert_eq!((&b.shape, b.dtype.clone()), (&vec![32], Ok(DType::Block(BlockType::Q4_0))));
        assert_eq!(file.bytes[a.range.clone()].len(), 24);
        assert_eq!(file.bytes[b.range.clone()][0], 32);
        let metadata = &file.metadata;
        assert_eq!(metadata.text("general.architecture").unwrap(), Some("qwen3"));
        assert_eq!(metadata.size("u8").unwrap(), Some(200));
        assert_eq!(metadata.size("u64").unwrap(), Some(1 << 40));
        assert_eq!(metadata.size("sizes").unwrap(), Some(3));
        assert_eq!(metadata.number("f32").unwrap(), Some(0.5));
        assert_eq!(metadata.number("f64").unwrap(), Some(0.1));
        assert_eq!(metadata.flag("flag").unwrap(), Some(true));
        let texts: Vec<_> = metadata.texts("texts").unwrap().unwrap().map(Result::unwrap).collect();
        assert_eq!(texts, ["a", "bc"]);
        assert_eq!(metadata.size("none").unwrap(), None);
    }
}

#[test]
fn values_of_another_type_are_refused() {
    let file = parse(small().build()).unwrap();
    let metadata = &file.metadata;
    for (error, reason) in [
        (metadata.size("i8").unwrap_err(), "metadata 'i8': is not a whole number that fits"),
        (metadata.size("f32").unwrap_err(), "metadata 'f32': is not a whole number that fits"),
        (metadata.text("u8").unwrap_err(), "metadata 'u8': is not a string"),
        (metadata.text("texts").unwrap_err(), "metadata 'texts': is an array"),
        (metadata.flag("u8").unwrap_err(), "metadata 'u8': is not true or false"),
        (metadata.number("flag").unwrap_err(), "metadata 'flag': is not a finite number"),
        (metadata.sizes("u8", 4).unwrap_err(), "metadata 'u8': is not an array"),
        (metadata.sizes("sizes", 1).unwrap_err(), "metadata 'sizes': has 2 elements, the limit is 1"),
        (metadata.require_size("none").unwrap_err(), "metadata 'none': is missing"),
    ] {
        assert_eq!(error.to_string(), format!("f.gguf: {reason}"));
    }
}

#[test]
fn every_truncation_is_an_error() {
    let whole = small().build();
    for len in 0..whole.len() {
        let message = message(whole[..len].to_vec());
        assert!(message.contains("beyond the file") || message.contains("truncated"), "{len}: {message}");
    }
    assert!(parse(whole).is_ok());
}

/// Whatever one byte becomes, the file is read or refused, and what is read lies inside it.
#[test]
fn no_byte_makes_it_panic() {
    let whole = small().build();
    for at in 0..whole.len() {
        for value in [0, 1, 9, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(file) = parse(bytes) {
                assert!(file.tensors.values().all(|entry| entry.range.end <= whole.len()));
            }
        }
    }
}

#[test]
fn absurd_counts_are_refused_before_anything_is_read() {
    let builder = small();
    for (tensors, keys, reason) in [
        (u64::MAX, 9, "claims 18446744073709551615 tensors, the limit is 131072"),
        (2, u64::MAX, "claims 18446744073709551615 metadata keys, the limit is 65536"),
        (2, 60_000, "reaches beyond the file"),
        (100_000, 9, "reaches beyond the file"),
    ] {
        let found = message(builder.header(3, tensors, keys));
        assert!(found.contains(reason), "{found}");
    }
    let long = |code: u32, count: u64| [&code.to_le_bytes()[..], &count.to_le_bytes()].concat();
    for (value, reason) in [
        (long(4, u64::MAX), "metadata 'k' claims 18446744073709551615 elements, the limit is 16777216"),
        (long(8, (1 << 24) + 1), "metadata 'k' claims 16777217 elements, the limit is 16777216"),
        (long(0, 1 << 24), "metadata 'k' of 16777216 bytes at byte"),
        (long(8, 1 << 24), "metadata 'k' of 8 bytes at byte"),
        (long(9, 1), "metadata 'k' is an array of arrays, which is not supported"),
        (long(13, 1), "metadata 'k' has the unknown type 13"),
    ] {
        let found = message(Builder::default().key("k", 9, &value).build()[..57].to_vec());
        assert!(found.starts_with(reason), "{found}");
    }
    let found = message(Builder::default().key("k", 8, &u64::MAX.to_le_bytes()).build());
    assert!(found.starts_with("metadata 'k' of 18446744073709551615 bytes"), "{found}");
}

#[test]
fn faulty_headers() {
    let version = |version: u32| small().header(version, 0, 0);
    assert!(message(b"GGML0000".to_vec()).contains("does not begin with 'GGUF'"));
    assert_eq!(message(version(1)), "GGUF version 1 is not supported; known: 2, 3");
    assert_eq!(message(version(4)), "GGUF version 4 is not supported; known: 2, 3");
    assert_eq!(
        message(version(3u32.swap_bytes())),
        "GGUF version 50331648 is not supported; known: 2, 3; the file is big-endian"
    );
    let twice = Builder::default().key("k", 7, &[1]).key("k", 7, &[1]);
    assert_eq!(message(twice.build()), "metadata 'k' stands twice");
    let name = Builder::default().key("\n", 7, &[1]);
    assert_eq!(message(name.build()), "'\\n' cannot be metadata key 0 of 1");
    for alignment in [0u32, 3, 1 << 21] {
        let found = message(small().key("general.alignment", 4, &alignment.to_le_bytes()).build());
        assert!(found.ends_with("is not a power of two up to 1048576"), "{found}");
    }
}

#[test]
fn faulty_tensors() {
    let faults: [(&[u64], u32, u64, &str); 9] = [
        (&[3], 0, 8, "its offset 8 is not a multiple of the alignment 32"),
        (&[3], 0, 64, "its data end at byte"),
        (&[3], 0, u64::MAX, "its offset 18446744073709551615 is too large"),
        (&[u64::MAX, 4], 0, 0, "is too large"),
        (&[1 << 40, 1 << 40], 0, 0, "is too large"),
        (&[4, 0], 0, 0, "its shape [4, 0] holds nothing"),
        (&[], 0, 0, "its shape [] holds nothing"),
        (&[33, 2], 2, 0, "its rows of 33 are not whole blocks of 32, as Q4_0 needs"),
        (&[32], 12, 0, "its rows of 32 are not whole blocks of 256, as Q4_K needs"),
    ];
    for (dims, code, offset, reason) in faults {
        let found = message(Builder::default().tensor("t", dims, code, offset).data(64).build());
        assert!(found.starts_with("tensor 't': ") && found.contains(reason), "{found}");
    }
    let found = message(Builder::default().tensor("t", &[1; 5], 0, 0).data(64).build());
    assert_eq!(found, "tensor 't': has 5 dimensions, more than 4");
    let found = message(Builder::default().tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32).data(64).build());
    assert_eq!(found, "tensor 't': stands in the file twice");
    let found = message(Builder::default().tensor("t", &[9], 0, 0).tensor("u", &[1], 0, 32).data(64).build());
    assert_eq!(found, "tensor 'u': its data overlap those of 't'");
    let found = message(Builder::default().tensor("t", &[8], 0, 0).tensor("u", &[8], 0, 0).data(64).build());
    assert_eq!(found, "tensor 'u': its data overlap those of 't'");
}

#[test]
fn types_that_are_not_read_are_listed_by_name() {
    for (code, name) in [(10, "Q2_K"), (11, "Q3_K"), (16, "IQ2_XXS"), (39, "MXFP4"), (77, "number 77")] {
        let file = parse(Builder::default().tensor("t", &[256], code, 0).data(64).build()).unwrap();
        assert_eq!(file.tensors["t"].dtype, Err(name.to_owned()));
    }
}

#[test]
fn holes_between_tensors_are_allowed() {
    let file = Builder::default().tensor("t", &[1], 0, 0).tensor("u", &[1], 0, 64).data(68).build();
    assert_eq!(parse(file).unwrap().tensors.len(), 2);
}
