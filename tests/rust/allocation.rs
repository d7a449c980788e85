//! A decode step and a sampled token take no memory from the heap. Own test binary: it replaces the allocator, and nothing
//! else may run beside it.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod models;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use edgewise::generate::{Sampler, SamplingParams};
use edgewise::kernels::Tier;
use edgewise::kernels::attention::SPAN;
use edgewise::kernels::kv_cache::PAGE;
use edgewise::model::{Engine, State};

use models::{DEMO, Model, TINY, append, text};

/// The system's allocator, and how often memory was asked for, by any thread.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` asks for memory.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    work();
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

fn samplers(vocab: usize) -> Vec<(&'static str, Sampler)> {
    let plain = SamplingParams { seed: 7, ..SamplingParams::default() };
    let all = [
        ("greedy", SamplingParams { temperature: 0.0, ..plain.clone() }),
        ("plain", plain.clone()),
        ("top_k", SamplingParams { top_k: 20, ..plain.clone() }),
        ("top_p", SamplingParams { top_p: 0.9, ..plain.clone() }),
        ("min_p", SamplingParams { min_p: 0.05, ..plain.clone() }),
        (
            "all filters",
            SamplingParams { top_k: 20, top_p: 0.8, min_p: 0.01, temperature: 0.7, ..plain.clone() },
        ),
        (
            "penalties",
            SamplingParams {
                repetition_penalty: 1.2,
                presence_penalty: 0.5,
                frequency_penalty: 0.1,
                suppress: vec![3],
                ..plain.clone()
            },
        ),
        ("logprob", SamplingParams { logprobs: Some(0), ..plain }),
    ];
    all.into_iter().map(|(name, params)| (name, Sampler::new(params, vocab).unwrap())).collect()
}

/// One token appended, scored and followed by another.
fn step(engine: &Engine, state: &mut State, scores: &mut [f32], sampler: &mut Sampler, token: u32) -> u32 {
    append(engine, state, &[token]);
    engine.logits(state, scores).unwrap();
    let choice = sampler.sample(scores).unwrap();
    sampler.observe(&[choice.token], true).unwrap();
    choice.token
}

/// Steps of each sampler.
const STEPS: usize = 8;

/// One text, continued by one sampler after the other, across a page of the cache and a span of attention.
fn check_decode(engine: &Engine, what: &str) {
    let mut scores = vec![0.0; engine.model.config.vocab_size];
    let mut state = engine.state();
    append(engine, &mut state, &text(engine, SPAN - 2 * STEPS, 1));
    engine.reserve(&mut state, SPAN + 8 * STEPS);
    let mut token = 1;
    for (name, mut sampler) in samplers(scores.len()) {
        token = step(engine, &mut state, &mut scores, &mut sampler, token);
        for i in 1..STEPS {
            let count = allocations(|| token = step(engine, &mut state, &mut scores, &mut sampler, token));
            assert_eq!(count, 0, "{what}, {name}: step {i} at {} tokens", state.len());
        }
    }
    assert!(state.len() > SPAN + PAGE / 2);
}

#[test]
fn decoding_takes_no_memory() {
    assert_ne!(allocations(|| drop(std::hint::black_box(vec![1_u8]))), 0, "the counter counts");
    for model in [DEMO, Model::new(TINY, "f32"), Model::new(TINY, "int4"), Model::new(TINY, "bf16")] {
        for tier in Tier::available() {
            for threads in [1, 2] {
                let engine = model.open(tier, threads);
                check_decode(&engine, &format!("{model:?}, {}, {threads} threads", tier.name()));
            }
        }
    }
}
