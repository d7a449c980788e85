//! All of a Gated DeltaNet layer between its projections: short convolution, norms, gates, delta rule, gated norm.
//!
//! ```text
//! for each sequence and key head, with its value heads:               a work item
//!   take over what another sequence's state has of the head           if it goes on from that
//!   for each block of 64 tokens, or fewer up to where a copy is kept or a chunk of the delta rule ends:
//!     q, k, v = silu(short convolution of the head's channels)         into memory that no other item has now
//!     q, k    = q / |q| / sqrt(k_dim), k / |k|
//!     decay, beta = gates
//!     delta rule, results in the place of v
//!     out     = rms_norm(v) * weight * silu(z)
//!     copy what the state has of the head                             if a copy is kept there
//!   the convolution's tail moves on
//! ```
//!
//! Heads have nothing to do with each other here, so that one parallel region does it all. With a region for each step two
//! threads were hardly faster than one; as one region they are 1.85 times as fast. The likely reasons: a step reads what
//! another core just wrote, and rows of all channels, a multiple of 4 KB apart, compete for the same few places of a cache,
//! where a block's q, k and v (98 KB for heads of 128) stand side by side.
//!
//! So a state that is copied in the middle of a pass, or before it, is in the cache of the core that copies it, and all cores do.
//!
//! A thread takes heads that are neighbours, whose states stand one behind the other: a written token waits for memory, and each jump
//! in it costs (see `shares`). With heads in turn, tokens take 1.03 to 1.04 times as long where two threads have 60 GB/s. Few
//! tokens take several heads at a time; of many, a head is long enough, and who came late or is slow leaves the rest to others.
//!
//! The steps are those of [`conv`], [`delta_chunks`] and [`norm`](super::norm), to the bit.
#![allow(unsafe_code, reason = "states and outputs, written in parallel by heads")]

use std::ops::Range;

use super::conv::{self, Strip, TAIL, TAPS};
use super::cpu::Cpu;
use super::delta_chunks::{self, Block, CHUNK, Recent};
use super::delta_rule::{L2_EPS, decay};
use super::disjoint::Disjoint;
use super::lanes::{LANES, Op, Simd};
use super::math::{sigmoid, zip_lanes};
use super::norm::{gated_rms_norm_row, l2_norm_row};
use super::prefetch;
use super::shares::{Piece, share_out_numbered};
use crate::config::DeltaConfig;

/// Tokens that a head takes from one step to the next together.
const BLOCK: usize = 64;
const _: () = assert!(BLOCK.is_multiple_of(CHUNK));
/// Tokens from one that is read to one that is asked for.
const AHEAD: usize = 4;

/// What the layer reads beside its states.
#[derive(Clone, Copy, Debug)]
pub struct GatedDelta<'a> {
    /// The heads.
    pub shape: &'a DeltaConfig,
    /// Queries, keys and values before the convolution: `[tokens, q | k | v]`
    pub projected: &'a [f32],
    /// Gates of the output, `[tokens, value_heads, v_dim]`
    pub z: &'a [f32],
    /// Projections that the decay comes from, `[tokens, value_heads]`
    pub a: &'a [f32],
    /// Projections that the rate beta comes from, `[tokens, value_heads]`
    pub b: &'a [f32],
    /// The convolution's weights, `[4, channels]`
    pub conv: &'a [f32],
    /// `e^A_log`, `[value_heads]`
    pub rate: &'a [f32],
    /// `[value_heads]`
    pub dt_bias: &'a [f32],
    /// The gated norm's weight, `[v_dim]`
    pub norm: &'a [f32],
    /// Added to the mean square in the gated norm.
    pub eps: f32,
}

impl GatedDelta<'_> {
    /// The layer with the first `tokens` tokens only, and with the others.
    fn split(self, tokens: usize) -> (Self, Self) {
        let heads = tokens * self.shape.value_heads;
        let (projected, later_projected) = self.projected.split_at(tokens * self.shape.conv_dim());
        let (z, later_z) = self.z.split_at(heads * self.shape.value_dim);
        let ((a, later_a), (b, later_b)) = (self.a.split_at(heads), self.b.split_at(heads));
        let later = Self { projected: later_projected, z: later_z, a: later_a, b: later_b, ..self };
        (Self { projected, z, a, b, ..self }, later)
    }
}

