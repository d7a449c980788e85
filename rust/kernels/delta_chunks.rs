//! The gated delta rule in chunks of eight tokens, as the model runs it.
//!
//! A head keeps a state S `[k_dim, v_dim]`. Token by token ([`delta_rule`](super::delta_rule)) each token reads S, changes it and
//! writes it back: four multiplications for each of its numbers, and a token of a text that is written moves twice the bytes
//! it needs. Here S stands still for eight tokens. Each of them asks it twice, and what the tokens before it in its chunk
//! have added comes from their keys and deltas:
//!
//! ```text
//! at a chunk's first token:  fade[S] = 1                         what is left of S
//! for token i of the chunk:
//!   fade     = a[i] fade of S and of all earlier tokens; fade[i] = 1
//!   delta[i] = beta[i] (v[i] - fade[S] (S^T k[i]) - sum over j < i of fade[j] (k[i] . k[j]) delta[j])
//!   out[i]   = fade[S] (S^T q[i]) + sum over j <= i of fade[j] (q[i] . k[j]) delta[j]
//! after its last token:      S = fade[S] S + sum over j of k[j] (fade[j] delta[j])^T
//! ```
//!
//! That is the chunked form of the papers ([`delta_rule_chunked`](super::delta_rule_chunked)) without an inverse: a row of it is
//! solved when its token comes.
//!
//! **Cost.** 3 + 1/8 multiplications for each number of S and a token, and 8 for each channel of a value: with heads of 128, 0.83
//! of token by token. Seven of eight written tokens write no state back. Chunks of 4 and of 16 have as many multiplications; the
//! more tokens, the more is kept beside S.
//!
//! **A chunk begins at every eighth token of a text**, whatever calls the text comes in. What later calls need of a chunk that
//! is not whole is kept as *recent*: fades, keys and deltas, so the same sums in the same order come out whether tokens arrive
//! at once or one by one. S^T x goes up from channel 0, each channel one fma; x . y goes by lanes
//! ([`dot`]); tokens of a chunk are added in their order.
//!
//! **Lanes are value channels.** S is held as tiles of 16 of them, `[v_dim / 16][k_dim][16]`: 8 KB for k_dim 128, at home in L1.
//! A pair of tiles walks through all chunks of a block, so that what it loads of a key or query serves twice; few tokens, which
//! wait for memory, take tile after tile. With registers for it, eight keys are multiplied with a pair at once, then eight
//! queries; else, and where a token comes alone, its key and its query.
//!
//! A fade below 2^-100 is 0: it could not be told from 0 beside anything that has not faded, and subnormal numbers are slow.
//!
//! Source: Yang et al. 2024, Gated Delta Networks (arXiv 2412.06464).
#![allow(unsafe_code, reason = "unchecked reads in the sweeps")]

use super::lanes::{LANES, Simd};
use super::math::dot;
use super::prefetch;
use crate::config::DeltaConfig;

/// Tokens of a chunk.
pub const CHUNK: usize = 8;
/// Rows from one that is read to one that is asked for.
const AHEAD: usize = 64;
/// Where the fade of S stands among fades.
const STATE: usize = CHUNK;
// Fades, and factors of keys and of queries, fill a vector.
const _: () = assert!(LANES == 2 * CHUNK);
/// A fade below this is none.
const FAINT: f32 = 1.0 / (1_u128 << 100) as f32;

/// Of a key head: what is kept of the tokens since the last whole chunk. `[fades of each value head | for each token: key | deltas
/// of each value head]`, fades `[value heads, 16]`: of token j at j, of the state at 8.
#[derive(Clone, Copy, Debug)]
pub struct Recent {
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
}

impl Recent {
    /// For the heads of a model.
    pub fn new(shape: &DeltaConfig) -> Self {
        let value_heads = shape.value_heads / shape.key_heads;
        Self { value_heads, key_dim: shape.key_dim, value_dim: shape.value_dim }
    }

    /// Floats of a key head that mean something when `tokens` tokens are kept; none if none are.
    pub fn len(self, tokens: usize) -> usize {
        if tokens == 0 { 0 } else { self.key(tokens) }
    }

