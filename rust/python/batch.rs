//! Steps of several sequences at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::arrays::token_ids;
use super::errors::released;
use super::sampler::{PySampler, Sampled, sampled};
use super::sequence::PySequence;
use super::vision::spans;
use crate::error::{Error, Result};
use crate::generate::{Choice, Sampler};
use crate::kernels::profile::Operation;
use crate::model::{Engine, Progress, Span, State, Turn};

/// Tokens to be appended to a sequence, and perhaps one to be sampled behind them.
#[pyclass(name = "Work", module = "edgewise._native", frozen)]
pub struct PyWork {
    engine: Arc<Engine>,
    sequence: Py<PySequence>,
    sampler: Option<Py<PySampler>>,
    ids: Vec<u32>,
    spans: Vec<Span>,
    /// Locked for the length of a step.
    inner: Mutex<Inner>,
    /// Tokens to be appended yet. Like `finished` it can be read while a step is under way.
    left: AtomicUsize,
    finished: AtomicBool,
}

struct Inner {
    progress: Progress,
    outcome: Option<Result<Option<Choice>>>,
}

impl PyWork {
    fn inner(&self) -> PyResult<MutexGuard<'_, Inner>> {
        match self.inner.try_lock() {
            Ok(inner) => Ok(inner),
            // Only a panic of ours poisons it; the sequence is then marked as broken.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(PyRuntimeError::new_err("work: it is in a step")),
        }
    }

    fn finish(&self, inner: &mut Inner, outcome: Result<Option<Choice>>) {
        inner.outcome = Some(outcome);
        self.finished.store(true, Ordering::Release);
    }
}

impl PyWork {
    /// Nothing is done yet.
    pub fn new(
        sequence: &Bound<'_, PySequence>,
        ids: &Bound<'_, PyAny>,
        media: Option<&Bound<'_, PyAny>>,
        sampler: Option<Py<PySampler>>,
        places: Vec<usize>,
    ) -> PyResult<Self> {
        let engine = sequence.try_borrow()?.engine();
        let (ids, spans) = (token_ids(ids)?, spans(&engine, media)?);
        let progress = Progress::keeping(engine.prompt(&ids, &spans)?, places)?;
        Ok(Self {
            left: AtomicUsize::new(ids.len()),
            finished: AtomicBool::new(false),
            inner: Mutex::new(Inner { progress, outcome: None }),
            sequence: sequence.clone().unbind(),
            engine,
            sampler,
            ids,
            spans,
        })
    }
}

#[pymethods]
impl PyWork {
    #[getter]
    fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    #[getter]
    fn finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// What came of it; the docstring is in the stub.
    fn result(&self) -> PyResult<Option<Sampled>> {
        match self.inner()?.outcome.take() {
            Some(outcome) => Ok(outcome?.map(sampled)),
            None => Err(PyRuntimeError::new_err("work: there is no result, or it was taken before")),
        }
    }

    /// Copies of the state made so far; the docstring is in the stub.
    fn kept(&self) -> PyResult<Vec<PySequence>> {
        let states = self.inner()?.progress.take_kept();
        Ok(states.into_iter().map(|state| PySequence::of(Arc::clone(&self.engine), state)).collect())
    }

    /// Gives it up; the docstring is in the stub.
    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        let mut inner = self.inner()?;
        if !self.finished.swap(true, Ordering::AcqRel) {
            let mut sequence = self.sequence.bind(py).try_borrow_mut()?;
            inner.progress.leave_image(sequence.state_mut());
        }
        Ok(())
    }
}

/// What several sequences of one engine share.
#[pyclass(name = "Batch", module = "edgewise._native", frozen)]
pub struct PyBatch {
    engine: Arc<Engine>,
    /// Logits of a step, `[sampled sequences, vocab]`. Locked for its length.
    scores: Mutex<Vec<f32>>,
}

/// What a step reads and writes of one work.
struct Job<'a> {
    ids: &'a [u32],
    spans: &'a [Span],
    tokens: usize,
    state: &'a mut State,
    progress: &'a mut Progress,
    sampler: Option<&'a mut Sampler>,
    /// `None` while tokens are left.
    outcome: Option<Result<Option<Choice>>>,
}

#[pymethods]
impl PyBatch {
    #[getter]
    fn pass_tokens(&self) -> usize {
        self.engine.pass_tokens()
    }

