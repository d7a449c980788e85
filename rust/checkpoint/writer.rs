//! Writes a safetensors file tensor by tensor, so that no more than one tensor need be in memory.
//!
//! All sizes are known beforehand, so the header is written first and the data follow in one pass. Until the
//! last byte is on the disk everything happens in a temporary file beside the destination; an interrupted run
//! leaves the destination as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::json::quote;
use super::safetensors::{LENGTH_WORD, MAX_HEADER, MAX_RANK, METADATA_KEY, check_name, tensor_bytes};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Tensors start at multiples of this in the file where their sizes allow: a cache line, and the widest
/// vector.
const ALIGNMENT: usize = 64;
const BUFFER: usize = 1 << 20;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its name in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

impl Planned {
    /// Bytes of all elements; `None` if that overflows.
    pub fn nbytes(&self) -> Option<usize> {
        tensor_bytes(self.dtype, &self.shape)
    }
}

/// A safetensors file being written. Dropping it before [`Self::finish`] removes what was written.
#[derive(Debug)]
pub struct Writer {
    destination: PathBuf,
    temporary: Temporary,
    order: Vec<Planned>,
    /// Bytes of all tensors.
    total: u64,
    /// Bytes of tensors written.
    written: u64,
    failed: bool,
}

impl Writer {
    /// Plans the file at `path` and writes its header to a temporary file in the same folder.
    ///
    /// The data are laid out so that every tensor whose length in bytes is a multiple of 64 starts at a
    /// multiple of 64 in the file: such tensors come first, in the given order, then multiples of 32, then
    /// the rest. A symbolic link at `path` will be replaced, not followed.
    pub fn create(path: &Path, tensors: Vec<Planned>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        check_destination(path)?;
        let (order, ends) = lay_out(path, tensors)?;
        let header = header(path, &order, &ends, metadata)?;
        let mut temporary = Temporary::create(path)?;
        let length = (header.len() as u64).to_le_bytes();
        let written = temporary.write(&length).and_then(|()| temporary.write(header.as_bytes()));
        written.map_err(|source| Error::io(path, source))?;
        let total = ends.last().map_or(0, |&end| end as u64);
        Ok(Self { destination: path.to_owned(), temporary, order, total, written: 0, failed: false })
    }

    /// The order in which the data must be written.
    pub fn order(&self) -> &[Planned] {
        &self.order
    }

