//! Every operation once more, as its formula says it: plain loops over row-major arrays, sums in f64.
//!
//! Nothing here is fast, tiled or shared between threads. It is what the kernels of this module's siblings are compared
//! with, and the place to look up what an operation means. Results are rounded to f32 at the end.
//!
//! # Panics
//! All functions panic if the lengths of the arrays do not fit each other.
#![allow(clippy::missing_panics_doc, reason = "said once, above")]

use super::activations::{Group, SPAN_COLS};
use super::delta_rule_arrays::DeltaShape;
use super::rope::Position;
use crate::config::RopeConfig;
use crate::weights::matrix::{BLOCK_COLS, Matrix};
use crate::weights::model::SwiGluWeights;

fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// 1 / (1 + e^-x)
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// x / (1 + e^-x)
pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// out[t, n] = sum over k of x[t, k] weights[n, k]
///
/// `x` is `[tokens, cols]`, `weights` `[rows, cols]`, the result `[tokens, rows]`.
pub fn matmul(x: &[f32], weights: &[f32], cols: usize) -> Vec<f32> {
    let row = |x: &[f32]| -> Vec<f32> { weights.chunks_exact(cols).map(|w| dot(x, w) as f32).collect() };
    x.chunks_exact(cols).flat_map(row).collect()
}

/// Rows of `x` `[tokens, cols]` as INT8, groups of 32 channels, `[tokens, ceil(cols / 32)]`, with a scale for every span of 128.
///
/// scale = absmax of the span / 127; step = scale / 2^k with the largest k up to 15 for which absmax of the group x 2^k is at most that
/// of the span; value = x / step, rounded to nearest even. All numbers must be finite. In f32, because the kernels are to find the
/// same integers.
pub fn quantize_activations(x: &[f32], cols: usize) -> Vec<Group> {
    x.chunks_exact(cols).flat_map(|row| row.chunks(SPAN_COLS)).flat_map(quantize_span).collect()
}

fn quantize_span(x: &[f32]) -> Vec<Group> {
    let absmax = |x: &[f32]| x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let whole = absmax(x);
    // In too small a span steps have no finite inverse: it is stored as zeros.
    let inverse = if whole > 1e-31 { 127.0 / whole } else { 0.0 };
    let power = |k: i32| (k as f32).exp2();
    let group = |x: &[f32]| {
        let k = (0..=15).rev().find(|&k| absmax(x) * power(k) <= whole).expect("at least 0");
        let mut group = Group::default();
        for (value, x) in group.values.iter_mut().zip(x) {
            *value = (x * (inverse * power(k))).round_ties_even() as i8;
        }
        group.set(whole / 127.0, k, group.values.iter().map(|&value| i32::from(value)).sum());
        group
    };
    x.chunks(BLOCK_COLS).map(group).collect()
}

/// out[t, n] = sum over groups g of step[t, g] (sum over k in g of value[t, k] weights[n, k])
///
/// `x` is `[tokens, groups]` as [`quantize_activations`] leaves it, `weights` `[rows, cols]` of any format, the result
/// `[tokens, rows]`. With INT4 or INT8 weights, each level x f16 scale, the sum over a group is
/// exact in f64; with `int4_s8` each weight is rounded to f32 first.
pub fn quantized_matmul(x: &[Group], weights: &Matrix) -> Vec<f32> {
    let cols = weights.cols();
    let dense = weights.to_f32();
    let product = |groups: &[Group], row: &[f32]| -> f64 {
        groups.iter().zip(row.chunks(BLOCK_COLS)).map(|(group, w)| group_product(group, w)).sum()
    };
    let row = |groups: &[Group]| -> Vec<f32> {
        dense.chunks_exact(cols).map(|row| product(groups, row) as f32).collect()
    };
    x.chunks_exact(cols.div_ceil(BLOCK_COLS)).flat_map(row).collect()
}

fn group_product(group: &Group, weights: &[f32]) -> f64 {
    let sum: f64 = group.values.iter().zip(weights).map(|(&a, &w)| f64::from(a) * f64::from(w)).sum();
    sum * f64::from(group.step())
}

