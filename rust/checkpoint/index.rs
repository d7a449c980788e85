//! The index of a checkpoint in several files: `{"weight_map": {"tensor": "shard file", ..}, ..}`.
//!
//! The index says which files belong to the model. All their tensors count, also such as the index forgot to
//! name; every tensor it does name must stand where it says.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::files;
use super::json::{self, UniqueMap, quote};
use super::safetensors::{MAX_HEADER, SafeTensors};
use super::{FORMAT, metadata};
use crate::error::{Error, Result};

/// The index's name in a model's folder.
pub(super) const FILE: &str = "model.safetensors.index.json";

/// Entries other than the map (`metadata`, with a total size) are not needed.
#[derive(Deserialize)]
#[serde(expecting = "an object with a weight_map")]
struct Index {
    /// Tensor name -> file name.
    weight_map: UniqueMap<String>,
}

/// Opens the shards that the index `path` in `folder` names, each once, sorted by name.
pub(super) fn open_shards(folder: &Path, path: &Path) -> Result<Vec<SafeTensors>> {
    let text = files::read(path, MAX_HEADER as u64)?;
    let index: Index = json::parse_as(&text).map_err(|reason| Error::file(path, reason))?;
    let UniqueMap(weight_map) = index.weight_map;
    let mut shards = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        if !shards.contains_key(shard.as_str()) {
            let file = open_shard(folder, shard).map_err(|fault| match fault {
                Fault::Name(reason) => Error::tensor(path, &quote(tensor), reason),
                Fault::File(error) => error,
            })?;
            shards.insert(shard.as_str(), file);
        }
    }
    check_places(&weight_map, &shards)?;
    if shards.is_empty() {
        return Err(Error::file(path, "its weight_map is empty"));
    }
    Ok(shards.into_values().collect())
}

/// Why a shard cannot be opened.
enum Fault {
    /// The index names something that cannot be a shard.
    Name(String),
    /// The file itself is at fault.
    File(Error),
}

fn open_shard(folder: &Path, shard: &str) -> std::result::Result<SafeTensors, Fault> {
    let shown = quote(shard);
    if !files::is_plain_name(shard) {
        return Err(Fault::Name(format!("its shard '{shown}' is not a plain file name")));
    }
    if Path::new(shard).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        return Err(Fault::Name(format!("its shard '{shown}' is an index, not a file of tensors")));
    }
    let path = folder.join(shard);
    if !files::exists(&path) {
        return Err(Fault::Name(format!("its shard '{shown}' is not in the folder")));
    }
    let file = SafeTensors::open(&path).map_err(Fault::File)?;
    if metadata(&file, "format") == Some(FORMAT) {
        let reason = "a file in edgewise's own format cannot be a shard";
        return Err(Fault::File(Error::file(&path, reason)));
    }
    Ok(file)
}

/// Every tensor of the index must stand in its shard.
fn check_places(weight_map: &BTreeMap<String, String>, shards: &BTreeMap<&str, SafeTensors>) -> Result<()> {
    for (tensor, shard) in weight_map {
        if let Some(file) = shards.get(shard.as_str())
            && !file.header().tensors().contains_key(tensor)
        {
            return Err(Error::tensor(
                file.path(),
                &quote(tensor),
                "the index names it, the file does not hold it",
            ));
        }
    }
    Ok(())
}
