"""Images and frames to features, each only once: the vision tower behind a cache.

Frame groups do not depend on each other or on the text around them, so what the tower makes of one can be
used wherever the same pixels come again: in the next turn of a conversation, in another thread, in a video
that stands still.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from edgewise.locks import ForkSafeLock
from edgewise.media import FrameGroup
from edgewise.progress import Progress
from edgewise.prompt import PlacedMedia, Prompt
from edgewise.stored import StoredGroup

if TYPE_CHECKING:
    from edgewise._native import Engine, VisualFeatures

Encoded: TypeAlias = "list[tuple[int, VisualFeatures]]"
"""Features of each frame group of a prompt, and the index of its first token."""


class FeatureCache:
    """The features used last, up to a number of bytes. May be used by several threads."""

    def __init__(self, limit: int) -> None:
        """Hold at most `limit` bytes; with 0, nothing."""
        self._limit = limit
        self._lock = ForkSafeLock()
        self._entries: OrderedDict[bytes, VisualFeatures] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> VisualFeatures | None:
        """Return what was stored by this key, if it is still there."""
        with self._lock:
            features = self._entries.get(key)
            if features is not None:
                self._entries.move_to_end(key)
            return features

    def put(self, key: bytes, features: VisualFeatures) -> None:
        """Store features, and drop those used longest ago until all fit; too large ones are not stored."""
        with self._lock:
            if features.nbytes > self._limit or key in self._entries:
                return
            self._entries[key] = features
            self._bytes += features.nbytes
            while self._bytes > self._limit:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes


class Encoder:
    """The vision tower of one engine."""

    def __init__(self, engine: Engine, cache_bytes: int) -> None:
        self._engine = engine
        self._encoding = ForkSafeLock()
        self.cache = FeatureCache(cache_bytes)

    def encode(
        self,
        prompt: Prompt,
        progress: Progress | None = None,
        first: int = 0,
        mark: Callable[[int, int, bytes], None] | None = None,
    ) -> Encoded:
        """Return the features of every image and video in a prompt.

        Args:
            prompt: what `Model.prepare` returns.
            progress: called with (tokens done, tokens in all, name of the image or video); may raise.
            first: leave out frame groups that begin before this token.
            mark: called for each frame group with (index of its first token, tokens, key), also for those
                left out, but not for images and videos of which all are.

        Raises:
            MediaError: if a video cannot be decoded to its end.
        """
        report = _Report(prompt, progress)
        own: dict[bytes, VisualFeatures] = {}
        encoded: Encoded = []
        for medium in prompt.media:
            if medium.starts[-1] < first:
                for _ in medium.starts:
                    report.finished(medium)
                continue
            for start, group in medium.groups():
                if mark is not None:
                    mark(start, group.tokens, group.key)
                if start >= first:
                    if group.key not in own:
                        own[group.key] = self._features(group, report.of(medium))
                    encoded.append((start, own[group.key]))
                report.finished(medium)
        return encoded

    def _features(
        self, group: FrameGroup | StoredGroup, report: Callable[[int, int, str], None] | None
    ) -> VisualFeatures:
        """Look a group up, or encode it.

        One thread encodes at a time. The engine computes for one caller at a time anyway, and so the second
        of two that ask for the same picture finds it done. Whoever finds it at once does not wait.
        """
        if isinstance(group, StoredGroup):
            return group.features
        features = self.cache.get(group.key)
        if features is not None:
            return features
        with self._encoding:
            features = self.cache.get(group.key)
            if features is None:
                features = self._engine.encode(group.pixel_values(), group.grid_hw, report)
                self.cache.put(group.key, features)
            return features


class _Report:
    """Puts the layers of each frame group together to the tokens of a whole prompt."""

    def __init__(self, prompt: Prompt, progress: Progress | None) -> None:
        self._progress = progress
        self._all = sum(medium.prepared.tokens for medium in prompt.media)
        self._done = 0

    def of(self, medium: PlacedMedia) -> Callable[[int, int, str], None] | None:
        """Return what the engine is to call after each layer of a frame group."""
        progress = self._progress
        if progress is None:
            return None

        def layer_done(done: int, layers: int, _: str) -> None:
            part = _group_tokens(medium) * done // max(layers, 1)
            progress(self._done + part, self._all, medium.where)

        return layer_done

    def finished(self, medium: PlacedMedia) -> None:
        """Count a frame group as done."""
        self._done += _group_tokens(medium)
        if self._progress is not None:
            self._progress(self._done, self._all, medium.where)


def _group_tokens(medium: PlacedMedia) -> int:
    rows, columns = medium.merged_hw
    return rows * columns
