//! The gated delta rule as an operation on plain row-major arrays, which both of its forms take.
//!
//! The recurrent form here runs [`delta_rule`](super::delta_rule), after packing the arrays the way the model holds them;
//! the chunked form is in [`delta_rule_chunked`](super::delta_rule_chunked). The [`reference`](mod@super::reference) says
//! what both compute. Heads of any size are taken: values are filled up with zeros where the kernel wants multiples of 16.

use super::conv::TAPS;
use super::cpu::Cpu;
use super::delta_rule::{DeltaInput, L2_EPS, delta_rule};
use super::lanes::{LANES, Op, Simd};
use super::norm::{l2_norm_row, row_grain};
use crate::config::DeltaConfig;
use crate::error::{Error, Result};

/// Shapes of the delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Tokens.
    pub tokens: usize,
    /// Query and key heads.
    pub key_heads: usize,
    /// Value heads; head h reads key head `h / (value_heads / key_heads)`.
    pub value_heads: usize,
    /// Channels of a query or key head.
    pub key_dim: usize,
    /// Channels of a value head.
    pub value_dim: usize,
}

/// What the delta rule reads.
#[derive(Clone, Copy, Debug)]
pub struct DeltaArrays<'a> {
    /// The shapes of all arrays.
    pub shape: DeltaShape,
    /// `[tokens, key_heads, k_dim]`
    pub q: &'a [f32],
    /// `[tokens, key_heads, k_dim]`
    pub k: &'a [f32],
    /// `[tokens, value_heads, v_dim]`
    pub v: &'a [f32],
    /// Log of the decay, `[tokens, value_heads]`; -inf forgets everything.
    pub g: &'a [f32],
    /// `[tokens, value_heads]`
    pub beta: &'a [f32],
    /// The state before the first token, `[value_heads, k_dim, v_dim]`; none means zeros.
    pub state: Option<&'a [f32]>,
    /// What queries are multiplied with; none means `1 / sqrt(k_dim)`.
    pub scale: Option<f32>,
    /// Whether queries and keys are first divided by their L2 norm.
    pub use_qk_l2norm: bool,
}

/// What the delta rule returns.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaResult {
    /// `[tokens, value_heads, v_dim]`
    pub out: Vec<f32>,
    /// The state after the last token, `[value_heads, k_dim, v_dim]`
    pub state: Vec<f32>,
}

impl DeltaArrays<'_> {
    /// Whether the shapes make sense and every array has its own.
    pub(super) fn check(&self) -> Result<()> {
        let DeltaShape { tokens, key_heads, value_heads, key_dim, value_dim } = self.shape;
        let dims = [
            ("key_heads", key_heads),
            ("value_heads", value_heads),
            ("k_dim", key_dim),
            ("v_dim", value_dim),
        ];
        if let Some((name, _)) = dims.into_iter().find(|(_, size)| *size == 0) {
            return Err(Error::argument(name, "must be at least 1"));
        }
        if !value_heads.is_multiple_of(key_heads) {
            let reason = format!("{value_heads} value heads are not a multiple of {key_heads} key heads");
            return Err(Error::argument("v", reason));
        }
        check_len("q", self.q, &[tokens, key_heads, key_dim])?;
        check_len("k", self.k, &[tokens, key_heads, key_dim])?;
        check_len("v", self.v, &[tokens, value_heads, value_dim])?;
        check_len("g", self.g, &[tokens, value_heads])?;
        check_len("beta", self.beta, &[tokens, value_heads])?;
        self.state.map_or(Ok(()), |state| check_len("state", state, &[value_heads, key_dim, value_dim]))
    }

    /// Queries and keys as the rule multiplies them: normalised if asked for, queries scaled.
    pub(super) fn query_key(&self, cpu: &Cpu) -> (Vec<f32>, Vec<f32>) {
        let width = self.shape.key_dim;
        let scale = self.scale.unwrap_or(1.0 / (width as f32).sqrt());
        let prepare = |x: &[f32], scale: f32| {
            let mut out = x.to_vec();
            let normalize = self.use_qk_l2norm;
            cpu.rows(&mut out, width, row_grain(width), |_, x| {
                cpu.run(Prepare { x, width, normalize, scale });
            });
            out
        };
        (prepare(self.q, scale), prepare(self.k, 1.0))
    }

    /// The state before the first token.
    pub(super) fn initial_state(&self) -> Vec<f32> {
        let DeltaShape { value_heads, key_dim, value_dim, .. } = self.shape;
        self.state.map_or_else(|| vec![0.0; value_heads * key_dim * value_dim], <[f32]>::to_vec)
    }
}

