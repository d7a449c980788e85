//! Norms, short convolution, gates, `SwiGLU` and rotary positions.

use edgewise::config::{AttentionConfig, DeltaConfig, RopeConfig};
use edgewise::kernels::activation::swiglu;
use edgewise::kernels::activations::QuantizedRows;
use edgewise::kernels::attention::{QueryKeyNorm, prepare_query_key};
use edgewise::kernels::conv::{TAIL, TAPS, short_conv};
use edgewise::kernels::delta_rule::{gates, normalize_query_key};
use edgewise::kernels::norm::{gated_rms_norm, rms_norm};
use edgewise::kernels::reference;
use edgewise::kernels::rope::{Position, RopeTable};

use super::support::{Random, SIZES, TOKENS, assert_close, assert_same_bits, cpus, same_on_all};

/// Rows and widths: the edges of lanes, and enough work for several pieces.
pub fn shapes() -> Vec<(usize, usize)> {
    let mut shapes: Vec<_> = SIZES.iter().flat_map(|width| [1, 2, 7].map(|rows| (rows, *width))).collect();
    shapes.extend([(40, 1024), (5, 20_000)]);
    shapes
}

#[test]
fn rms_norms() {
    let (cpus, mut random) = (cpus(), Random::new(20));
    for (rows, width) in shapes() {
        let (x, weight) = (random.numbers(rows * width), random.numbers(width));
        let found = same_on_all("rms_norm", &cpus, |cpu| {
            let mut out = vec![f32::NAN; x.len()];
            rms_norm(cpu, &x, &weight, 1e-6, &mut out, None);
            out
        });
        assert_close("rms_norm", &found, &reference::rms_norm(&x, &weight, 1e-6), 1e-6);
    }
}

#[test]
fn gated_rms_norms() {
    let (cpus, mut random) = (cpus(), Random::new(21));
    for (rows, width) in shapes() {
        let (x, weight) = (random.numbers(rows * width), random.numbers(width));
        let gate = random.between(rows * width, -10.0, 10.0);
        let found = same_on_all("gated_rms_norm", &cpus, |cpu| {
            let mut out = x.clone();
            gated_rms_norm(cpu, &mut out, &gate, &weight, 1e-6);
            out
        });
        assert_close("gated_rms_norm", &found, &reference::gated_rms_norm(&x, &gate, &weight, 1e-6), 2e-6);
    }
}

/// The epsilon counts when the numbers are tiny.
#[test]
fn norm_of_zeros_is_zero() {
    for cpu in cpus() {
        let mut out = vec![f32::NAN; 20];
        rms_norm(&cpu, &[0.0; 20], &[1.0; 20], 1e-6, &mut out, None);
        assert_eq!(out, [0.0; 20]);
    }
}

#[test]
fn short_convolutions() {
    let (cpus, mut random) = (cpus(), Random::new(22));
    let mut shapes: Vec<_> = TOKENS.iter().zip(SIZES.iter().cycle()).map(|(t, c)| (*t, *c)).collect();
    shapes.extend([(9, 6144), (3, 33)]);
    for (tokens, channels) in shapes {
        let (x, weight) = (random.numbers(tokens * channels), random.numbers(TAPS * channels));
        let before = random.numbers(TAIL * channels);
        let found = same_on_all("short_conv", &cpus, |cpu| {
            let (mut tail, mut out) = (before.clone(), vec![f32::NAN; x.len()]);
            short_conv(cpu, &x, &weight, &mut tail, &mut out);
            let rows = [&before[..], &x].concat();
            assert_eq!(tail, rows[rows.len() - TAIL * channels..], "tail after {tokens} tokens");
            out
        });
        assert_close("short_conv", &found, &reference::short_conv(&x, &weight, &before, channels), 1e-6);
    }
}

