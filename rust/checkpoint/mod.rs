//! A checkpoint: named byte views over files that are not trusted.
//!
//! A checkpoint is one of
//! - a folder in Hugging Face layout: `model.safetensors`, or `model.safetensors.index.json` and its shards,
//!   with `config.json`, `tokenizer.json` and other side files beside them;
//! - a single `.safetensors` file of any name; its side files are those of the folder it stands in;
//! - a file in edgewise's own format: also safetensors, with `format` = `edgewise` and `format_version` in
//!   its metadata. It contains its side files, as U8 tensors named `edgewise.files/<name>`;
//! - a [GGUF](gguf) file, or one of several that are one model: it shows as the checkpoint it was made from, with side files made
//!   from its metadata.
//!
//! A file of our own is self-contained: the side files inside it win over those in the folder around it, and
//! when it is opened by its own path, the folder is not looked at. Opened as a folder, a side file it lacks
//! may come from there.

pub(crate) mod exchange;
mod files;
pub mod gguf;
mod index;
pub(crate) mod json;
mod mlx;
pub(crate) mod mmap;
pub mod safetensors;
pub mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use self::safetensors::{Entry, SafeTensors};
use crate::error::{Error, Result};
use crate::tensor::{DType, TensorView};

/// The value of the metadata key `format` that marks a file of our own.
pub const FORMAT: &str = "edgewise";
/// The value of the metadata key `format_version` this version reads and writes.
pub const FORMAT_VERSION: &str = "1";
/// What the names of tensors that hold a side file begin with, in a file of our own.
pub const EMBEDDED_PREFIX: &str = "edgewise.files/";
/// The side files a model can have; those present are copied when it is converted.
pub const SIDE_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "special_tokens_map.json",
];
/// Longest side file read, in bytes.
pub const MAX_SIDE_FILE: u64 = 256 << 20;

const SINGLE_FILE: &str = "model.safetensors";

/// Named tensors and side files of one model.
#[derive(Clone)]
pub struct Checkpoint {
    path: PathBuf,
    /// Where side files stand that are not embedded.
    side_folder: Option<PathBuf>,
    files: Vec<SafeTensors>,
    /// Tensor name -> place in `files`; without embedded side files.
    names: BTreeMap<String, usize>,
    /// What the tensors of `names` are called in the files, if MLX's programs wrote them; else empty.
    aliases: BTreeMap<String, mlx::Alias>,
    native: bool,
    /// What is in `names`, in place of `files`.
    gguf: Option<gguf::Model>,
}

impl Checkpoint {
    /// Opens a folder, or a single safetensors or GGUF file recognised by content.
    pub fn open(path: &Path) -> Result<Self> {
        if fs::metadata(path).map_err(|source| Error::io(path, source))?.is_dir() {
            return Self::new(path, open_folder(path)?, Some(path.to_owned()));
        }
        if gguf::is_gguf(&files::beginning(path, gguf::MAGIC.len())?) {
            return Ok(Self::of_gguf(path, gguf::Model::open(path)?));
        }
        let file = SafeTensors::open(path)?;
        let folder = if is_native(&file)? { None } else { path.parent().map(Path::to_owned) };
        Self::new(path, vec![file], folder)
    }

    fn new(path: &Path, files: Vec<SafeTensors>, side_folder: Option<PathBuf>) -> Result<Self> {
        let native = match files.as_slice() {
            [file] => is_native(file)?,
            _ => false,
        };
        let mut names = merge_names(&files)?;
        let mut aliases = BTreeMap::new();
        if !native && let Some(found) = mlx::aliases(&files)? {
            names = found.iter().map(|(name, (file, _))| (name.clone(), *file)).collect();
            aliases = found.into_iter().map(|(name, (_, alias))| (name, alias)).collect();
        }
        Ok(Self { path: path.to_owned(), side_folder, files, names, aliases, native, gguf: None })
    }

    fn of_gguf(path: &Path, model: gguf::Model) -> Self {
        let names = model.names().map(|name| (name.clone(), 0)).collect();
        let (path, files, aliases) = (path.to_owned(), Vec::new(), BTreeMap::new());
        Self { path, side_folder: None, files, names, aliases, native: false, gguf: Some(model) }
    }

