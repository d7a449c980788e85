//! The feed-forward network of many experts.

use edgewise::kernels::Cpu;
use edgewise::kernels::activation::{sigmoid_in_place, swiglu};
use edgewise::kernels::activations::QuantizedRows;
use edgewise::kernels::experts::{ExpertScratch, Experts, Shared, expert_feed_forward};
use edgewise::kernels::linear::{Input, Store};
use edgewise::kernels::reference;
use edgewise::kernels::routing::Routes;
use edgewise::tensor::Bytes;
use edgewise::weights::matrix::{Format, Matrix};
use edgewise::weights::model::SwiGluWeights;
use proptest::prelude::*;

use super::linear::{matrix, multiply};
use super::support::{
    Random, assert_close, assert_same_bits, cpus, fastest, portable, same_bits, same_on_all,
};

/// Hidden size and width: whole panels, blocks and spans, and the edges around them.
const SHAPES: [[usize; 2]; 11] = [
    [64, 32],
    [32, 64],
    [48, 16],
    [33, 31],
    [16, 33],
    [100, 47],
    [7, 1],
    [1, 80],
    [20, 128],
    [16, 129],
    [40, 300],
];

/// Number of experts and how many of them a token takes.
const CHOICES: [[usize; 2]; 7] = [[1, 1], [2, 1], [2, 2], [7, 3], [8, 8], [8, 1], [33, 4]];

/// Numbers of tokens.
const TOKENS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 32, 33, 64, 70];

/// All matrices of all experts in one format.
fn all_of(format: Format) -> impl Fn(usize) -> [Format; 3] {
    move |_| [format; 3]
}

/// Each matrix in another format than its neighbours.
fn mixed(i: usize) -> [Format; 3] {
    [0, 1, 3].map(|j| Format::ALL[(i + j) % Format::ALL.len()])
}

fn expert(random: &mut Random, formats: [Format; 3], hidden: usize, width: usize) -> SwiGluWeights {
    let [gate, up, down] = formats;
    SwiGluWeights {
        gate: matrix(random, gate, width, hidden),
        up: matrix(random, up, width, hidden),
        down: matrix(random, down, hidden, width),
    }
}

/// What a layer with experts is asked.
struct Layer {
    experts: Vec<SwiGluWeights>,
    /// An expert for all, and its gate `[tokens]`
    shared: Option<(SwiGluWeights, Vec<f32>)>,
    /// `[tokens, hidden]`
    x: Vec<f32>,
    routes: Routes,
}

impl Layer {
    fn random(
        random: &mut Random,
        formats: impl Fn(usize) -> [Format; 3],
        [hidden, width]: [usize; 2],
        [experts, per_token]: [usize; 2],
        tokens: usize,
    ) -> Self {
        Self {
            experts: (0..experts).map(|i| expert(random, formats(i), hidden, width)).collect(),
            shared: None,
            x: random.numbers(tokens * hidden),
            routes: random_routes(random, experts, per_token, tokens),
        }
    }

    /// With one more expert, for all tokens.
    fn sharing(mut self, random: &mut Random, formats: [Format; 3], width: usize) -> Self {
        let gate = random.between(self.tokens(), -4.0, 4.0);
        self.shared = Some((expert(random, formats, self.hidden(), width), gate));
        self
    }

    fn hidden(&self) -> usize {
        self.experts[0].gate.cols()
    }

    fn tokens(&self) -> usize {
        self.x.len() / self.hidden()
    }

    /// Tokens `range` alone.
    fn part(&self, range: std::ops::Range<usize>) -> (Vec<f32>, Routes, Option<Shared<'_>>) {
        let k = self.routes.per_token();
        let routes = range.start * k..range.end * k;
        let routes = Routes::new(
            self.routes.experts()[routes.clone()].to_vec(),
            self.routes.weights()[routes].to_vec(),
            k,
        );
        let x = self.x[range.start * self.hidden()..range.end * self.hidden()].to_vec();
        let shared = self.shared.as_ref().map(|(weights, gate)| Shared { weights, gate: &gate[range] });
        (x, routes, shared)
    }

