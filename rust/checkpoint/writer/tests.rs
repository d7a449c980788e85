use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::safetensors::{Header, SafeTensors};

fn planned(name: &str, dtype: DType, shape: &[usize]) -> Planned {
    Planned { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    (folder, path)
}

fn files_in(folder: &TempDir) -> usize {
    fs::read_dir(folder.path()).unwrap().count()
}

fn create(path: &Path, tensors: &[Planned]) -> Result<Writer> {
    Writer::create(path, tensors.to_vec(), &BTreeMap::new())
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn writes_what_the_reader_reads() {
    let (folder, path) = folder();
    let tensors = [
        planned("odd", DType::U8, &[3]),
        planned("half", DType::F16, &[4, 4]),
        planned("big", DType::F32, &[2, 16]),
        planned("none", DType::BF16, &[0, 8]),
        planned("scalar", DType::I64, &[]),
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "a \"quoted\"\nvalue".to_owned())]);
    let mut writer = Writer::create(&path, tensors.to_vec(), &metadata).unwrap();
    let order: Vec<_> = writer.order().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(order, ["big", "none", "half", "odd", "scalar"]);
    let bytes: Vec<u8> = (0..128 + 32 + 3 + 8).map(|i| i as u8).collect();
    for part in bytes.chunks(50) {
        writer.write(part).unwrap();
    }
    assert!(!path.exists());
    writer.finish().unwrap();
    assert_eq!(files_in(&folder), 1);

    let read = SafeTensors::open(&path).unwrap();
    assert_eq!(read.header().metadata(), &metadata);
    let part = |name: &str| read.get(name).unwrap().unwrap().bytes.to_vec();
    assert_eq!(part("big"), bytes[..128]);
    assert_eq!(part("half"), bytes[128..160]);
    assert_eq!(part("odd"), bytes[160..163]);
    assert_eq!(part("scalar"), bytes[163..]);
    assert_eq!(read.get("none").unwrap().unwrap().shape, [0, 8]);
}

#[test]
fn an_empty_plan_is_a_valid_file() {
    let (_folder, path) = folder();
    create(&path, &[]).unwrap().finish().unwrap();
    assert!(SafeTensors::open(&path).unwrap().header().tensors().is_empty());
    assert_eq!(fs::metadata(&path).unwrap().len(), 64);
}

#[test]
fn too_many_and_too_few_bytes() {
    let (folder, path) = folder();
    let mut writer = create(&path, &[planned("a", DType::U8, &[4])]).unwrap();
    writer.write(&[1, 2]).unwrap();
    let reason = message(writer.write(&[3; 3]));
    assert!(reason.ends_with("3 bytes of tensors to write, the plan has room for 2"), "{reason}");
    writer.write(&[3]).unwrap();
    let reason = message(writer.finish());
    assert!(reason.ends_with("3 of 4 bytes of tensors were written"), "{reason}");
    assert_eq!(files_in(&folder), 0);
}

