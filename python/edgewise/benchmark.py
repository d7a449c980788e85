"""How fast a checkpoint opens, reads and writes on this computer, and how much memory that takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edgewise import _native

SHAPES = ("0.8B", "2B", "4B", "9B")
"""Sizes of the family whose true shapes come with the package."""
FIRST_PROMPT = 16
"""Tokens of the prompt whose first token is timed from opening the file."""
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    prompt_lengths: Sequence[int] = (512,)
    new_tokens: int = 64
    rounds: int = 3
    dtype: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds."""

    tier: str
    threads: int
    weight_bytes: int
    open_seconds: float
    first_token_seconds: float
    """From the path to the first token of a 16-token prompt, the file in the page cache."""
    prefill_tokens_per_second: dict[int, float]
    """By length of the prompt."""
    decode_tokens_per_second: dict[int, float]
    """By tokens already in the context."""
    peak_memory_bytes: int | None
    """Of the process, weights in the page cache counted; `None` where the system does not tell."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def shapes(size: str) -> str:
    """Return the `config.json` of a size of the family."""
    return (resources.files("edgewise") / "shapes" / f"{size}.json").read_text()


def write_random(size: str, destination: Path, recipe: str = "int4") -> None:
    """Write a checkpoint of random weights in the true shapes of a size of the family.

    Raises:
        OSError: if the file cannot be written.
    """
    _native.write_random(shapes(size), str(destination), recipe)


def measure(path: str, plan: Plan) -> Measured:
    """Measure a checkpoint; random tokens serve as prompts.

    Raises:
        CheckpointError: if a file of the checkpoint is unusable.
        ContextError: if the context cannot hold the prompt and the new tokens.
    """
    forget_peak_memory()
    opened, first, engine = [], [], None
    for _ in range(plan.rounds):
        engine = None
        start = time.perf_counter()
        engine = _native.Engine.open(path, plan.dtype, threads=plan.threads)
        opened.append(time.perf_counter() - start)
        _decode(engine, _prefilled(engine, FIRST_PROMPT), 1)
        first.append(time.perf_counter() - start)
    if engine is None:
        raise ValueError("rounds: at least one is needed")
    prefill, decode = {}, {}
    for length in plan.prompt_lengths:
        prefill[length], decode[length] = _speeds(engine, length, plan)
    info = engine.info()
    return Measured(
        tier=info["tier"],
        threads=info["threads"],
        weight_bytes=info["weight_bytes"],
        open_seconds=statistics.median(opened),
        first_token_seconds=statistics.median(first),
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        peak_memory_bytes=peak_memory(),
    )


def forget_peak_memory() -> None:
    """Let the peak begin anew with the memory in use now, where the system allows that."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def peak_memory() -> int | None:
    """Return the most bytes of memory this process held at once, `None` where the system does not tell."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _speeds(engine: _native.Engine, length: int, plan: Plan) -> tuple[float, float]:
    """Return tokens per second of reading a prompt and of writing after it."""
    reading, writing = [], []
    for _ in range(plan.rounds):
        start = time.perf_counter()
        sequence = _prefilled(engine, length)
        reading.append(length / (time.perf_counter() - start))
        _decode(engine, sequence, 1)
        start = time.perf_counter()
        _decode(engine, sequence, plan.new_tokens)
        writing.append(plan.new_tokens / (time.perf_counter() - start))
    return statistics.median(reading), statistics.median(writing)


def _prefilled(engine: _native.Engine, length: int) -> _native.Sequence:
    sequence = engine.sequence()
    sequence.append([(7919 * i + 11) % engine.vocab_size for i in range(length)])
    return sequence


def _decode(engine: _native.Engine, sequence: _native.Sequence, tokens: int) -> None:
    sampler = _native.Sampler(engine.vocab_size, temperature=0.0)
    for _ in range(tokens):
        sequence.append([sampler.sample(sequence)[0]])
