//! Speed of the kernels at the shapes of Qwen3.5-0.8B, and of experts at those of 35B-A3B, on every tier of this CPU and all
//! its threads.
//!
//! `cargo bench` measures, `cargo bench -- --test` runs each once. Decode, one token, is bound by memory: its throughput is
//! in bytes of weights, state or cache, and its weights are read from 128 MB of copies in turn, as a model's are, not
//! from a warm cache. Prefill is bound by arithmetic: its throughput is in multiply-adds for matrix products, in
//! tokens for the rest.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use edgewise::config::{AttentionConfig, DeltaConfig};
use edgewise::kernels::activations::QuantizedRows;
use edgewise::kernels::attention::{Partials, attention};
use edgewise::kernels::delta_rule::{DeltaInput, delta_rule, normalize_query_key};
use edgewise::kernels::delta_rule_arrays::{DeltaArrays, DeltaShape};
use edgewise::kernels::delta_rule_chunked::{CHUNK, gated_delta_rule_chunked};
use edgewise::kernels::experts::{ExpertScratch, Experts, expert_feed_forward};
use edgewise::kernels::kv_cache::{KvCache, KvType};
use edgewise::kernels::linear::{Input, Product, Store, linear};
use edgewise::kernels::routing::{Routes, route_top_k};
use edgewise::kernels::{Cpu, Tier};
use edgewise::tensor::Bytes;
use edgewise::weights::matrix::{Format, Matrix};
use edgewise::weights::model::SwiGluWeights;

/// `[rows, cols]`: the delta layers' q, k and v; gate and up together; down.
const SHAPES: [[usize; 2]; 3] = [[6144, 1024], [7168, 1024], [1024, 3584]];
/// Tokens of a prefill.
const PREFILL: usize = 256;
/// More than caches hold.
const COLD_BYTES: usize = 128 << 20;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for tier in Tier::available() {
        let cpu = Cpu::new(tier, threads);
        products(&mut criterion, &cpu);
        delta_rules(&mut criterion, &cpu);
        attentions(&mut criterion, &cpu);
        routers(&mut criterion, &cpu);
    }
    // All experts of a layer are 453 MB. The portable tier would take minutes.
    let weights = experts();
    for tier in Tier::available().into_iter().skip(1) {
        let cpu = Cpu::new(tier, threads);
        for tokens in [1, 64, 512] {
            feed_forwards(&mut criterion, &cpu, &weights, tokens);
        }
        // What to compare with: a large matrix read once, and a product of as many tokens.
        let bytes = Format::Int4.bytes(LARGE[0], LARGE[1]).expect("a large matrix");
        let large = [matrix(Format::Int4, LARGE)];
        product(&mut criterion, &cpu, &large, 1, Throughput::Bytes(bytes as u64));
        let square = [matrix(Format::Int4, [HIDDEN, HIDDEN])];
        let work = Throughput::Elements(512 * (HIDDEN * HIDDEN) as u64);
        product(&mut criterion, &cpu, &square, 512, work);
    }
    criterion.final_summary();
}

/// Numbers in -0.5..0.5, the same in every run.
fn numbers(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

/// Numbers in -0.5..0.5, or levels that look random and scales of 2^-7.
fn matrix(format: Format, [rows, cols]: [usize; 2]) -> Matrix {
    let len = format.bytes(rows, cols).expect("a small matrix");
    let bytes: Vec<u8> = match format {
        Format::F32 => numbers(rows * cols).into_iter().flat_map(f32::to_le_bytes).collect(),
        Format::F16 => {
            numbers(rows * cols).into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect()
        }
        Format::BF16 => {
            numbers(rows * cols).into_iter().flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect()
        }
        Format::Int4 | Format::Int4Asym | Format::Int8 => blocks(format, len),
        Format::Int4S8 => panels(format, cols, len),
    };
    Matrix::new(format, rows, cols, Bytes::new(bytes)).expect("the size that was asked for")
}

fn blocks(format: Format, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 25) as u8).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let scales = if format == Format::Int8 { 512 } else { 256 };
        for scale in block[scales..].chunks_exact_mut(2) {
            scale.copy_from_slice(&0x2000_u16.to_le_bytes());
        }
    }
    bytes
}

/// Panels of any levels and scales, with units that are not too large.
fn panels(format: Format, cols: usize, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 25) as u8).collect();
    let size = format.panel_bytes(cols).expect("a small matrix");
    for panel in bytes.chunks_exact_mut(size) {
        for unit in panel[size - format.unit_bytes()..].chunks_exact_mut(4) {
            unit.copy_from_slice(&1e-4_f32.to_le_bytes());
        }
    }
    bytes
}