    /// Writes the next bytes: of one tensor, a part of one, or several, as long as they follow
    /// [`Self::order`].
    ///
    /// More bytes than planned is an error, and then none of them are written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.total - self.written;
        if bytes.len() as u64 > left {
            let reason = format!("{} bytes of tensors to write, the plan has room for {left}", bytes.len());
            return Err(Error::file(&self.destination, reason));
        }
        self.check_usable()?;
        if let Err(source) = self.temporary.write(bytes) {
            self.failed = true;
            return Err(Error::io(&self.destination, source));
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Brings the file to the disk and to its final name. All planned bytes must have been written.
    pub fn finish(mut self) -> Result<()> {
        self.check_usable()?;
        if self.written != self.total {
            let reason = format!("{} of {} bytes of tensors were written", self.written, self.total);
            return Err(Error::file(&self.destination, reason));
        }
        check_destination(&self.destination)?;
        self.temporary.persist(&self.destination).map_err(|source| Error::io(&self.destination, source))
    }

    /// After a failed write nobody knows how much of it reached the file.
    fn check_usable(&self) -> Result<()> {
        if self.failed {
            return Err(Error::file(&self.destination, "an earlier write failed"));
        }
        Ok(())
    }
}

/// A folder, pipe or device is not to be replaced by a file.
fn check_destination(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(Error::file(path, "exists and is not a regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(path, error)),
    }
}

/// The tensors in the order of the file, and where each one's data end.
fn lay_out(path: &Path, tensors: Vec<Planned>) -> Result<(Vec<Planned>, Vec<usize>)> {
    check_unique(path, &tensors)?;
    let sized = tensors.into_iter().map(|tensor| Ok((checked_size(path, &tensor)?, tensor)));
    let mut sized = sized.collect::<Result<Vec<_>>>()?;
    sized.sort_by_key(|(size, _)| alignment_class(*size));
    let (mut order, mut ends) = (Vec::new(), Vec::new());
    let mut end = 0usize;
    for (size, tensor) in sized {
        let next = end.checked_add(size);
        end = next.ok_or_else(|| Error::tensor(path, &tensor.name, "the file would be too large"))?;
        ends.push(end);
        order.push(tensor);
    }
    Ok((order, ends))
}

fn check_unique(path: &Path, tensors: &[Planned]) -> Result<()> {
    let mut names = BTreeSet::new();
    match tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        Some(tensor) => Err(Error::tensor(path, &quote(&tensor.name), "is planned twice")),
        None => Ok(()),
    }
}

/// Bytes of a tensor whose name and shape a reader would accept.
fn checked_size(path: &Path, tensor: &Planned) -> Result<usize> {
    let error = |reason: String| Error::tensor(path, &quote(&tensor.name), reason);
    check_name(&tensor.name).map_err(error)?;
    if tensor.shape.len() > MAX_RANK {
        return Err(error(format!("shape has {} dimensions, more than {MAX_RANK}", tensor.shape.len())));
    }
    tensor.nbytes().ok_or_else(|| error(format!("shape {:?} is too large", tensor.shape)))
}

/// Place in the file: 0 for multiples of 64 bytes, 1 for multiples of 32, 2 for the rest.
fn alignment_class(size: usize) -> u8 {
    match size {
        _ if size.is_multiple_of(ALIGNMENT) => 0,
        _ if size.is_multiple_of(ALIGNMENT / 2) => 1,
        _ => 2,
    }
}

/// The header's JSON, padded with spaces so that the data start at a multiple of [`ALIGNMENT`].
fn header(
    path: &Path,
    order: &[Planned],
    ends: &[usize],
    metadata: &BTreeMap<String, String>,
) -> Result<String> {
    let mut text = String::from("{");
    if !metadata.is_empty() {
        let object: serde_json::Map<_, _> =
            metadata.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        let _ = write!(text, "\"{METADATA_KEY}\":{},", serde_json::Value::Object(object));
    }
    let mut begin = 0;
    for (tensor, &end) in order.iter().zip(ends) {
        let name = serde_json::Value::from(tensor.name.as_str());
        let (dtype, shape) = (tensor.dtype.name(), &tensor.shape);
        let _ = write!(
            text,
            "{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}},"
        );
        begin = end;
    }
    if text.ends_with(',') {
        text.pop();
    }
    text.push('}');
    let padded = (LENGTH_WORD + text.len()).next_multiple_of(ALIGNMENT) - LENGTH_WORD;
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    if text.len() > MAX_HEADER {
        return Err(Error::file(
            path,
            format!("its header would have {} bytes, the limit is {MAX_HEADER}", text.len()),
        ));
    }
    Ok(text)
}

/// A file without a final name yet; removed when dropped.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    /// `None` once closed.
    file: Option<BufWriter<File>>,
}

impl Temporary {
    /// A new file in the folder of `destination`.
    fn create(destination: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let folder = folder_of(destination);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".edgewise-{}-{number}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { path, file: Some(BufWriter::with_capacity(BUFFER, file)) }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(destination, error)),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.as_mut().ok_or(ErrorKind::NotConnected)?.write_all(bytes)
    }

    /// Flushes to the disk, then takes the final name.
    fn persist(&mut self, destination: &Path) -> io::Result<()> {
        let file = self.file.take().ok_or(ErrorKind::NotConnected)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&self.path, destination)?;
        self.path.clear();
        sync_folder(folder_of(destination))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // Without the flush that dropping a `BufWriter` does: the file goes away.
            drop(file.into_parts());
        }
        if !self.path.as_os_str().is_empty() {
            // A destructor has nobody to report to, and the error that led here is on its way already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The folder a file stands in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename in `folder` last through a power failure, where the file system offers that.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