/// out = x / sqrt(mean(x^2) + eps) * weight, for each row; `x` and the result are `[rows, width]`, `weight` `[width]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let row = |x: &[f32]| -> Vec<f32> {
        let rms = (dot(x, x) / width as f64 + f64::from(eps)).sqrt();
        x.iter().zip(weight).map(|(&x, &w)| (f64::from(x) / rms * f64::from(w)) as f32).collect()
    };
    x.chunks_exact(width).flat_map(row).collect()
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias`, for each row; `x` and the result are `[rows, width]`, `weight` and
/// `bias` `[width]`. The variance is the mean of squares around the mean.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    assert_eq!(weight.len(), bias.len());
    let width = weight.len();
    let row = |x: &[f32]| -> Vec<f32> {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
        let centred: Vec<f64> = x.iter().map(|&x| f64::from(x) - mean).collect();
        let variance = centred.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let deviation = (variance + f64::from(eps)).sqrt();
        let affine = weight.iter().zip(bias).map(|(&w, &b)| (f64::from(w), f64::from(b)));
        centred.iter().zip(affine).map(|(x, (w, b))| (x / deviation * w + b) as f32).collect()
    };
    x.chunks_exact(width).flat_map(row).collect()
}

/// x + bias, for each row of `bias.len()`.
pub fn add_bias(x: &[f32], bias: &[f32]) -> Vec<f32> {
    x.iter().zip(bias.iter().cycle()).map(|(&x, &b)| (f64::from(x) + f64::from(b)) as f32).collect()
}

/// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
pub fn gelu_tanh(x: f64) -> f64 {
    let argument = std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044_715 * x * x * x);
    // As a sigmoid: 1 + tanh cancels far below zero.
    x * sigmoid(2.0 * argument)
}

/// x Phi(x), with the distribution function Phi of the normal distribution.
pub fn gelu_erf(x: f64) -> f64 {
    // erfc does not cancel far below zero, as 1 + erf does.
    0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// out = `rms_norm(x) * weight * silu(gate)`; `x`, `gate` and the result are `[rows, width]`, `weight` `[width]`.
pub fn gated_rms_norm(x: &[f32], gate: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    assert_eq!(x.len(), gate.len());
    let normed = rms_norm(x, weight, eps);
    normed.iter().zip(gate).map(|(&x, &gate)| (f64::from(x) * silu(f64::from(gate))) as f32).collect()
}

/// out = x / sqrt(sum(x^2) + eps) * scale, for each row; `x` and the result are `[rows, width]`.
pub fn l2_norm(x: &[f32], width: usize, eps: f64, scale: f64) -> Vec<f32> {
    let row = |x: &[f32]| -> Vec<f32> {
        let norm = (dot(x, x) + eps).sqrt();
        x.iter().map(|&x| (f64::from(x) / norm * scale) as f32).collect()
    };
    x.chunks_exact(width).flat_map(row).collect()
}

/// out[t, c] = silu(sum over i of x[t + 1 - taps + i, c] weight[i, c]), where rows before the first are those of `tail`.
///
/// `x` and the result are `[tokens, channels]`, `weight` `[taps, channels]`, `tail` `[taps - 1, channels]`, oldest first.
pub fn short_conv(x: &[f32], weight: &[f32], tail: &[f32], channels: usize) -> Vec<f32> {
    assert_eq!(weight.len(), tail.len() + channels);
    let rows = [tail, x].concat();
    let taps = weight.len() / channels;
    let at = |t: usize, c: usize| -> f32 {
        let tap = |i: usize| f64::from(rows[(t + i) * channels + c]) * f64::from(weight[i * channels + c]);
        silu((0..taps).map(tap).sum()) as f32
    };
    (0..x.len()).map(|i| at(i / channels, i % channels)).collect()
}

/// The gates of the delta rule: decay = `e^(-rate softplus(a + dt_bias))` and beta = sigmoid(b).
///
/// `a`, `b` and both results are `[tokens, heads]`, `rate` and `dt_bias` `[heads]`.
pub fn gates(a: &[f32], b: &[f32], rate: &[f32], dt_bias: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let softplus = |x: f64| x.max(0.0) + libm::log1p(libm::exp(-x.abs()));
    let heads = rate.len();
    let decay = |i: usize| {
        let (rate, bias) = (f64::from(rate[i % heads]), f64::from(dt_bias[i % heads]));
        libm::exp(-rate * softplus(f64::from(a[i]) + bias)) as f32
    };
    let beta = b.iter().map(|&b| sigmoid(f64::from(b)) as f32).collect();
    ((0..a.len()).map(decay).collect(), beta)
}

/// The gated delta rule, token by token, with a state S `[k_dim, v_dim]` of each head:
///
/// ```text
/// S     = e^g S
/// delta = beta (v - S^T k)
/// S     = S + k delta^T
/// out   = S^T q
/// ```
///
/// `q` and `k` are `[tokens, key_heads, k_dim]`, taken as they are (normalised and scaled by the caller), `v`
/// `[tokens, value_heads, v_dim]`, `g` (log of the decay) and `beta` `[tokens, value_heads]`, `state`
/// `[value_heads, k_dim, v_dim]`. Returns `[tokens, value_heads, v_dim]` and the last state.
pub fn delta_rule(
    shape: DeltaShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    g: &[f32],
    beta: &[f32],
    state: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = shape;
    let mut state: Vec<f64> = state.iter().map(|&s| f64::from(s)).collect();
    let mut out = vec![0.0; v.len()];
    for (i, out) in out.chunks_exact_mut(value_dim).enumerate() {
        let (t, head) = (i / value_heads, i % value_heads);
        let key = t * key_heads + head / (value_heads / key_heads);
        let (q, k) = (&q[key * key_dim..][..key_dim], &k[key * key_dim..][..key_dim]);
        let state = &mut state[head * key_dim * value_dim..][..key_dim * value_dim];
        let (decay, beta) = (libm::exp(f64::from(g[i])), f64::from(beta[i]));
        for (c, out) in out.iter_mut().enumerate() {
            *out = delta_step(state, c, value_dim, q, k, f64::from(v[i * value_dim + c]), decay, beta) as f32;
        }
    }
    (out, state.iter().map(|&s| s as f32).collect())
}

