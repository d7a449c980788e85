"""Text: opening, reading and writing."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgewise import _native
from edgewise.benchmark.plan import Plan
from edgewise.benchmark.results import Breakdown, Spent

FIRST_PROMPT = 16
"""Tokens of the prompt whose first token is timed from opening the file."""


@dataclass(frozen=True)
class Decoded:
    """Tokens that were written one at a time."""

    tokens: int
    appending: float
    """Seconds in the layers."""
    choosing: float
    """Seconds in the head and the sampler."""
    memory_speed: float | None = None
    """Bytes per second at which weights could be read right before and after, `None` if not measured."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / (self.appending + self.choosing)


@dataclass(frozen=True)
class Speeds:
    """Seconds of reading by length of the prompt, and what was written by depth; one entry a round."""

    reading: Mapping[int, list[float]]
    writing: Mapping[int, list[Decoded]]


def random_text(engine: _native.Engine, length: int) -> list[int]:
    """Return token ids without a short period."""
    return [(7919 * i + 11) % engine.vocab_size for i in range(length)]


def opened(path: str, plan: Plan) -> tuple[_native.Engine, float, float]:
    """Return an engine, the seconds of opening it, and those to the first token; medians over the rounds."""
    opening, first, engine = [], [], None
    for _ in range(plan.rounds):
        engine = None
        start = time.perf_counter()
        engine = _native.Engine.open(path, plan.dtype, plan.kv_dtype, threads=plan.threads)
        opening.append(time.perf_counter() - start)
        _decode(engine, _prefilled(engine, FIRST_PROMPT), 1)
        first.append(time.perf_counter() - start)
    if engine is None:
        raise ValueError("rounds: at least one is needed")
    return engine, statistics.median(opening), statistics.median(first)


def speeds(engine: _native.Engine, plan: Plan) -> Speeds:
    """Read every prompt and write at every depth, all in each round: a slow minute hits no one alone.

    Weights and what stands in the caches move into large pages before that: what is measured is how it goes
    on, not the first answer.
    """
    reading: dict[int, list[float]] = defaultdict(list)
    writing: dict[int, list[Decoded]] = defaultdict(list)
    contexts = {depth: _prefilled(engine, max(depth, 1)) for depth in plan.decode_depths}
    for context in contexts.values():
        _decode(engine, context.fork(), 1)
    engine.settle()
    for _ in range(plan.rounds):
        for length in plan.prompt_lengths:
            start = time.perf_counter()
            _prefilled(engine, length)
            reading[length].append(time.perf_counter() - start)
        for depth, context in contexts.items():
            sequence = context.fork()
            _decode(engine, sequence, 1)
            writing[depth].append(_decode_beside_memory(engine, sequence, plan))
    return Speeds(reading, writing)


def mean_context(depth: int, new_tokens: int) -> float:
    """Return over how many tokens attention went, on average, where `speeds` wrote: itself included."""
    return max(depth, 1) + 1 + (new_tokens + 1) / 2


def breakdown(engine: _native.Engine, plan: Plan) -> dict[str, Breakdown]:
    """Tell where the time of the longest prompt and of writing after it goes; one round."""
    length = max([*plan.prompt_lengths, FIRST_PROMPT])
    engine.start_profile()
    start = time.perf_counter()
    sequence = _prefilled(engine, length)
    reading = _breakdown(length, time.perf_counter() - start, engine.stop_profile())
    _decode(engine, sequence, 1)
    before = _memory_speed(engine, plan)
    engine.start_profile()
    start = time.perf_counter()
    _decode(engine, sequence, plan.new_tokens)
    seconds, profile = time.perf_counter() - start, engine.stop_profile()
    speed = _mean(before, _memory_speed(engine, plan))
    return {"prefill": reading, "decode": _breakdown(plan.new_tokens, seconds, profile, speed)}


def _breakdown(
    tokens: int,
    seconds: float,
    profile: Mapping[str, Mapping[str, float]],
    memory_speed: float | None = None,
) -> Breakdown:
    operations = {
        name: Spent(
            int(part["calls"]),
            part["seconds"],
            int(part["bytes"]),
            int(part["operations"]),
            part["seconds"] / seconds,
        )
        for name, part in profile.items()
    }
    rest = seconds - sum(spent.seconds for spent in operations.values())
    operations["other"] = Spent(0, rest, 0, 0, rest / seconds)
    return Breakdown(tokens, seconds, operations, memory_speed)


def _prefilled(engine: _native.Engine, length: int) -> _native.Sequence:
    sequence = engine.sequence()
    sequence.append(random_text(engine, length))
    return sequence


def _decode_beside_memory(engine: _native.Engine, sequence: _native.Sequence, plan: Plan) -> Decoded:
    """Look at the memory's speed before and after: on a shared machine it changes from minute to minute."""
    before = _memory_speed(engine, plan)
    decoded = _decode(engine, sequence, plan.new_tokens)
    return replace(decoded, memory_speed=_mean(before, _memory_speed(engine, plan)))


def _memory_speed(engine: _native.Engine, plan: Plan) -> float | None:
    return None if plan.limit_seconds is None else engine.memory_speed(plan.limit_seconds / 4)


def _mean(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else (before + after) / 2


def _decode(engine: _native.Engine, sequence: _native.Sequence, tokens: int) -> Decoded:
    sampler = _native.Sampler(engine.vocab_size, temperature=0.0)
    appending = choosing = 0.0
    start = time.perf_counter()
    for _ in range(tokens):
        token = sampler.sample(sequence)[0]
        chosen = time.perf_counter()
        choosing += chosen - start
        sequence.append([token])
        start = time.perf_counter()
        appending += start - chosen
    return Decoded(tokens, appending, choosing)