/// What the layer keeps of one sequence.
#[derive(Debug)]
pub struct Kept<'a> {
    /// `[3, channels]`
    pub tail: &'a mut [f32],
    /// The delta rule's memory up to the last whole chunk, `[value_heads, v_dim / 16, k_dim, 16]`
    pub memory: &'a mut [f32],
    /// What came after that, `[key_heads, room]`; see [`Recent`]
    pub recent: &'a mut [f32],
}

/// One sequence: how many of the tokens it has, and what the layer keeps of it.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// Tokens that it had before.
    pub position: usize,
    /// Its tokens stand behind those of the sequences before.
    pub tokens: usize,
    /// What it goes on from, tail, memory and recent, if that does not stand in `kept`, which then may hold anything.
    pub start: Option<[&'a [f32]; 3]>,
    /// What is moved on.
    pub kept: Kept<'a>,
    /// What becomes copies of it, each after so many of the tokens, in rising order.
    pub copies: Vec<(usize, Kept<'a>)>,
}

/// Moves `sequences`, those that are there before those that are not, on over all tokens; `out` is `[tokens, value_heads, v_dim]`. `scratch` may
/// hold anything; it grows to what the threads need.
///
/// # Panics
/// If shapes do not fit.
pub fn gated_delta<const N: usize>(
    cpu: &Cpu,
    layer: GatedDelta<'_>,
    sequences: [Option<Sequence<'_>>; N],
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let shape = layer.shape;
    let out_width = shape.value_heads * shape.value_dim;
    let tokens = out.len() / out_width;
    assert_eq!(layer.projected.len(), tokens * shape.conv_dim());
    assert_eq!(layer.z.len(), out.len());
    assert_eq!((layer.a.len(), layer.b.len()), (tokens * shape.value_heads, tokens * shape.value_heads));
    assert_eq!((layer.rate.len(), layer.dt_bias.len()), (shape.value_heads, shape.value_heads));
    assert_eq!(layer.conv.len(), TAPS * shape.conv_dim());
    assert!(shape.value_dim.is_multiple_of(LANES));
    let count = sequences.iter().take_while(|sequence| sequence.is_some()).count();
    let all = sequences.iter().flatten().map(|sequence| sequence.tokens);
    assert_eq!((all.clone().count(), all.clone().sum::<usize>()), (count, tokens));
    let room = Room::of(shape, all.max().unwrap_or(0).min(BLOCK));
    scratch.resize(scratch.len().max(cpu.pool.threads() * room.total()), 0.0);
    let scratch = Disjoint::new(scratch);
    let (mut layer, mut out) = (layer, out);
    let passes = sequences.map(|sequence| {
        let Sequence { position, tokens, start, kept, copies } = sequence?;
        let recent = shape.key_heads * Recent::new(shape).room();
        let lens = [TAIL * shape.conv_dim(), out_width * shape.key_dim, recent];
        let share = |kept| Shared::new(kept, lens);
        assert!(start.is_none_or(|start| start.map(<[f32]>::len) == lens));
        assert!(copies.is_sorted_by_key(|(after, _)| *after));
        let (its_layer, later_layer) = layer.split(tokens);
        let (its_out, later_out) = std::mem::take(&mut out).split_at_mut(tokens * out_width);
        (layer, out) = (later_layer, later_out);
        let copies = copies.into_iter().map(|(after, kept)| (after, share(kept))).collect();
        let (kept, out) = (share(kept), Disjoint::new(its_out));
        Some(Pass { layer: its_layer, position, tokens, start, kept, copies, out })
    });
    let piece = Piece { least: 1, most: if tokens < CHUNK { usize::MAX } else { 1 } };
    share_out_numbered(&cpu.pool, count * shape.key_heads, piece, &|number, items| {
        for item in items {
            let (sequence, key_head) = (item / shape.key_heads, item % shape.key_heads);
            let pass = passes[sequence].as_ref().expect("the first `count` are there");
            // SAFETY: no two calls have the same number at a time, and this one does item after item.
            let scratch = unsafe { scratch.part(number * room.total()..(number + 1) * room.total()) };
            cpu.run(Head { pass, index: key_head, scratch, room });
        }
    });
}

/// [`Kept`], of which every item has its own channels and heads.
struct Shared<'a> {
    tail: Disjoint<'a, f32>,
    memory: Disjoint<'a, f32>,
    recent: Disjoint<'a, f32>,
}

impl<'a> Shared<'a> {
    fn new(kept: Kept<'a>, lens: [usize; 3]) -> Self {
        let Kept { tail, memory, recent } = kept;
        assert_eq!([tail.len(), memory.len(), recent.len()], lens);
        Self { tail: Disjoint::new(tail), memory: Disjoint::new(memory), recent: Disjoint::new(recent) }
    }
}

struct Pass<'a> {
    layer: GatedDelta<'a>,
    position: usize,
    tokens: usize,
    start: Option<[&'a [f32]; 3]>,
    kept: Shared<'a>,
    copies: Vec<(usize, Shared<'a>)>,
    out: Disjoint<'a, f32>,
}

impl Pass<'_> {
    /// The block of tokens that begins with `first`. It ends where a copy is kept, or with a chunk.
    fn block(&self, first: usize) -> Range<usize> {
        let stops = self.copies.iter().map(|(after, _)| *after);
        let stop = stops.filter(|&after| after > first).min().unwrap_or(self.tokens);
        first..stop.min(self.tokens).min(first + BLOCK - (self.position + first) % CHUNK)
    }

    /// Tokens behind the last whole chunk after the first `tokens` of the pass.
    fn since_chunk(&self, tokens: usize) -> usize {
        (self.position + tokens) % CHUNK
    }
}

/// Floats of a block.
#[derive(Clone, Copy)]
struct Room {
    /// Queries and keys, `[tokens, 2, k_dim]`
    rows: usize,
    /// Values, then results, `[tokens, value heads, v_dim]`
    values: usize,
    /// Decays, and as much for betas: `[value heads, tokens]`
    gates: usize,
    /// What the delta rule needs.
    chunks: usize,
}

impl Room {
    /// For a key head of `shape` and blocks of at most `tokens`.
    fn of(shape: &DeltaConfig, tokens: usize) -> Self {
        let value_heads = shape.value_heads / shape.key_heads;
        Self {
            rows: tokens * 2 * shape.key_dim,
            values: tokens * value_heads * shape.value_dim,
            gates: (tokens * value_heads).next_multiple_of(LANES),
            chunks: delta_chunks::scratch(tokens),
        }
    }

    fn total(&self) -> usize {
        self.rows + self.values + 2 * self.gates + self.chunks
    }
}

/// A key head and its value heads.
struct Head<'a> {
    pass: &'a Pass<'a>,
    index: usize,
    scratch: &'a mut [f32],
    room: Room,
}