/// One token, one head, one value channel `c`: moves that column of `state` `[k_dim, v_dim]` on, returns the output.
fn delta_step(
    state: &mut [f64],
    c: usize,
    value_dim: usize,
    q: &[f32],
    k: &[f32],
    v: f64,
    decay: f64,
    beta: f64,
) -> f64 {
    let column = || (c..).step_by(value_dim);
    for (_, i) in k.iter().zip(column()) {
        state[i] *= decay;
    }
    let memory: f64 = k.iter().zip(column()).map(|(&k, i)| state[i] * f64::from(k)).sum();
    let delta = beta * (v - memory);
    for (&k, i) in k.iter().zip(column()) {
        state[i] += f64::from(k) * delta;
    }
    q.iter().zip(column()).map(|(&q, i)| state[i] * f64::from(q)).sum()
}

/// Shapes of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads; head h reads KV head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// out = softmax(scale q k^T) v, causal: the tokens of `q` are the last ones of the context.
///
/// `q` and the result are `[tokens, heads, head_dim]`, `k` and `v` `[context, kv_heads, head_dim]`.
pub fn attention(shape: AttentionShape, q: &[f32], k: &[f32], v: &[f32], scale: f64) -> Vec<f32> {
    let tokens = q.len() / (shape.heads * shape.head_dim);
    let context = k.len() / (shape.kv_heads * shape.head_dim);
    masked_attention(shape, q, k, v, scale, |token| context - tokens + token + 1)
}

/// The same where every query sees every token, however many queries there are.
pub fn bidirectional(shape: AttentionShape, q: &[f32], k: &[f32], v: &[f32], scale: f64) -> Vec<f32> {
    let context = k.len() / (shape.kv_heads * shape.head_dim);
    masked_attention(shape, q, k, v, scale, |_| context)
}

