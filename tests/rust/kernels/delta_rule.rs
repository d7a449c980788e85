//! The gated delta rule: both forms against the definition and the recordings.

use edgewise::kernels::Cpu;
use edgewise::kernels::delta_rule_arrays::{
    DeltaArrays, DeltaResult, DeltaShape, gated_delta_rule_recurrent,
};
use edgewise::kernels::delta_rule_chunked::{CHUNK, gated_delta_rule_chunked};
use edgewise::kernels::reference;
use proptest::prelude::*;

use super::golden;
use super::support::{Random, TOKENS, assert_close, assert_same_bits, cpus, fastest, portable, same_on_all};

/// Owned arrays of one call.
#[derive(Clone)]
struct Case {
    shape: DeltaShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
    state: Option<Vec<f32>>,
    use_qk_l2norm: bool,
}

impl Case {
    /// Random numbers; g is uniform in `lowest..0`.
    fn random(random: &mut Random, shape: DeltaShape, lowest: f32) -> Self {
        let DeltaShape { tokens, key_heads, value_heads, key_dim, value_dim } = shape;
        Self {
            shape,
            q: random.numbers(tokens * key_heads * key_dim),
            k: random.numbers(tokens * key_heads * key_dim),
            v: random.numbers(tokens * value_heads * value_dim),
            g: random.between(tokens * value_heads, lowest, 0.0),
            beta: random.between(tokens * value_heads, 0.0, 1.0),
            state: Some(random.numbers(value_heads * key_dim * value_dim)),
            use_qk_l2norm: true,
        }
    }

    fn arrays(&self) -> DeltaArrays<'_> {
        DeltaArrays {
            shape: self.shape,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            g: &self.g,
            beta: &self.beta,
            state: self.state.as_deref(),
            scale: None,
            use_qk_l2norm: self.use_qk_l2norm,
        }
    }

    /// Tokens `range`, from `state`.
    fn part(&self, range: std::ops::Range<usize>, state: Option<Vec<f32>>) -> Self {
        let cut = |x: &[f32]| {
            let width = x.len() / self.shape.tokens;
            x[range.start * width..range.end * width].to_vec()
        };
        let shape = DeltaShape { tokens: range.len(), ..self.shape };
        let (q, k, v) = (cut(&self.q), cut(&self.k), cut(&self.v));
        Self { shape, q, k, v, g: cut(&self.g), beta: cut(&self.beta), state, ..*self }
    }

    fn recurrent(&self, cpu: &Cpu) -> DeltaResult {
        gated_delta_rule_recurrent(cpu, &self.arrays()).unwrap()
    }

    fn chunked(&self, cpu: &Cpu, chunk_size: usize) -> DeltaResult {
        gated_delta_rule_chunked(cpu, &self.arrays(), chunk_size).unwrap()
    }

    /// The recurrent form in pieces of `piece` tokens.
    fn in_pieces(&self, cpu: &Cpu, piece: usize) -> DeltaResult {
        let mut result = DeltaResult { out: Vec::new(), state: self.state.clone().unwrap() };
        for start in (0..self.shape.tokens).step_by(piece) {
            let end = (start + piece).min(self.shape.tokens);
            let next = self.part(start..end, Some(result.state)).recurrent(cpu);
            result.out.extend(next.out);
            result.state = next.state;
        }
        result
    }

    fn expected(&self) -> Vec<f32> {
        let width = self.shape.key_dim;
        let scale = 1.0 / (width as f64).sqrt();
        let (q, k) = if self.use_qk_l2norm {
            (reference::l2_norm(&self.q, width, 1e-6, scale), reference::l2_norm(&self.k, width, 1e-6, 1.0))
        } else {
            (self.q.iter().map(|&q| (f64::from(q) * scale) as f32).collect(), self.k.clone())
        };
        let zeros = vec![0.0; self.shape.value_heads * width * self.shape.value_dim];
        let state = self.state.as_ref().unwrap_or(&zeros);
        let (out, state) = reference::delta_rule(self.shape, &q, &k, &self.v, &self.g, &self.beta, state);
        [out, state].concat()
    }
}

fn concat(result: DeltaResult) -> Vec<f32> {
    [result.out, result.state].concat()
}

fn shape(tokens: usize, heads: [usize; 2], dims: [usize; 2]) -> DeltaShape {
    DeltaShape { tokens, key_heads: heads[0], value_heads: heads[1], key_dim: dims[0], value_dim: dims[1] }
}

/// Head counts and dimensions: one tile, an odd number of them, pairs, the model's, and sizes that need filling up.
const HEADS: [([usize; 2], [usize; 2]); 7] = [
    ([1, 1], [16, 16]),
    ([2, 4], [16, 48]),
    ([1, 3], [32, 32]),
    ([1, 2], [128, 128]),
    ([2, 2], [4, 64]),
    ([1, 2], [10, 24]),
    ([3, 3], [1, 1]),
];