    /// Floats of a key head.
    pub fn room(self) -> usize {
        self.len(CHUNK - 1)
    }

    fn row(self) -> usize {
        self.key_dim + self.value_heads * self.value_dim
    }

    fn fades(self, value_head: usize) -> usize {
        value_head * LANES
    }

    fn key(self, token: usize) -> usize {
        self.value_heads * LANES + token * self.row()
    }

    fn deltas(self, token: usize, value_head: usize) -> usize {
        self.key(token) + self.key_dim + value_head * self.value_dim
    }
}

/// What a key head reads and writes in a block of tokens.
pub(super) struct Block<'a> {
    pub(super) shape: Recent,
    /// Tokens of the text before the block.
    pub(super) position: usize,
    pub(super) tokens: usize,
    /// Queries and keys, `[tokens, 2, k_dim]`
    pub(super) rows: &'a [f32],
    /// Values, which results replace, `[tokens, value heads, v_dim]`
    pub(super) values: &'a mut [f32],
    /// `[value heads, tokens]`
    pub(super) decay: &'a [f32],
    /// `[value heads, tokens]`
    pub(super) beta: &'a [f32],
    /// See [`Recent`].
    pub(super) recent: &'a mut [f32],
    /// `[value heads, v_dim / 16, k_dim, 16]`
    pub(super) memory: &'a mut [f32],
    /// For [`scratch`] floats, of any contents.
    pub(super) scratch: &'a mut [f32],
}

/// Floats that a block of `tokens` needs for itself.
pub(super) fn scratch(tokens: usize) -> usize {
    3 * LANES * tokens
}

/// Some tokens of a block that are of one chunk.
#[derive(Clone, Copy)]
struct Piece {
    /// The first, in the block.
    first: usize,
    /// The first, in the chunk.
    at: usize,
    tokens: usize,
}

impl Piece {
    fn ends_chunk(self) -> bool {
        self.at + self.tokens == CHUNK
    }
}

/// Moves a block's `memory` and `recent` on.
#[inline(always)]
pub(super) fn advance<S: Simd>(s: S, block: Block<'_>) {
    let Block { shape, position, tokens, rows, values, decay, beta, recent, memory, scratch } = block;
    let Recent { value_heads, key_dim, value_dim } = shape;
    assert!(rows.len() >= tokens * 2 * key_dim && values.len() >= tokens * value_heads * value_dim);
    assert!(decay.len() >= value_heads * tokens && beta.len() >= value_heads * tokens);
    assert!(recent.len() == shape.room() && memory.len() == value_heads * value_dim * key_dim);
    let at = position % CHUNK;
    let [products, fades, factors] = thirds(scratch, LANES * tokens);
    let text = Text { shape, at, rows };
    text.multiply(s, recent, products);
    // Few tokens wait for memory, which is fastest in order: two tiles at a time are 1 to 3 % slower then, for all of a token.
    let width = if tokens < CHUNK { LANES } else { tiles_width(value_dim) };
    for head in 0..value_heads {
        let gates = head * tokens..(head + 1) * tokens;
        let before = recent[shape.fades(head)..].as_chunks_mut::<LANES>().0;
        fade(at, &decay[gates.clone()], &mut before[0], fades);
        weigh(products, fades, factors);
        for channel in (0..value_dim).step_by(width) {
            let tiles =
                (head * value_dim + channel) * key_dim..(head * value_dim + channel + width) * key_dim;
            let mut walk = Walk {
                text: &text,
                beta: &beta[gates.clone()],
                fades,
                factors,
                values,
                value_at: head * value_dim + channel,
                recent,
                deltas_at: shape.deltas(0, head) + channel,
                state: &mut memory[tiles],
            };
            if width == LANES { walk.walk::<S, 1>(s, tokens) } else { walk.walk::<S, 2>(s, tokens) }
        }
    }
    text.keep(tokens, recent);
}

/// Channels of the one or two tiles that are walked at once.
pub(super) fn tiles_width(value_dim: usize) -> usize {
    if (value_dim / LANES).is_multiple_of(2) { 2 * LANES } else { LANES }
}