    /// The result for tokens `range`, added to `out` or instead of it.
    fn run_part(
        &self,
        cpu: &Cpu,
        range: std::ops::Range<usize>,
        scratch: &mut ExpertScratch,
        out: &mut [f32],
        store: Store,
    ) {
        let (x, routes, shared) = self.part(range);
        let mut quantized = QuantizedRows::default();
        quantized.fill(cpu, &x, self.hidden());
        let input = Input { dense: &x, quantized: Some(&quantized), tokens: x.len() / self.hidden() };
        let experts = Experts { routed: &self.experts, shared };
        expert_feed_forward(cpu, experts, input, &routes, scratch, out, store);
    }

    fn run(&self, cpu: &Cpu) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.x.len()];
        self.run_part(cpu, 0..self.tokens(), &mut ExpertScratch::default(), &mut out, Store::Set);
        out
    }

    /// The same of other kernels: token by token, expert by expert in rising order, each operation for itself.
    fn composed(&self) -> Vec<f32> {
        let cpu = portable();
        let k = self.routes.per_token();
        let mut out = vec![0.0; self.x.len()];
        let hidden = self.hidden();
        for (t, (x, out)) in self.x.chunks(hidden).zip(out.chunks_mut(hidden)).enumerate() {
            let mut routes: Vec<(u32, f32)> =
                (t * k..(t + 1) * k).map(|i| (self.routes.experts()[i], self.routes.weights()[i])).collect();
            routes.sort_by_key(|route| route.0);
            let mut all: Vec<(&SwiGluWeights, f32)> =
                routes.iter().map(|&(expert, weight)| (&self.experts[expert as usize], weight)).collect();
            if let Some((weights, gate)) = &self.shared {
                let mut gate = [gate[t]];
                sigmoid_in_place(&cpu, &mut gate);
                all.push((weights, gate[0]));
            }
            for (expert, weight) in all {
                let mut inner = multiply(&cpu, x, &expert.gate);
                let width = inner.len();
                swiglu(&cpu, &mut inner, &multiply(&cpu, x, &expert.up), width, None);
                for (out, y) in out.iter_mut().zip(multiply(&cpu, &inner, &expert.down)) {
                    *out = weight.mul_add(y, *out);
                }
            }
        }
        out
    }
}

/// Different experts for each token, with weights that do not sum to anything.
fn random_routes(random: &mut Random, experts: usize, per_token: usize, tokens: usize) -> Routes {
    let choose = |_| {
        let mut all: Vec<u32> = (0..experts as u32).collect();
        all.sort_by_cached_key(|_| random.bits());
        all.truncate(per_token);
        all
    };
    let chosen: Vec<u32> = (0..tokens).flat_map(choose).collect();
    let weights = random.between(chosen.len(), 0.0, 1.0);
    Routes::new(chosen, weights, per_token)
}

/// The same bits on all CPUs as of the kernels that do each operation for itself.
fn check(what: &str, cpus: &[Cpu], layer: &Layer) {
    let found = same_on_all(what, cpus, |cpu| layer.run(cpu));
    assert_same_bits(what, &found, &layer.composed());
}

fn check_sizes(formats: impl Fn(usize) -> [Format; 3]) {
    let (cpus, mut random) = (cpus(), Random::new(80));
    let mut choices = CHOICES.iter().cycle();
    for shape in SHAPES {
        for tokens in TOKENS {
            let choice = *choices.next().unwrap();
            let layer = Layer::random(&mut random, &formats, shape, choice, tokens);
            check(&format!("{shape:?}, {choice:?} x {tokens}"), &cpus, &layer);
        }
    }
}

#[test]
fn f32_sizes() {
    check_sizes(all_of(Format::F32));
}

#[test]
fn f16_sizes() {
    check_sizes(all_of(Format::F16));
}

#[test]
fn bf16_sizes() {
    check_sizes(all_of(Format::BF16));
}

#[test]
fn int8_sizes() {
    check_sizes(all_of(Format::Int8));
}

#[test]
fn int4_sizes() {
    check_sizes(all_of(Format::Int4));
}

#[test]
fn int4_s8_sizes() {
    check_sizes(all_of(Format::Int4S8));
}