impl Op for Head<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { pass, index, scratch, room } = self;
        let shape = pass.layer.shape;
        let (rows, rest) = scratch.split_at_mut(room.rows);
        let (values, rest) = rest.split_at_mut(room.values);
        let (decay, rest) = rest.split_at_mut(room.gates);
        let (beta, chunks) = rest.split_at_mut(room.gates);
        let head = Channels::new(shape, index);
        if let Some(start) = pass.start {
            begin(pass, &head, start);
        }
        let mut first = 0;
        while first < pass.tokens {
            let tokens = pass.block(first);
            first = tokens.end;
            let key = shape.key_dim;
            convolve(s, pass, &head.query, tokens.clone(), rows, 2 * key, 0);
            convolve(s, pass, &head.key, tokens.clone(), rows, 2 * key, key);
            convolve(s, pass, &head.value, tokens.clone(), values, head.value.len(), 0);
            for row in rows[..tokens.len() * 2 * key].chunks_exact_mut(2 * key) {
                let (query, key) = row.split_at_mut(key);
                l2_norm_row(s, query, L2_EPS, 1.0 / (key.len() as f32).sqrt());
                l2_norm_row(s, key, L2_EPS, 1.0);
            }
            gates(s, &pass.layer, &head.value_heads, tokens.clone(), decay, beta);
            if first == pass.tokens {
                ask_for(pass, index + 1);
            }
            walk(s, pass, &head, tokens.clone(), [rows, decay, beta], values, chunks);
            finish(s, pass, &head.value_heads, tokens, values);
            for (_, copy) in pass.copies.iter().filter(|(after, _)| *after == first) {
                leave(pass, &head, first, copy);
            }
        }
        for channels in head.strips() {
            // SAFETY: every item has its own channels, and its convolutions are done.
            let tail = unsafe { tail_of(shape, &pass.kept, channels) };
            conv::advance_strip(pass.layer.projected, shape.conv_dim(), channels.start, tail);
        }
    }
}