fn thirds(scratch: &mut [f32], len: usize) -> [&mut [[f32; LANES]]; 3] {
    let (first, rest) = scratch.split_at_mut(len);
    let (second, rest) = rest.split_at_mut(len);
    [first, second, &mut rest[..len]].map(|third| third.as_chunks_mut().0)
}

/// Queries and keys of a block and of the chunk that it goes on with.
struct Text<'a> {
    shape: Recent,
    /// Tokens of that chunk before the block.
    at: usize,
    /// `[tokens, 2, k_dim]`
    rows: &'a [f32],
}

impl Text<'_> {
    #[inline(always)]
    fn query(&self, token: usize) -> &[f32] {
        &self.rows[2 * token * self.shape.key_dim..][..self.shape.key_dim]
    }

    #[inline(always)]
    fn key(&self, token: usize) -> &[f32] {
        &self.rows[(2 * token + 1) * self.shape.key_dim..][..self.shape.key_dim]
    }

    /// Token `token` of the block, as a token of its chunk.
    #[inline(always)]
    fn place(&self, token: usize) -> usize {
        (self.at + token) % CHUNK
    }

    /// The key of token `j` of the chunk that `token` of the block belongs to.
    #[inline(always)]
    fn key_of_chunk<'a>(&'a self, recent: &'a [f32], token: usize, j: usize) -> &'a [f32] {
        match (token + j).checked_sub(self.place(token)) {
            Some(token) => self.key(token),
            None => &recent[self.shape.key(j)..][..self.shape.key_dim],
        }
    }

    /// For each token i, k\[i\] . k\[j\] for the tokens j before it in its chunk, and from 8 on q\[i\] . k\[j\] up to itself; else
    /// zeros. `[tokens, 16]`
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, recent: &[f32], products: &mut [[f32; LANES]]) {
        for (token, products) in products.iter_mut().enumerate() {
            *products = [0.0; LANES];
            let place = self.place(token);
            for j in 0..=place {
                let key = self.key_of_chunk(recent, token, j);
                products[CHUNK + j] = dot(s, self.query(token), key);
                if j < place {
                    products[j] = dot(s, self.key(token), key);
                }
            }
        }
    }

    /// Leaves the keys of a chunk that a block of `tokens` tokens does not end.
    #[inline(always)]
    fn keep(&self, tokens: usize, recent: &mut [f32]) {
        let kept = (self.at + tokens) % CHUNK;
        for token in tokens - kept.min(tokens)..tokens {
            let key = self.shape.key(self.place(token));
            recent[key..key + self.shape.key_dim].copy_from_slice(self.key(token));
        }
    }
}

/// Fades after each token, `[tokens, 16]`, from those `before` the first, which become those after the last; `at` is the
/// first token's place in its chunk.
#[inline(always)]
fn fade(at: usize, decay: &[f32], before: &mut [f32; LANES], fades: &mut [[f32; LANES]]) {
    let mut now = *before;
    for (token, (decay, fades)) in decay.iter().zip(fades).enumerate() {
        let place = (at + token) % CHUNK;
        if place == 0 {
            now = [0.0; LANES];
            now[STATE] = 1.0;
        }
        for fade in &mut now {
            *fade *= decay;
            *fade = if *fade < FAINT { 0.0 } else { *fade };
        }
        now[place] = 1.0;
        *fades = now;
    }
    *before = now;
}

/// What deltas of a chunk's tokens are multiplied with: products times fades, `[tokens, 16]`.
#[inline(always)]
fn weigh(products: &[[f32; LANES]], fades: &[[f32; LANES]], factors: &mut [[f32; LANES]]) {
    for ((products, fades), factors) in products.iter().zip(fades).zip(factors) {
        for j in 0..CHUNK {
            factors[j] = products[j] * fades[j];
            factors[CHUNK + j] = products[CHUNK + j] * fades[j];
        }
    }
}

