//! A few queries on their way through the pages of one head of keys.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::activations::{Group, quantize_span};
use super::super::bf16::pairs;
use super::super::cpu::Cpu;
use super::super::elements::{Element, F16, F32};
use super::super::kv_cache::int8::{GROUP, groups};
use super::super::kv_cache::{KvCache, KvType, PAGE};
use super::super::lanes::{LANES, Op, Simd};
use super::super::prefetch::{Reads, Stream};
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

/// Rows of queries `[head_dim]` in the form in which they meet a cache.
#[derive(Debug, Default)]
pub struct Forms {
    /// For bfloat16.
    paired: Vec<PairedQuery>,
    /// For INT8: `[rows][groups]`
    quantized: Vec<Group>,
}

impl Forms {
    /// Makes room for `rows` rows of any form.
    pub fn reserve(&mut self, rows: usize) {
        self.paired.reserve_exact(rows.saturating_sub(self.paired.len()));
        self.quantized.reserve_exact((rows * MAX_GROUPS).saturating_sub(self.quantized.len()));
    }

    /// Takes `rows` in, in the form that meets `cache`.
    pub fn fill<'a>(&mut self, cpu: &Cpu, cache: &KvCache, rows: impl ExactSizeIterator<Item = &'a [f32]>) {
        match cache.kv_type() {
            KvType::F32 | KvType::F16 => {}
            KvType::Bf16 => {
                self.paired.resize(rows.len(), [[0; 2]; MAX_HEAD_DIM / 2]);
                cpu.run(PairUp { rows, paired: &mut self.paired });
            }
            KvType::Int8 => {
                self.quantized.resize(rows.len() * groups(cache.head_dim()), Group::default());
                cpu.run(Quantize { rows, groups: &mut self.quantized });
            }
        }
    }

    /// Some of the rows that [`Self::fill`] took in.
    fn rows(&self, cache: &KvCache, rows: Range<usize>) -> Form<'_> {
        match cache.kv_type() {
            KvType::F32 | KvType::F16 => Form::Float,
            KvType::Bf16 => Form::Paired(&self.paired[rows]),
            KvType::Int8 => {
                let width = groups(cache.head_dim());
                Form::Quantized(&self.quantized[rows.start * width..rows.end * width])
            }
        }
    }
}

/// Up to [`QUERIES`] queries that see the keys of head `head` of `cache`, their positions in increasing order.
pub struct Queries<'a> {
    cache: &'a KvCache,
    head: usize,
    all: [Query<'a>; QUERIES],
    len: usize,
    form: Form<'a>,
}

/// What queries are when they meet keys.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// As they were given.
    Float,
    /// bfloat16
    Paired(&'a [PairedQuery]),
    /// `[queries][groups]`
    Quantized(&'a [Group]),
}

impl<'a> Queries<'a> {
    /// `queries`, which rows `first..` of `forms` are.
    pub fn new(
        cache: &'a KvCache,
        head: usize,
        queries: impl Iterator<Item = Query<'a>>,
        forms: &'a Forms,
        first: usize,
    ) -> Self {
        let mut all = [Query { values: &[], last: 0 }; QUERIES];
        let mut len = 0;
        for query in queries {
            assert_eq!(query.values.len(), cache.head_dim());
            all[len] = query;
            len += 1;
        }
        Self { cache, head, all, len, form: forms.rows(cache, first..first + len) }
    }

    /// How many of the first queries do not see token `token`.
    pub fn blind_before(&self, token: usize) -> usize {
        self.all[..self.len].partition_point(|query| query.last < token)
    }
}

/// Moves the partial results of heads that stand side by side, one for each query, on by the pages `pages`, or what is visible
/// of them. Pages are read in the order of memory.
pub fn walk(cpu: &Cpu, pages: Range<usize>, heads: &mut [(&Queries<'_>, &mut [Partial])]) {
    let (cache, first, last) = (heads[0].0.cache, heads[0].0.head, heads[heads.len() - 1].0.head);
    // Who has walked a span most often walks the next one.
    let all = cache.len().div_ceil(PAGE);
    for page in pages {
        let next = if page + 1 < all { cache.heads(page + 1, first..last + 1) } else { &[] };
        for (queries, partials) in &mut *heads {
            let seeing = queries.blind_before(page * PAGE);
            if seeing < queries.len {
                let this = cache.heads(page, queries.head..last + 1);
                let stream = Stream { this, next, ..Stream::default() };
                cpu.run(Visit {
                    queries,
                    page,
                    stream,
                    first: seeing,
                    partials: &mut partials[..queries.len],
                });
            }
        }
    }
}

struct PairUp<'a, R> {
    /// `[head_dim]` each
    rows: R,
    paired: &'a mut [PairedQuery],
}

impl<'r, R: Iterator<Item = &'r [f32]>> Op for PairUp<'_, R> {
    type Output = ();
    const BLOCKS: bool = false;
    const PAIRS: bool = true;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, paired) in self.rows.zip(self.paired) {
            let vectors = row.as_chunks::<LANES>().0;
            for (channels, paired) in vectors.iter().zip(paired.as_chunks_mut().0) {
                pairs(s, s.load(channels), paired);
            }
        }
    }
}

