//! A folder that is opened as a model: packed weights of other programs, or a file of our own.
//!
//! The input is `config.json`, the safetensors header, and the tensors' bytes, each ended by a byte 0. The header's length is put
//! before it, so that one mutation more need not be right.
#![no_main]

use std::cell::OnceCell;

use edgewise::checkpoint::Checkpoint;
use edgewise::kernels::{Cpu, Tier};
use edgewise::model::open::{Options, open};
use edgewise_fuzz::{Limited, Scratch, read_all};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

thread_local! {
    static SCRATCH: OnceCell<Scratch> = const { OnceCell::new() };
}

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(3, |&byte| byte == 0);
    let (Some(config), Some(header), Some(data)) = (parts.next(), parts.next(), parts.next()) else { return };
    let file = [&(header.len() as u64).to_le_bytes()[..], header, data].concat();
    SCRATCH.with(|scratch| {
        let scratch = scratch.get_or_init(Scratch::new);
        scratch.write("config.json", config);
        let path = scratch.write("model.safetensors", &file);
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            read_all(&checkpoint);
        }
        let options = Options::parse("auto", "auto", None).expect("the defaults are allowed");
        let cpu = Cpu::new(Tier::available()[0], 1);
        let _opened = open(&path, &options, cpu, &mut |_, _, _| Ok(()));
    });
});
