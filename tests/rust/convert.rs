//! Checkpoints through the converter and back, and files of our own that lie.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use edgewise::checkpoint::writer::{Planned, Writer};
use edgewise::checkpoint::{Checkpoint, EMBEDDED_PREFIX};
use edgewise::tensor::DType;
use edgewise::threads::Pool;
use edgewise::weights::convert::{Report, quantize_checkpoint};
use edgewise::weights::matrix::{Format, Matrix};
use edgewise::weights::quantize::quantize_tensor;
use edgewise::weights::recipe::Recipe;
use edgewise::weights::stored::Loader;
use edgewise::{Error, Result};
use half::{bf16, f16};
use tempfile::TempDir;

/// A tensor to write: name, type, shape, bytes.
type Tensor = (&'static str, DType, Vec<usize>, Vec<u8>);

fn write(path: &Path, tensors: &[Tensor], metadata: &[(&str, &str)]) {
    let planned = tensors.iter().map(|(name, dtype, shape, _)| Planned {
        name: (*name).to_owned(),
        dtype: *dtype,
        shape: shape.clone(),
    });
    let metadata = metadata.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    let mut writer = Writer::create(path, planned.collect(), &metadata).unwrap();
    for planned in writer.order().to_vec() {
        let (.., bytes) = tensors.iter().find(|(name, ..)| *name == planned.name).unwrap();
        writer.write(bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = u64::from(seed) * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn random(name: &'static str, dtype: DType, shape: &[usize]) -> Tensor {
    let weights = noise(shape.iter().product(), name.len() as u32);
    let bytes = match dtype {
        DType::F32 => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
        DType::F16 => weights.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect(),
        _ => weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect(),
    };
    (name, dtype, shape.to_vec(), bytes)
}

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const CONV: &str = "model.layers.0.linear_attn.conv1d.weight";
const DECAY: &str = "model.layers.0.linear_attn.in_proj_a.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const EXPERTS: &str = "model.layers.0.mlp.experts.down_proj";
const PATCH: &str = "model.visual.patch_embed.proj.weight";
const POSITIONS: &str = "model.visual.pos_embed.weight";

fn model() -> Vec<Tensor> {
    vec![
        random(EMBED, DType::BF16, &[70, 40]),
        random(NORM, DType::BF16, &[40]),
        random(CONV, DType::BF16, &[24, 1, 4]),
        random(DECAY, DType::F16, &[4, 40]),
        random(DOWN, DType::F32, &[40, 96]),
        random(EXPERTS, DType::BF16, &[3, 40, 33]),
        random(PATCH, DType::BF16, &[17, 3, 2, 4, 4]),
        random(POSITIONS, DType::BF16, &[9, 17]),
    ]
}

/// A folder with a source checkpoint in `source` and room beside it.
struct Setting(TempDir);

impl Setting {
    fn new(tensors: &[Tensor]) -> Self {
        let setting = Self(tempfile::tempdir().unwrap());
        fs::create_dir(setting.source()).unwrap();
        write(&setting.source().join("model.safetensors"), tensors, &[("format", "pt")]);
        fs::write(setting.source().join("config.json"), "{\"a\": 1}").unwrap();
        fs::write(setting.source().join("tokenizer.json"), "").unwrap();
        fs::write(setting.source().join("README.md"), "not a part of the model").unwrap();
        setting
    }

    fn source(&self) -> PathBuf {
        self.0.path().join("source")
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out.safetensors")
    }

    fn convert(&self, recipe: &str, destination: &Path) -> Result<Report> {
        let source = Checkpoint::open(&self.source())?;
        let recipe = Recipe::by_name(recipe).unwrap();
        quantize_checkpoint(&source, destination, &recipe, &Pool::new(2), &mut |_, _, _| Ok(()))
    }

    /// The message of a conversion that fails, which must leave nothing behind.
    #[track_caller]
    fn fault(&self, recipe: &str, destination: &Path) -> String {
        let before = files(self.0.path());
        let message = self.convert(recipe, destination).unwrap_err().to_string();
        assert_eq!(files(self.0.path()), before, "{message}");
        message
    }
}

/// All files below a folder with their contents.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn weights_come_back_as_the_recipe_says() {
    let setting = Setting::new(&model());
    setting.convert("int4", &setting.out()).unwrap();
    let (source, converted) =
        (Checkpoint::open(&setting.source()).unwrap(), Checkpoint::open(&setting.out()).unwrap());
    assert!(converted.is_native());
    assert!(source.names().eq(converted.names()));
    let (from, to) = (Loader::new(&source).unwrap(), Loader::new(&converted).unwrap());
    for (name, format, shape) in [
        (EMBED, Format::Int4S8, [70, 40]),
        (DECAY, Format::Int8, [4, 40]),
        (DOWN, Format::Int4S8, [40, 96]),
        (PATCH, Format::Int8, [17, 96]),
        (POSITIONS, Format::BF16, [9, 17]),
    ] {
        let matrix = to.matrix(name, shape).unwrap();
        assert_eq!(matrix.format(), format, "{name}");
        let direct = quantize_tensor(&Pool::new(1), &source.require(name).unwrap(), format).unwrap();
        assert!(matrix.bytes() == direct, "{name}");
        let original = from.matrix(name, shape).unwrap().to_f32();
        let worst = matrix.to_f32().iter().zip(&original).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= if format == Format::Int4S8 { 0.2 } else { 0.005 }, "{name} {worst}");
    }
    for (name, shape) in [(NORM, &[40][..]), (CONV, &[24, 1, 4])] {
        assert_eq!(to.stored(name).unwrap().format, Format::F32);
        assert_eq!(to.vector(name, shape).unwrap(), from.vector(name, shape).unwrap());
    }
    let stack = to.stack(EXPERTS, [3, 40, 33]).unwrap();
    let direct = quantize_tensor(&Pool::new(1), &source.require(EXPERTS).unwrap(), Format::Int4S8).unwrap();
    assert_eq!(stack.iter().flat_map(|matrix| matrix.bytes().to_vec()).collect::<Vec<_>>(), direct);
    let flat: Vec<_> = stack.iter().flat_map(Matrix::to_f32).collect();
    assert_eq!(to.vector(EXPERTS, &[3, 40, 33]).unwrap(), flat);
    assert_eq!(from.stack(EXPERTS, [3, 40, 33]).unwrap().len(), 3);
}

#[test]
fn the_file_lists_what_it_holds() {
    let setting = Setting::new(&model());
    setting.convert("int4", &setting.out()).unwrap();
    let converted = Checkpoint::open(&setting.out()).unwrap();
    assert_eq!(converted.metadata("format"), Some("edgewise"));
    assert_eq!(converted.metadata("format_version"), Some("1"));
    let recipe = Recipe::from_json(converted.metadata("recipe").unwrap().as_bytes()).unwrap();
    assert_eq!(recipe, Recipe::by_name("int4").unwrap());
    let table: serde_json::Value = serde_json::from_str(converted.metadata("tensors").unwrap()).unwrap();
    let expected = serde_json::json!({
        EMBED: {"format": "int4_s8", "shape": [70, 40]},
        DECAY: {"format": "int8", "shape": [4, 40]},
        DOWN: {"format": "int4_s8", "shape": [40, 96]},
        EXPERTS: {"format": "int4_s8", "shape": [3, 40, 33]},
        PATCH: {"format": "int8", "shape": [17, 3, 2, 4, 4]},
    });
    assert_eq!(table, expected);
    for (name, dtype, shape) in [
        (EMBED, DType::U8, &[5, 2 * 272 + 64][..]),
        (DECAY, DType::U8, &[1, 2, 544]),
        (EXPERTS, DType::U8, &[3, 3, 2 * 272 + 64]),
        (PATCH, DType::U8, &[2, 3, 544]),
        (NORM, DType::F32, &[40]),
        (CONV, DType::F32, &[24, 1, 4]),
        (POSITIONS, DType::BF16, &[9, 17]),
    ] {
        let view = converted.require(name).unwrap();
        assert_eq!((view.dtype, &view.shape[..]), (dtype, shape), "{name}");
    }
    assert_eq!(converted.side_file_names(), ["config.json", "tokenizer.json"]);
    assert_eq!(converted.side_file("config.json").unwrap().unwrap(), b"{\"a\": 1}");
    assert_eq!(converted.side_file("tokenizer.json").unwrap().unwrap(), b"");
    assert_eq!(converted.side_file("README.md").unwrap(), None);
}

#[test]
fn the_report_counts_and_measures() {
    let setting = Setting::new(&model());
    let report = setting.convert("int4", &setting.out()).unwrap();
    let source_bytes: usize = model().iter().map(|(.., bytes)| bytes.len()).sum();
    assert_eq!(report.source_bytes, source_bytes as u64);
    assert_eq!(report.bytes, fs::metadata(setting.out()).unwrap().len());
    assert_eq!(report.destination, setting.out());
    let counts: Vec<_> = report.formats.iter().map(|(name, t)| (*name, t.tensors, t.bytes)).collect();
    let int4 = (5 * 2 + 3 * 3 + 3 * 3 * 2) * 272 + (5 + 3 + 3 * 3) * 64;
    let expected = [
        ("bf16", 1, 9 * 17 * 2),
        ("f32", 2, (40 + 96) * 4),
        ("int4_s8", 3, int4),
        ("int8", 2, (2 + 6) * 544),
    ];
    assert_eq!(counts, expected);
    for (name, low, high) in
        [("bf16", 0.0, 0.0), ("f32", 0.0, 0.0), ("int4_s8", 1e-3, 1e-2), ("int8", 1e-6, 3e-5)]
    {
        let error = report.formats[name].error.relative();
        assert!((low..=high).contains(&error), "{name} {error}");
    }
}

#[test]
fn every_recipe_converts_and_loads() {
    let setting = Setting::new(&model());
    for recipe in Recipe::built_in() {
        setting.convert(recipe, &setting.out()).unwrap();
        let converted = Checkpoint::open(&setting.out()).unwrap();
        let loader = Loader::new(&converted).unwrap();
        for (name, dtype, shape, bytes) in model() {
            let stored = loader.stored(name).unwrap();
            assert_eq!(stored.shape, shape, "{recipe} {name}");
            assert_eq!(loader.vector(name, &shape).unwrap().len(), shape.iter().product::<usize>());
            if recipe == "keep" {
                assert_eq!((stored.view.dtype, &stored.view.bytes[..]), (dtype, &bytes[..]), "{name}");
            }
        }
    }
}

#[test]
fn progress_adds_up_and_can_stop() {
    let setting = Setting::new(&model());
    let source = Checkpoint::open(&setting.source()).unwrap();
    let (recipe, pool) = (Recipe::by_name("int4").unwrap(), Pool::new(2));
    let calls = RefCell::new(Vec::new());
    let mut record = |done, total, name: &str| {
        calls.borrow_mut().push((done, total, name.to_owned()));
        Ok(())
    };
    let report = quantize_checkpoint(&source, &setting.out(), &recipe, &pool, &mut record).unwrap();
    let calls = calls.into_inner();
    assert!(calls.is_sorted_by_key(|call| call.0));
    assert!(calls.iter().all(|call| call.1 == report.source_bytes));
    assert_eq!(calls.last().unwrap().0, report.source_bytes);
    assert!(source.names().all(|name| calls.iter().any(|call| call.2 == name)));

    fs::remove_file(setting.out()).unwrap();
    let before = files(setting.0.path());
    let mut left = 3;
    let mut stop = |_, _, _: &str| {
        left -= 1;
        if left == 0 { Err(Error::Interrupted) } else { Ok(()) }
    };
    let result = quantize_checkpoint(&source, &setting.out(), &recipe, &pool, &mut stop);
    assert!(matches!(result, Err(Error::Interrupted)));
    assert_eq!(files(setting.0.path()), before);
}

#[test]
fn numbers_that_are_not_finite_are_pointed_at() {
    for (recipe, tensor, shape, at, place) in [
        ("int4", DOWN, &[40, 96][..], 17 * 96 + 50, "row 17, column 50"),
        ("int8", EXPERTS, &[3, 40, 33], 2 * 40 * 33 + 33 + 2, "row 81, column 2"),
        ("keep", DOWN, &[40, 96], 96, "row 1, column 0"),
        ("f32", NORM, &[40], 7, "row 0, column 7"),
    ] {
        let (name, dtype, shape, mut bytes) = random(tensor, DType::F32, shape);
        bytes[4 * at..4 * at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        let setting = Setting::new(&[random(EMBED, DType::BF16, &[70, 40]), (name, dtype, shape, bytes)]);
        let file = setting.source().join("model.safetensors");
        let expected = format!(
            "{}: tensor '{tensor}': the weight NaN at {place} is not a finite number",
            file.display()
        );
        assert_eq!(setting.fault(recipe, &setting.out()), expected);
    }
}

#[test]
fn tensors_that_are_not_weights_need_the_rule_keep() {
    let ids: Tensor = ("ids", DType::I64, vec![2, 2], vec![7; 32]);
    let setting = Setting::new(&[random(EMBED, DType::BF16, &[70, 40]), ids]);
    let message = setting.fault("int4", &setting.out());
    assert!(
        message.ends_with("tensor 'ids': is I64, it cannot be stored as int4_s8; give it the rule 'keep'"),
        "{message}"
    );
    let report = setting.convert("keep", &setting.out()).unwrap();
    assert_eq!((report.formats["I64"].tensors, report.formats["I64"].bytes), (1, 32));
    let converted = Checkpoint::open(&setting.out()).unwrap();
    assert_eq!(converted.require("ids").unwrap().bytes[..], [7; 32]);
    let message = Loader::new(&converted).unwrap().vector("ids", &[2, 2]).unwrap_err().to_string();
    assert!(message.contains("tensor 'ids': is I64, weights must be F32"), "{message}");
}

#[test]
fn destinations() {
    let setting = Setting::new(&model());
    let root = setting.0.path().to_owned();
    for (destination, reason) in [
        (setting.source(), "would stand in for the source"),
        (setting.source().join("model.safetensors"), "is a part of the source"),
        (setting.source().join("../source/model.safetensors"), "is a part of the source"),
        (setting.source().join("config.json"), "is a part of the source"),
        (root.join("none/out.safetensors"), "there is no folder"),
        (root.join("source/README.md/out"), "there is no folder"),
    ] {
        let message = setting.fault("int4", &destination);
        assert!(message.contains(reason), "{message}");
    }
    fs::create_dir(root.join("folder")).unwrap();
    let report = setting.convert("int4", &root.join("folder")).unwrap();
    assert_eq!(report.destination, root.join("folder/model.safetensors"));
    assert!(Checkpoint::open(&root.join("folder")).unwrap().is_native());
    setting.convert("int8", &root.join("folder")).unwrap();
    setting.convert("int8", &setting.source().join("int8.safetensors")).unwrap();
}

#[test]
fn a_converted_file_is_not_converted_again() {
    let setting = Setting::new(&model());
    setting.convert("int4", &setting.out()).unwrap();
    let source = Checkpoint::open(&setting.out()).unwrap();
    let recipe = Recipe::by_name("keep").unwrap();
    let destination = setting.0.path().join("again.safetensors");
    let result = quantize_checkpoint(&source, &destination, &recipe, &Pool::new(1), &mut |_, _, _| Ok(()));
    let message = result.unwrap_err().to_string();
    assert!(
        message.contains("is an edgewise file already") && message.contains("start from the original"),
        "{message}"
    );
    assert!(!destination.exists());
}

#[test]
fn wrong_shapes_are_named() {
    let setting = Setting::new(&model());
    setting.convert("int4", &setting.out()).unwrap();
    for path in [setting.source(), setting.out()] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let loader = Loader::new(&checkpoint).unwrap();
        let embed = format!("tensor '{EMBED}': has shape [70, 40], the model needs ");
        let message = loader.matrix(EMBED, [40, 70]).unwrap_err().to_string();
        assert!(message.ends_with(&(embed.clone() + "[40, 70]")), "{message}");
        let message = loader.vector(EMBED, &[2800]).unwrap_err().to_string();
        assert!(message.ends_with(&(embed.clone() + "[2800]")), "{message}");
        let message = loader.stack(EMBED, [1, 70, 40]).unwrap_err().to_string();
        assert!(message.ends_with(&(embed + "[1, 70, 40]")), "{message}");
        let message = loader.matrix(EXPERTS, [120, 33]).unwrap_err().to_string();
        assert!(message.ends_with("has shape [3, 40, 33], the model needs [120, 33]"), "{message}");
        let message = loader.matrix("none", [1, 1]).unwrap_err().to_string();
        assert!(message.contains("tensor 'none': is missing"), "{message}");
    }
}

/// What a file of our own with one U8 tensor `w` of this shape and this table says about it.
fn hostile(shape: &[usize], table: Option<&str>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let bytes = vec![0; shape.iter().product()];
    let mut metadata = vec![("format", "edgewise"), ("format_version", "1")];
    metadata.extend(table.map(|table| ("tensors", table)));
    write(&path, &[("w", DType::U8, shape.to_vec(), bytes)], &metadata);
    let checkpoint = Checkpoint::open(&path).unwrap();
    match Loader::new(&checkpoint).and_then(|loader| loader.stored("w")) {
        Ok(stored) => format!("{} {:?}", stored.format.name(), stored.shape),
        Err(error) => error.to_string().rsplit_once("w.safetensors: ").unwrap().1.to_owned(),
    }
}

#[test]
fn files_that_lie_are_refused() {
    assert_eq!(hostile(&[2, 1, 288], Some(r#"{"w": {"format": "int4", "shape": [17, 5]}}"#)), "int4 [17, 5]");
    for (shape, table, reason) in [
        (
            &[2, 1, 288][..],
            r#"{"w": {"format": "int4", "shape": [16, 5]}}"#,
            "int4 of shape [16, 5] is stored as U8 [1, 1, 288]",
        ),
        (
            &[2, 1, 288],
            r#"{"w": {"format": "int4", "shape": [33, 5]}}"#,
            "is U8 [2, 1, 288], int4 of shape [33, 5]",
        ),
        (&[2, 1, 288], r#"{"w": {"format": "int4", "shape": [17, 33]}}"#, "is stored as U8 [2, 2, 288]"),
        (&[2, 1, 288], r#"{"w": {"format": "int8", "shape": [17, 5]}}"#, "is stored as U8 [2, 1, 544]"),
        (&[2, 272], r#"{"w": {"format": "int4_s8", "shape": [17, 5]}}"#, "is stored as U8 [2, 336]"),
        (&[2, 1, 336], r#"{"w": {"format": "int4_s8", "shape": [17, 5]}}"#, "is U8 [2, 1, 336], int4_s8"),
        (&[2, 336], r#"{"w": {"format": "int4_s8", "shape": [17, 18446744073709551615]}}"#, "is too large"),
        (&[576], r#"{"w": {"format": "int4", "shape": [17, 5]}}"#, "is U8 [576], int4"),
        (&[1, 2, 1, 288], r#"{"w": {"format": "int4", "shape": [17, 5]}}"#, "is U8 [1, 2, 1, 288], int4"),
        (&[2, 1, 288], r#"{"w": {"format": "int4", "shape": [1, 17, 5]}}"#, "is stored as U8 [1, 2, 1, 288]"),
        (&[2, 1, 288], r#"{"w": {"format": "int4", "shape": [18446744073709551615, 5]}}"#, "is too large"),
        (&[2, 1, 288], r#"{"w": {"format": "int4", "shape": [4294967296, 4294967296, 0]}}"#, "is too large"),
        (&[0, 1, 288], r#"{"w": {"format": "int4", "shape": [9223372036854775808, 0]}}"#, "is stored as U8"),
        (
            &[2, 1, 288],
            r#"{"w": {"format": "int4", "shape": [-1, 5]}}"#,
            "metadata 'tensors': 'w': invalid value",
        ),
        (
            &[2, 1, 288],
            r#"{"w": {"format": "int5", "shape": [17, 5]}}"#,
            "metadata 'tensors': 'w': 'int5' is not a block format",
        ),
        (
            &[2, 1, 288],
            r#"{"w": {"format": "f32", "shape": [17, 5]}}"#,
            "metadata 'tensors': 'w': 'f32' is not a block format",
        ),
        (&[2, 1, 288], r#"{"w": {"format": "int4"}}"#, "missing field `shape`"),
        (&[2, 1, 288], r#"{"w": 4}"#, "metadata 'tensors': 'w'"),
        (&[2, 1, 288], r"[]", "metadata 'tensors': "),
        (&[2, 1, 288], "", "metadata 'tensors': "),
        (&[2, 1, 288], "{}", "tensor 'w': is U8, weights must be"),
        (
            &[2, 1, 288],
            r#"{"w": {"format": "int4", "shape": [17, 5]}, "w": {"format": "int4", "shape": [18, 5]}}"#,
            "'w' stands twice",
        ),
    ] {
        let message = hostile(shape, Some(table));
        assert!(message.contains(reason), "{table}: {message}");
    }
    assert_eq!(hostile(&[2, 1, 288], None), "metadata 'tensors': is missing");
}

#[test]
fn a_block_tensor_must_be_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let table = r#"{"w": {"format": "int4", "shape": [16, 32]}}"#;
    let metadata = [("format", "edgewise"), ("format_version", "1"), ("tensors", table)];
    write(&path, &[("w", DType::I8, vec![1, 1, 288], vec![0; 288])], &metadata);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let message = Loader::new(&checkpoint).unwrap().matrix("w", [16, 32]).unwrap_err().to_string();
    assert!(
        message.contains("tensor 'w': is I8 [1, 1, 288], int4 of shape [16, 32] is stored as U8"),
        "{message}"
    );
}

#[test]
fn side_files_do_not_count_as_tensors() {
    let setting = Setting::new(&model());
    setting.convert("int4", &setting.out()).unwrap();
    let converted = Checkpoint::open(&setting.out()).unwrap();
    assert!(converted.names().all(|name| !name.starts_with(EMBEDDED_PREFIX)));
}
