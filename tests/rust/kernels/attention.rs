//! Attention and its cache.

use edgewise::config::AttentionConfig;
use edgewise::kernels::Cpu;
use edgewise::kernels::attention::{Partials, SPAN, attention};
use edgewise::kernels::kv_cache::{KvCache, KvType, PAGE};
use edgewise::kernels::reference::{self, AttentionShape};

use super::support::{Random, as_int8, assert_close, assert_same_bits, cpus, fastest, portable, same_on_all};

/// Cache lengths around the borders of lanes, pages (64) and spans (256).
const LENGTHS: [usize; 11] = [1, 15, 17, 63, 64, 65, SPAN - 1, SPAN, SPAN + 1, 513, 1030];

/// Query heads for each KV head, head dimension, gate, number type: every value of each appears.
const KINDS: [(usize, usize, bool, KvType); 20] = [
    (1, 16, false, KvType::F32),
    (2, 32, true, KvType::F16),
    (3, 64, true, KvType::F32),
    (4, 16, true, KvType::F16),
    (6, 32, false, KvType::F16),
    (8, 16, true, KvType::F32),
    (2, 256, true, KvType::F16),
    (4, 64, false, KvType::F32),
    (1, 16, true, KvType::Int8),
    (2, 48, false, KvType::Int8),
    (4, 64, true, KvType::Int8),
    (8, 32, false, KvType::Int8),
    (4, 256, true, KvType::Int8),
    (3, 80, true, KvType::Int8),
    (1, 16, false, KvType::Bf16),
    (2, 48, true, KvType::Bf16),
    (4, 64, false, KvType::Bf16),
    (8, 32, true, KvType::Bf16),
    (4, 256, true, KvType::Bf16),
    (3, 80, false, KvType::Bf16),
];

/// What attention may be off by, for values up to 1, with keys, values and queries as they meet.
///
/// In a cache of bfloat16 each weight is rounded to 8 bits.
///
/// In a cache of INT8 each weight is an integer of up to 32767 for the largest of 32 tokens, so it is off by half a unit at
/// most, and all 32 by 16 units.
fn tolerance(kv_type: KvType) -> f32 {
    match kv_type {
        KvType::F32 | KvType::F16 => 1e-5,
        KvType::Bf16 => 1e-5 + 2.0_f32.powi(-9),
        KvType::Int8 => 1e-5 + 16.0 / 32767.0,
    }
}