    /// Moves all works on; the docstring is in the stub.
    fn step(&self, py: Python<'_>, works: Vec<(Py<PyWork>, usize)>) -> PyResult<()> {
        let busy = || PyRuntimeError::new_err("batch: a step is under way");
        let mut scores = match self.scores.try_lock() {
            Ok(scores) => scores,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(busy()),
        };
        let mut taken = Vec::with_capacity(works.len());
        for (work, tokens) in &works {
            let work = work.get();
            if !work.finished() {
                taken.extend(self.take(py, work, *tokens)?);
            }
        }
        let mut jobs: Vec<Job<'_>> = taken.iter_mut().map(Taken::job).collect();
        let scores = &mut *scores;
        released(py, |_| self.run(&mut jobs, scores))?;
        let outcomes: Vec<_> = jobs.into_iter().map(|job| job.outcome).collect();
        for (taken, outcome) in taken.iter_mut().zip(outcomes) {
            let Taken { work, inner, .. } = taken;
            work.left.store(work.ids.len() - inner.progress.done(), Ordering::Relaxed);
            if let Some(outcome) = outcome {
                work.finish(inner, outcome);
            }
        }
        Ok(())
    }
}

/// A work that nobody else can touch.
struct Taken<'a> {
    work: &'a PyWork,
    inner: MutexGuard<'a, Inner>,
    sequence: PyRefMut<'a, PySequence>,
    sampler: Option<PyRefMut<'a, PySampler>>,
    tokens: usize,
}

impl Taken<'_> {
    fn job(&mut self) -> Job<'_> {
        Job {
            ids: &self.work.ids,
            spans: &self.work.spans,
            tokens: self.tokens,
            state: self.sequence.state_mut(),
            progress: &mut self.inner.progress,
            sampler: self.sampler.as_mut().map(|sampler| sampler.sampler()),
            outcome: None,
        }
    }
}

impl PyBatch {
    /// For sequences of `engine`.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, scores: Mutex::default() }
    }

    /// Takes `work` for a step. If its sequence is of another engine or somebody else has it, it is finished with an error.
    fn take<'a>(&self, py: Python<'a>, work: &'a PyWork, tokens: usize) -> PyResult<Option<Taken<'a>>> {
        let mut inner = work.inner()?;
        let reason = if Arc::ptr_eq(&self.engine, &work.engine) {
            let sequence = work.sequence.bind(py).try_borrow_mut();
            let sampler = work.sampler.as_ref().map(|sampler| sampler.bind(py).try_borrow_mut()).transpose();
            match (sequence, sampler) {
                (Ok(sequence), Ok(sampler)) => {
                    return Ok(Some(Taken { work, inner, sequence, sampler, tokens }));
                }
                (Err(_), _) => Error::argument("sequence", "it is in use"),
                (_, Err(_)) => Error::argument("sampler", "it is in use"),
            }
        } else {
            Error::argument("sequence", "comes from another model")
        };
        work.finish(&mut inner, Err(reason));
        Ok(None)
    }

    /// One pass over the weights, one over the vocabulary, and a token for each sampler.
    fn run(&self, jobs: &mut [Job<'_>], scores: &mut Vec<f32>) -> Result<()> {
        let engine = &*self.engine;
        let mut turns = Vec::with_capacity(jobs.len());
        for job in &mut *jobs {
            let prompt = engine.prompt(job.ids, job.spans)?;
            turns.push(Turn::new(job.state, prompt, job.progress, job.tokens));
        }
        engine.step(&mut turns);
        let ends: Vec<_> = turns.into_iter().map(|turn| (turn.is_done(), turn.outcome)).collect();
        let mut sampling = Vec::with_capacity(jobs.len());
        for (job, (done, outcome)) in jobs.iter_mut().zip(ends) {
            match outcome {
                Err(error) => job.outcome = Some(Err(error)),
                Ok(()) if !done => (),
                Ok(()) if job.sampler.is_none() => job.outcome = Some(Ok(None)),
                Ok(()) => sampling.push(job),
            }
        }
        self.sample(sampling, scores)
    }

    fn sample(&self, mut jobs: Vec<&mut Job<'_>>, scores: &mut Vec<f32>) -> Result<()> {
        let (engine, vocab) = (&*self.engine, self.engine.model.config.vocab_size);
        for job in &mut jobs {
            if job.state.is_empty() {
                job.outcome = Some(Err(Error::argument("sequence", "it is empty, so there are no logits")));
            }
        }
        jobs.retain(|job| job.outcome.is_none());
        if jobs.is_empty() {
            return Ok(());
        }
        if scores.len() < jobs.len() * vocab {
            scores.resize(jobs.len() * vocab, 0.0);
        }
        let scores = &mut scores[..jobs.len() * vocab];
        let states: Vec<&State> = jobs.iter().map(|job| &*job.state).collect();
        engine.logits_of_all(&states, scores)?;
        let scores = &*scores;
        engine.cpu.profile.begin();
        engine.cpu.rows(&mut jobs, 1, 1, |range, jobs| {
            for (row, job) in range.zip(jobs) {
                let scores = &scores[row * vocab..(row + 1) * vocab];
                let sampler = job.sampler.as_mut().expect("only jobs with one are here");
                job.outcome =
                    Some(engine.check_finite(scores).and_then(|()| sampler.sample(scores)).map(Some));
            }
        });
        engine.cpu.profile.lap(Operation::Sampling, 0);
        Ok(())
    }
}
