//! Speed of what stands between the matrix products, at the shapes of Qwen3.5-0.8B, on every tier of this CPU and all its
//! threads; attention of the vision tower among it.
//!
//! Throughput is in numbers, of the larger operand where there are several, for one token and for a pass of prefill.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use edgewise::config::{AttentionConfig, DeltaConfig};
use edgewise::kernels::activation::{add_bias, gelu_erf_in_place, gelu_tanh_in_place, swiglu};
use edgewise::kernels::activations::QuantizedRows;
use edgewise::kernels::attention::{QueryKeyNorm, bidirectional, prepare_query_key};
use edgewise::kernels::conv::{TAIL, TAPS};
use edgewise::kernels::delta_chunks::Recent;
use edgewise::kernels::gated_delta::{GatedDelta, Kept, Sequence, gated_delta};
use edgewise::kernels::kv_cache::{KvCache, KvType};
use edgewise::kernels::norm::{layer_norm, rms_norm};
use edgewise::kernels::rope::RopeTable;
use edgewise::kernels::{Cpu, Tier};

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 3584;
/// Tokens of a prefill.
const PREFILL: usize = 256;
const EPS: f32 = 1e-6;

const DELTA: DeltaConfig =
    DeltaConfig { key_heads: 16, value_heads: 16, key_dim: 128, value_dim: 128, conv_kernel: 4 };
const ATTENTION: AttentionConfig =
    AttentionConfig { heads: 8, kv_heads: 2, head_dim: 256, output_gate: true };
/// Channels of a head that turn with the position.
const ROTARY: usize = 64;

/// The vision tower: width, heads and a head's channels.
const VISION: [usize; 3] = [768, 12, 64];
/// Patches of an image.
const PATCHES: usize = 1024;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for tier in Tier::available() {
        let cpu = Cpu::new(tier, threads);
        for tokens in [1, PREFILL] {
            let mut bench = Bench { criterion: &mut criterion, cpu: &cpu, tokens };
            bench.norms();
            bench.delta_layer();
            bench.attention_layer();
            bench.activations();
        }
        vision_attention(&mut criterion, &cpu);
    }
    criterion.final_summary();
}

/// Numbers in -0.5..0.5, the same in every run.
fn numbers(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

struct Bench<'a> {
    criterion: &'a mut Criterion,
    cpu: &'a Cpu,
    tokens: usize,
}

