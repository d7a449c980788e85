//! The fused core of a Gated DeltaNet layer against its steps one by one.

use std::ops::Range;

use edgewise::config::DeltaConfig;
use edgewise::kernels::Cpu;
use edgewise::kernels::conv::{TAIL, TAPS, short_conv};
use edgewise::kernels::delta_chunks::{CHUNK, Recent};
use edgewise::kernels::delta_rule::{gates, normalize_query_key};
use edgewise::kernels::gated_delta::{GatedDelta, Kept, Sequence, gated_delta};
use edgewise::kernels::norm::gated_rms_norm;
use proptest::prelude::*;

use super::delta_chunks::Plain;
use super::support::{Random, assert_same_bits, cpus, fastest, portable, same_on_all};

const EPS: f32 = 1e-6;

struct Case {
    shape: DeltaConfig,
    tokens: usize,
    projected: Vec<f32>,
    z: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    conv: Vec<f32>,
    rate: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: Vec<f32>,
    tail: Vec<f32>,
    state: Plain,
}

impl Case {
    /// `tokens` tokens behind `position` others.
    fn random(seed: u64, shape: DeltaConfig, position: usize, tokens: usize) -> Self {
        let mut random = Random::new(seed);
        let state = Plain::random(&mut random, &shape, position);
        let DeltaConfig { value_heads, value_dim, .. } = shape;
        let channels = shape.conv_dim();
        Self {
            tokens,
            projected: random.numbers(tokens * channels),
            z: random.between(tokens * value_heads * value_dim, -5.0, 5.0),
            a: random.between(tokens * value_heads, -5.0, 5.0),
            b: random.between(tokens * value_heads, -5.0, 5.0),
            conv: random.numbers(TAPS * channels),
            rate: random.between(value_heads, 0.0, 2.0),
            dt_bias: random.numbers(value_heads),
            norm: random.numbers(value_dim),
            tail: random.numbers(TAIL * channels),
            state,
            shape,
        }
    }

    /// Output, tail, memory and recent tokens after the tokens, `piece` at a time.
    fn fused(&self, cpu: &Cpu, piece: usize) -> Vec<f32> {
        let (mut tail, mut state, mut scratch) = (self.tail.clone(), self.state.clone(), vec![f32::NAN; 5]);
        let mut out = vec![f32::NAN; self.z.len()];
        let width = out.len() / self.tokens;
        for start in (0..self.tokens).step_by(piece) {
            let tokens = start..self.tokens.min(start + piece);
            let part = &mut out[start * width..tokens.end * width];
            let kept = Kept { tail: &mut tail, memory: &mut state.memory, recent: &mut state.recent };
            let (position, count) = (state.position, tokens.len());
            let sequence = Sequence { position, tokens: count, start: None, kept, copies: Vec::new() };
            gated_delta(cpu, self.layer(tokens), [Some(sequence)], &mut scratch, part);
            state.position += count;
        }
        [out, tail, state.memory.clone(), state.live()].concat()
    }

    /// The same in one call that goes on from another sequence's state, and leaves a copy after each of `places`, of which
    /// there is tail, memory and recent tokens.
    fn copied(&self, cpu: &Cpu, places: &[usize]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let start = [&self.tail[..], &self.state.memory, &self.state.recent];
        let blank = || start.map(|x| vec![f32::NAN; x.len()]);
        let mut copies: Vec<_> = places.iter().map(|_| blank()).collect();
        let (mut own, mut out) = (blank(), vec![f32::NAN; self.z.len()]);
        let left = places.iter().zip(&mut copies);
        let sequence = Sequence {
            position: self.state.position,
            tokens: self.tokens,
            start: Some(start),
            kept: kept(&mut own),
            copies: left.map(|(&after, copy)| (after, kept(copy))).collect(),
        };
        gated_delta(cpu, self.layer(0..self.tokens), [Some(sequence)], &mut Vec::new(), &mut out);
        let told = |[tail, memory, recent]: [Vec<f32>; 3], tokens: usize| {
            let position = self.state.position + tokens;
            let state = Plain { shape: self.shape.clone(), position, memory, recent };
            let live = state.live();
            [tail, state.memory, live].concat()
        };
        let copies = places.iter().zip(copies).map(|(&place, copy)| told(copy, place)).collect();
        ([out, told(own, self.tokens)].concat(), copies)
    }

    /// The first `tokens` tokens alone.
    fn first(&self, tokens: usize) -> Self {
        let cut = |x: &[f32]| x[..x.len() / self.tokens * tokens].to_vec();
        Self {
            tokens,
            shape: self.shape.clone(),
            projected: cut(&self.projected),
            z: cut(&self.z),
            a: cut(&self.a),
            b: cut(&self.b),
            conv: self.conv.clone(),
            rate: self.rate.clone(),
            dt_bias: self.dt_bias.clone(),
            norm: self.norm.clone(),
            tail: self.tail.clone(),
            state: self.state.clone(),
        }
    }