/// Copies what belongs to a head from another sequence's tail, memory and recent tokens.
fn begin(pass: &Pass<'_>, head: &Channels, [tail, memory, recent]: [&[f32]; 3]) {
    let shape = pass.layer.shape;
    for channels in head.strips() {
        // SAFETY: every item has its own channels, and nothing has been handed out yet.
        let own = unsafe { tail_of(shape, &pass.kept, channels) };
        for (row, own) in own.into_iter().enumerate() {
            own.copy_from_slice(&tail[row * shape.conv_dim()..][channels.clone()]);
        }
    }
    let (part, kept) = (head.memory(shape), head.recent(shape, pass.since_chunk(0)));
    // SAFETY: the same for its heads.
    unsafe { pass.kept.memory.part(part.clone()) }.copy_from_slice(&memory[part]);
    // SAFETY: the same.
    unsafe { pass.kept.recent.part(kept.clone()) }.copy_from_slice(&recent[kept]);
}

/// Makes `copy` what the state has of a head after the first `tokens` tokens, with which its memory has just been moved on.
fn leave(pass: &Pass<'_>, head: &Channels, tokens: usize, copy: &Shared<'_>) {
    let shape = pass.layer.shape;
    let projected = &pass.layer.projected[..tokens * shape.conv_dim()];
    for channels in head.strips() {
        // SAFETY: every item has its own channels, and takes one step after the other.
        let (own, mut copy) =
            unsafe { (tail_of(shape, &pass.kept, channels), tail_of(shape, copy, channels)) };
        copy.iter_mut().zip(own).for_each(|(copy, own)| copy.copy_from_slice(own));
        conv::advance_strip(projected, shape.conv_dim(), channels.start, copy);
    }
    let (part, kept) = (head.memory(shape), head.recent(shape, pass.since_chunk(tokens)));
    // SAFETY: the same for its heads.
    unsafe { copy.memory.part(part.clone()).copy_from_slice(pass.kept.memory.part(part)) };
    // SAFETY: the same.
    unsafe { copy.recent.part(kept.clone()).copy_from_slice(pass.kept.recent.part(kept)) };
}

/// What belongs to a key head.
struct Channels {
    index: usize,
    /// Among the convolution's channels.
    query: Range<usize>,
    key: Range<usize>,
    value: Range<usize>,
    /// Among the value heads.
    value_heads: Range<usize>,
}

impl Channels {
    #[inline(always)]
    fn new(shape: &DeltaConfig, key_head: usize) -> Self {
        let span = |start: usize, width: usize| start + key_head * width..start + (key_head + 1) * width;
        let keys = shape.key_heads * shape.key_dim;
        let value_heads = span(0, shape.value_heads / shape.key_heads);
        Self {
            index: key_head,
            query: span(0, shape.key_dim),
            key: span(keys, shape.key_dim),
            value: span(2 * keys, value_heads.len() * shape.value_dim),
            value_heads,
        }
    }

    fn strips(&self) -> [&Range<usize>; 3] {
        [&self.query, &self.key, &self.value]
    }

    /// The value heads' part of the memory.
    fn memory(&self, shape: &DeltaConfig) -> Range<usize> {
        let head = shape.value_dim * shape.key_dim;
        self.value_heads.start * head..self.value_heads.end * head
    }

    /// The head's part of what is kept of `tokens` recent tokens.
    fn recent(&self, shape: &DeltaConfig, tokens: usize) -> Range<usize> {
        let recent = Recent::new(shape);
        let start = self.index * recent.room();
        start..start + recent.len(tokens)
    }
}

/// `channels` of a convolution's tail.
///
/// # Safety
/// They are the item's own, and what was handed out before is no longer used.
#[inline(always)]
#[allow(clippy::mut_from_ref, reason = "the caller promises disjointness")]
unsafe fn tail_of<'a>(
    shape: &DeltaConfig,
    kept: &'a Shared<'_>,
    channels: &Range<usize>,
) -> [&'a mut [f32]; TAIL] {
    let row = |row: usize| {
        let start = row * shape.conv_dim();
        // SAFETY: passed on.
        unsafe { kept.tail.part(start + channels.start..start + channels.end) }
    };
    [row(0), row(1), row(2)]
}

