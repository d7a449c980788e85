"""Several texts at a time: tokens a second of all together, and when each gets its first token.

    python benches/many.py                        # the shapes of Qwen3.5-0.8B, random weights
    python benches/many.py --threads 2 --rounds 5
    python benches/many.py --csv                  # rows for benches/record

`write` has 1, 2, 4 and 8 texts write side by side (`Model.generate_many`) after prompts of 32 tokens. The
counts are measured in turns, round after round; printed are the medians of the rounds, and of the ratio to
one text in the same round.

`first token` gives prompts of the same length to all of 8 texts at once, and notes when each has its first
token: the first, the median one and the last, beside one such prompt alone.

`long prompt` has 7 threads stream, and lets an eighth ask with a long prompt while they do: the longest pause
between two tokens that any of them saw, beside the median one before; and when the long prompt had its first
token, beside the same prompt alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import provenance
from edgewise import Model, _native, benchmark

COUNTS = (1, 2, 4, 8)
WRITING_PROMPT = 32
ENDLESS = 4096
"""Tokens of streams that are cancelled in the end."""
PATIENCE = 600
"""Seconds after which something must have failed."""


@dataclass
class Figures:
    """Figures of each round by what was measured."""

    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, what: str, figure: float) -> None:
        """Note a figure of the next round."""
        self.rounds.setdefault(what, []).append(figure)

    def medians(self) -> dict[str, float]:
        """Return the median of all rounds of each."""
        return {what: statistics.median(figures) for what, figures in self.rounds.items()}


def ids(model: Model, seed: int, tokens: int) -> list[int]:
    """Return a prompt that no other begins like."""
    return [(7919 * i + 104729 * seed + 11) % model.vocab_size for i in range(tokens)]


def write(model: Model, figures: Figures, tokens: int) -> None:
    """One round of several texts writing side by side."""
    options: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    speeds = {}
    for count in COUNTS:
        prompts = [ids(model, seed, WRITING_PROMPT) for seed in range(count)]
        results = model.generate_many(prompts, **options)
        seconds = max(result.timings.decode_seconds for result in results)
        speeds[count] = count * (tokens - 1) / seconds
        figures.add(f"write_{count}_tokens_per_s", speeds[count])
        figures.add(f"write_{count}_ratio", speeds[count] / speeds[1])


def first_token(model: Model, figures: Figures, prompt: int) -> None:
    """One round of prompts that come at the same time."""
    options: dict[str, Any] = {"max_new_tokens": 4, "ignore_eos": True, "temperature": 0}
    alone = model.generate(ids(model, 0, prompt), **options).timings.time_to_first_token
    start = time.perf_counter()
    firsts: list[float] = []

    def ask(seed: int) -> None:
        next(model.stream(ids(model, seed, prompt), **options))
        firsts.append(time.perf_counter() - start)

    run([lambda seed=seed: ask(seed) for seed in range(max(COUNTS))])  # type: ignore[misc]
    firsts.sort()
    figures.add("first_token_alone_ms", 1e3 * alone)
    figures.add("first_token_of_8_first_ms", 1e3 * firsts[0])
    figures.add("first_token_of_8_median_ms", 1e3 * statistics.median(firsts))
    figures.add("first_token_of_8_last_ms", 1e3 * firsts[-1])


def long_prompt(model: Model, figures: Figures, prompt: int, tokens: int) -> None:
    """One round of a long prompt that comes while others write."""
    options: dict[str, Any] = {"max_new_tokens": ENDLESS, "ignore_eos": True, "temperature": 0}
    count = max(COUNTS) - 1
    times: list[list[float]] = [[] for _ in range(count)]
    all_write = threading.Barrier(count + 1)
    done = threading.Event()

    def stream(seed: int) -> None:
        for _ in model.stream(ids(model, seed, WRITING_PROMPT), cancel=done, **options):
            times[seed].append(time.perf_counter())
            if len(times[seed]) == tokens:
                all_write.wait(PATIENCE)

    asked: list[float] = []
    found: list[float] = []

    def ask() -> None:
        try:
            all_write.wait(PATIENCE)
            asked.append(time.perf_counter())
            result = model.generate(ids(model, 99, prompt), **(options | {"max_new_tokens": 2}))
            found.append(result.timings.time_to_first_token)
        finally:
            done.set()

    run([*[lambda seed=seed: stream(seed) for seed in range(count)], ask])  # type: ignore[misc]
    alone = model.generate(ids(model, 98, prompt), **(options | {"max_new_tokens": 1}))
    pauses = [(after, after - before) for line in times for before, after in pairwise(line)]
    figures.add("pause_before_ms", 1e3 * statistics.median(p for at, p in pauses if at < asked[0]))
    figures.add("pause_beside_long_prompt_longest_ms", 1e3 * max(p for at, p in pauses if at >= asked[0]))
    figures.add("long_prompt_first_token_ms", 1e3 * found[0])
    figures.add("long_prompt_first_token_alone_ms", 1e3 * alone.timings.time_to_first_token)


def run(calls: Sequence[Any]) -> None:
    """Call all, each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="0.8B", help="a size of the family, or a config.json")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=64, help="tokens to write (default: 64)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of prompts that come together")
    parser.add_argument("--long", type=int, default=2048, help="tokens of the long prompt")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all (default: 5)")
    parser.add_argument("--only", choices=["write", "first", "long"], help="one of the three")
    parser.add_argument("--csv", action="store_true", help="print rows for benches/record")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="edgewise-many-") as folder:
        path = Path(folder) / "model.safetensors"
        shapes = Path(options.shapes)
        text = shapes.read_text() if shapes.suffix == ".json" else benchmark.shapes(options.shapes)
        _native.write_random(text, str(path))
        model = Model.from_pretrained(path, threads=options.threads, cache_bytes=0)
        model.generate(ids(model, 0, 512), max_new_tokens=1)
        for _ in range(options.rounds):
            if options.only in (None, "write"):
                write(model, figures, options.tokens)
            if options.only in (None, "first"):
                first_token(model, figures, options.prompt)
            if options.only in (None, "long"):
                long_prompt(model, figures, options.long, max(options.tokens // 4, 2))
        threads = model.threads
        del model
    if options.csv:
        sys.stdout.write(provenance.comment(load))
        print("shapes,threads,what,figure")
    for what, figure in figures.medians().items():
        if options.csv:
            print(Path(options.shapes).stem, threads, what, f"{figure:.4g}", sep=",")
        else:
            print(f"{what:40}{figure:10.2f}")


if __name__ == "__main__":
    main()