#[test]
fn an_unfinished_writer_leaves_no_trace() {
    let (folder, path) = folder();
    fs::write(&path, b"old").unwrap();
    let mut writer = create(&path, &[planned("a", DType::U8, &[4])]).unwrap();
    writer.write(&[1]).unwrap();
    assert_eq!(files_in(&folder), 2);
    drop(writer);
    assert_eq!(files_in(&folder), 1);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn finishing_replaces_the_old_file() {
    let (folder, path) = folder();
    fs::write(&path, b"old").unwrap();
    let mut writer = create(&path, &[planned("a", DType::U8, &[4])]).unwrap();
    writer.write(&[1, 2, 3, 4]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    writer.finish().unwrap();
    assert_eq!(&SafeTensors::open(&path).unwrap().get("a").unwrap().unwrap().bytes[..], [1, 2, 3, 4]);
    assert_eq!(files_in(&folder), 1);
}

#[test]
fn a_failed_write_cannot_be_finished() {
    let (folder, path) = folder();
    let mut writer = create(&path, &[planned("a", DType::U8, &[4])]).unwrap();
    // A closed file stands for a full disk.
    drop(writer.temporary.file.take());
    assert!(matches!(writer.write(&[1]), Err(Error::Io { .. })));
    assert!(message(writer.write(&[1])).ends_with("an earlier write failed"));
    assert!(message(writer.finish()).ends_with("an earlier write failed"));
    assert_eq!(files_in(&folder), 0);
}

#[test]
fn unusable_destinations() {
    let (folder, path) = folder();
    let reason = message(create(folder.path(), &[]));
    assert!(reason.ends_with("exists and is not a regular file"), "{reason}");
    assert!(matches!(create(&path.join("below"), &[]), Err(Error::Io { .. })));
    assert!(matches!(create(&folder.path().join("none/m"), &[]), Err(Error::Io { .. })));
    assert_eq!(files_in(&folder), 0);
}

#[cfg(unix)]
#[test]
fn a_device_is_not_replaced() {
    let reason = message(create(Path::new("/dev/null"), &[]));
    assert_eq!(reason, "/dev/null: exists and is not a regular file");
}

#[test]
fn unusable_plans() {
    let (folder, path) = folder();
    let reason = |tensors: &[Planned]| message(create(&path, tensors));
    let a = planned("a", DType::U8, &[1]);
    assert!(reason(&[a.clone(), a]).ends_with("tensor 'a': is planned twice"));
    assert!(reason(&[planned("__metadata__", DType::U8, &[1])]).contains("cannot name a tensor"));
    assert!(reason(&[planned("a\nb", DType::U8, &[1])]).contains("cannot name a tensor"));
    assert!(reason(&[planned(&"x".repeat(2000), DType::U8, &[1])]).contains("the limit is 1024"));
    assert!(reason(&[planned("a", DType::U8, &[1; 33])]).contains("33 dimensions"));
    assert!(reason(&[planned("a", DType::F32, &[usize::MAX / 2])]).contains("is too large"));
    let half = [usize::MAX / 2 + 1];
    let too_long = [planned("a", DType::U8, &half), planned("b", DType::U8, &half)];
    assert!(reason(&too_long).contains("tensor 'b': the file would be too large"));
    assert_eq!(files_in(&folder), 0);
}

#[test]
fn a_header_above_the_limit_is_refused() {
    let (folder, path) = folder();
    let metadata = BTreeMap::from([("k".to_owned(), "v".repeat(MAX_HEADER))]);
    assert!(message(Writer::create(&path, vec![], &metadata)).contains("the limit is 100000000"));
    assert_eq!(files_in(&folder), 0);
}

#[test]
fn two_writers_of_one_destination_do_not_meet() {
    let (folder, path) = folder();
    let plan = [planned("a", DType::U8, &[1])];
    let (mut first, mut second) = (create(&path, &plan).unwrap(), create(&path, &plan).unwrap());
    first.write(&[1]).unwrap();
    second.write(&[2]).unwrap();
    first.finish().unwrap();
    second.finish().unwrap();
    assert_eq!(&SafeTensors::open(&path).unwrap().get("a").unwrap().unwrap().bytes[..], [2]);
    assert_eq!(files_in(&folder), 1);
}

fn any_planned() -> impl Strategy<Value = (DType, Vec<usize>)> {
    let dtype = prop::sample::select(vec![DType::U8, DType::F16, DType::F32, DType::F64]);
    (dtype, prop::collection::vec(0usize..20, 0..3))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn layout_is_aligned_and_readable(plan in prop::collection::vec(any_planned(), 0..12)) {
        let path = Path::new("m");
        let name = |i: usize| format!("layers.{i}.\"é\\");
        let tensors: Vec<_> = plan.iter().enumerate().map(|(i, (d, s))| planned(&name(i), *d, s)).collect();
        let (order, ends) = lay_out(path, tensors.clone()).unwrap();
        let text = header(path, &order, &ends, &BTreeMap::new()).unwrap();
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.as_bytes());
        file.resize(file.len() + ends.last().copied().unwrap_or(0), 0);

        let read = Header::parse(path, &file).unwrap();
        prop_assert_eq!(read.tensors().len(), tensors.len());
        for tensor in &tensors {
            let entry = &read.tensors()[&tensor.name];
            prop_assert_eq!((&entry.dtype, &entry.shape), (&Ok(tensor.dtype), &tensor.shape));
            for alignment in [64, 32] {
                let aligned = entry.range.start.is_multiple_of(alignment);
                prop_assert!(aligned || !entry.range.len().is_multiple_of(alignment));
            }
        }
    }
}