/// One or two neighbouring tiles of a value head, on their way through a block.
struct Walk<'a> {
    text: &'a Text<'a>,
    /// `[tokens]`
    beta: &'a [f32],
    /// `[tokens, 16]`
    fades: &'a [[f32; LANES]],
    /// `[tokens, 16]`
    factors: &'a [[f32; LANES]],
    values: &'a mut [f32],
    /// Where in a row of `values` the tiles' channels begin.
    value_at: usize,
    recent: &'a mut [f32],
    /// Where in `recent` the tiles' deltas of the first token begin.
    deltas_at: usize,
    /// `[tiles, k_dim, 16]`
    state: &'a mut [f32],
}

impl Walk<'_> {
    #[inline(always)]
    fn walk<S: Simd, const W: usize>(&mut self, s: S, tokens: usize) {
        let mut first = 0;
        while first < tokens {
            let at = self.text.place(first);
            let piece = Piece { first, at, tokens: (CHUNK - at).min(tokens - first) };
            first += piece.tokens;
            if S::WIDE && piece.tokens == CHUNK {
                self.chunk::<S, W>(s, piece.first);
            } else {
                self.piece::<S, W>(s, piece, first == tokens);
            }
        }
    }

    /// A whole chunk at once.
    #[inline(always)]
    fn chunk<S: Simd, const W: usize>(&mut self, s: S, first: usize) {
        let text = self.text;
        let (mut keys, mut queries) = ([text.rows; CHUNK], [text.rows; CHUNK]);
        for j in 0..CHUNK {
            keys[j] = text.key(first + j);
            queries[j] = text.query(first + j);
        }
        let of_keys = ask::<S, CHUNK, W>(s, self.state, &keys, false);
        let of_queries = ask::<S, CHUNK, W>(s, self.state, &queries, false);
        let mut deltas = [[s.splat(0.0); W]; CHUNK];
        for i in 0..CHUNK {
            deltas[i] = self.delta::<S, W>(s, first + i, of_keys[i], &deltas[..i]);
            self.result::<S, W>(s, first + i, of_queries[i], &deltas[..=i]);
        }
        learn::<S, W>(s, self.state, &keys, &deltas, &self.fades[first + CHUNK - 1]);
    }

    /// Some tokens of a chunk, one after the other; the `last` ones ask for what is read next.
    #[inline(always)]
    fn piece<S: Simd, const W: usize>(&mut self, s: S, piece: Piece, last: bool) {
        let mut deltas = [[s.splat(0.0); W]; CHUNK];
        for j in 0..piece.at {
            deltas[j] = load::<S, W>(s, &self.recent[self.deltas_at + j * self.text.shape.row()..]);
        }
        for (i, token) in (piece.at..).zip(piece.first..piece.first + piece.tokens) {
            let rows = [self.text.key(token), self.text.query(token)];
            let ahead = last && token + 1 == piece.first + piece.tokens;
            let [of_key, of_query] = ask::<S, 2, W>(s, self.state, &rows, ahead);
            deltas[i] = self.delta::<S, W>(s, token, of_key, &deltas[..i]);
            self.result::<S, W>(s, token, of_query, &deltas[..=i]);
        }
        let last = piece.first + piece.tokens - 1;
        if piece.ends_chunk() {
            let mut keys = [&self.recent[..0]; CHUNK];
            for j in 0..CHUNK {
                keys[j] = self.text.key_of_chunk(self.recent, last, j);
            }
            learn::<S, W>(s, self.state, &keys, &deltas, &self.fades[last]);
        } else {
            for j in piece.at..piece.at + piece.tokens {
                store::<S, W>(s, deltas[j], &mut self.recent[self.deltas_at + j * self.text.shape.row()..]);
            }
        }
    }

    /// beta (v - fade\[S\] S^T k - sum over earlier tokens); `said` is S^T k.
    #[inline(always)]
    fn delta<S: Simd, const W: usize>(
        &self,
        s: S,
        token: usize,
        said: [S::F; W],
        earlier: &[[S::F; W]],
    ) -> [S::F; W] {
        let known = self.sum::<S, W>(s, token, said, earlier, 0);
        let value = load::<S, W>(s, &self.values[self.row(token)..]);
        let beta = s.splat(self.beta[token]);
        let mut out = known;
        for w in 0..W {
            out[w] = s.mul(beta, s.sub(value[w], known[w]));
        }
        out
    }

    /// fade\[S\] S^T q + sum over tokens, in the place of the value; `said` is S^T q.
    #[inline(always)]
    fn result<S: Simd, const W: usize>(&mut self, s: S, token: usize, said: [S::F; W], deltas: &[[S::F; W]]) {
        let sum = self.sum::<S, W>(s, token, said, deltas, CHUNK);
        let row = self.row(token);
        store::<S, W>(s, sum, &mut self.values[row..]);
    }

    /// What is left of `said`, and factors from `from` on times `deltas`.
    #[inline(always)]
    fn sum<S: Simd, const W: usize>(
        &self,
        s: S,
        token: usize,
        said: [S::F; W],
        deltas: &[[S::F; W]],
        from: usize,
    ) -> [S::F; W] {
        let left = s.splat(self.fades[token][STATE]);
        let mut sum = said;
        for w in 0..W {
            sum[w] = s.mul(left, said[w]);
        }
        for (factor, delta) in self.factors[token][from..].iter().zip(deltas) {
            let factor = s.splat(*factor);
            for w in 0..W {
                sum[w] = s.fma(factor, delta[w], sum[w]);
            }
        }
        sum
    }

    #[inline(always)]
    fn row(&self, token: usize) -> usize {
        token * self.text.shape.value_heads * self.text.shape.value_dim + self.value_at
    }
}