#[test]
fn recurrent_form_on_every_cpu() {
    let (cpus, mut random) = (cpus(), Random::new(30));
    for (heads, dims) in HEADS {
        for tokens in TOKENS {
            let case = Case::random(&mut random, shape(tokens, heads, dims), -2.0);
            let what = format!("{:?}", case.shape);
            let found = same_on_all(&what, &cpus, |cpu| concat(case.recurrent(cpu)));
            assert_close(&what, &found, &case.expected(), 1e-5);
        }
    }
}

#[test]
fn recurrent_form_in_pieces_gives_the_same_bits() {
    let mut random = Random::new(31);
    for (heads, dims) in HEADS {
        let case = Case::random(&mut random, shape(17, heads, dims), -2.0);
        for cpu in [portable(), fastest(), Cpu::new(fastest().tier, 3)] {
            let whole = concat(case.recurrent(&cpu));
            for piece in [1, 2, 5, 16] {
                assert_same_bits("in pieces", &concat(case.in_pieces(&cpu, piece)), &whole);
            }
        }
    }
}

/// A head does not see its neighbours: one head of a call alone gives that head's bits.
#[test]
fn heads_are_independent() {
    let mut random = Random::new(32);
    let case = Case::random(&mut random, shape(5, [2, 4], [16, 48]), -2.0);
    let whole = case.recurrent(&fastest());
    let column = |x: &[f32], heads: usize, head: usize| -> Vec<f32> {
        let width = x.len() / (5 * heads);
        x.chunks(width).skip(head).step_by(heads).flatten().copied().collect()
    };
    for head in 0..4 {
        let state = case.state.as_ref().unwrap()[head * 16 * 48..][..16 * 48].to_vec();
        let alone = Case {
            shape: shape(5, [1, 1], [16, 48]),
            q: column(&case.q, 2, head / 2),
            k: column(&case.k, 2, head / 2),
            v: column(&case.v, 4, head),
            g: column(&case.g, 4, head),
            beta: column(&case.beta, 4, head),
            state: Some(state),
            use_qk_l2norm: true,
        };
        assert_same_bits("head", &alone.recurrent(&fastest()).out, &column(&whole.out, 4, head));
    }
}

#[test]
fn chunked_form_on_every_cpu_and_in_every_size() {
    let (cpus, mut random) = (cpus(), Random::new(33));
    for (tokens, chunk_size) in
        [(1, 64), (2, 1), (16, 16), (63, 64), (64, 64), (65, 64), (130, 64), (65, 7), (40, 1000)]
    {
        for (heads, dims) in [([1, 2], [32, 16]), ([2, 2], [10, 24]), ([1, 1], [128, 32])] {
            let case = Case::random(&mut random, shape(tokens, heads, dims), -2.0);
            let what = format!("{:?} in chunks of {chunk_size}", case.shape);
            let found = same_on_all(&what, &cpus, |cpu| concat(case.chunked(cpu, chunk_size)));
            assert_close(&what, &found, &case.expected(), 1e-5);
        }
    }
}

/// Decays from none to total, rates of exactly 0 and 1, in both forms.
#[test]
fn extreme_gates() {
    let mut random = Random::new(34);
    for lowest in [0.0, -1e-4, -20.0, -500.0] {
        let mut case = Case::random(&mut random, shape(150, [1, 2], [32, 32]), lowest);
        for (i, (g, beta)) in case.g.iter_mut().zip(&mut case.beta).enumerate() {
            match i % 11 {
                0 => *beta = 0.0,
                1 => *beta = 1.0,
                2 => *g = 0.0,
                3 if lowest < -100.0 => *g = f32::NEG_INFINITY,
                _ => {}
            }
        }
        let expected = case.expected();
        assert!(expected.iter().all(|x| x.is_finite()));
        assert_close("recurrent", &concat(case.recurrent(&fastest())), &expected, 2e-5);
        assert_close("chunked", &concat(case.chunked(&fastest(), CHUNK)), &expected, 2e-5);
    }
}

#[test]
fn long_sequences_do_not_drift() {
    let mut random = Random::new(35);
    let case = Case::random(&mut random, shape(3000, [1, 1], [64, 16]), -0.01);
    let expected = case.expected();
    assert_close("recurrent", &concat(case.recurrent(&fastest())), &expected, 5e-5);
    assert_close("chunked", &concat(case.chunked(&fastest(), CHUNK)), &expected, 5e-5);
}

