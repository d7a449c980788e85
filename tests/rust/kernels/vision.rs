//! What only the vision tower uses: layer norm, GELU, biases, attention without a mask, rotary positions by row and column.

use edgewise::kernels::Cpu;
use edgewise::kernels::activation::{add_bias, gelu_erf_in_place, gelu_tanh_in_place};
use edgewise::kernels::attention::bidirectional;
use edgewise::kernels::kv_cache::{KvCache, KvType, PAGE};
use edgewise::kernels::norm::layer_norm;
use edgewise::kernels::reference::{self, AttentionShape};
use edgewise::kernels::rope::{Position, RopeTable};
use proptest::prelude::*;

use super::elementwise::shapes;
use super::support::{
    Random, SIZES, assert_close, assert_same_bits, cpus, fastest, portable, same_on_all, tiers,
};

#[test]
fn layer_norms() {
    let (cpus, mut random) = (cpus(), Random::new(60));
    for (rows, width) in shapes() {
        let (weight, bias) = (random.numbers(width), random.numbers(width));
        // Rows far from zero: what a one-pass variance would lose.
        for (centre, tolerance) in [(0.0, 2e-6), (30.0, 6e-5)] {
            let x = random.between(rows * width, centre - 1.0, centre + 1.0);
            let found = same_on_all("layer_norm", &cpus, |cpu| {
                let mut out = vec![f32::NAN; x.len()];
                layer_norm(cpu, &x, &weight, &bias, 1e-6, &mut out);
                out
            });
            let expected = reference::layer_norm(&x, &weight, &bias, 1e-6);
            // One channel has no variance but the rounding of its mean.
            if width > 1 {
                assert_close(&format!("layer_norm [{rows}, {width}]"), &found, &expected, tolerance);
            }
        }
    }
}

/// A row of equal numbers has no variance; the epsilon keeps the quotient finite.
#[test]
fn layer_norm_of_equal_numbers_is_the_bias() {
    for cpu in cpus() {
        for width in [1, 15, 16, 17, 72] {
            let bias: Vec<f32> = (0..width).map(|i| i as f32).collect();
            for x in [0.0, 0.5, -64.0] {
                let mut out = vec![f32::NAN; width];
                layer_norm(&cpu, &vec![x; width], &vec![1.0; width], &bias, 1e-6, &mut out);
                assert_eq!(out, bias);
            }
        }
    }
}

type Gelu = (fn(&Cpu, &mut [f32]), fn(f64) -> f64);
const GELUS: [Gelu; 2] =
    [(gelu_tanh_in_place, reference::gelu_tanh), (gelu_erf_in_place, reference::gelu_erf)];

#[test]
fn gelus() {
    let (cpus, mut random) = (cpus(), Random::new(61));
    for (gelu, exact) in GELUS {
        for n in SIZES.into_iter().chain([3584, 30_000]) {
            let x = random.between(n, -8.0, 8.0);
            let found = same_on_all("gelu", &cpus, |cpu| {
                let mut x = x.clone();
                gelu(cpu, &mut x);
                x
            });
            let expected: Vec<f32> = x.iter().map(|&x| exact(f64::from(x)) as f32).collect();
            assert_close("gelu", &found, &expected, 4e-7);
        }
    }
}

#[test]
fn edges_of_gelus() {
    for cpu in cpus() {
        for (gelu, _) in GELUS {
            let mut x =
                [0.0, -0.0, f32::MIN_POSITIVE, 1e-30, 20.0, 1e30, f32::MAX, f32::INFINITY, -20.0, -1e3];
            let expected = [0.0, 0.0, 0.0, 5e-31, 20.0, 1e30, f32::MAX, f32::INFINITY, 0.0, 0.0];
            gelu(&cpu, &mut x);
            for (x, expected) in x.into_iter().zip(expected) {
                let near = (x - expected).abs() <= 1e-6 * expected;
                assert!(x == expected || near || (expected == 0.0 && x.abs() < 1e-35), "{x:e} {expected:e}");
            }
            let mut nan = [f32::NAN; 3];
            gelu(&cpu, &mut nan);
            assert!(nan.iter().all(|x| x.is_nan()));
        }
    }
}

