//! Opening folders and files, good and hostile.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use edgewise::Error;
use edgewise::checkpoint::safetensors::MAX_HEADER;
use edgewise::checkpoint::writer::{Planned, Writer};
use edgewise::checkpoint::{Checkpoint, EMBEDDED_PREFIX, FORMAT, MAX_SIDE_FILE, SIDE_FILES};
use edgewise::config::ModelConfig;
use edgewise::tensor::DType;
use tempfile::TempDir;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A folder that is removed after the test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        fs::write(self.join(name), bytes).unwrap();
        self
    }

    fn open(&self) -> edgewise::Result<Checkpoint> {
        Checkpoint::open(self.path())
    }

    /// The message why the folder cannot be opened.
    #[track_caller]
    fn fault(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

/// A safetensors file of U8 vectors with these names and contents, made by hand.
fn file(tensors: &[(&str, &[u8])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert(
            "__metadata__".into(),
            metadata.iter().copied().collect::<BTreeMap<_, _>>().into_iter().collect(),
        );
    }
    let mut data = Vec::new();
    for (name, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": offsets});
        header.insert((*name).to_owned(), entry);
        data.extend_from_slice(bytes);
    }
    raw(&serde_json::Value::Object(header).to_string(), &data)
}

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn native(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    file(tensors, &[("format", FORMAT), ("format_version", "1")])
}

/// An index that maps each tensor to a file.
fn index(map: &[(&str, &str)]) -> String {
    let map: BTreeMap<_, _> = map.iter().copied().collect();
    serde_json::json!({"metadata": {"total_size": 1.0}, "weight_map": map}).to_string()
}

fn bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    checkpoint.require(name).unwrap().bytes.to_vec()
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.names().collect()
}

#[track_caller]
fn expect(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_folder_with_a_single_file() {
    let folder = Folder::new();
    folder.put(SINGLE, file(&[("b", &[3]), ("a", &[1, 2])], &[("format", "pt")])).put("config.json", "{}");
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.path(), folder.path());
    assert_eq!(names(&checkpoint), ["a", "b"]);
    assert_eq!(bytes(&checkpoint, "a"), [1, 2]);
    assert!(checkpoint.get("c").unwrap().is_none());
    assert_eq!(checkpoint.nbytes(), 3);
    assert_eq!(checkpoint.metadata("format"), Some("pt"));
    assert_eq!(checkpoint.metadata("other"), None);
    assert!(!checkpoint.is_native());
    assert_eq!(checkpoint.side_file("config.json").unwrap().unwrap(), b"{}");
    assert_eq!(checkpoint.side_file("tokenizer.json").unwrap(), None);
    assert_eq!(checkpoint.side_file_names(), ["config.json"]);
    let message = checkpoint.require("c").unwrap_err().to_string();
    assert_eq!(message, format!("{}: tensor 'c': is missing", folder.join(SINGLE).display()));
}

#[test]
fn a_single_file_of_any_name_with_its_neighbours() {
    let folder = Folder::new();
    folder.put("weights.bin", file(&[("a", &[1])], &[])).put("tokenizer.json", "{}");
    let checkpoint = Checkpoint::open(&folder.join("weights.bin")).unwrap();
    assert_eq!(checkpoint.path(), folder.join("weights.bin"));
    assert_eq!(names(&checkpoint), ["a"]);
    assert_eq!(checkpoint.side_file_names(), ["tokenizer.json"]);
}

#[test]
fn shards_behind_an_index() {
    let folder = Folder::new();
    folder
        .put("x-1.safetensors", file(&[("a", &[1]), ("b", &[2])], &[("format", "pt")]))
        .put("x-2.safetensors", file(&[("c", &[3, 4]), ("unlisted", &[5])], &[]))
        .put(INDEX, index(&[("a", "x-1.safetensors"), ("b", "x-1.safetensors"), ("c", "x-2.safetensors")]));
    let checkpoint = folder.open().unwrap();
    assert_eq!(names(&checkpoint), ["a", "b", "c", "unlisted"]);
    assert_eq!((bytes(&checkpoint, "b"), bytes(&checkpoint, "c")), (vec![2], vec![3, 4]));
    assert_eq!(checkpoint.nbytes(), 5);
    assert_eq!(checkpoint.metadata("format"), None);
    let message = checkpoint.require("d").unwrap_err().to_string();
    assert_eq!(message, format!("{}: tensor 'd': is missing", folder.path().display()));
}

#[test]
fn the_single_file_is_preferred_to_an_index() {
    let folder = Folder::new();
    folder.put(SINGLE, file(&[("a", &[1])], &[])).put(INDEX, "not even JSON");
    assert_eq!(names(&folder.open().unwrap()), ["a"]);
}

