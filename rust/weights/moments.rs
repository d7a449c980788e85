//! What matrices read while a text goes through a model: second moments of their inputs, for the search of levels.
//!
//! A matrix W `[N, K]` that reads x `[K]` and is stored as W' answers wrongly by (W - W') x, whose mean square for a row with the
//! error e is `e^T M e` with `M = mean(x x^T)`. Of M `[K, K]` only squares of [`SPAN`] channels along the diagonal are kept, so
//! that what is kept grows with K and not with its square.
//!
//! Groups of 32 columns are rounded one after another. Within a span, let g be a group and R the columns behind it, whose levels
//! are still free. The best that R can do about an error e of g is to aim at `w[R] + F e` with `F = M[R,R]^-1 M[R,g]`, and what
//! is left of the loss then is `e^T S e` with `S = M[g,g] - M[g,R] F`. So S is what g is searched with, and F is how its error is
//! handed on: GPTQ (Frantar et al. 2022, arXiv 2210.17323) with groups in the place of columns.
//!
//! Moments are divided by their mean over all K channels, and `DAMPING` is added on the diagonal, so that channels which the
//! text left idle do not count as free. More is added where rows are also read as they are: the rows of an embedding that is the
//! vocabulary head as well are the beginning of all, and there each error counts by its square alone.

use std::collections::BTreeMap;

use super::matrix::BLOCK_COLS;
use crate::error::{Error, Result};

/// Channels whose moments with each other are kept: four groups.
pub const SPAN: usize = 4 * BLOCK_COLS;
/// Added to the diagonal, as a part of the mean over the diagonal.
const DAMPING: f64 = 0.02;
/// The same where rows of the matrix are also read as they are.
const DAMPING_OF_ROWS: f64 = 0.3;

/// A symmetric matrix of 32 channels, `[32, 32]`.
pub type GroupMoments = [[f32; BLOCK_COLS]; BLOCK_COLS];

/// What the search knows of 32 columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// S: the loss of an error that the columns behind have made the best of.
    pub moments: GroupMoments,
    /// F: what an error adds to the weights of the columns behind it in the span, `[columns, 32]`.
    pub feedback: Vec<[f32; BLOCK_COLS]>,
}

/// Second moments of the input of a matrix, in groups of 32 channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    cols: usize,
    groups: Vec<Group>,
}

impl Moments {
    /// From sums over tokens `[spans, SPAN, SPAN]`, of which only the upper triangles are read; `None` if they are all zeros or not
    /// finite.
    pub fn from_sums(cols: usize, sums: &[f64]) -> Option<Self> {
        Self::damped(cols, sums, DAMPING)
    }

    /// The same for a matrix whose rows are also read as they are, such as an embedding that is the vocabulary head as well: there,
    /// an error in one column makes up for none in another.
    pub fn of_read_rows(cols: usize, sums: &[f64]) -> Option<Self> {
        Self::damped(cols, sums, DAMPING_OF_ROWS)
    }

    fn damped(cols: usize, sums: &[f64], damping: f64) -> Option<Self> {
        let diagonal = |square: &[f64]| (0..SPAN).map(|i| square[i * SPAN + i]).sum::<f64>();
        let mean = sums.chunks_exact(SPAN * SPAN).map(diagonal).sum::<f64>() / cols.max(1) as f64;
        // A sum of squares that is finite bounds the products too.
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let mut groups = Vec::new();
        for (span, sums) in sums.chunks_exact(SPAN * SPAN).enumerate() {
            let width = SPAN.min(cols.saturating_sub(span * SPAN)).next_multiple_of(BLOCK_COLS);
            let mut square = Square::zeros(width);
            for i in 0..width {
                for j in i..width {
                    let damping = if i == j { damping } else { 0.0 };
                    square.set(i, j, sums[i * SPAN + j] / mean + damping);
                }
            }
            for first in (0..width).step_by(BLOCK_COLS) {
                groups.push(square.group(first)?);
            }
        }
        Some(Self { cols, groups })
    }

    /// Leaves errors where they are.
    #[cfg(test)]
    pub(super) fn forget_feedback(&mut self) {
        self.groups.iter_mut().for_each(|group| group.feedback.clear());
    }

    /// Channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Of 32 channels each, those beyond the last one idle.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }
}

/// A symmetric matrix `[side, side]`.
struct Square {
    side: usize,
    numbers: Vec<f64>,
}

impl Square {
    fn zeros(side: usize) -> Self {
        Self { side, numbers: vec![0.0; side * side] }
    }

    fn get(&self, i: usize, j: usize) -> f64 {
        self.numbers[i * self.side + j]
    }

