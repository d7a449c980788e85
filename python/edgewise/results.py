"""What `Model.generate` and `Model.stream` give back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]


class _Record(Mapping[str, Any]):
    """A dataclass that can also be read as a dictionary: `usage.total_tokens` or `usage["total_tokens"]`."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:  # type: ignore[attr-defined]
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Usage(_Record):
    """Tokens of one call, named as in OpenAI's interface."""

    prompt_tokens: int
    completion_tokens: int
    """Generated tokens, the one that ended the text included."""
    total_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt that did not need to be computed again."""


@dataclass(frozen=True, eq=False)
class Timings(_Record):
    """Where the time went. Time the caller spent between the pieces of a stream is not counted."""

    prefill_seconds: float
    """Reading the prompt, once its images and videos are encoded."""
    decode_seconds: float
    """From the first generated token to the last."""
    prefill_tokens_per_second: float
    """Tokens of the prompt that were computed; 0 if all were cached."""
    decode_tokens_per_second: float
    """Tokens after the first one; 0 if there was only one."""
    time_to_first_token: float
    """Seconds, with template, tokenizer, images and videos."""
    vision_seconds: float = 0.0
    """Reading, resizing and encoding images and videos; 0 without any."""


@dataclass(frozen=True, eq=False)
class Shift(_Record):
    """What was dropped of a text because the context was full; see `on_full` of `Model.generate`."""

    generated: int
    """Tokens of the answer before it; 0 if the prompt was shortened. Those after it are as if what was
    dropped had never been there."""
    dropped_tokens: int
    """Of what stood in the context then."""
    dropped_messages: int
    """Messages that went whole; 0 for a text that is no conversation."""


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log-probability of one token: before penalties, temperature and filters, in nats."""

    token_id: int
    token: str
    logprob: float
    bytes: bytes
    """What the token stands for, even where it is only a part of a character."""
    top_logprobs: list[TokenLogprob] = field(default_factory=list)
    """The most likely tokens at this place, best first."""


@dataclass(frozen=True)
class Piece:
    """One token's worth of a stream."""

    text: str
    """Whole characters; empty while a character or a possible stop string is unfinished."""
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    """`None` but for the last piece, as are all that follow."""
    stop: str | int | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    seed: int | None = None
    shifts: list[Shift] | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Result:
    """A whole answer."""

    text: str
    """The generated text, without special tokens and without what ended it."""
    token_ids: list[int]
    """Every generated token, the one that ended the text included."""
    finish_reason: FinishReason
    """`"stop"`: the model or a stop string ended the text. `"length"`: `max_new_tokens` did.
    `"cancelled"`: the event given as `cancel` was set."""
    stop: str | int | None
    """The stop string, or the id of the token, that ended the text."""
    usage: Usage
    timings: Timings
    seed: int
    """Of the random numbers; the same seed and arguments give the same answer."""
    logprobs: list[TokenLogprob] | None
    """One entry a token, if asked for."""
    prompt_token_ids: list[int]
    """What was read: a shift before the answer shortens it."""
    shifts: list[Shift] = field(default_factory=list)
    """What was dropped of a full context, in order; empty if all of prompt and answer fitted."""

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that `json` can write."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, TokenLogprob):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, bytes) else value