struct Case {
    config: AttentionConfig,
    cache: KvCache,
    /// `[context, kv_heads, head_dim]`
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[context, heads, head_dim * (1 + gated)]`: one for each token of the cache
    queries: Vec<f32>,
}

impl Case {
    fn random(random: &mut Random, kind: (usize, usize, bool, KvType), context: usize) -> Self {
        Self::of_heads(random, kind, context, 2)
    }

    fn of_heads(
        random: &mut Random,
        kind: (usize, usize, bool, KvType),
        context: usize,
        kv_heads: usize,
    ) -> Self {
        let (group, head_dim, output_gate, kv_type) = kind;
        let config = AttentionConfig { heads: kv_heads * group, kv_heads, head_dim, output_gate };
        let keys = random.numbers(context * kv_heads * head_dim);
        let values = random.numbers(context * kv_heads * head_dim);
        let sharpness = 4.0 / (head_dim as f32).sqrt();
        let queries = random.between(context * config.query_width(), -sharpness, sharpness);
        let mut cache = KvCache::new(kv_type, kv_heads, head_dim);
        cache.append(&portable(), &keys, &values);
        Self { config, cache, keys, values, queries }
    }

    fn name(&self) -> String {
        format!("{:?} {} with {} tokens", self.config, self.cache.kv_type().name(), self.cache.len())
    }

    /// Attention of tokens `first..end`, given together.
    fn run(&self, cpu: &Cpu, first: usize, end: usize) -> Vec<f32> {
        let mut cache = self.cache.clone();
        cache.truncate(end);
        self.run_on(cpu, &cache, first, end)
    }

    fn run_on(&self, cpu: &Cpu, cache: &KvCache, first: usize, end: usize) -> Vec<f32> {
        let width = self.config.query_width();
        let mut out = vec![f32::NAN; (end - first) * self.config.heads * self.config.head_dim];
        let queries = &self.queries[first * width..end * width];
        attention(cpu, &self.config, queries, cache, &mut Partials::default(), &mut out);
        out
    }

    /// The reference on what the cache holds, for tokens `first..`.
    fn expected(&self, first: usize) -> Vec<f32> {
        let AttentionConfig { heads, kv_heads, head_dim, .. } = self.config;
        let (keys, values) = self.cache.to_f32();
        let context = self.cache.len();
        let by_token = |x: &[f32]| -> Vec<f32> {
            let rows = (0..context).flat_map(|t| (0..kv_heads).map(move |h| (h * context + t) * head_dim));
            rows.flat_map(|row| &x[row..row + head_dim]).copied().collect()
        };
        let width = self.config.query_width() / heads;
        let queries = || self.queries[first * heads * width..].chunks(width);
        let as_met = |query: &[f32]| match self.cache.kv_type() {
            KvType::F32 | KvType::F16 => query.to_vec(),
            KvType::Bf16 => query.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect(),
            KvType::Int8 => as_int8(query),
        };
        let bare: Vec<f32> = queries().flat_map(|row| as_met(&row[..head_dim])).collect();
        let gates: Vec<f32> = queries().flat_map(|row| &row[head_dim..]).copied().collect();
        let shape = AttentionShape { heads, kv_heads, head_dim };
        let out = reference::attention(shape, &bare, &by_token(&keys), &by_token(&values), 1.0);
        if self.config.output_gate { reference::sigmoid_gate(&out, &gates) } else { out }
    }
}

/// One query alone, a short call and a long one, on every CPU.
#[test]
fn every_cpu_and_the_reference() {
    let (cpus, mut random) = (cpus(), Random::new(40));
    let mut kinds = KINDS.iter().cycle();
    for context in LENGTHS.into_iter().chain([66, 70, 80, 100, 130, 600]).chain(LENGTHS).chain([95, 96, 97]) {
        let kind = *kinds.next().unwrap();
        let case = Case::random(&mut random, kind, context);
        for tokens in [1, 2, 3, 4, 5, 8, 9] {
            let first = context.saturating_sub(tokens);
            let found = same_on_all(&case.name(), &cpus, |cpu| case.run(cpu, first, context));
            assert_close(&case.name(), &found, &case.expected(first), tolerance(kind.3));
        }
    }
}

/// Calls of up to four tokens split the cache over threads, longer ones split the queries: the same bits, at every border.
#[test]
fn a_token_alone_gets_the_same_bits_as_among_others() {
    let mut random = Random::new(41);
    let cpus = [fastest(), Cpu::new(fastest().tier, 3)];
    for kind in KINDS {
        for context in LENGTHS {
            let case = Case::random(&mut random, kind, context);
            let first = context.saturating_sub(19);
            let together = case.run(&cpus[0], first, context);
            for (cpu, piece) in cpus.iter().zip([1, 3]).chain(cpus.iter().zip([7, 8])) {
                let starts = (first..context).step_by(piece);
                let pieces = starts.flat_map(|t| case.run(cpu, t, (t + piece).min(context)));
                let pieces: Vec<f32> = pieces.collect();
                assert_same_bits(&format!("{} in pieces of {piece}", case.name()), &pieces, &together);
            }
        }
    }
}

/// Short calls read two heads of keys together, and the last of an odd number alone.
#[test]
fn any_number_of_heads_of_keys() {
    let (cpus, mut random) = (cpus(), Random::new(45));
    for (kv_heads, kind) in [1, 3, 4, 5, 3, 1, 5].into_iter().zip(KINDS.into_iter().step_by(3)) {
        for context in [9, PAGE + 1, SPAN + PAGE + 5] {
            let case = Case::of_heads(&mut random, kind, context, kv_heads);
            let together = case.run(&cpus[0], context - 7, context);
            assert_close(&case.name(), &together, &case.expected(context - 7), tolerance(kind.3));
            for tokens in [1, 4] {
                let short = same_on_all(&case.name(), &cpus, |cpu| case.run(cpu, context - tokens, context));
                assert_same_bits(&case.name(), &short, &together[together.len() - short.len()..]);
            }
        }
    }
}

#[test]
fn the_portable_tier_is_batch_invariant_too() {
    for kind in [KINDS[1], KINDS[15]] {
        let case = Case::random(&mut Random::new(42), kind, 70);
        let together = case.run(&portable(), 60, 70);
        let alone: Vec<f32> = (60..70).flat_map(|t| case.run(&portable(), t, t + 1)).collect();
        assert_same_bits("alone", &alone, &together);
    }
}

/// A whole prompt, from the first token.
#[test]
fn prefill_from_nothing() {
    let (cpus, mut random) = (cpus(), Random::new(43));
    for kind in [KINDS[2], KINDS[3], KINDS[9], KINDS[17]] {
        let case = Case::random(&mut random, kind, 75);
        let found = same_on_all(&case.name(), &cpus, |cpu| case.run(cpu, 0, 75));
        assert_close(&case.name(), &found, &case.expected(0), tolerance(kind.3));
    }
}

/// How far a stored number may be from the one that was given, `x` in its group of 32 channels.
fn rounding(kv_type: KvType, x: f32, group: &[f32]) -> f32 {
    match kv_type {
        KvType::F32 => 0.0,
        KvType::F16 => (half::f16::from_f32(x).to_f32() - x).abs(),
        KvType::Bf16 => (half::bf16::from_f32(x).to_f32() - x).abs(),
        // Half a step, which as an f16 is off by up to 2^-11 of it.
        KvType::Int8 => {
            let absmax = group.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            absmax / 127.0 * (0.5 + 2.0_f32.powi(-11))
        }
    }
}

#[test]
fn the_cache_holds_what_was_appended_in_any_pieces() {
    let mut random = Random::new(44);
    for kind in [KINDS[0], KINDS[1], KINDS[9], KINDS[12], KINDS[15], KINDS[19]] {
        let case = Case::random(&mut random, kind, 150);
        let (head_dim, width) = (case.config.head_dim, 2 * case.config.head_dim);
        let (keys, values) = case.cache.to_f32();
        for (stored, given) in [(&keys, &case.keys), (&values, &case.values)] {
            for (row, stored) in stored.chunks(head_dim).enumerate() {
                let (head, token) = (row / 150, row % 150);
                let given = &given[token * width + head * head_dim..][..head_dim];
                for (stored, given) in stored.chunks(32).zip(given.chunks(32)) {
                    for (stored, x) in stored.iter().zip(given) {
                        let error = (stored - x).abs();
                        assert!(error <= rounding(kind.3, *x, given), "{x} is held as {stored}");
                    }
                }
            }
        }
        for cpu in cpus() {
            for piece in [1, 5, PAGE, 100] {
                let mut cache = KvCache::new(kind.3, 2, head_dim);
                for (keys, values) in case.keys.chunks(piece * width).zip(case.values.chunks(piece * width)) {
                    cache.append(&cpu, keys, values);
                }
                assert_eq!(cache.to_f32(), (keys.clone(), values.clone()), "in pieces of {piece}");
            }
        }
    }
}

/// Partial results are scratch: what earlier calls of other shapes left there does not matter.
#[test]
fn scratch_of_earlier_calls_leaves_no_trace() {
    let mut random = Random::new(49);
    let mut partials = Partials::default();
    let cpu = fastest();
    for context in [1030, 3, 600, 513, 70] {
        let case = Case::random(&mut random, KINDS[1], context);
        let mut out = vec![f32::NAN; 3 * case.config.heads * case.config.head_dim];
        let queries = &case.queries[(context - 3) * case.config.query_width()..];
        attention(&cpu, &case.config, queries, &case.cache, &mut partials, &mut out);
        assert_same_bits(&case.name(), &out, &case.run(&cpu, context - 3, context));
    }
}

/// What a rewind leaves behind the last token, NaN included, is never seen.
#[test]
fn forgotten_tokens_leave_no_trace() {
    let mut random = Random::new(45);
    for kind in KINDS {
        let case = Case::random(&mut random, kind, 70);
        let expected = case.run(&fastest(), 58, 70);
        let mut cache = case.cache.clone();
        let garbage = vec![f32::NAN; 100 * 2 * case.config.head_dim];
        cache.append(&fastest(), &garbage, &garbage);
        cache.truncate(70);
        assert_same_bits("long call", &case.run_on(&fastest(), &cache, 58, 70), &expected);
        let last = &expected[expected.len() / 12 * 11..];
        assert_same_bits("short call", &case.run_on(&fastest(), &cache, 69, 70), last);
    }
}

#[test]
fn a_fork_does_not_see_what_the_other_appends() {
    let mut random = Random::new(46);
    let case = Case::random(&mut random, KINDS[1], 40);
    let before = case.cache.to_f32();
    let mut fork = case.cache.clone();
    let more = random.numbers(30 * 2 * case.config.head_dim);
    fork.append(&fastest(), &more, &more);
    assert_eq!(fork.len(), 70);
    assert_eq!(case.cache.to_f32(), before);
}

/// Scores far apart: weights underflow to zero on one side, and the sum stays exact on the other.
#[test]
fn one_token_can_take_all_the_weight() {
    let head_dim = 16;
    let config = AttentionConfig { heads: 1, kv_heads: 1, head_dim, output_gate: false };
    let context = SPAN + 100;
    for (cpu, chosen) in cpus().iter().zip([0, 63, 64, 300, SPAN - 1, SPAN, SPAN + 99].into_iter().cycle()) {
        let mut keys = vec![0.0; context * head_dim];
        keys[chosen * head_dim] = 1000.0;
        let values: Vec<f32> = (0..context * head_dim).map(|i| (i / head_dim) as f32).collect();
        let mut cache = KvCache::new(KvType::F32, 1, head_dim);
        cache.append(cpu, &keys, &values);
        let mut out = vec![f32::NAN; head_dim];
        attention(cpu, &config, &[1.0; 16], &cache, &mut Partials::default(), &mut out);
        assert_eq!(out, [chosen as f32; 16]);
    }
}

#[test]
fn a_fault_in_a_visible_key_or_value_reaches_the_output() {
    let mut random = Random::new(47);
    let case = Case::random(&mut random, KINDS[0], 70);
    let width = 2 * case.config.head_dim;
    for fault in [f32::NAN, f32::INFINITY] {
        let (mut keys, mut values) = (case.keys.clone(), case.values.clone());
        keys[10 * width] = fault;
        values[20 * width + width - 1] = fault;
        let mut cache = KvCache::new(KvType::F32, 2, case.config.head_dim);
        cache.append(&fastest(), &keys, &values);
        let out = case.run_on(&fastest(), &cache, 69, 70);
        let (first, second) = out.split_at(case.config.head_dim);
        assert!(fault.is_infinite() || first.iter().all(|x| x.is_nan()), "the key's head");
        assert!(!second[case.config.head_dim - 1].is_finite(), "the value's channel");
    }
}

#[test]
fn no_tokens_are_no_work() {
    let case = Case::random(&mut Random::new(48), KINDS[0], 5);
    assert!(case.run(&fastest(), 5, 5).is_empty());
}