    fn set(&mut self, i: usize, j: usize, x: f64) {
        self.numbers[i * self.side + j] = x;
        self.numbers[j * self.side + i] = x;
    }

    /// S and F of the 32 channels from `first` on; `None` if the matrix is not positive definite.
    fn group(&self, first: usize) -> Option<Group> {
        let behind = first + BLOCK_COLS;
        let factor = self.cholesky(behind)?;
        let rows = self.side - behind;
        // Columns of F, `[32][rows]`.
        let columns: Vec<Vec<f64>> = (0..BLOCK_COLS)
            .map(|k| factor.solve((0..rows).map(|r| self.get(behind + r, first + k)).collect()))
            .collect();
        let left = |i: usize, j: usize| {
            let made_up: f64 = (0..rows).map(|r| self.get(first + i, behind + r) * columns[j][r]).sum();
            self.get(first + i, first + j) - made_up
        };
        let mut moments = [[0.0; BLOCK_COLS]; BLOCK_COLS];
        for i in 0..BLOCK_COLS {
            for j in i..BLOCK_COLS {
                moments[i][j] = left(i, j) as f32;
                moments[j][i] = moments[i][j];
            }
        }
        let feedback = (0..rows).map(|r| std::array::from_fn(|k| columns[k][r] as f32)).collect();
        Some(Group { moments, feedback })
    }

    /// L of `L L^T`, lower triangular, of the rows and columns from `first` on.
    fn cholesky(&self, first: usize) -> Option<Self> {
        let side = self.side - first;
        let mut factor = Self::zeros(side);
        for i in 0..side {
            for j in 0..=i {
                let known: f64 = (0..j).map(|k| factor.get(i, k) * factor.get(j, k)).sum();
                let rest = self.get(first + i, first + j) - known;
                let x = if i == j { rest.sqrt() } else { rest / factor.get(j, j) };
                if !(x.is_finite() && (i != j || x > 0.0)) {
                    return None;
                }
                factor.numbers[i * side + j] = x;
            }
        }
        Some(factor)
    }

    /// x of `L L^T x = b`.
    fn solve(&self, mut b: Vec<f64>) -> Vec<f64> {
        for i in 0..self.side {
            let known: f64 = (0..i).map(|k| self.get(i, k) * b[k]).sum();
            b[i] = (b[i] - known) / self.get(i, i);
        }
        for i in (0..self.side).rev() {
            let known: f64 = (i + 1..self.side).map(|k| self.get(k, i) * b[k]).sum();
            b[i] = (b[i] - known) / self.get(i, i);
        }
        b
    }
}

/// Moments of the inputs of a model's matrices over a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputStatistics {
    /// Of different inputs.
    inputs: Vec<Moments>,
    /// Name without the model's prefix -> index in `inputs`.
    names: BTreeMap<String, usize>,
    /// Tokens of the text.
    tokens: usize,
}

/// What stands before the names of a text model's tensors.
const PREFIXES: [&str; 2] = ["model.language_model.", "model."];

impl InputStatistics {
    /// No inputs yet, of a text of `tokens` tokens.
    pub fn new(tokens: usize) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// Adds an input that all of these matrices read; names as [`each_matrix`](super::model::Weights::each_matrix) gives them.
    pub fn add(&mut self, moments: Moments, names: impl IntoIterator<Item = String>) {
        let index = self.inputs.len();
        self.inputs.push(moments);
        self.names.extend(names.into_iter().map(|name| (name, index)));
    }

    /// Tokens of the text.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How many different inputs there are.
    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// What the tensor `name` of a checkpoint reads, if the text told, or an error if it reads another number of channels.
    ///
    /// Gate and up projections of experts have what the router of their layer reads: all of the layer's tokens, not only those sent
    /// to the expert. Down projections of routed experts have nothing, since moments for each one of them would take gigabytes.
    pub fn find(&self, name: &str, cols: usize) -> Result<Option<&Moments>> {
        let short = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        let found = self.names.get(short).or_else(|| self.names.get(&router_of(short)?));
        let Some(moments) = found.map(|&index| &self.inputs[index]) else { return Ok(None) };
        if moments.cols() != cols {
            let reason = format!("they tell of {} channels, {name} reads {cols}", moments.cols());
            return Err(Error::argument("statistics", reason));
        }
        Ok(Some(moments))
    }
}