#[test]
fn int4_asym_sizes() {
    check_sizes(all_of(Format::Int4Asym));
}

#[test]
fn each_matrix_in_a_format_of_its_own() {
    check_sizes(mixed);
}

/// Close to the formula in f64. With INT8 activations an intermediate result may be rounded to the next step.
#[test]
fn formula() {
    let mut random = Random::new(81);
    for (format, tolerance) in [
        (Format::F32, 1e-4),
        (Format::F16, 1e-4),
        (Format::BF16, 1e-4),
        (Format::Int8, 2e-2),
        (Format::Int4, 2e-2),
        (Format::Int4S8, 2e-2),
    ] {
        for (shape, choice, tokens) in
            [([64, 48], [5, 2], 9), ([200, 96], [16, 4], 40), ([33, 17], [3, 3], 3)]
        {
            let layer = Layer::random(&mut random, all_of(format), shape, choice, tokens);
            let expected = reference::expert_feed_forward(
                &layer.x,
                &layer.experts,
                layer.routes.experts(),
                layer.routes.weights(),
                layer.routes.per_token(),
            );
            assert_close(format.name(), &layer.run(&fastest()), &expected, tolerance);
        }
    }
}

/// Enough channels and tokens that experts are cut into several items in every way.
#[test]
fn one_expert_gets_all_tokens() {
    let (cpus, mut random) = (cpus(), Random::new(82));
    for format in [Format::Int4, Format::F32] {
        for (shape, tokens) in [([64, 200], 300), ([600, 40], 150), ([20, 400], 70)] {
            let mut layer = Layer::random(&mut random, all_of(format), shape, [4, 2], tokens);
            // The other route goes to one expert up to the last token, and then to another.
            let chosen = (0..tokens as u32).flat_map(|t| [2, if t + 1 < tokens as u32 { 1 } else { 3 }]);
            layer.routes = Routes::new(chosen.collect(), layer.routes.weights().to_vec(), 2);
            check(&format!("{} {shape:?}", format.name()), &cpus, &layer);
        }
    }
}

#[test]
fn many_experts_have_no_token() {
    let (cpus, mut random) = (cpus(), Random::new(83));
    for tokens in [1, 5, 40] {
        let mut layer = Layer::random(&mut random, mixed, [48, 40], [60, 2], tokens);
        let chosen = (0..tokens).flat_map(|_| [59, 17]).collect();
        layer.routes = Routes::new(chosen, layer.routes.weights().to_vec(), 2);
        check("some of many", &cpus, &layer);
    }
}

/// Its width and formats are its own.
#[test]
fn shared_expert() {
    let (cpus, mut random) = (cpus(), Random::new(84));
    for (formats, width) in
        [([Format::Int4; 3], 32), ([Format::Int8; 3], 100), ([Format::BF16; 3], 7), (mixed(2), 40)]
    {
        for tokens in [1, 2, 9, 33] {
            for choice in [[6, 2], [1, 1]] {
                let layer = Layer::random(&mut random, all_of(Format::Int4), [64, 40], choice, tokens);
                let layer = layer.sharing(&mut random, formats, width);
                check(&format!("shared of {width} x {tokens}"), &cpus, &layer);
            }
        }
    }
}

/// A network of the shared expert alone.
#[test]
fn no_routes() {
    let mut random = Random::new(85);
    let mut layer = Layer::random(&mut random, all_of(Format::Int4), [32, 32], [2, 1], 5);
    layer.routes = Routes::new(Vec::new(), Vec::new(), 0);
    assert_eq!(layer.run(&fastest()), vec![0.0; 5 * 32]);
    check("shared alone", &cpus(), &layer.sharing(&mut random, [Format::Int8; 3], 32));
}

#[test]
fn results_are_set_or_added() {
    let mut random = Random::new(86);
    for shape in [[64, 32], [33, 31]] {
        let layer = Layer::random(&mut random, mixed, shape, [5, 2], 9);
        let result = layer.run(&portable());
        let before = random.numbers(result.len());
        let expected: Vec<f32> = before.iter().zip(&result).map(|(before, y)| before + y).collect();
        let mut scratch = ExpertScratch::default();
        for cpu in cpus() {
            let mut out = before.clone();
            layer.run_part(&cpu, 0..9, &mut scratch, &mut out, Store::Add);
            assert_same_bits("added", &out, &expected);
            layer.run_part(&cpu, 0..9, &mut scratch, &mut out, Store::Set);
            assert_same_bits("set", &out, &result);
        }
    }
}