    /// What the user gave: a folder or a file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted. Embedded side files are not among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The element type of this tensor, if it is there, of a type that edgewise reads, and not in a GGUF file.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.entry(name)?.dtype.clone().ok()
    }

    /// What the tensor of this name is called in its file.
    pub fn stored_name<'n>(&'n self, name: &'n str) -> &'n str {
        self.aliases.get(name).map_or(name, |alias| &alias.original)
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        let file = self.files.get(*self.names.get(name)?)?;
        file.header().tensors().get(self.stored_name(name))
    }

    /// The tensor with this name. One whose type edgewise does not read is an error.
    pub fn get(&self, name: &str) -> Result<Option<TensorView>> {
        if let Some(model) = &self.gguf {
            return model.tensor(name)?.map(|tensor| tensor.load()).transpose();
        }
        match self.names.get(name) {
            Some(&file) => match (self.files[file].get(self.stored_name(name))?, self.aliases.get(name)) {
                (Some(view), Some(alias)) => alias.apply(name, view).map(Some),
                (view, _) => Ok(view),
            },
            None => Ok(None),
        }
    }

    /// The tensor with this name, which must be there.
    pub fn require(&self, name: &str) -> Result<TensorView> {
        let file = match self.files.as_slice() {
            [file] => file.path(),
            _ => &self.path,
        };
        self.get(name)?.ok_or_else(|| Error::tensor(file, name, "is missing"))
    }

    /// A value of the single file's metadata; `None` for a checkpoint of several files.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        match self.files.as_slice() {
            [file] => metadata(file, key),
            _ => None,
        }
    }

    /// The GGUF model that this is, if it is one.
    pub fn gguf(&self) -> Option<&gguf::Model> {
        self.gguf.as_ref()
    }

    /// The files that tensors stand in.
    pub fn paths(&self) -> Vec<&Path> {
        let gguf = self.gguf.iter().flat_map(gguf::Model::paths).map(PathBuf::as_path);
        self.files.iter().map(SafeTensors::path).chain(gguf).collect()
    }

    /// Whether this is a file in edgewise's own format.
    pub fn is_native(&self) -> bool {
        self.native
    }

    /// Bytes of all tensors that [`Self::names`] lists.
    pub fn nbytes(&self) -> u64 {
        self.names.keys().map(|name| self.tensor_nbytes(name)).sum()
    }

    /// Bytes that the tensor of this name has in its file; 0 if there is none.
    pub fn tensor_nbytes(&self, name: &str) -> u64 {
        if let Some(model) = &self.gguf {
            return model.nbytes(name);
        }
        let bytes = self.entry(name).map_or(0, |entry| entry.range.len());
        self.aliases.get(name).map_or(bytes, |alias| alias.nbytes(bytes)) as u64
    }

    /// A file that belongs to the model, such as `config.json`; `None` if there is none.
    ///
    /// Embedded files come first, then the folder; see the module's description. `name` must be a plain file
    /// name; a file above [`MAX_SIDE_FILE`] bytes is refused.
    pub fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if !files::is_plain_name(name) {
            return Err(Error::argument("name", format!("'{}' is not a plain file name", json::quote(name))));
        }
        if let Some(model) = &self.gguf {
            return model.side_file(name);
        }
        if let Some((tensor, entry)) = self.embedded(name) {
            return self.read_embedded(&tensor, entry).map(Some);
        }
        self.in_folder(name).map(|path| files::read(&path, MAX_SIDE_FILE)).transpose()
    }

    /// Those of [`SIDE_FILES`] that [`Self::side_file`] can give.
    pub fn side_file_names(&self) -> Vec<String> {
        if let Some(model) = &self.gguf {
            return model.side_file_names().into_iter().map(str::to_owned).collect();
        }
        let present = |name: &str| self.embedded(name).is_some() || self.in_folder(name).is_some();
        SIDE_FILES.iter().filter(|name| present(name)).map(|&name| name.to_owned()).collect()
    }

    /// Where a side file stands in the folder, if it does.
    fn in_folder(&self, name: &str) -> Option<PathBuf> {
        let path = self.side_folder.as_ref()?.join(name);
        files::exists(&path).then_some(path)
    }

    /// The tensor that holds a side file, and its name.
    fn embedded(&self, name: &str) -> Option<(String, &Entry)> {
        let file = self.files.first().filter(|_| self.native)?;
        let tensor = format!("{EMBEDDED_PREFIX}{name}");
        let entry = file.header().tensors().get(&tensor)?;
        Some((tensor, entry))
    }

    fn read_embedded(&self, tensor: &str, entry: &Entry) -> Result<Vec<u8>> {
        let file = &self.files[0];
        let error = |reason: &str| Error::tensor(file.path(), tensor, reason);
        if entry.dtype != Ok(DType::U8) || entry.shape.len() != 1 {
            return Err(error("a file inside a checkpoint must be a U8 tensor of one dimension"));
        }
        if entry.range.len() as u64 > MAX_SIDE_FILE {
            return Err(error(&format!("has {} bytes, more than {MAX_SIDE_FILE}", entry.range.len())));
        }
        let view = file.get(tensor)?.ok_or_else(|| error("is missing"))?;
        Ok(view.bytes.to_vec())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("files", &self.files)
            .field("native", &self.native)
            .field("nbytes", &self.nbytes())
            .finish_non_exhaustive()
    }
}

