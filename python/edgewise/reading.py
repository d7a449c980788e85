"""Reading of texts: what an earlier text began with too is taken from the cache, the rest is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from typing import TypeAlias

from edgewise import checkpoints
from edgewise._native import Engine, PrefixCache, Sampler, TextPath, Work
from edgewise._native import Sequence as NativeSequence
from edgewise.checkpoints import Markers, Spacing
from edgewise.encoder import Encoded, Encoder
from edgewise.progress import Progress, count, shown
from edgewise.prompt import PlacedMedia, Prompt, moved
from edgewise.scheduler import Scheduler
from edgewise.spill import Spill

Sampled: TypeAlias = tuple[int, float | None, list[tuple[int, float]]]
"""A token, its log-probability if asked for, and the likeliest tokens with theirs."""

QUICK_SECONDS = 0.5
"""Encoding that takes no longer than this shows no bar."""
SHORT = 16
"""Tokens of an answer that are sooner computed again than kept, and of a prompt than looked for."""


class Reader:
    """Reads texts on one engine, and keeps states of them. May be used by several threads."""

    def __init__(
        self,
        engine: Engine,
        encoder: Encoder,
        cache_bytes: int,
        markers: Callable[[], Markers],
        scheduler: Scheduler,
    ) -> None:
        """Keep at most `cache_bytes` bytes of states; with 0, nothing."""
        self.engine = engine
        self.encoder = encoder
        self.scheduler = scheduler
        self.cache = PrefixCache(engine, cache_bytes) if cache_bytes else None
        self._markers = markers
        self.spill: Spill | None = None
        """Takes what the cache has no room for."""

    @cached_property
    def markers(self) -> Markers:
        """The tokens by which borders of messages are found."""
        return self._markers()

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of a checkpoint, beside the KV cache that it shares with others."""
        return self.engine.sequence().nbytes

    def keep(self, path: TextPath, native: NativeSequence) -> None:
        """Keep a fork of a state, in place of those used longest ago."""
        if self.cache is None:
            return
        if self.spill is None:
            self.cache.put(path, native)
            return
        for ids, state in self.cache.exchange(path, native):
            self.spill.put(ids, state)

    def make_room(self, states: int) -> None:
        """Let go of those used longest ago, so that what replaces them never stands beside them in memory."""
        if self.cache is not None and states:
            for ids, state in self.cache.make_room(states * self.state_bytes):
                if self.spill is not None:
                    self.spill.put(ids, state)

    def spill_all(self) -> int:
        """Write the states of all texts without pictures to disk; return how many are there then."""
        if self.cache is None or self.spill is None:
            return 0
        written = 0
        for ids in self.cache.texts():
            path = TextPath()
            path.extend(ids)
            state = self.cache.find(path, len(ids) - 1, len(ids))
            written += state is not None and self.spill.put(ids, state)
        return written

    def text(self) -> Text:
        """Return an empty text."""
        return Text(self, self.engine.sequence())


