//! Keys and values of one attention layer, in pages of 64 tokens at fixed absolute positions.
//!
//! A page holds, for each KV head, its keys and behind them its values. Neither product of attention sums across lanes:
//! scores have tokens in the lanes, outputs have channels. All bytes stand in the order in which they are read.
//!
//! | type | keys | values |
//! |---|---|---|
//! | f32, f16 | `[64 / 32][head_dim][32 tokens]` | `[head_dim / 32][64][32 channels]` |
//! | bf16 | `[head_dim / 2][64 tokens][2 channels]` | `[head_dim / 64][64 / 2][64 channels][2 tokens]` |
//! | INT8 | blocks of 16 tokens x 32 channels, see `int8` | blocks of 16 channels x 32 tokens |
//!
//! The last row of values is narrower where `head_dim` is no multiple of its channels.
//! Pages are shared between forks of a sequence and copied when one of them writes.
#![allow(unsafe_code, reason = "a page of cache lines seen as bytes")]

pub(super) mod int8;

use std::ops::Range;
use std::sync::Arc;

use super::bf16::narrow;
use super::cpu::Cpu;
use super::lanes::{LANES, Op, Simd};
use crate::error::{Result, try_with_capacity};

/// Tokens of a page.
pub const PAGE: usize = 64;
/// Tokens of keys, and channels of values, that stand together.
pub(super) const TILE: usize = 2 * LANES;
/// Channels of bfloat16 values that stand together, as many as tokens of keys.
pub(super) const ROW: usize = PAGE;

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Single precision, for comparison with reference implementations.
    F32,
    /// Half precision, rounded to nearest even.
    F16,
    /// Bfloat16, the type in which the models were trained; numbers below 2^-56 are zero.
    Bf16,
    /// 8 bits, and an f16 scale for each token and 32 channels.
    Int8,
}

impl KvType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Int8];

    /// The name used in arguments and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of one head's keys, and of its values, in a page.
    fn head_bytes(self, head_dim: usize) -> [usize; 2] {
        match self {
            Self::F32 => [4 * PAGE * head_dim; 2],
            Self::F16 | Self::Bf16 => [2 * PAGE * head_dim; 2],
            Self::Int8 => [int8::key_bytes(head_dim), int8::value_bytes(head_dim)],
        }
    }
}

/// A cache line: pages begin at one, so that no load of a vector touches two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

fn bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: lines are bytes without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: lines are bytes without padding, and any bytes are lines.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

/// The cache of one layer.
#[derive(Debug)]
pub struct KvCache {
    kv_type: KvType,
    kv_heads: usize,
    head_dim: usize,
    len: usize,
    pages: Vec<Arc<Vec<Line>>>,
}

/// A clone shares the pages in use, not those only reserved.
impl Clone for KvCache {
    fn clone(&self) -> Self {
        let pages = self.pages[..self.len.div_ceil(PAGE)].to_vec();
        Self { pages, ..*self }
    }
}

impl KvCache {
    /// An empty cache.
    pub fn new(kv_type: KvType, kv_heads: usize, head_dim: usize) -> Self {
        Self { kv_type, kv_heads, head_dim, len: 0, pages: Vec::new() }
    }

    /// An empty cache of the same kind.
    #[must_use]
    pub fn empty(&self) -> Self {
        Self::new(self.kv_type, self.kv_heads, self.head_dim)
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number type of keys and values.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes allocated.
    pub fn nbytes(&self) -> usize {
        self.pages.len() * self.page_bytes()
    }

    /// Bytes of one token.
    pub fn bytes_per_token(&self) -> usize {
        self.bytes_per_token_as(self.kv_type)
    }

    /// Bytes that one token would take in a cache of another type.
    pub fn bytes_per_token_as(&self, kv_type: KvType) -> usize {
        self.kv_heads * kv_type.head_bytes(self.head_dim).iter().sum::<usize>() / PAGE
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.kv_heads * self.kv_type.head_bytes(self.head_dim).iter().sum::<usize>()
    }

    /// Allocates pages for `tokens` tokens in all. Where memory ends, those allocated so far stay.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        let lines = self.page_bytes() / size_of::<Line>();
        while self.pages.len() * PAGE < tokens {
            let mut page = try_with_capacity(lines)?;
            page.resize(lines, Line([0; 64]));
            self.pages.push(Arc::new(page));
        }
        Ok(())
    }