/// S^T x for `N` rows x of k_dim, of `W` tiles; with `ahead`, asks for what stands [`AHEAD`] rows on, and so for the beginning of the
/// tiles behind them, the head's or the next head's.
#[inline(always)]
pub(super) fn ask<S: Simd, const N: usize, const W: usize>(
    s: S,
    state: &[f32],
    rows: &[&[f32]; N],
    ahead: bool,
) -> [[S::F; W]; N] {
    let key_dim = state.len() / (W * LANES);
    let tiles = state.as_chunks::<LANES>().0;
    assert!(tiles.len() == W * key_dim);
    for row in rows {
        assert!(row.len() == key_dim);
    }
    let mut sums = [[s.splat(0.0); W]; N];
    for i in 0..key_dim {
        if ahead {
            ask_for(state, key_dim, i, W);
        }
        let mut cells = [s.splat(0.0); W];
        for w in 0..W {
            // SAFETY: row i of tile w of W: there are W * key_dim, as asserted.
            cells[w] = s.load(unsafe { tiles.get_unchecked(w * key_dim + i) });
        }
        for n in 0..N {
            // SAFETY: i < key_dim, the length of each row, as asserted.
            let x = s.splat(unsafe { *rows[n].get_unchecked(i) });
            for w in 0..W {
                sums[n][w] = s.fma(cells[w], x, sums[n][w]);
            }
        }
    }
    sums
}

/// Asks for what is read 4 KB after row `i` of each of `count` tiles: rows of theirs, then of as many tiles behind them.
#[inline(always)]
fn ask_for(state: &[f32], key_dim: usize, i: usize, count: usize) {
    for tile in 0..count {
        let row = i + AHEAD;
        let place = if row < key_dim { row } else { row - key_dim + count * key_dim };
        let place = state.as_ptr().wrapping_add((tile * key_dim + place) * LANES);
        prefetch::lines(place.cast(), LANES * size_of::<f32>());
    }
}

/// S = `fade[S]` S + sum over j of k\[j\] (`fade[j]` delta\[j\])^T, of `W` tiles.
#[inline(always)]
fn learn<S: Simd, const W: usize>(
    s: S,
    state: &mut [f32],
    keys: &[&[f32]; CHUNK],
    deltas: &[[S::F; W]; CHUNK],
    fades: &[f32; LANES],
) {
    let mut faded = *deltas;
    for j in 0..CHUNK {
        let fade = s.splat(fades[j]);
        for w in 0..W {
            faded[j][w] = s.mul(fade, deltas[j][w]);
        }
    }
    let left = s.splat(fades[STATE]);
    if S::WIDE {
        add::<S, CHUNK, W, true>(s, state, left, keys, &faded);
        return;
    }
    let tile = state.len() / W;
    for (w, tile) in state.chunks_exact_mut(tile).enumerate() {
        let mut halves = [[[s.splat(0.0)]; CHUNK / 2]; 2];
        for j in 0..CHUNK {
            halves[j / (CHUNK / 2)][j % (CHUNK / 2)] = [faded[j][w]];
        }
        let (first, second) = keys.split_at(CHUNK / 2);
        let [first, second] = [first, second].map(|half| half.first_chunk().expect("half of the chunk"));
        add::<S, { CHUNK / 2 }, 1, true>(s, tile, left, first, &halves[0]);
        add::<S, { CHUNK / 2 }, 1, false>(s, tile, left, second, &halves[1]);
    }
}

