"""The loop that makes text: sample a token, give out what it adds to the text, feed it back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from edgewise import _native
from edgewise.detokenizer import Detokenizer
from edgewise.encoder import Encoded
from edgewise.options import GenerationOptions
from edgewise.results import FinishReason, Piece, Result, Timings, TokenLogprob, Usage
from edgewise.stops import StopStrings
from edgewise.tokenizer import Tokenizer

RESERVED_AHEAD = 1024
"""Tokens of the answer that memory is taken for before it begins; a longer answer takes more as it grows."""


@dataclass(frozen=True)
class Request:
    """One text to be generated."""

    prompt_ids: Sequence[int]
    max_new_tokens: int
    stop_ids: Collection[int]
    """Tokens that end the text."""
    options: GenerationOptions
    tokenizer: Tokenizer | None
    """`None` for a checkpoint without one: the text is then empty."""
    encode: Callable[[], Encoded] | None = None
    """Gives the features of the prompt's images and videos; `None` if it has none."""
    seconds_before: float = 0.0
    """Spent on template and tokenizer, and on reading images."""
    media_seconds_before: float = 0.0
    """What of that was spent on reading images."""


def stream(request: Request, sequence: _native.Sequence, sampler: _native.Sampler) -> Generator[Piece]:
    """Generate on an empty `sequence`, one piece a token; the last piece has the finish reason.

    The sequence always holds whole tokens, also when the loop is left early or interrupted.
    """
    clock = _Clock(request.seconds_before, request.media_seconds_before)
    text = _TextStream(request)
    sequence.reserve(len(request.prompt_ids) + min(request.max_new_tokens, RESERVED_AHEAD))
    sampler.observe(request.prompt_ids)
    _read_prompt(request, sequence, clock)
    for left in reversed(range(request.max_new_tokens)):
        token_id, logprob, top = sampler.sample(sequence)
        clock.token_sampled()
        piece_text, reason = text.push(token_id), text.finish_reason
        if reason is None and left == 0:
            piece_text, reason = piece_text + text.flush(), text.finish_reason or "length"
        logprobs = _logprobs(request, token_id, logprob, top)
        if reason is not None:
            yield _last_piece(request, piece_text, token_id, logprobs, reason, text.stop, clock)
            return
        with clock.paused():
            yield Piece(piece_text, [token_id], logprobs)
        sampler.observe([token_id], generated=True)
        sequence.append([token_id])


def collect(request: Request, pieces: Iterator[Piece]) -> Result:
    """All pieces of a stream as one result."""
    texts: list[str] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    for piece in pieces:
        texts.append(piece.text)
        token_ids += piece.token_ids
        logprobs += piece.logprobs or []
    ending = {name: getattr(piece, name) for name in ("finish_reason", "stop", "usage", "timings", "seed")}
    return Result(
        text="".join(texts),
        token_ids=token_ids,
        logprobs=None if request.options.sampling.logprobs is None else logprobs,
        prompt_token_ids=list(request.prompt_ids),
        **ending,
    )


def _read_prompt(request: Request, sequence: _native.Sequence, clock: _Clock) -> None:
    """Encode images and videos, and append the prompt; the features are not kept for longer than that."""
    features = request.encode() if request.encode else []
    clock.media_encoded(bool(features))
    sequence.append(request.prompt_ids, features)
    clock.prompt_read()


class _TextStream:
    """Tokens to text, up to the token or string that ends it."""

    def __init__(self, request: Request) -> None:
        self._stop_ids = request.stop_ids
        self._detokenizer = Detokenizer(_decoder(request.tokenizer, request.options.skip_special_tokens))
        self._stops = StopStrings(request.options.stop)
        self.stop: str | int | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self.stop is None else "stop"

    def push(self, token_id: int) -> str:
        """Return the text that is certain after this token; `stop` is set if it ended the text."""
        if token_id in self._stop_ids:
            text = self.flush()
            if self.stop is None:
                self.stop = token_id
            return text
        text = self._stops.push(self._detokenizer.push(token_id))
        self.stop = self._stops.matched
        return text

    def flush(self) -> str:
        """Return what was held back, for the end of the text."""
        text = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        self.stop = self._stops.matched
        return text


class _Clock:
    """Measures prompt and tokens, without the time in which the consumer of a stream has the word."""

    def __init__(self, seconds_before: float, media_seconds_before: float) -> None:
        self._before = seconds_before
        self._media_before = media_seconds_before
        self._start = time.perf_counter()
        self._paused = 0.0
        self._encoding = self._prefill = self._first = self._last = 0.0
        self._tokens = 0

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start - self._paused

    def media_encoded(self, any_media: bool) -> None:
        self._encoding = self._elapsed() if any_media else 0.0

    def prompt_read(self) -> None:
        self._prefill = self._elapsed() - self._encoding

    def token_sampled(self) -> None:
        self._last = self._elapsed()
        self._first = self._first or self._last
        self._tokens += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def report(self, prompt_tokens: int) -> tuple[Usage, Timings]:
        decode = self._last - self._first
        timings = Timings(
            prefill_seconds=self._prefill,
            decode_seconds=decode,
            prefill_tokens_per_second=_rate(prompt_tokens, self._prefill),
            decode_tokens_per_second=_rate(self._tokens - 1, decode),
            time_to_first_token=self._before + self._first,
            vision_seconds=self._media_before + self._encoding,
        )
        return Usage(prompt_tokens, self._tokens, prompt_tokens + self._tokens), timings


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _decoder(tokenizer: Tokenizer | None, skip_special_tokens: bool) -> Callable[[list[int]], str]:
    if tokenizer is None:
        return lambda _: ""
    return lambda ids: tokenizer.decode(ids, skip_special_tokens)


def _last_piece(
    request: Request,
    text: str,
    token_id: int,
    logprobs: list[TokenLogprob] | None,
    reason: FinishReason,
    stop: str | int | None,
    clock: _Clock,
) -> Piece:
    usage, timings = clock.report(len(request.prompt_ids))
    return Piece(text, [token_id], logprobs, reason, stop, usage, timings, request.options.sampling.seed)


def _logprobs(
    request: Request, token_id: int, logprob: float | None, top: list[tuple[int, float]]
) -> list[TokenLogprob] | None:
    """Return the entry of one token; the sampler gives no `logprob` unless the request asks for it."""
    if logprob is None:
        return None
    likely = [_token_logprob(request.tokenizer, *entry) for entry in top]
    return [_token_logprob(request.tokenizer, token_id, logprob, likely)]


def _token_logprob(
    tokenizer: Tokenizer | None, token_id: int, logprob: float, top: list[TokenLogprob] | None = None
) -> TokenLogprob:
    if tokenizer is None:
        return TokenLogprob(token_id, "", logprob, b"", top or [])
    return TokenLogprob(
        token_id, tokenizer.decode([token_id]), logprob, tokenizer.token_bytes(token_id), top or []
    )