impl Bench<'_> {
    /// Measures `work`, which is given `[tokens, width]` fresh numbers to change: what is changed again and again could
    /// become subnormal.
    fn run(&mut self, name: &str, width: usize, mut work: impl FnMut(&Cpu, &mut [f32])) {
        let (cpu, tokens) = (self.cpu, self.tokens);
        let x = numbers(tokens * width);
        let mut group = self.criterion.benchmark_group("elementwise");
        group.throughput(Throughput::Elements(x.len() as u64));
        group.bench_function(
            BenchmarkId::new(format!("{name} [{tokens}, {width}]"), cpu.tier.name()),
            |bencher| {
                bencher.iter_batched_ref(|| x.clone(), |x| work(cpu, black_box(x)), BatchSize::LargeInput);
            },
        );
    }

    fn norms(&mut self) {
        let (x, weight) = (numbers(self.tokens * HIDDEN), vec![1.0; HIDDEN]);
        self.run("rms norm", HIDDEN, |cpu, out| rms_norm(cpu, &x, &weight, EPS, out, None));
        let mut quantized = QuantizedRows::default();
        self.run("rms norm, quantised", HIDDEN, |cpu, out| {
            rms_norm(cpu, &x, &weight, EPS, out, Some(&mut quantized));
        });
        self.run("layer norm", HIDDEN, |cpu, out| layer_norm(cpu, &x, &weight, &weight, EPS, out));
    }

    fn delta_layer(&mut self) {
        let (channels, heads) = (DELTA.conv_dim(), DELTA.value_heads);
        let (projected, z) =
            (numbers(self.tokens * channels), numbers(self.tokens * heads * DELTA.value_dim));
        let (gates, conv, rate) = (numbers(self.tokens * heads), numbers(TAPS * channels), vec![0.1; heads]);
        let layer = GatedDelta {
            shape: &DELTA,
            projected: &projected,
            z: &z,
            a: &gates,
            b: &gates,
            conv: &conv,
            rate: &rate,
            dt_bias: &rate,
            norm: &vec![1.0; DELTA.value_dim],
            eps: EPS,
        };
        let (mut tail, mut scratch) = (vec![0.0; TAIL * channels], Vec::new());
        let mut memory = vec![0.0; heads * DELTA.value_dim * DELTA.key_dim];
        let mut position = 0;
        let mut recent = vec![0.0; DELTA.key_heads * Recent::new(&DELTA).room()];
        self.run("gated delta core", heads * DELTA.value_dim, |cpu, out| {
            let sequence = Sequence {
                position,
                tokens: out.len() / (heads * DELTA.value_dim),
                start: None,
                kept: Kept { tail: &mut tail, memory: &mut memory, recent: &mut recent },
                copies: Vec::new(),
            };
            position += sequence.tokens;
            gated_delta(cpu, layer, [Some(sequence)], &mut scratch, out);
        });
    }

    fn attention_layer(&mut self) {
        let kv_width = ATTENTION.kv_heads * ATTENTION.head_dim;
        let mut rope = RopeTable::two_axes(1e7, ROTARY, self.tokens).expect("memory for a table");
        rope.fill((0..self.tokens as u32).map(|i| [i; 3]));
        let weight = vec![1.0; ATTENTION.head_dim];
        let mut keys = numbers(self.tokens * kv_width);
        self.run("rotation", ATTENTION.query_width(), |cpu, queries| {
            let norm = QueryKeyNorm { query: &weight, key: &weight, eps: EPS };
            prepare_query_key(cpu, &ATTENTION, &rope, 0, Some(norm), queries, &mut keys);
        });
        for kv_type in [KvType::Bf16, KvType::F16, KvType::F32] {
            let mut cache = KvCache::new(kv_type, ATTENTION.kv_heads, ATTENTION.head_dim);
            self.run(&format!("{} cache", kv_type.name()), kv_width, |cpu, rows| {
                cache.truncate(0);
                cache.append(cpu, rows, rows);
            });
        }
    }

    fn activations(&mut self) {
        let up = vec![1.0; self.tokens * INTERMEDIATE];
        self.run("swiglu", INTERMEDIATE, |cpu, gate| swiglu(cpu, gate, &up, INTERMEDIATE, None));
        let mut quantized = QuantizedRows::default();
        self.run("swiglu, quantised", INTERMEDIATE, |cpu, gate| {
            swiglu(cpu, gate, &up, INTERMEDIATE, Some(&mut quantized));
        });
        self.run("gelu tanh", INTERMEDIATE, gelu_tanh_in_place);
        self.run("gelu erf", INTERMEDIATE, gelu_erf_in_place);
        let bias = vec![0.0; INTERMEDIATE];
        self.run("bias", INTERMEDIATE, |cpu, x| add_bias(cpu, x, &bias));
        for width in [HIDDEN, INTERMEDIATE] {
            let mut quantized = QuantizedRows::default();
            self.run("quantisation", width, |cpu, x| quantized.fill(cpu, x, width));
        }
    }
}

/// Attention among the patches of an image; throughput in patches.
fn vision_attention(criterion: &mut Criterion, cpu: &Cpu) {
    let [width, heads, head_dim] = VISION;
    let mut cache = KvCache::new(KvType::Bf16, heads, head_dim);
    let queries = numbers(PATCHES * width);
    cache.append(cpu, &queries, &queries);
    let mut out = vec![0.0; queries.len()];
    let mut group = criterion.benchmark_group("attention");
    group.throughput(Throughput::Elements(PATCHES as u64));
    group.bench_function(
        BenchmarkId::new(format!("bidirectional of {PATCHES}"), cpu.tier.name()),
        |bencher| {
            bencher.iter(|| bidirectional(cpu, &queries, &cache, head_dim, black_box(&mut out)));
        },
    );
}
