//! Models in several files: `name-00001-of-00003.gguf` and its siblings.
//!
//! Any of them may be given. The first has the metadata; each says which part it is, and must be the one its name says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::file::File;
use crate::checkpoint::json::quote;
use crate::error::{Error, Result};

/// Most parts of a model.
const MAX_PARTS: usize = 4096;
const EXTENSION: &str = ".gguf";
/// Digits of a part's number.
const DIGITS: usize = 5;

/// All files of the model that the file at `path` belongs to, in order.
pub(super) fn open_all(path: &Path) -> Result<Vec<File>> {
    let file = File::open(path)?;
    let count = part_count(&file)?;
    if count <= 1 {
        return Ok(vec![file]);
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((stem, _, named)) = parse_name(name).filter(|&(_, _, named)| named == count) else {
        let reason = format!(
            "is a part of {count} files, but '{}' is not named like one: NAME-00001-of-{count:0DIGITS$}.gguf",
            quote(name)
        );
        return Err(Error::file(path, reason));
    };
    let part = |i: usize| path.with_file_name(part_name(stem, i, named));
    let files = (1..=count).map(|i| open_part(&part(i), i, count)).collect::<Result<Vec<_>>>()?;
    check_together(path, &files)?;
    Ok(files)
}

/// Of how many files the model consists, as `file` says; 0 or 1 if it is whole.
fn part_count(file: &File) -> Result<usize> {
    let count = file.metadata.size("split.count")?.unwrap_or(0);
    if count > MAX_PARTS {
        let reason = format!("{count} parts are more than the limit of {MAX_PARTS}");
        return Err(file.metadata.error("split.count", reason));
    }
    Ok(count)
}

/// Opens the file that must be part `number` of `count`, counted from 1.
fn open_part(path: &Path, number: usize, count: usize) -> Result<File> {
    let file = File::open(path)?;
    if part_count(&file)? != count {
        let reason = format!("is not {count}, as the other parts say");
        return Err(file.metadata.error("split.count", reason));
    }
    let found = file.metadata.require_size("split.no")?;
    if found + 1 != number {
        let reason =
            format!("{found}, counted from 0, is not what the file's name says: part {number} of {count}");
        return Err(file.metadata.error("split.no", reason));
    }
    Ok(file)
}

/// Tensors must be as many as the first part says, and none may stand in two parts.
fn check_together(path: &Path, files: &[File]) -> Result<()> {
    let mut seen = BTreeMap::new();
    for file in files {
        for name in file.tensors.keys() {
            if let Some(first) = seen.insert(name, &file.path) {
                let reason = format!("stands in {} too", PathBuf::from(first).display());
                return Err(Error::tensor(&file.path, name, reason));
            }
        }
    }
    match files[0].metadata.size("split.tensors.count")? {
        Some(count) if count != seen.len() => Err(Error::file(
            path,
            format!("its {} parts hold {} tensors, not {count}", files.len(), seen.len()),
        )),
        _ => Ok(()),
    }
}

/// Stem, number and count in the name of a part.
pub(super) fn parse_name(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, count) = name.strip_suffix(EXTENSION)?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        (text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().ok())
            .flatten()
    };
    Some((stem, digits(number)?, digits(count)?))
}

fn part_name(stem: &str, number: usize, count: usize) -> String {
    format!("{stem}-{number:0DIGITS$}-of-{count:0DIGITS$}{EXTENSION}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        assert_eq!(parse_name("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        assert_eq!(part_name("a-b", 2, 3), "a-b-00002-of-00003.gguf");
        for name in
            ["a.gguf", "a-2-of-3.gguf", "a-00002-of-00003", "00002-of-00003.gguf", "a-00002-of-0000x.gguf"]
        {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