#[cfg(unix)]
#[test]
fn links_as_in_a_hub_cache_are_followed() {
    let (blobs, folder) = (Folder::new(), Folder::new());
    blobs
        .put("0a1b", file(&[("a", &[1])], &[]))
        .put("2c3d", index(&[("a", "m.safetensors")]))
        .put("4e", "{}");
    for (blob, name) in [("0a1b", "m.safetensors"), ("2c3d", INDEX), ("4e", "config.json")] {
        std::os::unix::fs::symlink(blobs.join(blob), folder.join(name)).unwrap();
    }
    let checkpoint = folder.open().unwrap();
    assert_eq!(bytes(&checkpoint, "a"), [1]);
    assert_eq!(checkpoint.side_file_names(), ["config.json"]);
    fs::remove_file(blobs.join("0a1b")).unwrap();
    fs::remove_file(blobs.join("4e")).unwrap();
    expect(&folder.fault(), &["m.safetensors: No such file"]);
    assert!(matches!(checkpoint.side_file("config.json"), Err(Error::Io { .. })));
}

#[test]
fn a_native_file_brings_its_side_files() {
    let folder = Folder::new();
    let config = format!("{EMBEDDED_PREFIX}config.json");
    folder
        .put("m.safetensors", native(&[("a", &[1, 2]), (&config, b"inside")]))
        .put("config.json", "outside")
        .put("tokenizer.json", "outside");
    let single = Checkpoint::open(&folder.join("m.safetensors")).unwrap();
    assert!(single.is_native());
    assert_eq!(names(&single), ["a"]);
    assert_eq!(single.nbytes(), 2);
    assert!(single.get(&config).unwrap().is_none());
    assert_eq!(single.side_file("config.json").unwrap().unwrap(), b"inside");
    assert_eq!(single.side_file("tokenizer.json").unwrap(), None);
    assert_eq!(single.side_file_names(), ["config.json"]);

    let inside_folder = folder.open().unwrap();
    assert!(inside_folder.is_native());
    assert_eq!(inside_folder.side_file("config.json").unwrap().unwrap(), b"inside");
    assert_eq!(inside_folder.side_file("tokenizer.json").unwrap().unwrap(), b"outside");
    assert_eq!(inside_folder.side_file_names(), ["config.json", "tokenizer.json"]);

    fs::rename(folder.join("m.safetensors"), folder.join(SINGLE)).unwrap();
    assert!(folder.open().unwrap().is_native());
}

#[test]
fn an_embedded_file_must_be_a_row_of_bytes() {
    let folder = Folder::new();
    let header = format!(
        r#"{{"__metadata__":{{"format":"edgewise","format_version":"1"}},
            "{EMBEDDED_PREFIX}config.json":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},
            "{EMBEDDED_PREFIX}tokenizer.json":{{"dtype":"U8","shape":[2,2],"data_offsets":[4,8]}}}}"#
    );
    folder.put(SINGLE, raw(&header, &[0; 8]));
    for name in ["config.json", "tokenizer.json"] {
        let message = folder.open().unwrap().side_file(name).unwrap_err().to_string();
        expect(
            &message,
            &["model.safetensors: tensor 'edgewise.files/", name, "must be a U8 tensor of one dimension"],
        );
    }
}

#[test]
fn embedded_files_of_other_formats_do_not_count() {
    let folder = Folder::new();
    folder.put(SINGLE, file(&[(&format!("{EMBEDDED_PREFIX}config.json"), b"{}")], &[]));
    assert_eq!(folder.open().unwrap().side_file("config.json").unwrap(), None);
}

#[test]
fn other_versions_of_our_format_are_refused() {
    let folder = Folder::new();
    folder.put(SINGLE, file(&[], &[("format", FORMAT), ("format_version", "2")]));
    expect(
        &folder.fault(),
        &["model.safetensors: has format_version '2', this version of edgewise reads '1'"],
    );
    folder.put(SINGLE, file(&[], &[("format", FORMAT)]));
    expect(&folder.fault(), &["model.safetensors: has no format_version"]);
}

#[test]
fn side_files_have_plain_names() {
    let folder = Folder::new();
    folder.put(SINGLE, file(&[], &[]));
    let checkpoint = folder.open().unwrap();
    for name in ["", ".", "..", "../config.json", "/etc/passwd", "a/b", "a\\b", "config.json/", "a\0"] {
        assert!(matches!(checkpoint.side_file(name), Err(Error::Argument { .. })), "{name:?}");
    }
    assert!(SIDE_FILES.iter().all(|name| checkpoint.side_file(name).unwrap().is_none()));
}