    /// Where each page in use stands in memory: the same number for two caches exactly if they share the page.
    pub fn page_addresses(&self) -> impl Iterator<Item = usize> {
        self.pages_in_use().iter().map(|page| Arc::as_ptr(page).addr())
    }

    /// The bytes of each page in use, as [`Self::restore`] takes them.
    pub fn pages(&self) -> impl Iterator<Item = &[u8]> {
        self.pages_in_use().iter().map(|page| bytes(page))
    }

    fn pages_in_use(&self) -> &[Arc<Vec<Line>>] {
        &self.pages[..self.len.div_ceil(PAGE)]
    }

    /// Fills an empty cache with `len` tokens from the `pages` of another of its kind, put together.
    ///
    /// # Panics
    /// If the cache is not empty, or `pages` are not as many bytes as `len` tokens take.
    pub fn restore(&mut self, len: usize, pages: &[u8]) -> Result<()> {
        assert!(self.is_empty(), "only an empty cache is filled");
        assert_eq!(pages.len(), len.div_ceil(PAGE) * self.page_bytes(), "pages of {len} tokens");
        self.reserve(len)?;
        let page_bytes = self.page_bytes();
        for (page, bytes) in self.pages.iter_mut().zip(pages.chunks_exact(page_bytes)) {
            let page: &mut Vec<Line> = Arc::make_mut(page);
            bytes_mut(page).copy_from_slice(bytes);
        }
        self.len = len;
        Ok(())
    }

    /// Forgets all tokens from `len` on. Their pages stay for reuse.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Keys and values of a head in page `page`, in the order of the page.
    pub(super) fn head(&self, page: usize, head: usize) -> (&[u8], &[u8]) {
        self.heads(page, head..head + 1).split_at(self.kv_type.head_bytes(self.head_dim)[0])
    }

    /// The same as one, of some heads.
    pub(super) fn heads(&self, page: usize, heads: Range<usize>) -> &[u8] {
        let both = self.kv_type.head_bytes(self.head_dim).iter().sum::<usize>();
        &bytes(&self.pages[page])[heads.start * both..heads.end * both]
    }

    /// Appends keys and values `[tokens, kv_heads, head_dim]`.
    ///
    /// # Panics
    /// If there is no memory for pages; not after [`Self::reserve`].
    pub fn append(&mut self, cpu: &Cpu, keys: &[f32], values: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        assert_eq!(keys.len(), values.len());
        let tokens = keys.len() / width;
        self.reserve(self.len + tokens).expect("memory for the pages");
        let mut token = 0;
        while token < tokens {
            let slot = (self.len + token) % PAGE;
            let count = (PAGE - slot).min(tokens - token);
            let (head_dim, kv_type) = (self.head_dim, self.kv_type);
            let halves = kv_type.head_bytes(head_dim);
            let page: &mut Vec<Line> = Arc::make_mut(&mut self.pages[(self.len + token) / PAGE]);
            let page = bytes_mut(page);
            let rows = token * width..(token + count) * width;
            let (keys, values) = (&keys[rows.clone()], &values[rows]);
            cpu.rows(page, halves[0] + halves[1], head_grain(count * head_dim), |heads, page| {
                let channels = heads.start * head_dim..heads.end * head_dim;
                cpu.run(WriteHeads { keys, values, width, channels, page, slot, halves, head_dim, kv_type });
            });
            token += count;
        }
        self.len += tokens;
    }