/// In pieces, with scratch memory that has seen other calls.
#[test]
fn pieces_get_the_same_bits_as_the_whole() {
    let mut random = Random::new(87);
    for formats in [|_| [Format::Int4; 3], mixed] {
        let layer = Layer::random(&mut random, formats, [80, 50], [9, 3], 50);
        let layer = layer.sharing(&mut random, [Format::Int4; 3], 90);
        let whole = layer.run(&portable());
        for cpu in cpus() {
            let mut scratch = ExpertScratch::default();
            for pieces in [&[0, 50][..], &[0, 1, 2, 10, 49, 50], &[0, 33, 50], &[0, 8, 16, 50]] {
                let mut found = Vec::new();
                for range in pieces.windows(2) {
                    let mut out = vec![f32::NAN; (range[1] - range[0]) * 80];
                    layer.run_part(&cpu, range[0]..range[1], &mut scratch, &mut out, Store::Set);
                    found.extend(out);
                }
                assert_same_bits("pieces", &found, &whole);
            }
        }
    }
}

/// The order of a token's routes says nothing: experts are added in rising order.
#[test]
fn routes_in_any_order() {
    let mut random = Random::new(88);
    let mut layer = Layer::random(&mut random, mixed, [40, 24], [8, 4], 6);
    let expected = layer.run(&fastest());
    let (chosen, weights) = (layer.routes.experts(), layer.routes.weights());
    let chosen = chosen.chunks(4).flat_map(|routes| routes.iter().rev()).copied().collect();
    let weights = weights.chunks(4).flat_map(|routes| routes.iter().rev()).copied().collect();
    layer.routes = Routes::new(chosen, weights, 4);
    assert_same_bits("reversed", &layer.run(&fastest()), &expected);
}

#[test]
fn what_is_not_finite_stays_with_its_token() {
    let mut random = Random::new(89);
    let (tokens, hidden, faulty) = (20, 48, 13);
    for format in [Format::Int4, Format::BF16] {
        let mut layer = Layer::random(&mut random, all_of(format), [hidden, 40], [4, 2], tokens);
        let clean = layer.run(&fastest());
        let rest = |found: &[f32]| {
            for (token, (found, clean)) in found.chunks(hidden).zip(clean.chunks(hidden)).enumerate() {
                if token != faulty {
                    assert_same_bits(format.name(), found, clean);
                }
            }
            found[faulty * hidden..][..hidden].to_vec()
        };
        for fault in [f32::NAN, f32::INFINITY] {
            let before = std::mem::replace(&mut layer.x[faulty * hidden + 5], fault);
            let found = same_on_all("fault in the input", &cpus(), |cpu| layer.run(cpu));
            assert!(rest(&found).iter().all(|y| !y.is_finite()));
            layer.x[faulty * hidden + 5] = before;
        }
        let mut weights = layer.routes.weights().to_vec();
        weights[2 * faulty + 1] = f32::NAN;
        layer.routes = Routes::new(layer.routes.experts().to_vec(), weights, 2);
        let found = same_on_all("fault in the weights", &cpus(), |cpu| layer.run(cpu));
        assert!(rest(&found).iter().all(|y| y.is_nan()));
    }
}

/// Blocks of a file may hold anything in the rows and columns that a matrix does not have.
#[test]
fn what_fills_up_blocks_counts_for_nothing() {
    let mut random = Random::new(90);
    for format in [Format::Int4, Format::Int4S8, Format::Int8] {
        let mut layer = Layer::random(&mut random, all_of(format), [40, 20], [3, 2], 7);
        let clean = layer.run(&fastest());
        for expert in &mut layer.experts {
            for matrix in [&mut expert.gate, &mut expert.up, &mut expert.down] {
                *matrix = with_filling(matrix);
            }
        }
        assert_same_bits(format.name(), &layer.run(&fastest()), &clean);
    }
}