class Text:
    """A text on an engine: its tokens, images and videos, and the state after them.

    What counts is what the state has seen. `settle` brings the rest in line with it after an interruption,
    which may come between any two steps.
    """

    def __init__(self, reader: Reader, native: NativeSequence) -> None:
        self._reader = reader
        self.native = native
        self.ids: list[int] = []
        self.media: tuple[PlacedMedia, ...] = ()
        self._path = None if reader.cache is None else TextPath()
        self._checkpoint = 0
        """Tokens before the last checkpoint."""

    @classmethod
    def of(
        cls, reader: Reader, native: NativeSequence, ids: list[int], media: tuple[PlacedMedia, ...]
    ) -> Text:
        """Return the text that a state is of."""
        text = cls(reader, native)
        text.ids, text.media, text._checkpoint = ids, media, len(ids)
        if text._path is not None:
            text._path.extend(ids)
            for medium in media:
                for start, group in medium.groups():
                    text._path.mark(start, group.tokens, group.key)
        return text

    def __len__(self) -> int:
        return len(self.native)

    def settle(self) -> None:
        """Forget tokens that were to be read, and were not."""
        if len(self.ids) > len(self.native):
            tokens = len(self.native)
            del self.ids[tokens:]
            self.media = first_media(self.media, tokens)
            if self._path is not None:
                self._path.truncate(tokens)

    def read(self, prompt: Prompt, *, progress: Progress | bool | None = None) -> None:
        """Append a prompt.

        Args:
            prompt: what follows.
            progress: shows how far images and videos are encoded.

        Raises:
            BusyError: if too many texts are under way.
            ContextError, MediaError, MemoryError, KeyboardInterrupt: and what else reading may raise; the
                text then ends behind the last token that was read.
        """
        self._reader.scheduler.run(self._append(prompt, None, progress, 0, lambda: None))

    def reading(
        self,
        prompt: Prompt,
        sampler: Sampler,
        *,
        progress: Progress | bool | None = None,
        room: int = 0,
        encoded: Callable[[], None] = lambda: None,
    ) -> Generator[Work, None, tuple[int, Sampled]]:
        """Append a prompt and sample what follows: works to be done, see `read`.

        Args:
            prompt: what follows.
            sampler: picks the token.
            progress: shows how far images and videos are encoded.
            room: take memory for so many more tokens that will follow.
            encoded: called when images and videos are encoded, and the rest begins.

        Returns:
            How many of all tokens did not have to be computed by this call, and the token.
        """
        cached, sampled = yield from self._append(prompt, sampler, progress, room, encoded)
        if sampled is None:
            sampled = yield from self.sample(sampler)
        return cached, sampled

    def _append(
        self,
        prompt: Prompt,
        sampler: Sampler | None,
        progress: Progress | bool | None,
        room: int,
        encoded: Callable[[], None],
    ) -> Generator[Work, None, tuple[int, Sampled | None]]:
        before = len(self.ids)
        media = [moved(medium, before) for medium in prompt.media]
        try:
            self.ids += prompt.token_ids
            self.media += tuple(media)
            return (yield from self._read(before, media, sampler, progress, room, encoded))
        finally:
            self.settle()

    def _read(
        self,
        before: int,
        media: Sequence[PlacedMedia],
        sampler: Sampler | None,
        progress: Progress | bool | None,
        room: int,
        encoded: Callable[[], None],
    ) -> Generator[Work, None, tuple[int, Sampled | None]]:
        """Do what `_append` says; nothing is sampled if all of the prompt was cached."""
        known = self._take_up(media, before)
        cached = len(self.native)
        self.native.reserve(len(self.ids) + room)
        features = self._encode(media, cached, progress) if media else []
        encoded()
        if cached == len(self.ids):
            return cached, None
        places = [place - cached for place in self._places(cached, known)]
        self._reader.make_room(len(places))
        part = [(start - cached, feature) for start, feature in features]
        work = self.native.work(self.ids[cached:], part, sampler, places)
        try:
            yield work
            return cached, work.result()
        finally:
            for state in work.kept():
                self._keep(state)

    def sample(self, sampler: Sampler) -> Generator[Work, None, Sampled]:
        """Pick the token that follows."""
        return (yield from self._sampled(self.native.work([], None, sampler)))

    def _sampled(self, work: Work) -> Generator[Work, None, Sampled]:
        yield work
        sampled = work.result()
        assert sampled is not None, "the work has a sampler"
        return sampled

    def _take_up(self, media: Sequence[PlacedMedia], before: int) -> int:
        """Go on from the longest beginning that is cached; return how many tokens an earlier text has too."""
        cache, path = self._reader.cache, self._path
        if cache is None or path is None:
            return before
        path.extend(self.ids[len(path) :])
        if len(path) - before < SHORT:
            return before
        comparable = _mark(path, cache, media, len(self.ids))
        found = cache.find(path, before, comparable)
        on_disk = self._on_disk(comparable, before if found is None else len(found))
        if on_disk is not None:
            found = on_disk
        if found is not None:
            self.native = found
            self._checkpoint = len(found)
        return cache.known(path, comparable)

    def _on_disk(self, most: int, beyond: int) -> NativeSequence | None:
        """Return a state from disk of so many tokens at most, if it saves more than reading it costs."""
        if self._reader.spill is None or self._path is None:
            return None
        most = min([most, *(medium.starts[0] for medium in self.media)])
        found = self._reader.spill.find(self.ids, beyond + SHORT, most)
        if found is not None:
            self._reader.keep(self._path, found)
        return found

    def _encode(self, media: Sequence[PlacedMedia], first: int, progress: Progress | bool | None) -> Encoded:
        """Return features of what is seen from token `first` on."""
        mark = None if self._path is None else self._path.mark
        with shown(progress, "looking", count("tokens"), QUICK_SECONDS) as report:
            return self._reader.encoder.encode(Prompt([], tuple(media)), report, first, mark)

    def _places(self, first: int, known: int) -> list[int]:
        """Where checkpoints are to be made behind `first`."""
        cache = self._reader.cache
        if cache is None or self._reader.state_bytes > cache.limit:
            return []
        spacing = Spacing.of(len(self.ids) - first, self._reader.state_bytes, cache.limit)
        spans = [span for medium in self.media for span in medium.spans]
        return checkpoints.places(self.ids, first, known, spans, self._reader.markers, spacing)

    def reserve(self, tokens: int) -> None:
        """Take memory for so many more tokens."""
        self.native.reserve(len(self) + tokens)

    def push(self, token_id: int) -> Generator[Work, None, None]:
        """Append one token of an answer."""
        try:
            self.ids.append(token_id)
            work = self.native.work([token_id])
            yield work
            work.result()
        finally:
            self.settle()

    def push_and_sample(self, token_id: int, sampler: Sampler) -> Generator[Work, None, Sampled]:
        """Append one token of an answer, and pick the next."""
        try:
            self.ids.append(token_id)
            sampled = yield from self._sampled(self.native.work([token_id], None, sampler))
        finally:
            self.settle()
        if len(self) - self._checkpoint >= checkpoints.EVERY:
            self._keep(self.native)
        return sampled

    def finish(self) -> None:
        """Keep the state at the end of an answer, if it was not short."""
        if len(self) - self._checkpoint >= SHORT:
            self._keep(self.native)

    def _keep(self, state: NativeSequence) -> None:
        """Make a checkpoint of a state after the first tokens of the text."""
        cache, path = self._reader.cache, self._path
        if cache is not None and path is not None:
            path.extend(self.ids[len(path) : len(state)])
            self._reader.keep(path, state)
            self._checkpoint = len(state)

    def become(self, prompt: Prompt, *, progress: Progress | bool | None = None) -> None:
        """Be the text of another prompt, read as far as no beginning of it is cached.

        After an error or Ctrl-C the text is as before.
        """
        self._reader.scheduler.run(self.becoming(prompt, progress))

    def becoming(
        self, prompt: Prompt, progress: Progress | bool | None = None
    ) -> Generator[Work, None, None]:
        """Do what `become` does: works to be done."""
        other = self._reader.text()
        yield from other._append(prompt, None, progress, 0, lambda: None)
        vars(self).update(vars(other))  # One step, which no signal can come into the middle of.

    def fork(self) -> Text:
        """Return a copy that shares what it can."""
        copy = Text(self._reader, self.native.fork())
        copy.ids, copy.media, copy._checkpoint = self.ids.copy(), self.media, self._checkpoint
        copy._path = None if self._path is None else self._path.copy()
        return copy

    def beginning(self, tokens: int) -> Text:
        """Return the first `tokens` tokens as a text of their own, computed as far as there is no checkpoint.

        Raises:
            ValueError: if an image or a frame group of a video would be cut.
        """
        for medium in self.media:
            for start, count_ in medium.spans:
                if start < tokens < start + count_:
                    end = start + count_
                    raise ValueError(
                        f"n_tokens: {tokens} is inside {medium.where}, which takes tokens {start} to {end}"
                    )
        text = self._reader.text()
        if tokens:
            text.read(Prompt(self.ids[:tokens], first_media(self.media, tokens)))
        return text


def _mark(path: TextPath, cache: PrefixCache, media: Sequence[PlacedMedia], tokens: int) -> int:
    """Mark the places of images and videos in a path; return how far it may be compared.

    The pixels of a video are known only once it is decoded. That is left for later, unless some earlier text
    has everything before the video too.
    """
    for medium in media:
        start = medium.starts[0]
        if medium.kind == "video" and cache.known(path, start) < start:
            return start
        for start, group in medium.groups():
            path.mark(start, group.tokens, group.key)
    return tokens


def first_media(media: Sequence[PlacedMedia], tokens: int) -> tuple[PlacedMedia, ...]:
    """Return what stands in the first `tokens` tokens; of a video perhaps only its first frame groups."""
    found = []
    for medium in media:
        starts = tuple(start for start in medium.starts if start < tokens)
        if starts:
            found.append(dataclasses.replace(medium, starts=starts))
    return tuple(found)