    /// Keys and values of all tokens as f32, each `[kv_heads, tokens, head_dim]`.
    pub fn to_f32(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in 0..self.kv_heads {
            for token in 0..self.len {
                let (page, slot) = (token / PAGE, token % PAGE);
                let (k, v) = self.head(page, head);
                for d in 0..self.head_dim {
                    keys.push(self.read_key(k, slot, d));
                    values.push(self.read_value(v, slot, d));
                }
            }
        }
        (keys, values)
    }

    /// Channel `d` of the key in slot `slot`.
    fn read_key(&self, keys: &[u8], slot: usize, d: usize) -> f32 {
        match self.kv_type {
            KvType::F32 => read_f32(keys, key_index(slot, d, self.head_dim)),
            KvType::F16 => read_f16(keys, key_index(slot, d, self.head_dim)),
            KvType::Bf16 => read_bf16(keys, paired_key_index(slot, d)),
            KvType::Int8 => int8::read_key(keys, slot, d, self.head_dim),
        }
    }

    /// Channel `d` of the value in slot `slot`.
    fn read_value(&self, values: &[u8], slot: usize, d: usize) -> f32 {
        match self.kv_type {
            KvType::F32 => read_f32(values, value_index(slot, d, self.head_dim)),
            KvType::F16 => read_f16(values, value_index(slot, d, self.head_dim)),
            KvType::Bf16 => read_bf16(values, paired_value_index(slot, d, self.head_dim)),
            KvType::Int8 => int8::read_value(values, slot, d, self.head_dim),
        }
    }
}

fn read_f32(bytes: &[u8], index: usize) -> f32 {
    let b = &bytes[4 * index..4 * index + 4];
    f32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

fn read_f16(bytes: &[u8], index: usize) -> f32 {
    half::f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

fn read_bf16(bytes: &[u8], index: usize) -> f32 {
    half::bf16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

/// Where channel `d` of the key in slot `slot` stands.
fn key_index(slot: usize, d: usize, head_dim: usize) -> usize {
    (slot / TILE * head_dim + d) * TILE + slot % TILE
}

/// Where channel `d` of the value in slot `slot` stands.
fn value_index(slot: usize, d: usize, head_dim: usize) -> usize {
    let first = d / TILE * TILE;
    PAGE * first + slot * TILE.min(head_dim - first) + d % TILE
}

/// The same in bfloat16, where two channels of a key stand side by side, those of all slots behind each other.
fn paired_key_index(slot: usize, d: usize) -> usize {
    2 * (d / 2 * PAGE + slot) + d % 2
}

/// The same for values: those of two slots stand side by side, channel by channel, [`ROW`] channels together.
fn paired_value_index(slot: usize, d: usize, head_dim: usize) -> usize {
    let first = d / ROW * ROW;
    PAGE * first + 2 * (slot / 2 * ROW.min(head_dim - first) + d % ROW) + slot % 2
}

/// Heads of one work item, each of which writes `numbers` keys and as many values.
fn head_grain(numbers: usize) -> usize {
    (8 * 1024 / numbers).max(1)
}

/// Writes some heads of some tokens into their page.
struct WriteHeads<'a> {
    /// `[tokens, width]`
    keys: &'a [f32],
    /// `[tokens, width]`
    values: &'a [f32],
    width: usize,
    /// The heads' channels in `width`.
    channels: Range<usize>,
    /// The heads' part of the page.
    page: &'a mut [u8],
    /// Of the first token.
    slot: usize,
    /// Bytes of a head's keys, and of its values.
    halves: [usize; 2],
    head_dim: usize,
    kv_type: KvType,
}

impl Op for WriteHeads<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let stride = self.halves[0] + self.halves[1];
        let rows = self.keys.chunks_exact(self.width).zip(self.values.chunks_exact(self.width));
        for (token, (keys, values)) in rows.enumerate() {
            let keys = keys[self.channels.clone()].chunks_exact(self.head_dim);
            let values = values[self.channels.clone()].chunks_exact(self.head_dim);
            for ((key, value), page) in keys.zip(values).zip(self.page.chunks_exact_mut(stride)) {
                let (keys, values) = page.split_at_mut(self.halves[0]);
                let slot = self.slot + token;
                match self.kv_type {
                    KvType::F32 => write_f32(s, key, value, keys, values, slot),
                    KvType::F16 => write_f16(s, key, value, keys, values, slot),
                    KvType::Bf16 => write_bf16(s, key, value, keys, values, slot),
                    KvType::Int8 => int8::write(s, key, value, keys, values, slot),
                }
            }
        }
    }
}