/// The sum of two f32 rounded from f64 is their f32 sum.
#[test]
fn biases() {
    let (cpus, mut random) = (cpus(), Random::new(62));
    for (rows, width) in shapes() {
        let (x, bias) = (random.numbers(rows * width), random.numbers(width));
        let found = same_on_all("add_bias", &cpus, |cpu| {
            let mut x = x.clone();
            add_bias(cpu, &mut x, &bias);
            x
        });
        assert_same_bits("add_bias", &found, &reference::add_bias(&x, &bias));
    }
}

/// Numbers of patches around the edges of lanes, tiles (4, 8), items (32) and pages (64).
const PATCHES: [usize; 22] =
    [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 127, 129, 200, 257];

/// Heads, their width, and their width filled up to whole vectors.
const HEADS: [(usize, usize, usize); 7] =
    [(1, 72, 80), (2, 16, 16), (3, 12, 16), (2, 64, 64), (1, 20, 32), (3, 36, 48), (1, 256, 256)];

/// `x` as a cache holds it.
fn rounded(kv_type: KvType, x: f32) -> f32 {
    match kv_type {
        KvType::F32 => x,
        KvType::F16 => half::f16::from_f32(x).to_f32(),
        KvType::Bf16 => half::bf16::from_f32(x).to_f32(),
        KvType::Int8 => unreachable!(),
    }
}

/// What attention may be off by, for values up to 1: in a cache of bfloat16 weights are rounded to 8 bits.
fn tolerance(kv_type: KvType) -> f32 {
    if kv_type == KvType::Bf16 { 2e-6 + 2.0_f32.powi(-9) } else { 2e-6 }
}

struct Case {
    heads: usize,
    width: usize,
    head_dim: usize,
    /// `[patches, heads, head_dim]`, zeros behind the first `width` channels of each head.
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    cache: KvCache,
}

impl Case {
    fn random(random: &mut Random, kind: (usize, usize, usize), kv_type: KvType, patches: usize) -> Self {
        let (heads, width, head_dim) = kind;
        let mut rows = |bound: f32| {
            let mut x = random.between(patches * heads * head_dim, -bound, bound);
            x.chunks_mut(head_dim).for_each(|head| head[width..].fill(0.0));
            x
        };
        let queries = rows(4.0 / (width as f32).sqrt());
        let (keys, values) = (rows(1.0), rows(1.0));
        let mut cache = KvCache::new(kv_type, heads, head_dim);
        cache.append(&portable(), &keys, &values);
        Self { heads, width, head_dim, queries, keys, values, cache }
    }

    fn name(&self) -> String {
        let Self { heads, width, head_dim, cache, .. } = self;
        format!("{heads} heads of {width} in {head_dim}, {}, {} patches", cache.kv_type().name(), cache.len())
    }

    /// Attention of the queries from patch `first` to `end`.
    fn run(&self, cpu: &Cpu, first: usize, end: usize) -> Vec<f32> {
        let row = self.heads * self.head_dim;
        let mut out = vec![f32::NAN; (end - first) * self.heads * self.width];
        bidirectional(cpu, &self.queries[first * row..end * row], &self.cache, self.width, &mut out);
        out
    }

    fn whole(&self, cpu: &Cpu) -> Vec<f32> {
        self.run(cpu, 0, self.cache.len())
    }

    /// The reference on the true channels, as the cache rounds them.
    fn expected(&self) -> Vec<f32> {
        let round = |x: f32| rounded(self.cache.kv_type(), x);
        let bare = |x: &[f32]| -> Vec<f32> {
            x.chunks(self.head_dim).flat_map(|head| &head[..self.width]).copied().collect()
        };
        let as_held = |x: &[f32]| -> Vec<f32> { bare(x).into_iter().map(round).collect() };
        let shape = AttentionShape { heads: self.heads, kv_heads: self.heads, head_dim: self.width };
        let (keys, values) = (as_held(&self.keys), as_held(&self.values));
        let paired = self.cache.kv_type() == KvType::Bf16;
        let queries = if paired { as_held(&self.queries) } else { bare(&self.queries) };
        reference::bidirectional(shape, &queries, &keys, &values, 1.0)
    }
}

#[test]
fn attention_of_every_patch_to_every_patch() {
    let (cpus, mut random) = (cpus(), Random::new(63));
    let mut kinds = HEADS.into_iter().cycle();
    for patches in PATCHES {
        for (kv_type, kinds_each) in [(KvType::F32, 1), (KvType::F16, 1), (KvType::Bf16, 2)] {
            for kind in kinds.by_ref().take(kinds_each) {
                let case = Case::random(&mut random, kind, kv_type, patches);
                let found = same_on_all(&case.name(), &cpus, |cpu| case.whole(cpu));
                assert_close(&case.name(), &found, &case.expected(), tolerance(kv_type));
            }
        }
    }
}