#[test]
fn convolution_in_pieces_gives_the_same_bits() {
    let mut random = Random::new(23);
    let (tokens, channels) = (17, 40);
    let (x, weight) = (random.numbers(tokens * channels), random.numbers(TAPS * channels));
    for cpu in cpus() {
        let in_pieces = |piece: usize| {
            let (mut tail, mut out) = (vec![0.0; TAIL * channels], vec![f32::NAN; x.len()]);
            for (x, out) in x.chunks(piece * channels).zip(out.chunks_mut(piece * channels)) {
                short_conv(&cpu, x, &weight, &mut tail, out);
            }
            [out, tail].concat()
        };
        for piece in [1, 2, 3, 4, 5, 16] {
            assert_same_bits("short_conv in pieces", &in_pieces(piece), &in_pieces(tokens));
        }
    }
}

#[test]
fn gates_of_the_delta_rule() {
    let (cpus, mut random) = (cpus(), Random::new(24));
    for (tokens, heads) in [(1, 1), (3, 16), (17, 5), (300, 32)] {
        let a = random.between(tokens * heads, -30.0, 30.0);
        let b = random.between(tokens * heads, -30.0, 30.0);
        let (rate, bias) = (random.between(heads, 0.0, 16.0), random.numbers(heads));
        let found = same_on_all("gates", &cpus, |cpu| {
            let (mut a, mut b) = (a.clone(), b.clone());
            gates(cpu, &mut a, &mut b, &rate, &bias);
            [a, b].concat()
        });
        let (decay, beta) = reference::gates(&a, &b, &rate, &bias);
        assert_close("gates", &found, &[decay, beta].concat(), 1e-6);
    }
}

#[test]
fn queries_and_keys_of_the_delta_rule() {
    let (cpus, mut random) = (cpus(), Random::new(25));
    for (tokens, key_heads, key_dim) in [(1, 1, 16), (5, 2, 48), (17, 4, 128), (2, 3, 20)] {
        let shape =
            DeltaConfig { key_heads, value_heads: key_heads, key_dim, value_dim: 16, conv_kernel: TAPS };
        let qkv = random.numbers(tokens * shape.conv_dim());
        let found = same_on_all("normalize_query_key", &cpus, |cpu| {
            let mut qkv = qkv.clone();
            normalize_query_key(cpu, &shape, &mut qkv);
            qkv
        });
        let width = key_heads * key_dim;
        for (found, x) in found.chunks(shape.conv_dim()).zip(qkv.chunks(shape.conv_dim())) {
            let q = reference::l2_norm(&x[..width], key_dim, 1e-6, 1.0 / (key_dim as f64).sqrt());
            let k = reference::l2_norm(&x[width..2 * width], key_dim, 1e-6, 1.0);
            assert_close("q", &found[..width], &q, 1e-6);
            assert_close("k", &found[width..2 * width], &k, 1e-6);
            assert_eq!(found[2 * width..], x[2 * width..], "values stay");
        }
    }
}

/// A step that quantises what it makes gives the same as the step and then quantisation.
#[test]
fn rows_made_and_quantised_at_once() {
    let mut random = Random::new(27);
    for cpu in cpus() {
        for (rows, width) in shapes() {
            let (x, weight) = (random.numbers(rows * width), random.numbers(width));
            let (mut expected, mut groups) = (vec![f32::NAN; x.len()], QuantizedRows::default());
            let (mut found, mut found_groups) = (expected.clone(), QuantizedRows::default());
            rms_norm(&cpu, &x, &weight, 1e-6, &mut expected, None);
            groups.fill(&cpu, &expected, width);
            rms_norm(&cpu, &x, &weight, 1e-6, &mut found, Some(&mut found_groups));
            assert_same_bits("rms_norm", &found, &expected);
            assert_eq!(found_groups.groups(), groups.groups());
            assert_eq!(found_groups.groups_per_row(), width.div_ceil(32));

            swiglu(&cpu, &mut expected, &x, width, None);
            groups.fill(&cpu, &expected, width);
            swiglu(&cpu, &mut found, &x, width, Some(&mut found_groups));
            assert_same_bits("swiglu", &found, &expected);
            assert_eq!(found_groups.groups(), groups.groups());
        }
    }
}

