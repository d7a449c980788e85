//! A decode step and a sampled token take no memory from the heap; encoding an image takes some in proportion to it and
//! gives it back; writing random weights takes little. Own test binary: it replaces the allocator, and nothing else may run beside it.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod models;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod pictures;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use edgewise::generate::{Sampler, SamplingParams};
use edgewise::kernels::Tier;
use edgewise::kernels::attention::SPAN;
use edgewise::kernels::kv_cache::PAGE;
use edgewise::model::vision::Grid;
use edgewise::model::{Engine, State};
use edgewise::weights::random::write_random;
use edgewise::weights::recipe::Recipe;

use models::{DEMO, Model, TINY, append, text};
use pictures::{Seen, picture, see};

/// The system's allocator, how often memory was asked for, by any thread, and how much is and was in use.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn taken(size: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    let live = LIVE.fetch_add(size, Ordering::SeqCst) + size;
    PEAK.fetch_max(live, Ordering::SeqCst);
}

fn given_back(size: usize) {
    LIVE.fetch_sub(size, Ordering::SeqCst);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        taken(size);
        given_back(layout.size());
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        given_back(layout.size());
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

/// Tokens before the first step: the steps go across a page of the cache and a span of attention.
const BEFORE: usize = SPAN - 2 * STEPS;

/// Waits until every thread of the pool has begun: beginning takes memory, and on a busy machine comes late.
fn wait_for_threads(engine: &Engine) {
    let threads = engine.cpu.pool.threads();
    let all_here = Barrier::new(threads);
    engine.cpu.pool.run(threads, &|_| {
        all_here.wait();
    });
}

/// One prompt of [`BEFORE`] tokens, continued by one sampler after the other.
fn check_decode(engine: &Engine, mut state: State, what: &str) {
    assert_eq!(state.len(), BEFORE);
    wait_for_threads(engine);
    let mut scores = vec![0.0; engine.model.config.vocab_size];
    engine.reserve(&mut state, SPAN + 8 * STEPS).unwrap();
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

fn words(engine: &Engine) -> State {
    let mut state = engine.state();
    append(engine, &mut state, &text(engine, BEFORE, 1));
    state
}

/// Words before and behind an image of 20 tokens.
fn words_and_an_image(engine: &Engine) -> State {
    let mut state = engine.state();
    let seen = Seen::new(engine, &[3, BEFORE - 23], &[see(engine, [8, 10], 1)], 1);
    engine.append(&mut state, seen.prompt(engine), &mut || Ok(())).unwrap();
    state
}

fn decoding_takes_no_memory() {
    for model in [DEMO, Model::new(TINY, "f32"), Model::new(TINY, "int4"), Model::new(TINY, "bf16")] {
        for tier in Tier::available() {
            for threads in [1, 2] {
                let engine = model.open(tier, threads);
                check_decode(
                    &engine,
                    words(&engine),
                    &format!("{model:?}, {}, {threads} threads", tier.name()),
                );
            }
        }
    }
    for model in [Model::new("tests/golden/moe_text", "int4"), Model::new("tests/golden/qwen3_moe", "f32")] {
        let engine = model.open_fastest(2);
        check_decode(&engine, words(&engine), &format!("{model:?}"));
    }
    for path in ["tests/golden/image", "tests/golden/deepstack_qwen3_vl"] {
        let engine = Model::new(path, "int4").open_fastest(2);
        check_decode(&engine, words_and_an_image(&engine), path);
    }
}

/// Bytes that encoding takes at most at once, its pixels among them, and bytes of its result.
fn encode(engine: &Engine, grid: [usize; 2]) -> (usize, usize) {
    let config = &engine.vision().unwrap().config;
    let pixels = picture(config, Grid::new(config, grid[0], grid[1]).unwrap(), 1);
    let before = LIVE.load(Ordering::SeqCst) - 4 * pixels.capacity();
    PEAK.store(before, Ordering::SeqCst);
    let features = engine.encode(pixels, grid, &mut |_| Ok(()), &mut |_, _| {}).unwrap();
    let left = LIVE.load(Ordering::SeqCst) - before;
    assert!((features.nbytes() / 2..features.nbytes() + 1024).contains(&left), "{left} bytes are left");
    (PEAK.load(Ordering::SeqCst) - before, features.nbytes())
}

/// Four times the patches need four times the memory: no matrix of scores exists, and wide layers see a few patches at a time.
fn encoding_takes_memory_in_proportion() {
    for path in [DEMO.path, "tests/golden/deepstack_qwen3_vl"] {
        let engine = Model::new(path, "auto").open_fastest(2);
        let (small, _) = encode(&engine, [16, 32]);
        let (large, result) = encode(&engine, [32, 64]);
        assert!(large <= 4 * small, "{small} bytes for 512 patches, {large} for 2048");
        let tower = &engine.vision().unwrap().config;
        // The pixels beside the residual stream; later that stream, its like for attention's result, and queries, keys and values
        // with room for whole vectors.
        let heads = tower.heads * tower.head_dim().next_multiple_of(16);
        let first = 4 * 2048 * (tower.patch_values() + tower.hidden_size);
        let later = 4 * 2048 * (2 * tower.hidden_size + 3 * heads + tower.head_dim() + 6) + result;
        let all = first.max(later);
        let wide = 4 * 256 * (8 * tower.hidden_size + 2 * tower.patch_values() + 2 * heads);
        assert!(large < all + wide, "{large} bytes, {all} for all patches, {wide} for some");
    }
}

/// A file of random weights is written in pieces, whatever the size of a tensor.
fn random_weights_take_a_piece_of_memory() {
    const VOCABULARY: usize = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("random.safetensors");
    let config = std::fs::read(format!("{}/{TINY}/config.json", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["vocab_size"] = VOCABULARY.into();
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    write_random(&file, config.to_string().as_bytes(), &Recipe::by_name("f32").unwrap(), 1).unwrap();
    let (taken, written) = (PEAK.load(Ordering::SeqCst) - before, file.metadata().unwrap().len());
    assert!(written > 4 * VOCABULARY as u64 * 64, "{written} bytes");
    assert!(taken < 4 << 20, "{taken} bytes of memory for a file of {written}");
}

/// One test: a second would run beside the first.
#[test]
fn memory() {
    assert_ne!(allocations(|| drop(std::hint::black_box(vec![1_u8]))), 0, "the counter counts");
    decoding_takes_no_memory();
    encoding_takes_memory_in_proportion();
    random_weights_take_a_piece_of_memory();
}
