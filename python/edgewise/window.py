"""What stays of a text when the context is full: its first messages, and the newest ones that fit.

A recurrent state cannot forget the middle of a text, so nothing is cut out of a state: what stays is a text
of its own, read from the cached beginning on like any other. What follows has the bits of a fresh run on it.

    excess = tokens - most                      what has to go at least
    chunk  = (most - tokens always kept) / 2
    wanted = excess, rounded up to whole chunks

Reading anew costs time, so half of the room is made each time. And as `wanted` changes only with every chunk,
the turns of a conversation that is sent whole each time are shortened at the same place for many turns: each
of them finds the one before in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edgewise._native import ContextError
from edgewise.checkpoints import Markers
from edgewise.prompt import PlacedMedia, Prompt, moved
from edgewise.results import Shift

ANSWER_SHARE = 4
"""Room is made in advance for one part in so many of the context, if as many new tokens are asked for."""
Range = tuple[int, int]
"""Tokens from the first index up to, not including, the second."""


@dataclass
class Window:
    """Keeps the text of one call within the context; notes what it dropped."""

    context: int
    """Tokens at most."""
    keep_first: int | None
    """Messages, or tokens of a text that is no conversation; `None` for the system's message alone."""
    markers: Markers
    shifts: list[Shift] = field(default_factory=list)
    _answer: int = 0
    """Index in the text of the first token of the answer."""

    def prompt(self, prompt: Prompt, new_tokens: int) -> Prompt:
        """Return what stays of a prompt, so that there is room for some of the `new_tokens` to come.

        Raises:
            ContextError: if what is always kept leaves no room.
        """
        most = self.context - min(new_tokens, self.context // ANSWER_SHARE)
        kept = self._shortened(prompt, most, most)
        self._answer = len(kept)
        return kept

    def joined(self, prompt: Prompt) -> Prompt:
        """Return what stays of a text and one that is to follow it; the same prompt if all of it fits."""
        return self._shortened(prompt, self.context, self.context - self.context // ANSWER_SHARE)

    def _shortened(self, prompt: Prompt, limit: int, most: int) -> Prompt:
        if len(prompt) <= limit:
            return prompt
        ranges = dropped(prompt, self.markers, self.keep_first, most)
        self.note(prompt, ranges, 0)
        return without(prompt, ranges)

    def overflow(self, text: Prompt) -> list[Range]:
        """Return what is to be dropped of a text that fills the context, for the next token of the answer.

        Raises:
            ContextError: if what is always kept leaves no room.
        """
        return dropped(text, self.markers, self.keep_first, self.context - 1, self._answer)

    def note(self, text: Prompt, ranges: list[Range], generated: int) -> None:
        """Note what was dropped after so many tokens of the answer."""
        self._answer -= sum(min(end, self._answer) - start for start, end in ranges if start < self._answer)
        gone = [token_id for start, end in ranges for token_id in text.token_ids[start:end]]
        messages = 0 if self.markers.message is None else gone.count(self.markers.message)
        self.shifts.append(Shift(generated, len(gone), messages))


def dropped(
    prompt: Prompt, markers: Markers, keep_first: int | None, most: int, answer: int | None = None
) -> list[Range]:
    """Return the tokens to drop so that at most `most` stay.

    Of a conversation whole turns go, the oldest first, and never the last question. If that is not enough,
    the oldest calls of tools after it go, each with what was answered; and then the oldest part of the answer
    under way. Of any other text the oldest tokens go, and never a part of a picture.

    Args:
        prompt: more than `most` tokens.
        markers: by which messages are found.
        keep_first: see `Window`.
        most: tokens that may stay.
        answer: index of the first token of an answer under way.

    Raises:
        ContextError: if what is always kept does not fit.
    """
    questions, steps = _borders(prompt.token_ids, markers)
    if questions:
        head = _first_messages(prompt.token_ids, markers, keep_first)
        return _of_conversation(len(prompt), head, questions, steps, most, answer)
    return _of_text(prompt, keep_first or 0, most)


def _of_conversation(
    tokens: int, head: int, questions: list[int], steps: list[int], most: int, answer: int | None
) -> list[Range]:
    excess, wanted = tokens - most, _wanted(tokens, head, most)
    last = max(questions[-1], head)
    later = [step for step in steps if step > questions[-1] and step >= head]
    ranges: list[Range] = []
    gone = 0
    for begin, places in ((head, [*questions, last]), (later[0] if later else tokens, later)):
        least = begin + wanted - gone
        end = next((place for place in places if place >= least), places[-1] if places else begin)
        if end > begin:
            ranges.append((begin, end))
            gone += end - begin
        if gone >= (excess if answer is None else wanted):
            return ranges
    kept = (tokens if answer is None else answer) - gone
    room = most - kept
    if answer is None or room < 1:
        raise _full(kept, most)
    newest = -(-room // 2)
    return [*ranges, (answer, tokens - newest)] if tokens - answer > newest else ranges


def _of_text(prompt: Prompt, head: int, most: int) -> list[Range]:
    tokens = len(prompt)
    head = _behind(head, prompt.media)
    if head >= most:
        raise _full(head, most)
    end = _behind(head + _wanted(tokens, head, most), prompt.media)
    if end >= tokens:
        raise _full(tokens - end + head + 1, most)
    return [(head, end)]


def _wanted(tokens: int, head: int, most: int) -> int:
    chunk = max((most - head) // 2, 1)
    return -(-(tokens - most) // chunk) * chunk


def _borders(ids: Sequence[int], markers: Markers) -> tuple[list[int], list[int]]:
    """Return where questions of the user begin, and where other messages do.

    What a tool answered is written as a message of the user; it belongs to the one before and is in neither.
    """
    questions, others = [], []
    width = len(markers.user)
    for i, token_id in enumerate(ids):
        if not width or token_id != markers.message:
            continue
        if tuple(ids[i : i + width]) != markers.user:
            others.append(i)
        elif markers.tool_response not in ids[i + width : i + width + 2]:
            questions.append(i)
    return questions, others


def _first_messages(ids: Sequence[int], markers: Markers, keep_first: int | None) -> int:
    """Return how many tokens the first messages take that are always kept."""
    borders = [i for i, token_id in enumerate(ids) if token_id == markers.message]
    if keep_first is None:
        is_system = tuple(ids[borders[0] : borders[0] + len(markers.system)]) == markers.system
        keep_first = 1 if markers.system and is_system else 0
    return borders[keep_first] if keep_first < len(borders) else len(ids)


def _behind(place: int, media: Iterable[PlacedMedia]) -> int:
    """Return `place`, or where the picture or video ends that it lies in."""
    for medium in media:
        first, (last, tokens) = medium.starts[0], medium.spans[-1]
        if first < place < last + tokens:
            return last + tokens
    return place


def _full(kept: int, most: int) -> ContextError:
    return ContextError(
        f"context is full: the {kept} tokens that a shift always keeps leave no room within {most}"
    )


def without(prompt: Prompt, ranges: Sequence[Range]) -> Prompt:
    """Return a prompt without some ranges of its tokens, which are in order and hold pictures whole."""
    gone = {index for start, end in ranges for index in range(start, end)}
    ids = [token_id for index, token_id in enumerate(prompt.token_ids) if index not in gone]
    media = []
    for medium in prompt.media:
        if medium.starts[0] not in gone:
            before = sum(end - start for start, end in ranges if end <= medium.starts[0])
            media.append(moved(medium, -before))
    return Prompt(ids, tuple(media))