/// Outputs and states that the original model code recorded.
#[test]
fn recordings_of_the_original() {
    let description = golden::json("delta_rule/case.json");
    let arrays = golden::arrays("delta_rule/case.safetensors");
    let cases = description["cases"].as_array().unwrap();
    assert!(cases.len() >= 8);
    for entry in cases {
        let name = entry["name"].as_str().unwrap();
        let size = |key: &str| entry[key].as_u64().unwrap() as usize;
        let array = |key: &str| arrays[&format!("{name}.{key}")].clone();
        let case = Case {
            shape: shape(size("T"), [size("k_heads"), size("v_heads")], [size("k_dim"), size("v_dim")]),
            q: array("q"),
            k: array("k"),
            v: array("v"),
            g: array("g"),
            beta: array("beta"),
            state: arrays.get(&format!("{name}.initial_state")).cloned(),
            use_qk_l2norm: entry["use_qk_l2norm"].as_bool().unwrap(),
        };
        let expected = [array("out"), array("state")].concat();
        for cpu in [portable(), fastest()] {
            assert_close(name, &concat(case.recurrent(&cpu)), &expected, 1e-4);
            assert_close(name, &concat(case.chunked(&cpu, CHUNK)), &expected, 1e-4);
        }
        assert_close(name, &case.expected(), &expected, 1e-4);
    }
}

#[test]
fn no_state_means_zeros_and_the_scale_is_the_callers() {
    let mut random = Random::new(36);
    let mut case = Case::random(&mut random, shape(9, [1, 2], [16, 16]), -1.0);
    case.state = Some(vec![0.0; 2 * 16 * 16]);
    let without = DeltaArrays { state: None, ..case.arrays() };
    let doubled = DeltaArrays { scale: Some(0.5), ..case.arrays() };
    let cpu = fastest();
    for form in [gated_delta_rule_recurrent, |cpu: &Cpu, arrays: &DeltaArrays<'_>| {
        gated_delta_rule_chunked(cpu, arrays, 4)
    }] {
        let expected = form(&cpu, &case.arrays()).unwrap();
        assert_eq!(form(&cpu, &without).unwrap(), expected);
        let twice: Vec<f32> = expected.out.iter().map(|x| 2.0 * x).collect();
        assert_same_bits("scale", &form(&cpu, &doubled).unwrap().out, &twice);
    }
}

#[test]
fn no_tokens_leave_the_state_alone() {
    let case = Case::random(&mut Random::new(37), shape(0, [1, 2], [16, 16]), -1.0);
    for result in [case.recurrent(&fastest()), case.chunked(&fastest(), CHUNK)] {
        assert!(result.out.is_empty());
        assert_eq!(Some(result.state), case.state);
    }
}

#[test]
fn wrong_arrays_are_named() {
    let case = Case::random(&mut Random::new(38), shape(3, [2, 4], [16, 16]), -1.0);
    let arrays = case.arrays();
    let with = |shape: DeltaShape| DeltaArrays { shape, ..arrays };
    let wrong = [
        ("q", DeltaArrays { q: &case.q[1..], ..arrays }),
        ("k", DeltaArrays { k: &[], ..arrays }),
        ("v", DeltaArrays { v: &case.q, ..arrays }),
        ("g", DeltaArrays { g: &case.g[1..], ..arrays }),
        ("beta", DeltaArrays { beta: &case.beta[1..], ..arrays }),
        ("state", DeltaArrays { state: Some(&case.q), ..arrays }),
        ("v", with(DeltaShape { key_heads: 3, ..case.shape })),
        ("key_heads", with(DeltaShape { key_heads: 0, ..case.shape })),
        ("k_dim", with(DeltaShape { key_dim: 0, ..case.shape })),
        ("q", with(DeltaShape { tokens: usize::MAX, ..case.shape })),
    ];
    for (name, arrays) in wrong {
        let message = gated_delta_rule_recurrent(&fastest(), &arrays).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{name}: ")), "{message}");
        let same = gated_delta_rule_chunked(&fastest(), &arrays, 64).unwrap_err().to_string();
        assert_eq!(same, message);
    }
    let message = gated_delta_rule_chunked(&fastest(), &arrays, 0).unwrap_err().to_string();
    assert!(message.starts_with("chunk_size: "), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_and_any_cut(
        seed: u64,
        tokens in 1_usize..40,
        key_heads in 1_usize..3,
        group in 1_usize..4,
        key_dim in 1_usize..40,
        value_dim in 1_usize..40,
        cut in 1_usize..40,
        chunk_size in 1_usize..80,
    ) {
        let shape = shape(tokens, [key_heads, key_heads * group], [key_dim, value_dim]);
        let case = Case::random(&mut Random::new(seed), shape, -3.0);
        let (expected, cpu) = (case.expected(), fastest());
        let whole = concat(case.recurrent(&cpu));
        assert_close("recurrent", &whole, &expected, 2e-5);
        assert_close("chunked", &concat(case.chunked(&cpu, chunk_size)), &expected, 2e-5);
        assert_same_bits("in pieces", &concat(case.in_pieces(&cpu, cut)), &whole);
        assert_same_bits("portable", &concat(case.recurrent(&portable())), &whole);
    }
}