struct Quantize<'a, R> {
    /// `[head_dim]` each
    rows: R,
    /// `[rows][groups]`
    groups: &'a mut [Group],
}

impl<'r, R: Iterator<Item = &'r [f32]>> Op for Quantize<'_, R> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut groups = self.groups.iter_mut();
        for row in self.rows {
            for (channels, group) in row.chunks(GROUP).zip(&mut groups) {
                quantize_span(s, channels, std::slice::from_mut(group));
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
            let stream = match (done == self.first, done + size == queries.len()) {
                (true, true) => Stream { reads: Reads::Once, ..self.stream },
                (true, false) => Stream { reads: Reads::Again, ..self.stream },
                _ => Stream::default(),
            };
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
        match queries.form {
            Form::Float => {
                let mut values = [&[][..]; T];
                for (values, query) in values.iter_mut().zip(&queries.all[first..]) {
                    *values = query.values;
                }
                if cache.kv_type() == KvType::F32 {
                    s.apart(FloatPage::<F32, T> {
                        queries: &values,
                        page,
                        stream,
                        visible,
                        partials,
                        element: PhantomData,
                    });
                } else {
                    s.apart(FloatPage::<F16, T> {
                        queries: &values,
                        page,
                        stream,
                        visible,
                        partials,
                        element: PhantomData,
                    });
                }
            }
            Form::Paired(all) => {
                let queries = all[first..].first_chunk::<T>().expect("as many queries as the tile has");
                s.apart(Bf16Page { queries, head_dim, page, stream, visible, partials });
            }
            Form::Quantized(all) => {
                let width = groups(head_dim);
                let mut quantized = [&[][..]; T];
                for (t, groups) in quantized.iter_mut().enumerate() {
                    *groups = &all[(first + t) * width..(first + t + 1) * width];
                }
                s.apart(Int8Page { queries: &quantized, head_dim, page, stream, visible, partials });
            }
        }
    }
}

/// [`float_page::visit`]
struct FloatPage<'a, E, const T: usize> {
    queries: &'a [&'a [f32]; T],
    page: (&'a [u8], &'a [u8]),
    stream: Stream<'a>,
    visible: usize,
    partials: &'a mut [Partial],
    element: PhantomData<E>,
}

impl<E: Element, const T: usize> Op for FloatPage<'_, E, T> {
    type Output = ();
    const BLOCKS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { queries, page, stream, visible, partials, .. } = self;
        float_page::visit::<S, E, T>(s, queries, page, stream, visible, partials);
    }
}

/// [`bf16_page::visit`]
struct Bf16Page<'a, const T: usize> {
    queries: &'a [PairedQuery; T],
    head_dim: usize,
    page: (&'a [u8], &'a [u8]),
    stream: Stream<'a>,
    visible: usize,
    partials: &'a mut [Partial],
}

impl<const T: usize> Op for Bf16Page<'_, T> {
    type Output = ();
    const BLOCKS: bool = false;
    const PAIRS: bool = true;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { queries, head_dim, page, stream, visible, partials } = self;
        bf16_page::visit::<S, T>(s, queries, head_dim, page, stream, visible, partials);
    }
}

/// [`int8_page::visit`]
struct Int8Page<'a, const T: usize> {
    /// `[queries][groups]`
    queries: &'a [&'a [Group]; T],
    head_dim: usize,
    page: (&'a [u8], &'a [u8]),
    stream: Stream<'a>,
    visible: usize,
    partials: &'a mut [Partial],
}

impl<const T: usize> Op for Int8Page<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { queries, head_dim, page, stream, visible, partials } = self;
        int8_page::visit(s, queries, head_dim, page, stream, visible, partials);
    }
}
