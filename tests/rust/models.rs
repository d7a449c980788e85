//! Checkpoints to run, texts to run them on, and what of a run must be the same bits.

use std::ops::Range;
use std::path::PathBuf;

use edgewise::kernels::{Cpu, Tier};
use edgewise::model::open::{Options, open};
use edgewise::model::{Engine, LayerState, Prompt, State};

/// A checkpoint by its path in the repository, and the formats to hold it in.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub path: &'static str,
    pub dtype: &'static str,
    pub kv_dtype: &'static str,
    pub recipe: Option<&'static str>,
}

/// The demo model: INT4 and INT8 blocks, 192 wide.
pub const DEMO: Model = Model::new("python/edgewise/demo/demo.safetensors", "auto");
/// Eight layers, 64 wide, separate head.
pub const TINY: &str = "tests/golden/dense_text";

impl Model {
    pub const fn new(path: &'static str, dtype: &'static str) -> Self {
        Self { path, dtype, kv_dtype: "auto", recipe: None }
    }

    pub fn options(&self) -> Options {
        Options::parse(self.dtype, self.kv_dtype, self.recipe).unwrap()
    }

    pub fn open(&self, tier: Tier, threads: usize) -> Engine {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(self.path);
        open(&path, &self.options(), Cpu::new(tier, threads), &mut |_, _, _| Ok(())).unwrap().engine
    }

    pub fn open_fastest(&self, threads: usize) -> Engine {
        self.open(*Tier::available().last().unwrap(), threads)
    }
}

/// `tokens` token ids without a short period.
pub fn text(engine: &Engine, tokens: usize, seed: u32) -> Vec<u32> {
    let vocab = engine.model.config.vocab_size as u32;
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocab
    };
    (0..tokens).map(|_| next()).collect()
}

/// Appends and never stops.
pub fn append(engine: &Engine, state: &mut State, ids: &[u32]) {
    engine.append(state, Prompt::text(ids), &mut || Ok(())).unwrap();
}

/// Bits of the logits after the last token, `[vocab]`.
pub fn logits(engine: &Engine, state: &State) -> Vec<u32> {
    let mut out = vec![0.0; engine.model.config.vocab_size];
    engine.logits(state, &mut out).unwrap();
    bits(&out)
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Everything a sequence keeps, by name, as bits.
pub fn arrays(state: &State) -> Vec<(String, Vec<u32>)> {
    let mut all = Vec::new();
    for (i, layer) in state.layers().iter().enumerate() {
        let arrays = match layer {
            LayerState::GatedDelta(delta) => {
                let recent = delta.recent_of_heads(state.recent_tokens());
                vec![
                    ("conv_tail", delta.conv_tail.to_vec()),
                    ("memory", delta.memory.to_vec()),
                    ("recent", recent.concat()),
                ]
            }
            LayerState::Attention(cache) => {
                let (keys, values) = cache.to_f32();
                vec![("keys", keys), ("values", values)]
            }
        };
        all.extend(arrays.into_iter().map(|(name, x)| (format!("layer {i} {name}"), bits(&x))));
    }
    all
}

/// What the tokens gave, in the order they were fed.
pub struct Run {
    /// Bits of the logits after each token, `[tokens][vocab]`.
    pub logits: Vec<Vec<u32>>,
    /// The state's arrays after the last token.
    pub arrays: Vec<(String, Vec<u32>)>,
}

impl Run {
    /// All tokens in one call, logits of every position.
    pub fn at_once(engine: &Engine, ids: &[u32]) -> Self {
        Self::of(engine, Prompt::text(ids))
    }

    /// The same for a prompt that may have images.
    pub fn of(engine: &Engine, prompt: Prompt<'_>) -> Self {
        let trace = engine.trace(prompt, &mut || Ok(()), &mut |_, _| {}).unwrap();
        let logits = trace.logits.chunks_exact(engine.model.config.vocab_size).map(bits).collect();
        Self { logits, arrays: arrays(&trace.state) }
    }

    /// Feeds the same tokens again in pieces of the given sizes; the last piece takes what is left. Compares the logits
    /// after each piece, and the state at the end.
    pub fn check_pieces(
        &self,
        engine: &Engine,
        ids: &[u32],
        sizes: impl IntoIterator<Item = usize>,
        what: &str,
    ) {
        let mut state = engine.state();
        for piece in pieces(ids.len(), sizes) {
            let last = piece.end - 1;
            append(engine, &mut state, &ids[piece]);
            assert_eq!(state.len(), last + 1);
            assert_same(
                &logits(engine, &state),
                &self.logits[last],
                &format!("{what}: logits after token {last}"),
            );
        }
        self.check_arrays(&arrays(&state), what);
    }

    /// Compares another run of the same tokens.
    pub fn check(&self, other: &Self, what: &str) {
        assert_eq!(self.logits.len(), other.logits.len(), "{what}: tokens");
        for (i, (wanted, found)) in self.logits.iter().zip(&other.logits).enumerate() {
            assert_same(found, wanted, &format!("{what}: logits after token {i}"));
        }
        self.check_arrays(&other.arrays, what);
    }

    pub fn check_arrays(&self, found: &[(String, Vec<u32>)], what: &str) {
        assert_eq!(found.len(), self.arrays.len());
        for ((name, found), (_, wanted)) in found.iter().zip(&self.arrays) {
            assert_same(found, wanted, &format!("{what}: {name}"));
        }
    }
}

/// Ranges that cover `0..total`.
fn pieces(total: usize, sizes: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut sizes = sizes.into_iter();
    let mut out = Vec::new();
    let mut start = 0;
    while start < total {
        let size = sizes.next().unwrap_or(total).clamp(1, total - start);
        out.push(start..start + size);
        start += size;
    }
    out
}

/// Equal bits, or a message with the first difference instead of thousands of numbers.
pub fn assert_same(found: &[u32], wanted: &[u32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: lengths");
    let differs = |(found, wanted): (&u32, &u32)| found != wanted;
    if let Some(i) = found.iter().zip(wanted).position(differs) {
        let (a, b) = (f32::from_bits(found[i]), f32::from_bits(wanted[i]));
        panic!("{what}: number {i} of {} is {a:e}, expected {b:e}", found.len());
    }
}
