//! The gated delta rule in chunks of eight tokens: a plain form of it, one token and one number after the other, of which the
//! kernel has the bits, and the definition, to which it is close.

use edgewise::config::DeltaConfig;
use edgewise::kernels::delta_chunks::{CHUNK, Recent, caught_up};
use edgewise::kernels::delta_rule_arrays::{DeltaShape, unpack_state};
use edgewise::kernels::lanes::LANES;
use edgewise::kernels::reference;

use super::support::{Random, assert_close};

/// The state of all heads of a layer.
#[derive(Clone, Debug)]
pub struct Plain {
    pub shape: DeltaConfig,
    /// Tokens so far.
    pub position: usize,
    /// `[value_heads, v_dim / 16, k_dim, 16]`
    pub memory: Vec<f32>,
    /// `[key_heads, room]`
    pub recent: Vec<f32>,
}

impl Plain {
    /// Of a text of `position` tokens: anything that could be of one.
    pub fn random(random: &mut Random, shape: &DeltaConfig, position: usize) -> Self {
        let memory = random.numbers(shape.value_heads * shape.value_dim * shape.key_dim);
        let recent = random.between(shape.key_heads * Recent::new(shape).room(), 0.01, 1.0);
        Self { shape: shape.clone(), position, memory, recent }
    }

    /// What is kept of the tokens since the last whole chunk.
    pub fn live(&self) -> Vec<f32> {
        let layout = Recent::new(&self.shape);
        let len = layout.len(self.position % CHUNK);
        self.recent.chunks_exact(layout.room()).flat_map(|head| &head[..len]).copied().collect()
    }

    /// One token with `qkv` `[q | k | v]`, queries and keys normalised; decays and betas are `[value_heads]`.
    pub fn token(&mut self, qkv: &[f32], decay: &[f32], beta: &[f32]) -> Vec<f32> {
        let DeltaConfig { key_heads, value_heads, key_dim, value_dim, .. } = self.shape;
        let group = value_heads / key_heads;
        let room = Recent::new(&self.shape).room();
        let (at, row) = (self.position % CHUNK, key_dim + group * value_dim);
        let mut out = vec![0.0; value_heads * value_dim];
        for head in 0..value_heads {
            let (key_head, place) = (head / group, head % group);
            let query = &qkv[key_head * key_dim..][..key_dim];
            let key = &qkv[(key_heads + key_head) * key_dim..][..key_dim];
            let value = &qkv[2 * key_heads * key_dim + head * value_dim..][..value_dim];
            let recent = &mut self.recent[key_head * room..][..room];
            let mut fades = if at == 0 { whole() } else { recent[place * LANES..][..LANES].to_vec() };
            for fade in &mut fades {
                *fade = if *fade * decay[head] < f32::exp2(-100.0) { 0.0 } else { *fade * decay[head] };
            }
            fades[at] = 1.0;
            let start = |j: usize| group * LANES + j * row;
            let mut keys: Vec<Vec<f32>> = (0..at).map(|j| recent[start(j)..][..key_dim].to_vec()).collect();
            keys.push(key.to_vec());
            let deltas = |j: usize| start(j) + key_dim + place * value_dim;
            let mut earlier: Vec<Vec<f32>> =
                (0..at).map(|j| recent[deltas(j)..][..value_dim].to_vec()).collect();
            let asked = |x: &[f32], channel: usize, deltas: &[Vec<f32>]| {
                let mut sum = 0.0_f32;
                for (k, x) in x.iter().enumerate() {
                    sum = self.memory[cell(&self.shape, head, k, channel)].mul_add(*x, sum);
                }
                sum *= fades[CHUNK];
                for (j, delta) in deltas.iter().enumerate() {
                    sum = (dot(x, &keys[j]) * fades[j]).mul_add(delta[channel], sum);
                }
                sum
            };
            let delta = (0..value_dim).map(|v| beta[head] * (value[v] - asked(key, v, &earlier))).collect();
            earlier.push(delta);
            for v in 0..value_dim {
                out[head * value_dim + v] = asked(query, v, &earlier);
            }
            if at + 1 < CHUNK {
                recent[place * LANES..][..LANES].copy_from_slice(&fades);
                recent[start(at)..][..key_dim].copy_from_slice(key);
                recent[deltas(at)..][..value_dim].copy_from_slice(&earlier[at]);
                continue;
            }
            for k in 0..key_dim {
                for v in 0..value_dim {
                    let cell = &mut self.memory[cell(&self.shape, head, k, v)];
                    *cell *= fades[CHUNK];
                    for j in 0..CHUNK {
                        *cell = keys[j][k].mul_add(fades[j] * earlier[j][v], *cell);
                    }
                }
            }
        }
        self.position += 1;
        out
    }
}

/// Fades before a chunk's first token.
fn whole() -> Vec<f32> {
    (0..LANES).map(|i| f32::from(u8::from(i == CHUNK))).collect()
}

fn cell(shape: &DeltaConfig, head: usize, k: usize, v: usize) -> usize {
    ((head * shape.value_dim / LANES + v / LANES) * shape.key_dim + k) * LANES + v % LANES
}

/// By 16 lanes, which are added as every sum of lanes is.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane = x.mul_add(*y, *lane);
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Outputs and the state that has caught up against the definition, through chunks, for gates of all kinds.
#[test]
fn close_to_the_definition() {
    let mut random = Random::new(40);
    let shape = DeltaConfig { key_heads: 2, value_heads: 4, key_dim: 12, value_dim: 32, conv_kernel: 4 };
    for (tokens, lowest) in [(1, -2.0), (7, -2.0), (8, 0.0), (9, -20.0), (30, -500.0), (1000, -0.01)] {
        let DeltaConfig { key_heads, value_heads, key_dim, value_dim, .. } = shape;
        let normalised = |x: Vec<f32>| reference::l2_norm(&x, key_dim, 1e-6, 1.0);
        let q = normalised(random.numbers(tokens * key_heads * key_dim));
        let k = normalised(random.numbers(tokens * key_heads * key_dim));
        let v = random.numbers(tokens * value_heads * value_dim);
        let mut g = random.between(tokens * value_heads, lowest, 0.0);
        g.iter_mut().step_by(5).for_each(|g| *g = if lowest < -100.0 { f32::NEG_INFINITY } else { 0.0 });
        let beta = random.between(tokens * value_heads, 0.0, 1.0);
        let sizes = DeltaShape { tokens, key_heads, value_heads, key_dim, value_dim };

        let mut plain = Plain::random(&mut random, &shape, 16);
        let start = unpack_state(&plain.memory, sizes, &shape);
        let (out, state) = reference::delta_rule(sizes, &q, &k, &v, &g, &beta, &start);
        let row = |x: &[f32], t: usize| x[x.len() / tokens * t..x.len() / tokens * (t + 1)].to_vec();
        let mut found = Vec::new();
        for t in 0..tokens {
            let decay: Vec<f32> = row(&g, t).iter().map(|&g| libm::expf(g)).collect();
            found.extend(plain.token(&[row(&q, t), row(&k, t), row(&v, t)].concat(), &decay, &row(&beta, t)));
        }
        let what = format!("{tokens} tokens, g from {lowest}");
        assert_close(&what, &found, &out, 2e-5);
        let now = caught_up(&shape, &plain.memory, &plain.recent, plain.position % CHUNK);
        assert_close(&what, &unpack_state(&now, sizes, &shape), &state, 2e-5);
    }
}