/// Attention in which query `token` sees the first `visible(token)` tokens.
fn masked_attention(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    scale: f64,
    visible: impl Fn(usize) -> usize,
) -> Vec<f32> {
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    assert_eq!(k.len(), v.len());
    let mut out = vec![0.0; q.len()];
    for (i, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let (token, head) = (i / heads, i % heads);
        let visible = visible(token);
        let row = |position: usize| (position * kv_heads + head / (heads / kv_heads)) * head_dim;
        let query = &q[i * head_dim..][..head_dim];
        let scores: Vec<f64> = (0..visible).map(|p| scale * dot(query, &k[row(p)..][..head_dim])).collect();
        let weights = softmax(&scores);
        for (d, out) in out.iter_mut().enumerate() {
            *out = weights.iter().enumerate().map(|(p, w)| w * f64::from(v[row(p) + d])).sum::<f64>() as f32;
        }
    }
    out
}

/// e^x / sum(e^x)
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = x.iter().map(|x| libm::exp(x - max)).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// out = x * sigmoid(gate), element by element: attention's output gate.
pub fn sigmoid_gate(x: &[f32], gate: &[f32]) -> Vec<f32> {
    assert_eq!(x.len(), gate.len());
    x.iter().zip(gate).map(|(&x, &gate)| (f64::from(x) * sigmoid(f64::from(gate))) as f32).collect()
}

/// Rotary positions: channels i and `i + rotary_dim / 2` of each head turn by position x `theta^(-2i / rotary_dim)`.
///
/// `x` and the result are `[tokens, heads, head_dim]`. Which of a token's three positions turns pair i: height if
/// i mod 3 = 1 and i < `3 sections[1]`, width if i mod 3 = 2 and i < `3 sections[2]`, else time. Frequencies and angles are
/// rounded to f32 as in the model code. YaRN is not known here; its frequencies are compared with recordings.
pub fn rope(
    config: &RopeConfig,
    x: &[f32],
    positions: &[Position],
    heads: usize,
    head_dim: usize,
) -> Vec<f32> {
    assert_eq!(x.len(), positions.len() * heads * head_dim);
    assert_eq!(config.yarn, None);
    let half = config.rotary_dim / 2;
    let mut out = x.to_vec();
    for (i, head) in out.chunks_exact_mut(head_dim).enumerate() {
        for pair in 0..half {
            let position = positions[i / heads][rope_axis(pair, config.sections)];
            let exponent = 2.0 * pair as f64 / config.rotary_dim as f64;
            let frequency = (1.0 / libm::pow(config.theta, exponent)) as f32;
            let (sin, cos) = libm::sincos(f64::from(position as f32 * frequency));
            let (a, b) = (f64::from(head[pair]), f64::from(head[pair + half]));
            head[pair] = (a * cos - b * sin) as f32;
            head[pair + half] = (b * cos + a * sin) as f32;
        }
    }
    out
}

/// The vision tower's rotary positions: of a head's `head_dim / 2` pairs of channels i and `i + head_dim / 2`, the first half turns
/// by the patch's row x `theta^(-2 i / (head_dim / 2))`, the second by its column through the same frequencies.
///
/// `x` and the result are `[patches, heads, head_dim]`, `places` the row and column of each patch. Frequencies and angles are
/// rounded to f32 as in the model code.
pub fn rope_two_axes(
    theta: f64,
    x: &[f32],
    places: &[(usize, usize)],
    heads: usize,
    head_dim: usize,
) -> Vec<f32> {
    assert_eq!(x.len(), places.len() * heads * head_dim);
    let (half, quarter) = (head_dim / 2, head_dim / 4);
    let mut out = x.to_vec();
    for (i, head) in out.chunks_exact_mut(head_dim).enumerate() {
        let (row, column) = places[i / heads];
        for pair in 0..half {
            let place = if pair < quarter { row } else { column };
            let exponent = 2.0 * (pair % quarter) as f64 / half as f64;
            let frequency = (1.0 / libm::pow(theta, exponent)) as f32;
            let (sin, cos) = libm::sincos(f64::from(place as f32 * frequency));
            let (a, b) = (f64::from(head[pair]), f64::from(head[pair + half]));
            head[pair] = (a * cos - b * sin) as f32;
            head[pair + half] = (b * cos + a * sin) as f32;
        }
    }
    out
}