/// S = (`left` S, or S) + sum over j of k\[j\] delta\[j\]^T, of `W` tiles.
#[inline(always)]
pub(super) fn add<S: Simd, const N: usize, const W: usize, const FADE: bool>(
    s: S,
    state: &mut [f32],
    left: S::F,
    keys: &[&[f32]; N],
    deltas: &[[S::F; W]; N],
) {
    let key_dim = state.len() / (W * LANES);
    let tiles = state.as_chunks_mut::<LANES>().0;
    assert!(tiles.len() == W * key_dim);
    for key in keys {
        assert!(key.len() == key_dim);
    }
    for i in 0..key_dim {
        let mut cells = [left; W];
        for w in 0..W {
            // SAFETY: row i of tile w of W: there are W * key_dim, as asserted.
            let cell = s.load(unsafe { tiles.get_unchecked(w * key_dim + i) });
            cells[w] = if FADE { s.mul(left, cell) } else { cell };
        }
        for n in 0..N {
            // SAFETY: i < key_dim, the length of each key, as asserted.
            let x = s.splat(unsafe { *keys[n].get_unchecked(i) });
            for w in 0..W {
                cells[w] = s.fma(x, deltas[n][w], cells[w]);
            }
        }
        for w in 0..W {
            // SAFETY: as above.
            s.store(cells[w], unsafe { tiles.get_unchecked_mut(w * key_dim + i) });
        }
    }
}

/// The state as it is after the recent tokens, to be looked at: `memory` and `recent` are a layer's, of all heads, `recent` with
/// `tokens` tokens. Not to the bit what the end of a chunk makes of them.
pub fn caught_up(shape: &DeltaConfig, memory: &[f32], recent: &[f32], tokens: usize) -> Vec<f32> {
    let mut state = memory.to_vec();
    if tokens == 0 {
        return state;
    }
    let of = Recent::new(shape);
    let heads = state.chunks_exact_mut(of.value_heads * of.key_dim * of.value_dim);
    for (state, recent) in heads.zip(recent.chunks_exact(of.room())) {
        for (head, state) in state.chunks_exact_mut(of.key_dim * of.value_dim).enumerate() {
            let fades = &recent[of.fades(head)..][..LANES];
            for (row, cells) in state.chunks_exact_mut(LANES).enumerate() {
                let (tile, channel) = (row / of.key_dim, row % of.key_dim);
                for (lane, cell) in cells.iter_mut().enumerate() {
                    *cell *= fades[STATE];
                    for j in 0..tokens {
                        let delta = recent[of.deltas(j, head) + tile * LANES + lane];
                        *cell += recent[of.key(j) + channel] * (fades[j] * delta);
                    }
                }
            }
        }
    }
    state
}

#[inline(always)]
pub(super) fn load<S: Simd, const W: usize>(s: S, from: &[f32]) -> [S::F; W] {
    let mut out = [s.splat(0.0); W];
    for (out, from) in out.iter_mut().zip(&from[..W * LANES].as_chunks::<LANES>().0[..W]) {
        *out = s.load(from);
    }
    out
}

#[inline(always)]
pub(super) fn store<S: Simd, const W: usize>(s: S, x: [S::F; W], to: &mut [f32]) {
    for (x, to) in x.into_iter().zip(&mut to[..W * LANES].as_chunks_mut::<LANES>().0[..W]) {
        s.store(x, to);
    }
}
