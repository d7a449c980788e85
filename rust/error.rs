//! The one error type: what is wrong, and with which file, tensor or argument.

use std::path::{Path, PathBuf};

/// Everything that can go wrong, phrased about the user's input.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it claims to be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// One tensor of a checkpoint is unusable.
    #[error("{}: tensor '{tensor}': {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in that file.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One entry of a configuration is missing, wrong or not supported.
    #[error("{}: '{field}': {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The entry, dotted where nested.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A caller's argument is out of range or has the wrong shape.
    #[error("{argument}: {reason}")]
    Argument {
        /// The argument's name.
        argument: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More tokens than the model's context holds.
    #[error("context is full: {needed} tokens are needed, the limit is {limit}")]
    Context {
        /// Tokens the call needs in all.
        needed: usize,
        /// Tokens the model allows.
        limit: usize,
    },
    /// The arithmetic left the finite numbers.
    #[error("{what} are not finite: {reason}")]
    NonFinite {
        /// The numbers.
        what: &'static str,
        /// The most likely cause.
        reason: String,
    },
    /// The system has not so much memory.
    #[error("{needed} bytes of memory are needed at once, and the system does not give them")]
    Memory {
        /// Bytes of the one array.
        needed: usize,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Shorthand used throughout the crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// An [`Error::File`] for `path`.
    pub fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), reason: reason.into() }
    }

    /// An [`Error::Tensor`] for `tensor` in `path`.
    pub fn tensor(path: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), reason: reason.into() }
    }

    /// An [`Error::Config`] for `field` in `path`.
    pub fn config(path: &Path, field: &str, reason: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), field: field.to_owned(), reason: reason.into() }
    }

    /// An [`Error::Argument`] for `argument`.
    pub fn argument(argument: &str, reason: impl Into<String>) -> Self {
        Self::Argument { argument: argument.to_owned(), reason: reason.into() }
    }
}

/// Zeros for an array `[rows, width]` whose size a caller chose.
pub fn try_zeros(rows: usize, width: usize) -> Result<Vec<f32>> {
    let needed = rows.saturating_mul(width);
    let mut out = try_with_capacity(needed)?;
    out.resize(needed, 0.0);
    Ok(out)
}

/// An empty vector with room for `len` elements, whose number a caller chose.
pub fn try_with_capacity<T>(len: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    let needed = len.saturating_mul(size_of::<T>());
    out.try_reserve_exact(len).map_err(|_| Error::Memory { needed })?;
    Ok(out)
}
