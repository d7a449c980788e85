"""Where in a text its state is worth keeping: a checkpoint costs as much memory as hundreds of cached tokens.

A recurrent state cannot be cut back, so a later text can take up an earlier one only where a checkpoint
stands. Later texts part from earlier ones at few kinds of places: where an answer begins (the template leaves
out the thought, which began there), at borders of messages and pictures, and where two texts parted before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GAP = 32
"""Tokens that a checkpoint must save at least, where nothing says that a text will come back to it."""
EVERY = 1024
"""Tokens without a border after which one is made all the same."""
SHARE = 4
"""A text may fill one part in so many of the cache with states."""
ANSWER_HEADER = 16
"""Tokens of a generation prompt at most."""


@dataclass(frozen=True)
class Markers:
    """Tokens by which a chat template's borders are found; `None` where there is no such token."""

    message: int | None = None
    """Begins every message."""
    thought: int | None = None
    """Begins a thought."""
    system: tuple[int, ...] = ()
    """Begin the system's message; empty where it cannot be told from others."""
    user: tuple[int, ...] = ()
    """Begin a message of the user."""
    tool_response: int | None = None
    """Begins what a tool answered, which stands in a message of the user."""

    def answer(self, ids: Sequence[int]) -> int | None:
        """Return the index at which the answer begins, if `ids` end with a generation prompt.

        A thought that the prompt opens, or passes over, counts as answer: later turns leave it out.
        """
        first = max(len(ids) - ANSWER_HEADER, 0)
        header = ids[first:]
        if self.message is None or self.message not in header:
            return None
        return first + header.index(self.thought) if self.thought in header else len(ids)


@dataclass(frozen=True)
class Spacing:
    """How far apart checkpoints stand."""

    gap: int
    """Tokens at least from one to a border after it."""
    every: int
    """Tokens at most between two."""

    @classmethod
    def of(cls, tokens: int, state_bytes: int, limit: int) -> Spacing:
        """Return what keeps a text of so many tokens within its share of a cache of `limit` bytes."""
        affordable = max(limit // (SHARE * max(state_bytes, 1)), 1)
        least = -(-tokens // affordable)
        return cls(max(GAP, least), max(EVERY, least))


def places(
    ids: Sequence[int],
    first: int,
    known: int,
    media: Sequence[tuple[int, int]],
    markers: Markers,
    spacing: Spacing,
) -> list[int]:
    """Return where checkpoints are to stand, as numbers of tokens before them, in order.

    Args:
        ids: all tokens of the text.
        first: tokens that there is a state for.
        known: tokens that some earlier text began with too.
        media: index of the first token and number of tokens of each picture, in order.
        markers: of the chat template.
        spacing: of borders and of places without any.
    """
    certain = {place for place in (markers.answer(ids),) if place is not None and place > first}
    known = _before(known, media)
    if known - first >= GAP:
        certain.add(known)
    chosen: list[int] = []
    last = first
    for border in sorted({*certain, *_borders(ids, first, media, markers), len(ids)}):
        while border - last > spacing.every:
            place = _before(last + spacing.every, media)
            if place <= last:
                place = _behind(last + spacing.every, media)
            if place >= border:
                break
            chosen.append(place)
            last = place
        soon = any(border < place < border + spacing.gap for place in certain)
        if border in certain or (border - last >= spacing.gap and not soon):
            chosen.append(border)
            last = border
    return chosen


def _borders(ids: Sequence[int], first: int, media: Iterable[tuple[int, int]], markers: Markers) -> list[int]:
    """Return where messages begin and pictures end, behind `first`."""
    found = [start + tokens for start, tokens in media]
    if markers.message is not None:
        found += [index for index in range(first + 1, len(ids)) if ids[index] == markers.message]
    return [place for place in found if place > first]


def _before(place: int, media: Iterable[tuple[int, int]]) -> int:
    """Return `place`, or where the picture begins that it lies in."""
    return next((start for start, tokens in media if start < place < start + tokens), place)


def _behind(place: int, media: Iterable[tuple[int, int]]) -> int:
    """Return `place`, or where the picture ends that it lies in."""
    return next((start + tokens for start, tokens in media if start < place < start + tokens), place)
