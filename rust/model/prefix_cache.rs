//! States after the beginnings of earlier texts, so that a text that begins in the same way is not computed again.
//!
//! A recurrent state cannot be cut back, so a state is of use to just those texts that begin with all its tokens. An entry
//! is a state and the text it is of; of a new text, the longest entry that is a beginning of it is taken. States of one
//! text share the pages of its KV cache, and entries made of one text share the text.
//!
//! ```text
//! find(text):  entry with the most tokens among those whose tokens are the first of text; it is now the last used
//! put(text):   unless there:  while bytes > limit:  drop the entry used longest ago;  add the entry
//! ```
//!
//! Bytes count what entries keep from being freed: each page, state and text once, however many entries share it.
//!
//! A text is compared by what stands at each place: the token's id, or a digest of the picture that stands there. Source
//! of the idea to keep a state where two texts part: Marconi (Pan et al. 2024, arXiv 2411.19379).

mod ledger;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use self::ledger::{Ledger, Part};
use super::State;
use crate::error::{Error, Result};
use crate::threads::fork;

/// Entries at most, however small: finding one compares the text with each.
const MAX_ENTRIES: usize = 256;
/// Set in what stands at the places of a picture; no token id reaches so far.
const PICTURE: u128 = 1 << 127;

/// What stands at each place of a text.
#[derive(Clone, Debug, Default)]
pub struct TextPath(Arc<Vec<u128>>);

impl TextPath {
    /// Places.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds token ids.
    pub fn extend(&mut self, ids: &[u32]) {
        if ids.is_empty() {
            return; // Even nothing would be written to a copy, if entries share the text.
        }
        Arc::make_mut(&mut self.0).extend(ids.iter().map(|&id| u128::from(id)));
    }

    /// Says that places `start..start + tokens` stand for the picture with this digest.
    pub fn mark(&mut self, start: usize, tokens: usize, digest: [u8; 16]) -> Result<()> {
        let end = start.checked_add(tokens).filter(|&end| end <= self.len());
        let Some(end) = end else {
            let reason = format!("{tokens} tokens from index {start} reach beyond the {}", self.len());
            return Err(Error::argument("start", reason));
        };
        let picture = u128::from_le_bytes(digest) | PICTURE;
        if self.0[start..end].iter().any(|&place| place != picture) {
            Arc::make_mut(&mut self.0)[start..end].fill(picture);
        }
        Ok(())
    }

    /// Forgets all places from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            Arc::make_mut(&mut self.0).truncate(len);
        }
    }

    /// The token ids of the first `len` places; none if a picture stands among them, or there are not so many.
    pub fn ids(&self, len: usize) -> Option<Vec<u32>> {
        self.0.get(..len)?.iter().map(|&place| u32::try_from(place).ok()).collect()
    }

    /// Places from the first one on at which both are the same.
    fn common(&self, other: &Self) -> usize {
        self.0.iter().zip(other.0.iter()).take_while(|(a, b)| a == b).count()
    }

    fn part(&self) -> Part {
        Part { address: Arc::as_ptr(&self.0).addr(), bytes: size_of::<u128>() * self.0.capacity() }
    }
}

/// A state after the first `state.len()` places of a text.
#[derive(Debug)]
struct Entry {
    path: TextPath,
    state: Arc<State>,
    /// By the clock of [`Entries`].
    used: u64,
}

impl Entry {
    fn parts(&self) -> impl Iterator<Item = Part> {
        let own = Part { address: Arc::as_ptr(&self.state).addr(), bytes: own_bytes(&self.state) };
        pages(&self.state).chain([own, self.path.part()])
    }
}

fn own_bytes(state: &State) -> usize {
    size_of::<State>() + state.constant_bytes()
}

fn pages(state: &State) -> impl Iterator<Item = Part> {
    state
        .kv_caches()
        .flat_map(|cache| cache.page_addresses().map(|address| Part { address, bytes: cache.page_bytes() }))
}

