//! A few queries on their way through the pages of one head of keys.

use super::super::activations::{Group, quantize_group};
use super::super::bf16::pairs;
use super::super::cpu::Cpu;
use super::super::elements::{F16, F32};
use super::super::kv_cache::int8::{GROUP, groups};
use super::super::kv_cache::{KvCache, KvType, PAGE};
use super::super::lanes::{LANES, Op, Simd};
use super::super::prefetch::Stream;
use super::bf16_page::{self, PairedQuery};
use super::partial::Partial;
use super::{MAX_HEAD_DIM, float_page, int8_page};

/// Queries of one work item, at most: each page is fetched from memory once for all of them.
pub const QUERIES: usize = 32;
/// Groups of 32 channels of the widest head.
const MAX_GROUPS: usize = MAX_HEAD_DIM.div_ceil(GROUP);

/// One query `[head_dim]` and the absolute position of the last token it sees.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub values: &'a [f32],
    pub last: usize,
}

/// Queries that see the same keys, in the form in which they meet a cache, their positions in increasing order.
pub struct Queries<'a> {
    cache: &'a KvCache,
    /// Of keys.
    head: usize,
    all: [Query<'a>; QUERIES],
    len: usize,
    form: Form,
}

/// What queries are when they meet keys.
#[allow(
    clippy::large_enum_variant,
    reason = "lives on the stack of one work item, and what is not needed is not filled"
)]
enum Form {
    /// As they were given.
    Float,
    /// bfloat16
    Paired([PairedQuery; QUERIES]),
    /// `[queries][groups]`
    Quantized([Group; QUERIES * MAX_GROUPS]),
}

impl<'a> Queries<'a> {
    /// Up to [`QUERIES`] queries for the keys of head `head` of `cache`.
    pub fn new(cpu: &Cpu, cache: &'a KvCache, head: usize, queries: impl Iterator<Item = Query<'a>>) -> Self {
        let form = match cache.kv_type() {
            KvType::F32 | KvType::F16 => Form::Float,
            KvType::Bf16 => Form::Paired([[[0; 2]; MAX_HEAD_DIM / 2]; QUERIES]),
            KvType::Int8 => Form::Quantized([Group::default(); QUERIES * MAX_GROUPS]),
        };
        let mut all = Self { cache, head, all: [Query { values: &[], last: 0 }; QUERIES], len: 0, form };
        for query in queries {
            assert_eq!(query.values.len(), cache.head_dim());
            all.all[all.len] = query;
            all.len += 1;
        }
        let queries = &all.all[..all.len];
        match &mut all.form {
            Form::Float => {}
            Form::Paired(paired) => cpu.run(PairUp { queries, paired }),
            Form::Quantized(groups) => cpu.run(Quantize { queries, groups }),
        }
        all
    }

    /// Moves `partials`, one for each query, on by the pages `pages`, or what is visible of them.
    pub fn walk(&self, cpu: &Cpu, pages: std::ops::Range<usize>, partials: &mut [Partial]) {
        // Who has walked a span most often walks the next one.
        let all = self.cache.len().div_ceil(PAGE);
        for page in pages {
            let first = self.blind_before(page * PAGE);
            if first < self.len {
                let next = if page + 1 < all { self.cache.head_bytes(page + 1, self.head) } else { &[] };
                let stream = Stream { this: self.cache.head_bytes(page, self.head), next };
                cpu.run(Visit { queries: self, page, stream, first, partials: &mut partials[..self.len] });
            }
        }
    }

    /// How many of the first queries do not see token `token`.
    pub fn blind_before(&self, token: usize) -> usize {
        self.all[..self.len].partition_point(|query| query.last < token)
    }
}

struct PairUp<'a> {
    queries: &'a [Query<'a>],
    paired: &'a mut [PairedQuery],
}

impl Op for PairUp<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    const PAIRS: bool = true;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (query, paired) in self.queries.iter().zip(self.paired) {
            let vectors = query.values.as_chunks::<LANES>().0;
            for (channels, paired) in vectors.iter().zip(paired.as_chunks_mut().0) {
                pairs(s, s.load(channels), paired);
            }
        }
    }
}

struct Quantize<'a> {
    queries: &'a [Query<'a>],
    /// `[queries][groups]`
    groups: &'a mut [Group],
}

impl Op for Quantize<'_> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut groups = self.groups.iter_mut();
        for query in self.queries {
            for (channels, group) in query.values.chunks(GROUP).zip(&mut groups) {
                quantize_group(s, channels, group);
            }
        }
    }
}

/// Queries `first..` meet one page, tile by tile; all queries of a tile see equally much of it.
struct Visit<'a> {
    queries: &'a Queries<'a>,
    page: usize,
    stream: Stream<'a>,
    first: usize,
    partials: &'a mut [Partial],
}

impl Op for Visit<'_> {
    type Output = ();
    const PAIRS: bool = true;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let queries = &self.queries.all[..self.queries.len];
        let visible = |query: &Query<'_>| (query.last + 1 - self.page * PAGE).min(PAGE);
        let mut done = self.first;
        while done < queries.len() {
            let seen = visible(&queries[done]);
            let alike = queries[done..].iter().take_while(|query| visible(query) == seen).count();
            let size = tile_size(alike, if S::WIDE { 8 } else { 4 });
            // The first tile asks for memory, for all of them.
            let stream = if done == self.first { self.stream } else { Stream::default() };
            let tile = Tile { queries: self.queries, page: self.page, stream, first: done, visible: seen };
            let partials = &mut self.partials[done..done + size];
            match size {
                8 if S::WIDE => tile.visit::<S, 8>(s, partials),
                4 => tile.visit::<S, 4>(s, partials),
                2 => tile.visit::<S, 2>(s, partials),
                _ => tile.visit::<S, 1>(s, partials),
            }
            done += size;
        }
    }
}

/// The largest power of two that is at most `left` and `most`, itself a power of two.
fn tile_size(left: usize, most: usize) -> usize {
    if left >= most { most } else { 1 << left.ilog2() }
}

/// Queries `first..` that see `visible` tokens of page `page`.
struct Tile<'a> {
    queries: &'a Queries<'a>,
    page: usize,
    stream: Stream<'a>,
    first: usize,
    visible: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn visit<S: Simd, const T: usize>(self, s: S, partials: &mut [Partial]) {
        let Self { queries, page, stream, first, visible } = self;
        let (cache, head_dim) = (queries.cache, queries.cache.head_dim());
        let page = cache.head(page, queries.head);
        match &queries.form {
            Form::Float => {
                let mut values = [&[][..]; T];
                for (values, query) in values.iter_mut().zip(&queries.all[first..]) {
                    *values = query.values;
                }
                if cache.kv_type() == KvType::F32 {
                    float_page::visit::<S, F32, T>(s, &values, page, stream, visible, partials);
                } else {
                    float_page::visit::<S, F16, T>(s, &values, page, stream, visible, partials);
                }
            }
            Form::Paired(all) => {
                let paired = all[first..].first_chunk().expect("as many queries as the tile has");
                bf16_page::visit::<S, T>(s, paired, head_dim, page, stream, visible, partials);
            }
            Form::Quantized(all) => {
                let width = groups(head_dim);
                let mut quantized = [&[][..]; T];
                for (t, groups) in quantized.iter_mut().enumerate() {
                    *groups = &all[(first + t) * width..(first + t + 1) * width];
                }
                int8_page::visit(s, &quantized, head_dim, page, stream, visible, partials);
            }
        }
    }
}
