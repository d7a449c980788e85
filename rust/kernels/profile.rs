//! Where the time of a forward pass goes, by kind of operation.
//!
//! A pass calls [`Profile::begin`] at its start and [`Profile::lap`] after each operation, which is charged with the time since
//! the lap before. Off, as it is unless somebody measures, a lap is one load and a branch. On, laps of several threads that
//! compute at once would charge each other, so it is for one sequence at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::weights::matrix::Matrix;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Rows of the embedding, and rotary angles.
    Embedding,
    /// Norms of the residual stream, with their quantisation, norms of attention's heads, and the rotation of queries and keys.
    Norms,
    /// Other activations to INT8.
    Quantization,
    /// Products of the delta layers.
    DeltaProjections,
    /// All of the delta layers between their products: convolution, gates, delta rule, norms.
    DeltaRule,
    /// Products of the attention layers.
    AttentionProjections,
    /// The KV cache and attention.
    Attention,
    /// The scores of experts and the choice of some.
    Routing,
    /// Products of the feed-forward networks; of experts also what is between and behind them.
    FeedForward,
    /// What is between them, with its quantisation.
    Activation,
    /// The product with the vocabulary.
    Head,
    /// The choice of a token.
    Sampling,
}

impl Operation {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Embedding,
        Self::Norms,
        Self::Quantization,
        Self::DeltaProjections,
        Self::DeltaRule,
        Self::AttentionProjections,
        Self::Attention,
        Self::Routing,
        Self::FeedForward,
        Self::Activation,
        Self::Head,
        Self::Sampling,
    ];

    /// The name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Norms => "norms",
            Self::Quantization => "quantisation",
            Self::DeltaProjections => "delta projections",
            Self::DeltaRule => "delta rule",
            Self::AttentionProjections => "attention projections",
            Self::Attention => "attention",
            Self::Routing => "routing",
            Self::FeedForward => "feed-forward",
            Self::Activation => "activation",
            Self::Head => "head",
            Self::Sampling => "sampling",
        }
    }
}

/// What one kind of operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Laps.
    pub calls: u64,
    /// Time.
    pub seconds: f64,
    /// Bytes of weights, state and cache that were there to be read, each counted once a call.
    pub bytes: u64,
    /// Multiplications and additions of products with weights, counted apart.
    pub operations: u64,
}

/// Times the operations of passes, if it is on.
#[derive(Debug, Default)]
pub struct Profile {
    on: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    last: Instant,
    spent: [Spent; Operation::ALL.len()],
}

impl Default for Record {
    fn default() -> Self {
        Self { last: Instant::now(), spent: Default::default() }
    }
}

impl Profile {
    /// Forgets what was measured, and measures from now on.
    pub fn start(&self) {
        *self.record() = Record::default();
        self.on.store(true, Ordering::Relaxed);
    }

    /// Measures no more, and tells what each kind of operation took since [`Self::start`].
    pub fn stop(&self) -> [(Operation, Spent); Operation::ALL.len()] {
        self.on.store(false, Ordering::Relaxed);
        let record = self.record();
        Operation::ALL.map(|operation| (operation, record.spent[operation as usize]))
    }

    /// The next lap begins here.
    #[inline]
    pub fn begin(&self) {
        if self.is_on() {
            self.record().last = Instant::now();
        }
    }

    /// An operation that had `bytes` to read ends here.
    #[inline]
    pub fn lap(&self, operation: Operation, bytes: usize) {
        if self.is_on() {
            self.record().add(operation, bytes, 0);
        }
    }

    /// Products of `tokens` tokens with `weights` end here.
    #[inline]
    pub fn products(&self, operation: Operation, tokens: usize, weights: &[&Matrix]) {
        if self.is_on() {
            let bytes = weights.iter().map(|matrix| matrix.bytes().len()).sum();
            let operations: usize = weights.iter().map(|matrix| matrix.operations()).sum();
            self.record().add(operation, bytes, tokens * operations);
        }
    }

    /// Work of some (bytes, operations) ends here.
    #[inline]
    pub fn work(&self, operation: Operation, work: impl FnOnce() -> (usize, usize)) {
        if self.is_on() {
            let (bytes, operations) = work();
            self.record().add(operation, bytes, operations);
        }
    }

    #[inline]
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn add(&mut self, operation: Operation, bytes: usize, operations: usize) {
        let now = Instant::now();
        let spent = &mut self.spent[operation as usize];
        spent.calls += 1;
        spent.seconds += (now - self.last).as_secs_f64();
        spent.bytes += bytes as u64;
        spent.operations += operations as u64;
        self.last = now;
    }
}