#[derive(Debug, Default)]
struct Entries {
    all: Vec<Entry>,
    ledger: Ledger,
    /// Counts uses.
    clock: u64,
}

impl Entries {
    /// Calls `visit` with each entry and how many places its text has in common with `path`.
    fn each_common(&self, path: &TextPath, mut visit: impl FnMut(usize, &Entry, usize)) {
        let mut last: Option<(&TextPath, usize)> = None;
        for (i, entry) in self.all.iter().enumerate() {
            // Entries of one text mostly follow each other.
            let common = match last {
                Some((text, common)) if Arc::ptr_eq(&text.0, &entry.path.0) => common,
                _ => path.common(&entry.path),
            };
            last = Some((&entry.path, common));
            visit(i, entry, common);
        }
    }

    /// The entry with the most tokens, at most `most`, whose tokens are the first of `path`.
    fn longest(&self, path: &TextPath, most: usize) -> Option<usize> {
        let (mut best, mut tokens) = (None, 0);
        self.each_common(path, |i, entry, common| {
            let len = entry.state.len();
            if len > tokens && len <= common.min(most) {
                (best, tokens) = (Some(i), len);
            }
        });
        best
    }

    fn touch(&mut self, entry: usize) {
        self.clock += 1;
        self.all[entry].used = self.clock;
    }

    /// Whether there is an entry of just these tokens; it is used by that.
    fn touch_same(&mut self, path: &TextPath, len: usize) -> bool {
        let same = self.longest(path, len).filter(|&i| self.all[i].state.len() == len);
        if let Some(entry) = same {
            self.touch(entry);
        }
        same.is_some()
    }

    fn add(&mut self, path: TextPath, state: Arc<State>) {
        self.clock += 1;
        let entry = Entry { path, state, used: self.clock };
        entry.parts().for_each(|part| self.ledger.add(part));
        self.all.push(entry);
    }

    /// Bytes that an entry would add.
    fn cost(&self, path: &TextPath, state: &State) -> usize {
        let mut parts = pages(state).chain([path.part()]);
        parts
            .try_fold(own_bytes(state), |sum, part| sum.checked_add(part.bytes - self.ledger.shared(part)))
            .unwrap_or(usize::MAX)
    }

    /// Drops entries, those used longest ago first, until there are `bytes` more to `limit`. How many those are is asked anew
    /// after each, which may have shared something with what is to come.
    fn make_room(&mut self, limit: usize, bytes: impl Fn(&Self) -> usize) -> Vec<Entry> {
        let mut dropped = Vec::new();
        while self.all.len() >= MAX_ENTRIES || self.ledger.bytes().saturating_add(bytes(self)) > limit {
            let Some(oldest) = (0..self.all.len()).min_by_key(|&i| self.all[i].used) else { break };
            let entry = self.all.remove(oldest);
            entry.parts().for_each(|part| self.ledger.remove(part));
            dropped.push(entry);
        }
        dropped
    }
}

/// States of one engine, up to a number of bytes. May be used by several threads.
#[derive(Debug)]
pub struct PrefixCache {
    limit: usize,
    entries: Mutex<Entries>,
    /// [`fork::generation`] of the process that last took the lock.
    holder: AtomicU64,
}