/// The same numbers, with other levels and infinite scales or units in rows behind the last.
fn with_filling(matrix: &Matrix) -> Matrix {
    let mut bytes = matrix.bytes().to_vec();
    let rows = matrix.rows() % 16;
    if rows > 0 {
        let panel = bytes.len() / matrix.rows().div_ceil(16);
        let start = bytes.len() - panel;
        let format = matrix.format();
        let behind = bytes.len() - format.unit_bytes();
        for unit in bytes[behind..].chunks_exact_mut(4).skip(rows) {
            unit.copy_from_slice(&f32::INFINITY.to_le_bytes());
        }
        let of_scales = if format.unit_bytes() > 0 { 16 } else { 32 };
        for block in bytes[start..behind].chunks_exact_mut(format.block_bytes()) {
            let (levels, scales) = block.split_at_mut(format.block_bytes() - of_scales);
            for (i, level) in levels.iter_mut().enumerate() {
                if i / 4 % 16 >= rows {
                    *level = 0x7f;
                }
            }
            let scales = &mut scales[of_scales / 16 * rows..];
            scales.chunks_exact_mut(2).for_each(|half| half.copy_from_slice(&0x7c00_u16.to_le_bytes()));
        }
    }
    Matrix::new(matrix.format(), matrix.rows(), matrix.cols(), Bytes::new(bytes)).unwrap()
}

#[test]
fn no_tokens_are_no_work() {
    let layer = Layer::random(&mut Random::new(91), mixed, [32, 32], [3, 2], 0);
    assert!(layer.run(&fastest()).is_empty());
}

#[test]
#[should_panic(expected = "a route to expert 3 of 3")]
fn routes_to_experts_that_do_not_exist() {
    let mut layer = Layer::random(&mut Random::new(92), mixed, [32, 32], [3, 2], 1);
    layer.routes = Routes::new(vec![1, 3], vec![0.5, 0.5], 2);
    layer.run(&fastest());
}

#[test]
#[should_panic(expected = "input is quantised")]
fn an_input_that_is_not_quantised() {
    let layer = Layer::random(&mut Random::new(93), all_of(Format::Int4), [32, 32], [3, 2], 1);
    let (input, mut out) = (Input { dense: &layer.x, quantized: None, tokens: 1 }, [0.0; 32]);
    let experts = Experts { routed: &layer.experts, shared: None };
    let scratch = &mut ExpertScratch::default();
    expert_feed_forward(&fastest(), experts, input, &layer.routes, scratch, &mut out, Store::Set);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layer(
        seed: u64,
        hidden in 1_usize..100,
        width in 1_usize..300,
        experts in 1_usize..20,
        part in 0.0_f64..1.0,
        tokens in 1_usize..40,
        shared: bool,
    ) {
        let mut random = Random::new(seed);
        let per_token = 1 + (part * experts as f64) as usize;
        let mut layer = Layer::random(&mut random, mixed, [hidden, width], [experts, per_token], tokens);
        if shared {
            layer = layer.sharing(&mut random, mixed(seed as usize % 5), width + 3);
        }
        check("any layer", &[portable(), fastest()], &layer);
        // A permutation of tokens is one of results.
        let (k, whole) = (per_token, layer.run(&fastest()));
        let mut order: Vec<usize> = (0..tokens).collect();
        order.sort_by_cached_key(|_| random.bits());
        let pick = |values: &[f32], width: usize| -> Vec<f32> {
            order.iter().flat_map(|&t| &values[t * width..(t + 1) * width]).copied().collect()
        };
        let chosen = order.iter().flat_map(|&t| &layer.routes.experts()[t * k..(t + 1) * k]).copied().collect();
        layer.routes = Routes::new(chosen, pick(layer.routes.weights(), k), k);
        layer.x = pick(&layer.x, hidden);
        if let Some((_, gate)) = &mut layer.shared {
            *gate = pick(gate, 1);
        }
        let expected = pick(&whole, hidden);
        let found = layer.run(&fastest());
        prop_assert!(found.iter().zip(&expected).all(|(found, expected)| same_bits(*found, *expected)));
    }
}
