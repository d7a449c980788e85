"""`edgewise quantize --calibrate`: levels that suit a text, and what they lose beside plain ones."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from edgewise import _native, calibration, checks
from edgewise.benchmark.perplexity import WINDOW, Score, measure
from edgewise.cli import terminal
from edgewise.cli.quantize import closing, fetched, free
from edgewise.model import Model
from edgewise.progress import count, shown

FOUR_BITS = ("int4_s8", "int4", "int4_asym")
"""Formats whose levels are calibrated."""


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, quantise, and print what that gained."""
    destination = free(Path(arguments.destination), arguments.force)
    threads = checks.threads(arguments.threads)
    text = Path(arguments.calibrate).read_text(encoding="utf-8")
    source = fetched(arguments)
    exact = Model.from_pretrained(source, "f32", threads, progress=True)
    window = min(WINDOW, exact.context_length)
    seen, held_out = calibration.split(exact.tokenizer.encode(text), arguments.calibrate_tokens)

    start = time.monotonic()
    with shown(True, "calibrating", count("tokens"), delay=0.5) as progress:
        statistics = exact.input_statistics(seen, window, progress)
    seconds = [time.monotonic() - start]
    with shown(True, "converting") as progress:
        report = _native.quantize(
            source, str(destination), arguments.recipe, threads, progress, statistics=statistics
        )
    tallies = [report["formats"][name] for name in FOUR_BITS if name in report["formats"]]
    calibrated, tensors = (sum(tally[key] for tally in tallies) for key in ("calibrated", "tensors"))
    seconds.append(time.monotonic() - start - seconds[0])
    print(closing(destination, report, seconds[1]))
    print(
        f"calibrated {calibrated} of {tensors} INT4 tensors on the first {len(seen)} tokens, "
        f"read in {seconds[0]:.1f} s"
    )

    scores = {"original, f32": judged(exact, None, held_out, window, "original")}
    plain = Model.from_pretrained(source, recipe=arguments.recipe, threads=threads)
    scores["plain"] = judged(plain, exact, held_out, window, "plain")
    del plain
    scores["calibrated"] = judged(
        Model.from_pretrained(destination, threads=threads), exact, held_out, window, "calibrated"
    )
    print(f"on the last {len(held_out)} tokens, which calibration did not see:")
    print(table(scores))
    return 0


def judged(model: Model, reference: Model | None, ids: Sequence[int], window: int, title: str) -> Score:
    """Measure a model on `ids`, with a bar."""
    with shown(True, f"measuring {title}", count("tokens"), delay=0.5) as progress:
        report = None if progress is None else lambda done, total: progress(done, total, "")
        return measure(model, ids, window, reference, report)


def table(scores: dict[str, Score]) -> str:
    """Lay the scores out, one model a line."""
    rows = [["levels", "perplexity", "divergence, nats", "same token"]]
    for name, score in scores.items():
        row = [name, f"{score.perplexity:.4f}", "", ""]
        if score.divergence is not None and score.agreement is not None:
            row[2:] = [f"{score.divergence:.6f}", f"{score.agreement:.2%}"]
        rows.append(row)
    return terminal.table(rows)