/// The router beside experts whose gate or up projections `name` holds.
fn router_of(name: &str) -> Option<String> {
    let (layer, rest) = name.split_once(".mlp.")?;
    let of_expert = rest.starts_with("experts.") || rest.starts_with("shared_expert.");
    let reads_input = ["gate_up_proj", "gate_proj.weight", "up_proj.weight"];
    let reads_input = reads_input.iter().any(|end| rest.ends_with(end));
    (of_expert && reads_input).then(|| format!("{layer}.mlp.gate.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(cols: usize) -> Moments {
        let spans = cols.div_ceil(SPAN);
        Moments::from_sums(cols, &vec![1.0; spans * SPAN * SPAN]).unwrap()
    }

    #[test]
    fn sums_are_brought_to_a_mean_of_one_and_damped() {
        let mut sums = vec![0.0; 2 * SPAN * SPAN];
        sums[0] = 100.0;
        sums[1] = -20.0;
        sums[SPAN * SPAN + SPAN + 1] = 40.0;
        let moments = Moments::from_sums(140, &sums).unwrap();
        let [groups @ .., last] = moments.groups() else { panic!("there are groups") };
        assert_eq!(groups.len(), 4);
        let (first, damping) = (&groups[0].moments, DAMPING as f32);
        assert_eq!((first[0][0], last.moments[1][1]), (100.0 + damping, 40.0 + damping));
        assert_eq!((first[0][1], first[1][0]), (-20.0, -20.0));
        assert_eq!((first[5][5], first[5][6]), (damping, 0.0));
        assert_eq!((groups[0].feedback.len(), groups[3].feedback.len(), last.feedback.len()), (96, 0, 0));
        assert!(groups[0].feedback.iter().flatten().all(|&x| x == 0.0));
    }

    #[test]
    fn what_the_columns_behind_make_up_for() {
        // Channel 32 goes along with channel 0: 0.5 of what the one has in common with itself.
        let mut sums = vec![0.0; SPAN * SPAN];
        for i in 0..64 {
            sums[i * SPAN + i] = 1.0;
        }
        sums[32] = 0.5;
        let moments = Moments::from_sums(64, &sums).unwrap();
        let full = 1.0 + DAMPING;
        let [first, second] = moments.groups() else { panic!("there are two groups") };
        assert!((f64::from(first.feedback[0][0]) - 0.5 / full).abs() < 1e-6);
        assert!((f64::from(first.moments[0][0]) - (full - 0.25 / full)).abs() < 1e-6);
        assert!((f64::from(first.moments[1][1]) - full).abs() < 1e-6);
        assert!((f64::from(second.moments[0][0]) - full).abs() < 1e-6);
        // By definition: no other change of the weights behind loses less.
        let loss = |behind: f64| full - 2.0 * 0.5 * behind + full * behind * behind;
        let best = f64::from(first.feedback[0][0]);
        assert!((loss(best) - f64::from(first.moments[0][0])).abs() < 1e-6);
        assert!(loss(best) < loss(best + 0.01) && loss(best) < loss(best - 0.01));
    }

    #[test]
    fn idle_or_infinite_inputs_tell_nothing() {
        for x in [0.0, f64::INFINITY, f64::NAN] {
            assert_eq!(Moments::from_sums(32, &vec![x; SPAN * SPAN]), None);
        }
    }

    #[test]
    fn names_with_and_without_prefix_and_experts() {
        let mut statistics = InputStatistics::new(1);
        let names = ["layers.0.mlp.gate.weight", "layers.0.mlp.shared_expert_gate.weight"];
        statistics.add(moments(64), names.map(str::to_owned));
        statistics.add(moments(96), ["layers.0.self_attn.o_proj.weight".to_owned()]);
        for (name, cols) in [
            ("model.layers.0.mlp.gate.weight", Some(64)),
            ("model.language_model.layers.0.mlp.gate.weight", Some(64)),
            ("model.layers.0.mlp.experts.gate_up_proj", Some(64)),
            ("model.layers.0.mlp.experts.7.up_proj.weight", Some(64)),
            ("model.layers.0.mlp.shared_expert.gate_proj.weight", Some(64)),
            ("model.layers.0.mlp.experts.down_proj", None),
            ("model.layers.0.mlp.shared_expert.down_proj.weight", None),
            ("model.layers.1.mlp.experts.gate_up_proj", None),
            ("model.layers.0.mlp.gate_proj.weight", None),
            ("model.language_model.layers.0.self_attn.o_proj.weight", Some(96)),
            ("mtp.layers.0.self_attn.o_proj.weight", None),
        ] {
            let found = statistics.find(name, cols.unwrap_or(32)).unwrap().map(Moments::cols);
            assert_eq!(found, cols, "{name}");
        }
        let message = statistics.find("model.layers.0.mlp.gate.weight", 65).unwrap_err().to_string();
        assert!(message.contains("statistics: they tell of 64 channels"), "{message}");
    }
}
