//! A GGUF file: keys, tensors, the configuration and tokenizer made of them, and its numbers.
#![no_main]

use std::cell::OnceCell;

use edgewise::checkpoint::Checkpoint;
use edgewise_fuzz::{Limited, Scratch, read_all};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

thread_local! {
    static SCRATCH: OnceCell<Scratch> = const { OnceCell::new() };
}

fuzz_target!(|file: &[u8]| {
    if !file.starts_with(b"GGUF") {
        return;
    }
    SCRATCH.with(|scratch| {
        let path = scratch.get_or_init(Scratch::new).write("model.gguf", file);
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            read_all(&checkpoint);
        }
    });
});