fn check_len(name: &str, x: &[f32], shape: &[usize]) -> Result<()> {
    let needed = shape.iter().try_fold(1_usize, |n, size| n.checked_mul(*size));
    if needed == Some(x.len()) {
        return Ok(());
    }
    Err(Error::argument(name, format!("{} numbers do not have the shape {shape:?}", x.len())))
}

/// x / |x| * scale, or x * scale, for rows of `width`.
struct Prepare<'a> {
    x: &'a mut [f32],
    width: usize,
    normalize: bool,
    scale: f32,
}

impl Op for Prepare<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.width) {
            if self.normalize {
                l2_norm_row(s, row, L2_EPS, self.scale);
            } else {
                for x in row {
                    *x *= self.scale;
                }
            }
        }
    }
}

/// The recurrent form: token by token. The same bits on every tier and in any pieces.
///
/// # Errors
/// If an array does not have its shape.
pub fn gated_delta_rule_recurrent(cpu: &Cpu, arrays: &DeltaArrays<'_>) -> Result<DeltaResult> {
    arrays.check()?;
    let shape = arrays.shape;
    let config = DeltaConfig {
        key_heads: shape.key_heads,
        value_heads: shape.value_heads,
        key_dim: shape.key_dim,
        value_dim: shape.value_dim.next_multiple_of(LANES),
        conv_kernel: TAPS,
    };
    let qkv = pack_qkv(cpu, arrays, &config);
    let decay: Vec<f32> = arrays.g.iter().map(|&g| libm::expf(g)).collect();
    let input = DeltaInput { qkv: &qkv, decay: &decay, beta: arrays.beta };
    let mut tiles = pack_state(arrays, &config);
    let mut out = vec![0.0; shape.tokens * config.value_heads * config.value_dim];
    delta_rule(cpu, &config, input, &mut tiles, &mut out);
    let out = out.chunks_exact(config.value_dim).flat_map(|row| &row[..shape.value_dim]).copied().collect();
    Ok(DeltaResult { out, state: unpack_state(&tiles, shape, &config) })
}

/// `[tokens, q | k | v]`, heads filled up with zeros to the sizes of `config`.
fn pack_qkv(cpu: &Cpu, arrays: &DeltaArrays<'_>, config: &DeltaConfig) -> Vec<f32> {
    let (q, k) = arrays.query_key(cpu);
    let DeltaShape { tokens, key_heads, value_heads, key_dim, value_dim } = arrays.shape;
    let mut qkv = Vec::with_capacity(tokens * config.conv_dim());
    let mut pack = |x: &[f32], t: usize, heads: usize, width: usize, padded: usize| {
        for head in x[t * heads * width..(t + 1) * heads * width].chunks_exact(width) {
            qkv.extend_from_slice(head);
            qkv.resize(qkv.len() + padded - width, 0.0);
        }
    };
    for t in 0..tokens {
        pack(&q, t, key_heads, key_dim, config.key_dim);
        pack(&k, t, key_heads, key_dim, config.key_dim);
        pack(arrays.v, t, value_heads, value_dim, config.value_dim);
    }
    qkv
}

/// Where element `[head, k, v]` stands in `[value_heads, v_dim / 16, k_dim, 16]`.
fn tile_index(config: &DeltaConfig, head: usize, k: usize, v: usize) -> usize {
    let tile = head * config.value_dim / LANES + v / LANES;
    (tile * config.key_dim + k) * LANES + v % LANES
}

/// `[value_heads, k_dim, v_dim]` -> tiles
fn pack_state(arrays: &DeltaArrays<'_>, config: &DeltaConfig) -> Vec<f32> {
    let mut tiles = vec![0.0; config.value_heads * config.key_dim * config.value_dim];
    if let Some(state) = arrays.state {
        let DeltaShape { key_dim, value_dim, .. } = arrays.shape;
        for (row, x) in state.chunks_exact(value_dim).enumerate() {
            for (v, &x) in x.iter().enumerate() {
                tiles[tile_index(config, row / key_dim, row % key_dim, v)] = x;
            }
        }
    }
    tiles
}

/// The tiles of a state as `[value_heads, k_dim, v_dim]`; `config` has the sizes the tiles are padded to.
pub fn unpack_state(tiles: &[f32], shape: DeltaShape, config: &DeltaConfig) -> Vec<f32> {
    let DeltaShape { value_heads, key_dim, value_dim, .. } = shape;
    let mut state = Vec::with_capacity(value_heads * key_dim * value_dim);
    for row in 0..value_heads * key_dim {
        for v in 0..value_dim {
            state.push(tiles[tile_index(config, row / key_dim, row % key_dim, v)]);
        }
    }
    state
}