    fn layer(&self, tokens: Range<usize>) -> GatedDelta<'_> {
        fn cut<'a>(x: &'a [f32], tokens: &Range<usize>, all: usize) -> &'a [f32] {
            let width = x.len() / all;
            &x[tokens.start * width..tokens.end * width]
        }
        GatedDelta {
            shape: &self.shape,
            projected: cut(&self.projected, &tokens, self.tokens),
            z: cut(&self.z, &tokens, self.tokens),
            a: cut(&self.a, &tokens, self.tokens),
            b: cut(&self.b, &tokens, self.tokens),
            conv: &self.conv,
            rate: &self.rate,
            dt_bias: &self.dt_bias,
            norm: &self.norm,
            eps: EPS,
        }
    }

    /// The same, each step over all heads, the delta rule in its plain form.
    fn step_by_step(&self, cpu: &Cpu) -> Vec<f32> {
        let (mut tail, mut state) = (self.tail.clone(), self.state.clone());
        let mut qkv = vec![f32::NAN; self.projected.len()];
        let (mut decay, mut beta) = (self.a.clone(), self.b.clone());
        short_conv(cpu, &self.projected, &self.conv, &mut tail, &mut qkv);
        normalize_query_key(cpu, &self.shape, &mut qkv);
        gates(cpu, &mut decay, &mut beta, &self.rate, &self.dt_bias);
        let heads = self.shape.value_heads;
        let rows = qkv.chunks_exact(self.shape.conv_dim());
        let gates = decay.chunks_exact(heads).zip(beta.chunks_exact(heads));
        let mut out: Vec<f32> =
            rows.zip(gates).flat_map(|(row, (decay, beta))| state.token(row, decay, beta)).collect();
        gated_rms_norm(cpu, &mut out, &self.z, &self.norm, EPS);
        [out, tail, state.memory.clone(), state.live()].concat()
    }
}

fn kept([tail, memory, recent]: &mut [Vec<f32>; 3]) -> Kept<'_> {
    Kept { tail, memory, recent }
}

fn shape(key_heads: usize, value_heads: usize, key_dim: usize, value_dim: usize) -> DeltaConfig {
    DeltaConfig { key_heads, value_heads, key_dim, value_dim, conv_kernel: TAPS }
}

/// Around the edges of chunks and of blocks of 64 tokens, with one or two tiles walked at once, and behind any token of a chunk.
#[test]
fn same_bits_as_the_steps() {
    let cpus = cpus();
    for (i, tokens) in [1, 2, 3, 4, 7, 8, 9, 16, 57, 63, 64, 65, 128, 130].into_iter().enumerate() {
        for (j, shape) in [shape(1, 1, 16, 16), shape(2, 2, 16, 32), shape(3, 6, 20, 48), shape(1, 3, 32, 64)]
            .into_iter()
            .enumerate()
        {
            let case = Case::random(80 + i as u64, shape, 3 * i + j, tokens);
            let found = same_on_all("gated_delta", &cpus, |cpu| case.fused(cpu, tokens));
            assert_same_bits("gated_delta", &found, &case.step_by_step(&portable()));
        }
    }
}

#[test]
fn the_true_shape_in_pieces() {
    let (cpu, case) = (Cpu::new(fastest().tier, 3), Case::random(90, shape(16, 16, 128, 128), 5, 70));
    let expected = case.step_by_step(&cpu);
    for piece in [1, 7, 8, 64, 69, 70] {
        assert_same_bits("gated_delta in pieces", &case.fused(&cpu, piece), &expected);
    }
}

/// Copies are what the state has at their places, which lie anywhere in chunks and blocks and at their edges.
#[test]
fn copies_in_the_middle() {
    let cpus = cpus();
    for (i, places) in
        [&[1][..], &[2, 3, 4], &[8, 13], &[64], &[63, 65, 128], &[1, 129, 130]].into_iter().enumerate()
    {
        for (shape, position) in [(shape(1, 1, 16, 16), 0), (shape(3, 6, 20, 48), 11)] {
            let case = Case::random(95 + i as u64, shape, position, 130);
            let expected = case.step_by_step(&portable());
            for cpu in &cpus {
                let (found, copies) = case.copied(cpu, places);
                assert_same_bits("gated_delta with copies", &found, &expected);
                for (&place, copy) in places.iter().zip(copies) {
                    let first = case.first(place);
                    let expected = first.step_by_step(&portable());
                    assert_same_bits("a copy", &copy, &expected[first.z.len()..]);
                }
            }
        }
    }
}

/// What was kept of a chunk that has ended means nothing.
#[test]
fn nothing_of_the_recent_tokens_is_read_at_a_chunk() {
    let mut case = Case::random(99, shape(2, 4, 16, 32), 24, 11);
    let expected = case.fused(&fastest(), 11);
    case.state.recent.fill(f32::NAN);
    assert_same_bits("with nothing recent", &case.fused(&fastest(), 11), &expected);
    let layout = Recent::new(&case.shape);
    assert_eq!((layout.len(0), layout.len(CHUNK - 1)), (0, layout.room()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shape_in_any_pieces(
        seed in any::<u64>(), key_heads in 1_usize..4, group in 1_usize..4, key in 1_usize..9, tiles in 1_usize..5,
        position in 0_usize..30, tokens in 1_usize..140, piece in 1_usize..140,
    ) {
        let case = Case::random(seed, shape(key_heads, key_heads * group, 4 * key, 16 * tiles), position, tokens);
        assert_same_bits("gated_delta", &case.fused(&Cpu::new(fastest().tier, 2), piece), &case.step_by_step(&portable()));
    }
}
