//! A text through a model, to know what its matrices read.

use super::input::normalize;
use super::member::Member;
use super::{Engine, Scratch};
use crate::error::{Error, Result};
use crate::kernels::recorder::Record;
use crate::threads::StandardFloat;
use crate::weights::moments::{InputStatistics, Moments};

impl Engine {
    /// Second moments of what every matrix of the text model reads over `ids`, cut into windows that are read each on its own.
    /// `proceed` is told before each window how many tokens are done, and stops the work with an error.
    ///
    /// The moments do not depend on tier, threads or passes, nor on what else is computed
    /// meanwhile.
    pub fn input_statistics(
        &self,
        ids: &[u32],
        window: usize,
        proceed: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<InputStatistics> {
        if window == 0 {
            return Err(Error::argument("window", "at least one token is needed"));
        }
        let mut record = Record::default();
        for (i, ids) in ids.chunks(window).enumerate() {
            proceed(i * window)?;
            self.read_all(ids, &mut record)?;
        }
        let mut names = vec![Vec::new(); record.inputs().len()];
        self.model.weights.each_matrix(&mut |name, matrix| {
            if let Some(index) = record.input_of(matrix) {
                names[index].push(name);
            }
        });
        let tied = record.input_of(&self.model.weights.embedding);
        let mut statistics = InputStatistics::new(ids.len());
        for (i, (input, names)) in record.inputs().iter().zip(names).enumerate() {
            if !input.sums.iter().all(|sum| sum.is_finite()) {
                self.model.check_finite(&[f32::NAN])?;
            }
            // An input that was always 0 tells nothing.
            let moments = if tied == Some(i) { Moments::of_read_rows } else { Moments::from_sums };
            if let Some(moments) = moments(input.cols, &input.sums) {
                statistics.add(moments, names);
            }
        }
        Ok(statistics)
    }

    /// Computes all of `ids` from an empty state, up to what the vocabulary head reads, and adds to `record`.
    fn read_all(&self, ids: &[u32], record: &mut Record) -> Result<()> {
        let prompt = self.prompt(ids, &[])?;
        let mut state = self.state();
        self.check(&state, prompt)?;
        let mut done = 0;
        while done < ids.len() {
            let range = done..(done + self.pass_tokens()).min(ids.len());
            done = range.end;
            state.reserve(done)?;
            let mut members = [Member::new(&mut state, prompt.pass(range.clone()), Vec::new())?];
            // Nobody else computes text while this pass has it.
            let mut scratch = self.scratch();
            self.cpu.recorder.start(std::mem::take(record));
            self.model.forward(&self.cpu, &mut scratch, &mut members, Some(&mut |_, _| {}));
            self.record_head(&mut scratch, range.len());
            *record = self.cpu.recorder.stop();
        }
        Ok(())
    }

    /// Records what the vocabulary head reads of the tokens in `scratch`. Its products are not needed.
    fn record_head(&self, scratch: &mut Scratch, tokens: usize) {
        let _standard = StandardFloat::enter();
        let weights = &self.model.weights;
        let size = tokens * self.model.config.hidden_size;
        let (hidden, normed) = (&scratch.hidden[..size], &mut scratch.normed[..size]);
        let eps = self.model.config.rms_norm_eps;
        let buffer = &mut scratch.input;
        let input = normalize(&self.cpu, hidden, &weights.final_norm, eps, false, normed, buffer);
        self.cpu.recorder.add(&self.cpu, input.dense, &[&weights.head]);
    }
}