/// Which other queries are in the call decides about its items and tiles, and about nothing else.
#[test]
fn a_query_alone_gets_the_same_bits_as_among_others() {
    let mut random = Random::new(64);
    for (tier, kind) in tiers().into_iter().flat_map(|tier| HEADS[..3].iter().map(move |kind| (tier, *kind)))
    {
        let cpu = Cpu::new(tier, 2);
        for kv_type in [KvType::F32, KvType::Bf16] {
            let case = Case::random(&mut random, kind, kv_type, 101);
            let together = case.whole(&cpu);
            for piece in [1, 3, 8, 33] {
                let pieces = (0..101).step_by(piece).flat_map(|t| case.run(&cpu, t, (t + piece).min(101)));
                let pieces: Vec<f32> = pieces.collect();
                assert_same_bits(&format!("{} in pieces of {piece}", case.name()), &pieces, &together);
            }
        }
    }
}

/// Scores far apart, the chosen patch at every border of a page; every query sees it, also those before it.
#[test]
fn one_patch_can_take_all_the_weight() {
    let (patches, head_dim) = (130, 16);
    for (cpu, chosen) in cpus().iter().zip([0, 15, 63, 64, 65, 127, 128, 129, 40].into_iter().cycle()) {
        let mut keys = vec![0.0; patches * head_dim];
        keys[chosen * head_dim] = 1000.0;
        let values: Vec<f32> = (0..patches * head_dim).map(|i| (i / head_dim) as f32).collect();
        let mut cache = KvCache::new(KvType::F32, 1, head_dim);
        cache.append(cpu, &keys, &values);
        let mut out = vec![f32::NAN; patches * head_dim];
        bidirectional(cpu, &vec![1.0; patches * head_dim], &cache, head_dim, &mut out);
        assert_eq!(out, vec![chosen as f32; patches * head_dim]);
    }
}

/// What an earlier, larger image left in the pages is never seen.
#[test]
fn forgotten_patches_leave_no_trace() {
    for kv_type in [KvType::F32, KvType::Bf16] {
        let mut case = Case::random(&mut Random::new(65), HEADS[0], kv_type, 70);
        let expected = case.whole(&fastest());
        let garbage = vec![f32::NAN; 200 * case.head_dim];
        case.cache.truncate(0);
        case.cache.append(&fastest(), &garbage, &garbage);
        case.cache.truncate(0);
        case.cache.append(&fastest(), &case.keys, &case.values);
        assert_same_bits(&case.name(), &case.whole(&fastest()), &expected);
    }
}

#[test]
fn a_fault_in_a_key_or_value_reaches_every_patch() {
    let mut random = Random::new(66);
    let faults =
        [f32::NAN, f32::INFINITY].map(|fault| [KvType::F32, KvType::Bf16].map(|kv_type| (fault, kv_type)));
    for (fault, kv_type) in faults.into_iter().flatten() {
        let mut case = Case::random(&mut random, HEADS[1], kv_type, 70);
        case.keys[69 * 32] = f32::NAN;
        case.values[20 * 32 + 31] = fault;
        case.cache.truncate(0);
        case.cache.append(&fastest(), &case.keys, &case.values);
        for row in case.whole(&fastest()).chunks(32) {
            assert!(row[..16].iter().all(|x| x.is_nan()), "the key's head");
            assert!(row[16..31].iter().all(|x| x.is_finite()) && !row[31].is_finite(), "the value's channel");
        }
    }
}

#[test]
fn nothing_to_see_gives_zeros_and_no_queries_no_work() {
    let cache = KvCache::new(KvType::F32, 2, 16);
    let mut out = [f32::NAN; 3 * 2 * 12];
    bidirectional(&fastest(), &[1.0; 3 * 2 * 16], &cache, 12, &mut out);
    assert_eq!(out, [0.0; 3 * 2 * 12]);
    let case = Case::random(&mut Random::new(67), HEADS[1], KvType::F16, 5);
    assert!(case.run(&fastest(), 5, 5).is_empty());
}