impl PrefixCache {
    /// Holds at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        fork::watch();
        Self { limit, entries: Mutex::default(), holder: AtomicU64::new(fork::generation()) }
    }

    /// Bytes at most.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes held now.
    pub fn nbytes(&self) -> usize {
        self.lock().map_or(0, |entries| entries.ledger.bytes())
    }

    /// States held now.
    pub fn len(&self) -> usize {
        self.lock().map_or(0, |entries| entries.all.len())
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything.
    pub fn clear(&self) {
        // Freed without the lock, here and below.
        let _freed = self.lock().map(|mut entries| std::mem::take(&mut *entries));
    }

    /// How many of the first `most` places of `path` some text read before has in common with it.
    pub fn known(&self, path: &TextPath, most: usize) -> usize {
        let mut known = 0;
        if let Some(entries) = self.lock() {
            entries.each_common(path, |_, _, common| known = known.max(common));
        }
        known.min(most)
    }

    /// A clone of the state after the most tokens of `path`, more than `beyond` and at most `most`.
    pub fn find(&self, path: &TextPath, beyond: usize, most: usize) -> Option<State> {
        let mut entries = self.lock()?;
        let found = entries.longest(path, most).filter(|&i| entries.all[i].state.len() > beyond)?;
        entries.touch(found);
        let state = Arc::clone(&entries.all[found].state);
        drop(entries);
        Some(State::clone(&state))
    }

    /// All texts, each with how many of its tokens there is a state for; those used longest ago first.
    pub fn texts(&self) -> Vec<(TextPath, usize)> {
        let Some(entries) = self.lock() else { return Vec::new() };
        let mut all: Vec<_> = entries.all.iter().collect();
        all.sort_by_key(|entry| entry.used);
        all.into_iter().map(|entry| (entry.path.clone(), entry.state.len())).collect()
    }

    /// Keeps a clone of `state`, which is that after the first places of `path`, if it fits at all.
    pub fn put(&self, path: &TextPath, state: &State) -> Result<()> {
        self.exchange(path, state, |_, _| {})
    }

    /// Makes room for `bytes` bytes that are to be put, if they fit at all, so that what they replace is gone before they are
    /// there. Calls `dropped` with each text and state that has to go.
    pub fn make_room(&self, bytes: usize, mut dropped: impl FnMut(TextPath, Arc<State>)) {
        let entries = self.lock().filter(|_| bytes <= self.limit);
        let gone = entries.map(|mut entries| entries.make_room(self.limit, |_| bytes));
        for entry in gone.into_iter().flatten() {
            dropped(entry.path, entry.state);
        }
    }

    /// Does what `put` does, and calls `dropped` with each text and state that has to go for it.
    pub fn exchange(
        &self,
        path: &TextPath,
        state: &State,
        mut dropped: impl FnMut(TextPath, Arc<State>),
    ) -> Result<()> {
        let len = state.len();
        if len > path.len() {
            let reason = format!("has {} places, the state {len} tokens", path.len());
            return Err(Error::argument("path", reason));
        }
        if state.is_empty() || state.broken || Entries::default().cost(path, state) > self.limit {
            return Ok(());
        }
        let copy = Arc::new(state.clone());
        let Some(mut entries) = self.lock() else { return Ok(()) };
        if entries.touch_same(path, len) {
            return Ok(());
        }
        let gone = entries.make_room(self.limit, |entries| entries.cost(path, &copy));
        entries.add(path.clone(), copy);
        drop(entries);
        for entry in gone {
            dropped(entry.path, entry.state);
        }
        Ok(())
    }

    /// Waits for the entries. None in a child whose parent was using them in another thread when it forked: that thread does
    /// not exist in the child, which does without a cache.
    fn lock(&self) -> Option<MutexGuard<'_, Entries>> {
        let entries = match self.entries.try_lock() {
            Err(TryLockError::WouldBlock) if self.holder.load(Ordering::Relaxed) != fork::generation() => {
                return None;
            }
            Err(TryLockError::WouldBlock) => self.entries.lock(),
            Err(TryLockError::Poisoned(poisoned)) => Err(poisoned),
            Ok(entries) => Ok(entries),
        };
        self.holder.store(fork::generation(), Ordering::Relaxed);
        let mut entries = entries.unwrap_or_else(PoisonError::into_inner);
        if self.entries.is_poisoned() {
            // Nobody knows at which step the panic was.
            *entries = Entries::default();
            self.entries.clear_poison();
        }
        Some(entries)
    }
}