/// Writes one head's key and value `[head_dim]` to slot `slot` of its page.
#[inline(always)]
fn write_f32<S: Simd>(s: S, key: &[f32], value: &[f32], keys: &mut [u8], values: &mut [u8], slot: usize) {
    let head_dim = key.len();
    for d in (0..head_dim).step_by(LANES) {
        scatter::<4>(&narrow_f32(s, load(s, key, d)), keys, |i| 4 * key_index(slot, d + i, head_dim));
        let at = 4 * value_index(slot, d, head_dim);
        values[at..at + 64].copy_from_slice(&narrow_f32(s, load(s, value, d)));
    }
}

/// The same in half precision.
#[inline(always)]
fn write_f16<S: Simd>(s: S, key: &[f32], value: &[f32], keys: &mut [u8], values: &mut [u8], slot: usize) {
    let head_dim = key.len();
    for d in (0..head_dim).step_by(LANES) {
        scatter::<2>(&narrow_f16(s, load(s, key, d)), keys, |i| 2 * key_index(slot, d + i, head_dim));
        let at = 2 * value_index(slot, d, head_dim);
        values[at..at + 32].copy_from_slice(&narrow_f16(s, load(s, value, d)));
    }
}

/// The same in bfloat16, in pairs: of channels in keys, of tokens in values.
#[inline(always)]
fn write_bf16<S: Simd>(s: S, key: &[f32], value: &[f32], keys: &mut [u8], values: &mut [u8], slot: usize) {
    let head_dim = key.len();
    let mut narrowed = [0; 2 * LANES];
    for d in (0..head_dim).step_by(LANES) {
        narrow(s, load(s, key, d), &mut narrowed);
        scatter::<4>(&narrowed, keys, |i| 2 * paired_key_index(slot, d + 2 * i));
        narrow(s, load(s, value, d), &mut narrowed);
        let at = 2 * paired_value_index(slot, d, head_dim);
        for (place, number) in values[at..].chunks_mut(4).zip(narrowed.chunks_exact(2)) {
            place[..2].copy_from_slice(number);
        }
    }
}

/// Channels `d..d + 16`.
#[inline(always)]
fn load<S: Simd>(s: S, x: &[f32], d: usize) -> S::F {
    s.load(&x[d..].as_chunks::<LANES>().0[0])
}

#[inline(always)]
fn narrow_f32<S: Simd>(s: S, x: S::F) -> [u8; 64] {
    let mut lanes = [0.0; LANES];
    s.store(x, &mut lanes);
    let mut out = [0; 64];
    for (out, x) in out.chunks_exact_mut(4).zip(lanes) {
        out.copy_from_slice(&x.to_le_bytes());
    }
    out
}

#[inline(always)]
fn narrow_f16<S: Simd>(s: S, x: S::F) -> [u8; 32] {
    let mut out = [0; 32];
    s.store_f16(x, &mut out);
    out
}

/// Writes a key's numbers, or pairs of them, of `SIZE` bytes each, to the places `place(i)` in bytes.
#[inline(always)]
fn scatter<const SIZE: usize>(lanes: &[u8], keys: &mut [u8], place: impl Fn(usize) -> usize) {
    for (i, lane) in lanes.chunks_exact(SIZE).enumerate() {
        let at = place(i);
        keys[at..at + SIZE].copy_from_slice(lane);
    }
}