fn metadata<'a>(file: &'a SafeTensors, key: &str) -> Option<&'a str> {
    file.header().metadata().get(key).map(String::as_str)
}

/// Whether `file` is in our own format; an error if in a version of it that this version does not read.
fn is_native(file: &SafeTensors) -> Result<bool> {
    if metadata(file, "format") != Some(FORMAT) {
        return Ok(false);
    }
    match metadata(file, "format_version") {
        Some(FORMAT_VERSION) => Ok(true),
        Some(other) => Err(Error::file(
            file.path(),
            format!(
                "has format_version '{}', this version of edgewise reads '{FORMAT_VERSION}'",
                json::quote(other)
            ),
        )),
        None => Err(Error::file(
            file.path(),
            format!(
                "has no format_version in its metadata, this version of edgewise reads '{FORMAT_VERSION}'"
            ),
        )),
    }
}

/// The files of the model in `folder`, in the order of preference that the module's description gives.
fn open_folder(folder: &Path) -> Result<Vec<SafeTensors>> {
    let single = folder.join(SINGLE_FILE);
    if files::exists(&single) {
        return Ok(vec![SafeTensors::open(&single)?]);
    }
    let index = folder.join(index::FILE);
    if files::exists(&index) {
        return index::open_shards(folder, &index);
    }
    open_lone_native(folder).map(|file| vec![file])
}

/// The one safetensors file of a folder without `model.safetensors` or index, if it is of our own format.
fn open_lone_native(folder: &Path) -> Result<SafeTensors> {
    let looked_for =
        format!("{SINGLE_FILE}, {} or a single *.safetensors file written by edgewise", index::FILE);
    match list_safetensors(folder)?.as_slice() {
        [] => Err(Error::file(folder, format!("holds no model; looked for {looked_for}"))),
        [path] => {
            let file = SafeTensors::open(path)?;
            if !is_native(&file)? {
                let reason = format!("is not in edgewise's own format; the folder must hold {looked_for}");
                return Err(Error::file(path, reason));
            }
            Ok(file)
        }
        several => Err(Error::file(
            folder,
            format!("holds {} *.safetensors files; name one of them, or provide {looked_for}", several.len()),
        )),
    }
}

fn list_safetensors(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::io(folder, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Which file each tensor stands in. A tensor in two files is an error.
fn merge_names(files: &[SafeTensors]) -> Result<BTreeMap<String, usize>> {
    let mut names = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        let listed = file.header().tensors().keys().filter(|name| !name.starts_with(EMBEDDED_PREFIX));
        for name in listed {
            if let Some(first) = names.insert(name.clone(), index) {
                let reason = format!("stands in {} too", files[first].path().display());
                return Err(Error::tensor(file.path(), name, reason));
            }
        }
    }
    Ok(names)
}
