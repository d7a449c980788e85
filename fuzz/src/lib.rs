//! What the targets share: an allocator that ends the program where a file's claims are believed, and a file in a folder.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::PathBuf;

use edgewise::checkpoint::Checkpoint;
use edgewise::config::ModelConfig;

/// The most bytes that one request may ask for. Inputs are below 64 KB, so more can only come from a number in one.
pub const LARGEST: usize = 64 << 20;

/// The system's allocator; a request for more than [`LARGEST`] bytes is a finding.
pub struct Limited;

fn check(size: usize) {
    if size > LARGEST {
        // No formatting: it would allocate.
        eprintln!("an allocation above the limit: a number of the file was believed");
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator unchanged, or never returns.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A file that is written anew for each input, in a folder of its own.
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    /// An empty folder, in memory where the system has such a place.
    pub fn new() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self { folder: folder.expect("a folder to write to") }
    }

    /// Writes the file `name`. Anew, since the one before may still be mapped.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        let _absent = fs::remove_file(&path);
        fs::write(&path, bytes).expect("room for a small file");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Asks a checkpoint for all that it has. Errors are as good an answer as any; panics and endless loops are not.
pub fn read_all(checkpoint: &Checkpoint) {
    let _config = ModelConfig::read(checkpoint);
    let names: Vec<_> = checkpoint.names().map(str::to_owned).collect();
    for name in &names {
        assert!(checkpoint.contains(name));
        if let Ok(view) = checkpoint.require(name) {
            let elements = view.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            assert!(elements.is_some(), "the shape of a tensor that was given out overflows");
            let _numbers = view.to_f32();
        }
        let _bytes = checkpoint.tensor_nbytes(name);
    }
    for name in checkpoint.side_file_names() {
        let _file = checkpoint.side_file(&name);
    }
}