fn products(criterion: &mut Criterion, cpu: &Cpu) {
    for format in Format::ALL {
        for shape in SHAPES {
            let bytes = format.bytes(shape[0], shape[1]).expect("a small matrix");
            let copies: Vec<Matrix> =
                (0..COLD_BYTES.div_ceil(bytes)).map(|_| matrix(format, shape)).collect();
            let decode = Throughput::Bytes(bytes as u64);
            product(criterion, cpu, &copies, 1, decode);
            let prefill = Throughput::Elements((PREFILL * shape[0] * shape[1]) as u64);
            product(criterion, cpu, &copies[..1], PREFILL, prefill);
        }
    }
}

/// One product, with another one of `copies` each time.
fn product(criterion: &mut Criterion, cpu: &Cpu, copies: &[Matrix], tokens: usize, throughput: Throughput) {
    let (rows, cols) = (copies[0].rows(), copies[0].cols());
    let x = numbers(tokens * cols);
    let mut quantized = QuantizedRows::default();
    quantized.fill(cpu, &x, cols);
    let input = Input { dense: &x, quantized: Some(&quantized), tokens };
    let mut out = vec![0.0; tokens * rows];
    let mut copies = copies.iter().cycle();
    let name =
        format!("{} [{rows}, {cols}] x {tokens}", copies.clone().next().map_or("", |m| m.format().name()));
    let mut group = criterion.benchmark_group("linear");
    group.throughput(throughput);
    group.bench_function(BenchmarkId::new(name, cpu.tier.name()), |bencher| {
        bencher.iter(|| {
            let weights = copies.next().expect("the cycle has no end");
            linear(cpu, input, [Product { weights, out: black_box(&mut out), store: Store::Set }]);
        });
    });
}

const DELTA: DeltaConfig =
    DeltaConfig { key_heads: 16, value_heads: 16, key_dim: 128, value_dim: 128, conv_kernel: 4 };

/// Both forms of `edgewise.ops`. The model's, in chunks of eight tokens, is measured as a part of its layer (`elementwise.rs`).
fn delta_rules(criterion: &mut Criterion, cpu: &Cpu) {
    let mut group = criterion.benchmark_group("delta rule");
    for tokens in [1, PREFILL] {
        let mut qkv = numbers(tokens * DELTA.conv_dim());
        normalize_query_key(cpu, &DELTA, &mut qkv);
        let gate = vec![0.5; tokens * DELTA.value_heads];
        let input = DeltaInput { qkv: &qkv, decay: &gate, beta: &gate };
        let mut state = vec![0.0; DELTA.value_heads * DELTA.key_dim * DELTA.value_dim];
        let mut out = vec![0.0; tokens * DELTA.value_heads * DELTA.value_dim];
        group.throughput(match tokens {
            1 => Throughput::Bytes(4 * state.len() as u64),
            _ => Throughput::Elements(tokens as u64),
        });
        group.bench_function(BenchmarkId::new(format!("recurrent x {tokens}"), cpu.tier.name()), |bencher| {
            bencher.iter(|| delta_rule(cpu, &DELTA, input, &mut state, black_box(&mut out)));
        });
    }
    let DeltaConfig { key_heads, value_heads, key_dim, value_dim, .. } = DELTA;
    let x = numbers(PREFILL * key_heads * key_dim);
    let gate = vec![0.5; PREFILL * value_heads];
    let arrays = DeltaArrays {
        shape: DeltaShape { tokens: PREFILL, key_heads, value_heads, key_dim, value_dim },
        q: &x,
        k: &x,
        v: &x,
        g: &vec![-0.7; PREFILL * value_heads],
        beta: &gate,
        state: None,
        scale: None,
        use_qk_l2norm: true,
    };
    group.bench_function(BenchmarkId::new(format!("chunked x {PREFILL}"), cpu.tier.name()), |bencher| {
        bencher.iter(|| black_box(gated_delta_rule_chunked(cpu, &arrays, CHUNK)));
    });
}

const ATTENTION: AttentionConfig =
    AttentionConfig { heads: 8, kv_heads: 2, head_dim: 256, output_gate: true };

fn attentions(criterion: &mut Criterion, cpu: &Cpu) {
    let mut group = criterion.benchmark_group("attention");
    for (name, tokens, depth) in
        [("decode at 512", 1, 512), ("decode at 8192", 1, 8192), ("prefill of 256", PREFILL, PREFILL)]
    {
        let mut cache = KvCache::new(KvType::Bf16, ATTENTION.kv_heads, ATTENTION.head_dim);
        let rows = numbers(depth * ATTENTION.kv_heads * ATTENTION.head_dim);
        cache.append(cpu, &rows, &rows);
        let queries = numbers(tokens * ATTENTION.query_width());
        let mut out = vec![0.0; tokens * ATTENTION.heads * ATTENTION.head_dim];
        let mut partials = Partials::default();
        group.throughput(match tokens {
            1 => Throughput::Bytes((depth * cache.bytes_per_token()) as u64),
            _ => Throughput::Elements(tokens as u64),
        });
        group.bench_function(BenchmarkId::new(name, cpu.tier.name()), |bencher| {
            bencher.iter(|| attention(cpu, &ATTENTION, &queries, &cache, &mut partials, black_box(&mut out)));
        });
    }
}