#[test]
fn swiglus() {
    let (cpus, mut random) = (cpus(), Random::new(26));
    for n in SIZES.into_iter().chain([3584, 30_000]) {
        let (gate, up) = (random.between(n, -20.0, 20.0), random.numbers(n));
        let found = same_on_all("swiglu", &cpus, |cpu| {
            let mut gate = gate.clone();
            swiglu(cpu, &mut gate, &up, n, None);
            gate
        });
        assert_close("swiglu", &found, &reference::swiglu(&gate, &up), 1e-6);
    }
}

/// Positions of text far into the context, and of an image's tokens.
fn positions(random: &mut Random, tokens: usize) -> Vec<Position> {
    let text = |i: usize| [40_000 + i as u32; 3];
    let mut positions: Vec<Position> = (0..tokens).map(text).collect();
    for position in positions.iter_mut().skip(tokens / 2) {
        *position = [7, 7 + (random.bits() % 30) as u32, 7 + (random.bits() % 30) as u32];
    }
    positions
}

#[test]
fn rotary_positions_turn_queries_and_keys() {
    let (cpus, mut random) = (cpus(), Random::new(27));
    let cases = [
        (1, 2, 1, 16, 8, [4, 0, 0], false),
        (9, 4, 2, 64, 16, [4, 2, 2], true),
        (17, 6, 2, 256, 64, [11, 11, 10], true),
        (9, 4, 2, 64, 64, [32, 0, 0], false),
    ];
    for ((tokens, heads, kv_heads, head_dim, rotary_dim, sections, output_gate), normed) in
        cases.into_iter().zip([true, true, true, false])
    {
        let config = AttentionConfig { heads, kv_heads, head_dim, output_gate };
        let rope = RopeConfig { theta: 1e7, rotary_dim, sections, yarn: None };
        let positions = positions(&mut random, tokens);
        let mut table = RopeTable::new(&rope, tokens);
        table.fill(positions.iter().copied());
        let weights = [random.numbers(head_dim), random.numbers(head_dim)];
        let norm = QueryKeyNorm { query: &weights[0], key: &weights[1], eps: 1e-6 };
        let queries = random.numbers(tokens * config.query_width());
        let keys = random.numbers(tokens * kv_heads * head_dim);
        let found = same_on_all("prepare_query_key", &cpus, |cpu| {
            let (mut queries, mut keys) = (queries.clone(), keys.clone());
            prepare_query_key(cpu, &config, &table, 0, normed.then_some(norm), &mut queries, &mut keys);
            [queries, keys].concat()
        });
        let turn = |x: &[f32], heads| reference::rope(&rope, x, &positions, heads, head_dim);
        let stride = config.query_width() / heads;
        let (mut bare, mut gates) = (Vec::new(), Vec::new());
        for head in queries.chunks(stride) {
            bare.extend_from_slice(&head[..head_dim]);
            gates.extend_from_slice(&head[head_dim..]);
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        let norm_of =
            |x: &[f32], weight| if normed { reference::rms_norm(x, weight, 1e-6) } else { x.to_vec() };
        let expected_queries: Vec<f32> =
            turn(&norm_of(&bare, norm.query), heads).iter().map(|x| x * scale).collect();
        let expected_keys = turn(&norm_of(&keys, norm.key), kv_heads);

        let (found_queries, found_keys) = found.split_at(queries.len());
        let found_bare: Vec<f32> =
            found_queries.chunks(stride).flat_map(|head| &head[..head_dim]).copied().collect();
        let found_gates: Vec<f32> =
            found_queries.chunks(stride).flat_map(|head| &head[head_dim..]).copied().collect();
        assert_close("queries", &found_bare, &expected_queries, 2e-6);
        assert_close("keys", found_keys, &expected_keys, 2e-6);
        assert_eq!(found_gates, gates, "gates stay");
    }
}