#[test]
fn side_files_have_a_size_limit() {
    let folder = Folder::new();
    folder.put(SINGLE, file(&[], &[]));
    fs::File::create(folder.join("tokenizer.json")).unwrap().set_len(MAX_SIDE_FILE + 1).unwrap();
    fs::create_dir(folder.join("config.json")).unwrap();
    let checkpoint = folder.open().unwrap();
    let message = checkpoint.side_file("tokenizer.json").unwrap_err().to_string();
    expect(&message, &["tokenizer.json: has 268435457 bytes, more than the 268435456 allowed"]);
    expect(&checkpoint.side_file("config.json").unwrap_err().to_string(), &["config.json: is a folder"]);
}

#[test]
fn nothing_to_open() {
    let folder = Folder::new();
    assert!(matches!(Checkpoint::open(&folder.join("none")), Err(Error::Io { .. })));
    let looked_for = "model.safetensors, model.safetensors.index.json or a single *.safetensors file";
    expect(&folder.fault(), &["holds no model", looked_for]);
    folder.put("a.safetensors", file(&[("a", &[1])], &[]));
    expect(&folder.fault(), &["a.safetensors: is not in edgewise's own format", looked_for]);
    folder.put("b.safetensors", native(&[]));
    expect(&folder.fault(), &["holds 2 *.safetensors files; name one of them"]);
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_opened() {
    let folder = Folder::new();
    expect(
        &Checkpoint::open(Path::new("/dev/zero")).unwrap_err().to_string(),
        &["is a pipe, socket or device"],
    );
    // A socket: like a pipe it must be refused without waiting for the other end.
    let _socket = std::os::unix::net::UnixListener::bind(folder.join(SINGLE)).unwrap();
    expect(&folder.fault(), &["model.safetensors: is a pipe, socket or device"]);
    fs::remove_file(folder.join(SINGLE)).unwrap();
    fs::create_dir(folder.join(SINGLE)).unwrap();
    expect(&folder.fault(), &["model.safetensors: is a folder, not a regular file"]);
}

#[test]
fn hostile_single_files() {
    let a = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    let byte = |name: &str| format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#);
    let twice = format!("{{{},{}}}", byte("a"), byte("b"));
    let good = raw(&a("[2]", 0, 8), &[0; 8]);
    let length = |n: u64| [&n.to_le_bytes(), &good[8..]].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "is empty"),
        (good[..7].to_vec(), "too few for a safetensors file"),
        (good[..20].to_vec(), "truncated"),
        (good[..good.len() - 1].to_vec(), "tensor 'a': its data ends at byte 8, the file holds 7"),
        ([good.as_slice(), &[0]].concat(), "holds 9 bytes of data, its tensors cover 8"),
        (length(u64::MAX), "above the limit"),
        (length(MAX_HEADER as u64), "truncated"),
        (length(0), "does not begin with '{'"),
        (length(5), "tensor 'a': header: EOF"),
        (
            raw("{\"\u{fffd}", &[]).into_iter().map(|b| if b == 0xef { 0xff } else { b }).collect(),
            "not UTF-8",
        ),
        (raw("{not JSON", &[]), "header: key must be a string"),
        (raw(&a("[3]", 0, 8), &[0; 8]), "tensor 'a': shape [3] of F32 needs 12 bytes, its data has 8"),
        (raw(&a("[2]", 8, 0), &[0; 8]), "tensor 'a': its data_offsets [8, 0] run backwards"),
        (raw(&a("[2]", 4, 12), &[0; 12]), "tensor 'a': its data leaves a hole before it"),
        (
            raw(&a("[2]", u64::MAX - 7, u64::MAX), &[0; 8]),
            "tensor 'a': its data ends at byte 18446744073709551615",
        ),
        (raw(&a("[4611686018427387904,4]", 0, 8), &[0; 8]), "tensor 'a': shape"),
        (raw(&twice, &[0]), "tensor 'b': its data overlaps"),
        (raw(&format!("{{\"a\":{}", "[".repeat(100_000)), &[]), "tensor 'a': header: "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec(), "git lfs pull"),
    ];
    let folder = Folder::new();
    let path = folder.join("m");
    for (bytes, reason) in cases {
        fs::write(&path, bytes).unwrap();
        let message = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
        expect(&message, &[reason]);
    }
    fs::write(&path, good).unwrap();
    Checkpoint::open(&path).unwrap();
}