/// Shapes of a layer of Qwen3.5-35B-A3B.
const EXPERTS: usize = 256;
const PER_TOKEN: usize = 8;
const HIDDEN: usize = 2048;
const WIDTH: usize = 512;
/// About as many bytes as eight experts and much more than caches hold.
const LARGE: [usize; 2] = [124_160, HIDDEN];

fn routers(criterion: &mut Criterion, cpu: &Cpu) {
    let mut group = criterion.benchmark_group("router");
    for tokens in [1, PREFILL] {
        let logits = numbers(tokens * EXPERTS);
        let mut routes = Routes::with_capacity(tokens, PER_TOKEN);
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(
            BenchmarkId::new(format!("{PER_TOKEN} of {EXPERTS} x {tokens}"), cpu.tier.name()),
            |bencher| {
                bencher.iter(|| {
                    route_top_k(cpu, black_box(&logits), EXPERTS, PER_TOKEN, true, black_box(&mut routes));
                });
            },
        );
    }
}

/// Each in memory of its own.
fn experts() -> Vec<SwiGluWeights> {
    let [inner, outer] = [[WIDTH, HIDDEN], [HIDDEN, WIDTH]].map(|shape| matrix(Format::Int4, shape));
    let copy = |matrix: &Matrix| {
        let bytes = Bytes::new(matrix.bytes().to_vec());
        Matrix::new(matrix.format(), matrix.rows(), matrix.cols(), bytes).expect("a copy")
    };
    let expert = |_| SwiGluWeights { gate: copy(&inner), up: copy(&inner), down: copy(&outer) };
    (0..EXPERTS).map(expert).collect()
}

/// The experts of one layer, for other routes each time. A token alone is bound by the memory's speed, at 64 nearly all experts
/// have one or two.
fn feed_forwards(criterion: &mut Criterion, cpu: &Cpu, weights: &[SwiGluWeights], tokens: usize) {
    let x = numbers(tokens * HIDDEN);
    let mut quantized = QuantizedRows::default();
    quantized.fill(cpu, &x, HIDDEN);
    let input = Input { dense: &x, quantized: Some(&quantized), tokens };
    let mut scratch = ExpertScratch::with_capacity(tokens, PER_TOKEN, EXPERTS, HIDDEN, WIDTH);
    let mut out = vec![0.0; tokens * HIDDEN];
    let many: Vec<Routes> = (0..64).map(|seed| random_routes(tokens, seed)).collect();
    let mut many = many.iter().cycle();
    let one = 3 * Format::Int4.bytes(WIDTH, HIDDEN).expect("a small matrix");
    let mut group = criterion.benchmark_group("experts");
    group.throughput(match tokens {
        1 => Throughput::Bytes((PER_TOKEN * one) as u64),
        _ => Throughput::Elements((tokens * PER_TOKEN * 3 * WIDTH * HIDDEN) as u64),
    });
    let name = format!("{PER_TOKEN} of {EXPERTS} [{WIDTH}, {HIDDEN}] x {tokens}");
    group.bench_function(BenchmarkId::new(name, cpu.tier.name()), |bencher| {
        bencher.iter(|| {
            let routes = many.next().expect("the cycle has no end");
            let experts = Experts { routed: weights, shared: None };
            expert_feed_forward(cpu, experts, input, routes, &mut scratch, black_box(&mut out), Store::Set);
        });
    });
}

/// Experts that look random, of each token different ones.
fn random_routes(tokens: usize, seed: u32) -> Routes {
    let score = |token: usize, expert: u32| {
        let at = (seed * 4099 + token as u32).wrapping_mul(EXPERTS as u32) + expert;
        (at ^ (at >> 15)).wrapping_mul(0x2c1b_3c6d) ^ at.rotate_left(13).wrapping_mul(0x297a_2d39)
    };
    let choose = |token| {
        let mut all: Vec<u32> = (0..EXPERTS as u32).collect();
        all.sort_by_cached_key(|&expert| score(token, expert));
        all.truncate(PER_TOKEN);
        all
    };
    let chosen: Vec<u32> = (0..tokens).flat_map(choose).collect();
    let weights = vec![1.0 / PER_TOKEN as f32; chosen.len()];
    Routes::new(chosen, weights, PER_TOKEN)
}
