"""The loop that makes text: sample a token, give out what it adds to the text, feed it back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from edgewise._native import Sampler, Work
from edgewise.detokenizer import Detokenizer
from edgewise.options import GenerationOptions
from edgewise.prompt import Prompt
from edgewise.reading import Sampled, Text
from edgewise.results import FinishReason, Piece, Result, Timings, TokenLogprob, Usage
from edgewise.scheduler import CancelledError
from edgewise.stops import StopStrings
from edgewise.tokenizer import Tokenizer
from edgewise.window import Window, without

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
    prompt: Prompt | None = None
    """What is to be read first; `None` if the text has been read already."""
    seconds_before: float = 0.0
    """Spent on template and tokenizer, and on reading images."""
    media_seconds_before: float = 0.0
    """What of that was spent on reading images."""
    window: Window | None = None
    """Makes room in a full context; `None` if there is room for everything."""


def steps(
    request: Request, text: Text, sampler: Sampler, keep: bool = False
) -> Generator[Work | Piece, None, None]:
    """Generate at the end of `text`: works to be done, and a piece for each token.

    The last piece has the finish reason. The text always holds whole tokens, also when the loop is left early
    or interrupted.

    Args:
        request: what to generate; its prompt is read first.
        text: empty, or all that came before.
        sampler: picks the tokens; it has seen none of them yet.
        keep: append every token before its piece is given out, also the last one.
    """
    clock = _Clock(request.seconds_before, request.media_seconds_before)
    answer = _TextStream(request)
    sampler.observe(request.prompt_ids)
    cached = 0
    try:
        cached, first = yield from _read_prompt(request, text, sampler, clock)
        yield from _answer(request, text, sampler, answer, first, clock, cached, keep)
    except CancelledError:
        yield _last_piece(request, answer.flush(), [], None, "cancelled", answer, clock, cached)
    finally:
        text.finish()


def _read_prompt(
    request: Request, text: Text, sampler: Sampler, clock: _Clock
) -> Generator[Work, None, tuple[int, Sampled]]:
    """Append the prompt; return how many tokens did not have to be computed, and the first of the answer."""
    room = min(request.max_new_tokens, RESERVED_AHEAD)
    if request.prompt is None:
        text.reserve(room)
        cached = len(text)
        first = yield from text.sample(sampler)
    else:
        has_media = bool(request.prompt.media)
        cached, first = yield from text.reading(
            request.prompt,
            sampler,
            progress=request.options.progress,
            room=room,
            encoded=lambda: clock.media_encoded(has_media),
        )
    clock.prompt_read()
    return cached, first


def _answer(
    request: Request,
    text: Text,
    sampler: Sampler,
    answer: _TextStream,
    sampled: Sampled,
    clock: _Clock,
    cached: int,
    keep: bool,
) -> Generator[Work | Piece, None, None]:
    for left in reversed(range(request.max_new_tokens)):
        token_id, logprob, top = sampled
        clock.token_sampled()
        piece_text, reason = answer.push(token_id), answer.finish_reason
        if reason is None and left == 0:
            piece_text, reason = piece_text + answer.flush(), answer.finish_reason or "length"
        logprobs = _logprobs(request, token_id, logprob, top)
        if reason is not None:
            if keep:
                yield from _make_room(request, text, clock.tokens)
                yield from text.push(token_id)
            yield _last_piece(request, piece_text, [token_id], logprobs, reason, answer, clock, cached)
            return
        sampler.observe([token_id], generated=True)
        if keep:
            before = len(text)
            try:
                yield from _make_room(request, text, clock.tokens)
                before = len(text)
                sampled = yield from text.push_and_sample(token_id, sampler)
            except CancelledError:
                if len(text) > before:
                    yield Piece(piece_text, [token_id], logprobs)
                else:
                    clock.token_dropped()
                    answer.drop()
                raise
        with clock.paused():
            yield Piece(piece_text, [token_id], logprobs)
        if not keep:
            yield from _make_room(request, text, clock.tokens)
            sampled = yield from text.push_and_sample(token_id, sampler)


def _last_piece(
    request: Request,
    text: str,
    token_ids: list[int],
    logprobs: list[TokenLogprob] | None,
    reason: FinishReason,
    answer: _TextStream,
    clock: _Clock,
    cached: int,
) -> Piece:
    usage, timings = clock.report(len(request.prompt_ids), cached)
    seed = request.options.sampling.seed
    shifts = request.window.shifts if request.window else []
    return Piece(text, token_ids, logprobs, reason, answer.stop, usage, timings, seed, shifts)


def _make_room(request: Request, text: Text, generated: int) -> Generator[Work, None, None]:
    """Drop what has to go for one more token, where that is allowed."""
    if request.window is None or len(text) < request.window.context:
        return
    whole = Prompt(text.ids, text.media)
    ranges = request.window.overflow(whole)
    yield from text.becoming(without(whole, ranges))
    request.window.note(whole, ranges, generated)


def collect(request: Request, pieces: Iterator[Piece]) -> Result:
    """All pieces of a stream as one result."""
    texts: list[str] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    for piece in pieces:
        texts.append(piece.text)
        token_ids += piece.token_ids
        logprobs += piece.logprobs or []
    names = ("finish_reason", "stop", "usage", "timings", "seed", "shifts")
    ending = {name: getattr(piece, name) for name in names}
    return Result(
        text="".join(texts),
        token_ids=token_ids,
        logprobs=None if request.options.sampling.logprobs is None else logprobs,
        prompt_token_ids=list(request.prompt_ids),
        **ending,
    )


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

    def drop(self) -> None:
        """Forget what is held back: the last token is not to be part of the text."""
        self._detokenizer = Detokenizer(lambda _: "")
        self._stops = StopStrings(())

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
        self.tokens = 0

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start - self._paused

    def media_encoded(self, any_media: bool) -> None:
        self._encoding = self._elapsed() if any_media else 0.0

    def prompt_read(self) -> None:
        self._prefill = self._elapsed() - self._encoding

    def token_sampled(self) -> None:
        self._last = self._elapsed()
        self._first = self._first or self._last
        self.tokens += 1

    def token_dropped(self) -> None:
        self.tokens -= 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def report(self, prompt_tokens: int, cached_tokens: int) -> tuple[Usage, Timings]:
        decode = self._last - self._first
        timings = Timings(
            prefill_seconds=self._prefill,
            decode_seconds=decode,
            prefill_tokens_per_second=_rate(prompt_tokens - cached_tokens, self._prefill),
            decode_tokens_per_second=_rate(self.tokens - 1, decode),
            time_to_first_token=self._before + self._first,
            vision_seconds=self._media_before + self._encoding,
        )
        return Usage(prompt_tokens, self.tokens, prompt_tokens + self.tokens, cached_tokens), timings


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _decoder(tokenizer: Tokenizer | None, skip_special_tokens: bool) -> Callable[[list[int]], str]:
    if tokenizer is None:
        return lambda _: ""
    return lambda ids: tokenizer.decode(ids, skip_special_tokens)


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