#[test]
fn hostile_indexes() {
    let folder = Folder::new();
    folder
        .put("1.safetensors", file(&[("a", &[1]), ("b", &[2])], &[]))
        .put("2.safetensors", file(&[("b", &[2])], &[]))
        .put("native.safetensors", native(&[("n", &[1])]))
        .put("other.index.json", index(&[("a", "1.safetensors")]))
        .put("renamed", index(&[("a", "1.safetensors")]));
    fs::create_dir(folder.join("folder")).unwrap();
    let cases: Vec<(String, &str)> = vec![
        (String::new(), "index.json: EOF"),
        ("[]".into(), "index.json: "),
        ("{}".into(), "missing field `weight_map`"),
        ("{\"weight_map\":{}}".into(), "its weight_map is empty"),
        ("{\"weight_map\":[]}".into(), "expected an object"),
        ("{\"weight_map\":{\"a\":1}}".into(), "'a': invalid type: integer `1`, expected a string"),
        ("{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"2.safetensors\"}}".into(), "'a' stands twice"),
        (index(&[("a", "3.safetensors")]), "tensor 'a': its shard '3.safetensors' is not in the folder"),
        (
            index(&[("a", "../1.safetensors")]),
            "tensor 'a': its shard '../1.safetensors' is not a plain file name",
        ),
        (index(&[("a", "/1.safetensors")]), "is not a plain file name"),
        (index(&[("a", "x\\1.safetensors")]), "is not a plain file name"),
        (index(&[("a", "..")]), "is not a plain file name"),
        (index(&[("a", "")]), "is not a plain file name"),
        (index(&[("a", INDEX)]), "tensor 'a': its shard 'model.safetensors.index.json' is an index"),
        (index(&[("a", "other.index.json")]), "is an index, not a file of tensors"),
        (index(&[("a", "renamed")]), "renamed: header length"),
        (index(&[("a", "folder")]), "is a folder, not a regular file"),
        (
            index(&[("a", "2.safetensors")]),
            "2.safetensors: tensor 'a': the index names it, the file does not hold it",
        ),
        (index(&[("a", "1.safetensors"), ("b", "2.safetensors")]), "2.safetensors: tensor 'b': stands in "),
        (index(&[("n", "native.safetensors")]), "cannot be a shard"),
        (format!("{{\"weight_map\":{}", "{\"a\":".repeat(100_000)), "index.json: "),
    ];
    for (text, reason) in cases {
        folder.put(INDEX, text);
        expect(&folder.fault(), &[&folder.path().display().to_string(), reason]);
    }
    folder.put(INDEX, index(&[("a", "1.safetensors")]));
    folder.open().unwrap();
}

#[test]
fn a_written_file_opens_as_a_checkpoint() {
    let folder = Folder::new();
    let plan = |name: &str, dtype, shape: &[usize]| Planned { name: name.into(), dtype, shape: shape.into() };
    let config = format!("{EMBEDDED_PREFIX}config.json");
    let plan = vec![plan(&config, DType::U8, &[2]), plan("w", DType::F32, &[4, 4])];
    let metadata = [("format", FORMAT), ("format_version", "1"), ("recipe", "int4")];
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut writer = Writer::create(&folder.join("m.safetensors"), plan, &metadata).unwrap();
    assert_eq!(writer.order()[0].name, "w");
    for i in 0..16u8 {
        writer.write(&f32::from(i).to_le_bytes()).unwrap();
    }
    writer.write(b"{}").unwrap();
    writer.finish().unwrap();

    let checkpoint = folder.open().unwrap();
    assert!(checkpoint.is_native());
    assert_eq!(checkpoint.metadata("recipe"), Some("int4"));
    assert_eq!(checkpoint.side_file("config.json").unwrap().unwrap(), b"{}");
    let view = checkpoint.require("w").unwrap();
    assert_eq!((view.dtype, view.shape.as_slice()), (DType::F32, [4, 4].as_slice()));
    assert_eq!(view.to_f32().unwrap(), (0..16).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(view.bytes.as_ptr().addr() % 64, 0, "a mapped page plus a multiple of 64");
}

#[test]
fn a_checkpoint_outlives_its_file() {
    let folder = Folder::new();
    folder.put("m", file(&[("a", &[7; 10_000])], &[]));
    let view = Checkpoint::open(&folder.join("m")).unwrap().require("a").unwrap();
    fs::remove_file(folder.join("m")).unwrap();
    assert_eq!(&view.bytes[..], [7; 10_000]);
}

#[test]
fn the_configuration_names_its_file() {
    let folder = Folder::new();
    folder.put(SINGLE, file(&[], &[])).put("config.json", r#"{"model_type": "qwen4"}"#);
    let json = folder.open().unwrap().side_file("config.json").unwrap().unwrap();
    let message = ModelConfig::parse(&folder.join("config.json"), &json).unwrap_err().to_string();
    expect(
        &message,
        &["config.json: 'model_type': 'qwen4' is not supported; known: qwen3_5, qwen3_5_text, "],
    );
}