/// The convolution of `channels` at `tokens`; results go to `out` `[tokens, stride]`, in each row from `at`.
#[inline(always)]
fn convolve<S: Simd>(
    s: S,
    pass: &Pass<'_>,
    channels: &Range<usize>,
    tokens: Range<usize>,
    out: &mut [f32],
    stride: usize,
    at: usize,
) {
    let GatedDelta { projected, conv, shape, .. } = pass.layer;
    // SAFETY: every item has its own channels, and takes one step after the other.
    let [t0, t1, t2] = unsafe { tail_of(shape, &pass.kept, channels) };
    let strip = Strip::new(projected, conv, shape.conv_dim(), channels.clone(), [t0, t1, t2]);
    for (row, t) in tokens.enumerate() {
        strip.prefetch(t + AHEAD);
        let out = &mut out[row * stride + at..][..channels.len()];
        strip.convolve(s, t, out);
    }
}

/// Decays and betas of `value_heads` at `tokens`, `[value heads, tokens]`.
#[inline(always)]
fn gates<S: Simd>(
    s: S,
    layer: &GatedDelta<'_>,
    value_heads: &Range<usize>,
    tokens: Range<usize>,
    decays: &mut [f32],
    betas: &mut [f32],
) {
    let all = value_heads.len() * tokens.len();
    let mut at = 0;
    for head in value_heads.clone() {
        for t in tokens.clone() {
            let gate = t * layer.shape.value_heads + head;
            decays[at] = decay(layer.a[gate], layer.rate[head], layer.dt_bias[head]);
            betas[at] = layer.b[gate];
            at += 1;
        }
    }
    let betas = &mut betas[..all];
    zip_lanes!(s, betas = [value in betas] => sigmoid(s, value));
}

/// Asks for what the convolutions of a key head read beside its input, and for its recent tokens.
#[inline(always)]
fn ask_for(pass: &Pass<'_>, key_head: usize) {
    let shape = pass.layer.shape;
    if key_head >= shape.key_heads {
        return;
    }
    let head = Channels::new(shape, key_head);
    for channels in head.strips() {
        let bytes = size_of::<f32>() * channels.len();
        for row in 0..TAPS {
            let weights = &pass.layer.conv[row * shape.conv_dim() + channels.start..];
            prefetch::lines(weights.as_ptr().cast(), bytes);
        }
        for row in 0..TAIL {
            prefetch::lines(pass.kept.tail.address(row * shape.conv_dim() + channels.start), bytes);
        }
    }
    let recent = head.recent(shape, pass.since_chunk(0));
    prefetch::lines(pass.kept.recent.address(recent.start), recent.len() * size_of::<f32>());
}

/// The delta rule over a block; results replace `values`.
#[inline(always)]
fn walk<S: Simd>(
    s: S,
    pass: &Pass<'_>,
    head: &Channels,
    tokens: Range<usize>,
    [rows, decay, beta]: [&[f32]; 3],
    values: &mut [f32],
    scratch: &mut [f32],
) {
    let shape = Recent::new(pass.layer.shape);
    // SAFETY: every item has its own heads, and takes one step after the other.
    let memory = unsafe { pass.kept.memory.part(head.memory(pass.layer.shape)) };
    // SAFETY: the same.
    let recent = unsafe { pass.kept.recent.part(head.recent(pass.layer.shape, CHUNK - 1)) };
    let block = Block {
        shape,
        position: pass.position + tokens.start,
        tokens: tokens.len(),
        rows,
        values,
        decay,
        beta,
        recent,
        memory,
        scratch,
    };
    delta_chunks::advance(s, block);
}

/// The gated norm of a block's results `[tokens, value heads, v_dim]`, into the layer's output.
#[inline(always)]
fn finish<S: Simd>(
    s: S,
    pass: &Pass<'_>,
    value_heads: &Range<usize>,
    tokens: Range<usize>,
    results: &mut [f32],
) {
    let GatedDelta { shape, z, norm, eps, .. } = pass.layer;
    let out_width = shape.value_heads * shape.value_dim;
    let (start, width) = (value_heads.start * shape.value_dim, value_heads.len() * shape.value_dim);
    for (t, results) in tokens.zip(results.chunks_exact_mut(width)) {
        if t + AHEAD < pass.tokens {
            let ahead = &z[(t + AHEAD) * out_width + start..][..width];
            prefetch::lines(ahead.as_ptr().cast(), size_of_val(ahead));
        }
        let row = t * out_width + start..t * out_width + start + width;
        let gates = z[row.clone()].chunks_exact(shape.value_dim);
        for (x, gate) in results.chunks_exact_mut(shape.value_dim).zip(gates) {
            gated_rms_norm_row(s, x, gate, norm, eps);
        }
        // SAFETY: every item has its own heads of each token.
        unsafe { pass.out.part(row) }.copy_from_slice(results);
    }
}