/// So many heads that threads share the writing of one page.
#[test]
fn threads_fill_the_cache_together() {
    let mut random = Random::new(68);
    let (patches, heads, head_dim) = (150, 12, 80);
    let width = heads * head_dim;
    let (keys, values) = (random.numbers(patches * width), random.numbers(patches * width));
    for kv_type in [KvType::F32, KvType::F16, KvType::Bf16] {
        let fill = |cpu: &Cpu, piece: usize| {
            let mut cache = KvCache::new(kv_type, heads, head_dim);
            for (keys, values) in keys.chunks(piece * width).zip(values.chunks(piece * width)) {
                cache.append(cpu, keys, values);
            }
            cache.to_f32()
        };
        let expected = fill(&portable(), patches);
        let round = |x: f32| rounded(kv_type, x);
        for (stored, given) in [(&expected.0, &keys), (&expected.1, &values)] {
            let by_head = (0..patches * width).map(|i| {
                let (head, patch, d) = (i / head_dim / patches, i / head_dim % patches, i % head_dim);
                round(given[patch * width + head * head_dim + d])
            });
            assert!(by_head.eq(stored.iter().copied()));
        }
        for cpu in cpus() {
            for piece in [1, PAGE - 1, PAGE, patches] {
                assert!(fill(&cpu, piece) == expected, "{} in pieces of {piece}", kv_type.name());
            }
        }
    }
}

#[test]
fn rotary_positions_by_row_and_column() {
    let mut random = Random::new(69);
    for head_dim in [4, 8, 12, 16, 20, 36, 64, 72, 80, 256] {
        let heads = 2;
        let place = |random: &mut Random| (random.bits() as usize % 600, random.bits() as usize % 600);
        let mut places: Vec<(usize, usize)> = (0..40).map(|_| place(&mut random)).collect();
        places.extend([(0, 0), (0, 1), (1, 0), (1 << 17, 2)]);
        let positions: Vec<Position> = places.iter().map(|&(y, x)| [7, y as u32, x as u32]).collect();
        let mut table = RopeTable::two_axes(10_000.0, head_dim, places.len()).unwrap();
        table.fill(positions.iter().copied());
        let x = random.numbers(places.len() * heads * head_dim);
        let mut found = x.clone();
        for (i, head) in found.chunks_mut(head_dim).enumerate() {
            table.rotate(i / heads, head);
        }
        let expected = reference::rope_two_axes(10_000.0, &x, &places, heads, head_dim);
        assert_close(&format!("heads of {head_dim}"), &found, &expected, 1e-6);
        let origin = 40 * heads * head_dim..41 * heads * head_dim;
        assert_eq!(found[origin.clone()], x[origin], "nothing turns at the origin");
    }
}

/// Scores depend on how far patches are apart, not on where they are.
#[test]
fn turned_scores_depend_on_differences() {
    let (mut random, head_dim) = (Random::new(70), 72);
    let (query, key) = (random.numbers(head_dim), random.numbers(head_dim));
    let score = |query_at: (u32, u32), key_at: (u32, u32)| -> f64 {
        let mut table = RopeTable::two_axes(10_000.0, head_dim, 2).unwrap();
        table.fill([[0, query_at.0, query_at.1], [0, key_at.0, key_at.1]]);
        let (mut q, mut k) = (query.clone(), key.clone());
        table.rotate(0, &mut q);
        table.rotate(1, &mut k);
        q.iter().zip(&k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
    };
    let near = score((0, 0), (3, 5));
    assert!((near - score((40, 11), (43, 16))).abs() < 1e-4);
    assert!((near - score((0, 0), (5, 3))).abs() > 1e-2, "rows and columns turn different channels");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn attention_of_any_shape(
        patches in 1..140_usize,
        heads in 1..4_usize,
        quads in 1..24_usize,
        kv_type in prop::sample::select(vec![KvType::F32, KvType::F16, KvType::Bf16]),
        cut in 0..140_usize,
        seed: u64,
    ) {
        let width = 4 * quads;
        let kind = (heads, width, width.next_multiple_of(16));
        let case = Case::random(&mut Random::new(seed), kind, kv_type, patches);
        let whole = case.whole(&fastest());
        assert_close(&case.name(), &whole, &case.expected(), tolerance(kv_type));
        let cut = cut % (patches + 1);
        let parts = [case.run(&fastest(), 0, cut), case.run(&fastest(), cut, patches)].concat();
        assert_same_bits(&case.name(), &parts, &whole);
    }
}