/// A square `table` `[side * side, width]` stretched over a grid of `rows` x `columns` places, corners on corners, by bilinear
/// interpolation: `[rows * columns, width]`, row by row.
pub fn stretch(table: &[f32], side: usize, width: usize, [rows, columns]: [usize; 2]) -> Vec<f32> {
    assert_eq!(table.len(), side * side * width);
    let step = |count: usize| if count > 1 { (side - 1) as f64 / (count - 1) as f64 } else { 0.0 };
    // The share of entry `i` of the side at place `at`, which is nonzero for the two nearest.
    let share = |at: f64, i: usize| (1.0 - (at - i as f64).abs()).max(0.0);
    let mut out = Vec::with_capacity(rows * columns * width);
    for place in 0..rows * columns {
        let (y, x) = ((place / columns) as f64 * step(rows), (place % columns) as f64 * step(columns));
        let mut sum = vec![0.0; width];
        for (i, entry) in table.chunks_exact(width).enumerate() {
            let weight = share(y, i / side) * share(x, i % side);
            sum.iter_mut().zip(entry).for_each(|(sum, &entry)| *sum += weight * f64::from(entry));
        }
        out.extend(sum.iter().map(|&sum| sum as f32));
    }
    out
}

fn rope_axis(pair: usize, sections: [usize; 3]) -> usize {
    if pair % 3 == 1 && pair < 3 * sections[1] {
        1
    } else if pair % 3 == 2 && pair < 3 * sections[2] {
        2
    } else {
        0
    }
}

/// The `per_token` largest of softmax(logits) of each token, falling, of equal ones the lowest index first: which experts,
/// and their probabilities, divided by their sum if `renormalise`.
///
/// `logits` are `[tokens, experts]`, both results `[tokens, per_token]`.
pub fn route_top_k(
    logits: &[f32],
    experts: usize,
    per_token: usize,
    renormalise: bool,
) -> (Vec<u32>, Vec<f32>) {
    let (mut chosen, mut weights) = (Vec::new(), Vec::new());
    for logits in logits.chunks_exact(experts) {
        let logits: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
        let p = softmax(&logits);
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        order.truncate(per_token);
        let sum = if renormalise { order.iter().map(|&i| p[i]).sum() } else { 1.0 };
        weights.extend(order.iter().map(|&i| (p[i] / sum) as f32));
        chosen.extend(order.iter().map(|&i| i as u32));
    }
    (chosen, weights)
}

/// `out[t]` = sum over routes r of `weights[t, r]` x `down(silu(gate(x[t])) * up(x[t]))` of expert `chosen[t, r]`.
///
/// `x` and the result are `[tokens, hidden]`, `chosen` and `weights` `[tokens, per_token]`. Quantised matrices are multiplied
/// with activations rounded to INT8.
pub fn expert_feed_forward(
    x: &[f32],
    experts: &[SwiGluWeights],
    chosen: &[u32],
    weights: &[f32],
    per_token: usize,
) -> Vec<f32> {
    let product = |x: &[f32], weights: &Matrix| {
        if weights.format().is_quantized() {
            quantized_matmul(&quantize_activations(x, weights.cols()), weights)
        } else {
            matmul(x, &weights.to_f32(), weights.cols())
        }
    };
    let hidden = experts[0].gate.cols();
    let mut out = Vec::with_capacity(x.len());
    for (t, x) in x.chunks_exact(hidden).enumerate() {
        let mut sum = vec![0.0; hidden];
        for route in t * per_token..(t + 1) * per_token {
            let expert = &experts[chosen[route] as usize];
            let inner = swiglu(&product(x, &expert.gate), &product(x, &expert.up));
            for (sum, y) in sum.iter_mut().zip(product(&inner, &expert.down)) {
                *sum += f64::from(weights[route]) * f64::from(y);
            }
        }
        out.extend(sum.iter().map(|&sum| sum as f32));
    }
    out
}

/// out = silu(gate) * up, element by element.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len());
    gate.iter().zip(up).map(|(&gate, &up)| (silu(f64::from(gate)) * f64::from(up)) as f32).collect()
}
