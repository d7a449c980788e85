"""Speed where threads have to share cores: more threads than cores, a busy neighbour, a quota.

    python benches/crowded.py                        # the shapes of Qwen3.5-0.8B
    python benches/crowded.py --shapes config.json   # others
    python benches/crowded.py --csv                  # rows for benches/record

Threads that wait for one that has no core could make each of a pass's hundreds of parallel regions as slow
as the system's time slice. Each case runs in a process of its own and in turn with all others, round after
round; printed are medians, and their ratio to one thread on a quiet machine. In the cases:

    threads     1, as many as cores, and one more
    neighbour   other processes that compute without end, one on each core or on one of them
    quota       a control group that may use one core's time (needs the right to make control groups)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from edgewise import _native, benchmark

PERIOD = 100_000
"""Microseconds in which a control group may use its quota."""


@dataclass
class Case:
    """One way to crowd the machine, and what was measured."""

    name: str
    threads: int
    neighbours: int = 0
    quota: bool = False
    prefill: list[float] = field(default_factory=list)
    """Tokens a second of each round."""
    decode: list[float] = field(default_factory=list)


def cases(cores: int) -> list[Case]:
    """All of them; the first is what the others are compared with."""
    return [
        Case("1 thread", 1),
        Case(f"{cores} threads", cores),
        Case(f"{cores + 1} threads", cores + 1),
        Case(f"{cores} threads, a busy neighbour", cores, neighbours=1),
        Case(f"{cores} threads, {cores} busy neighbours", cores, neighbours=cores),
        Case(f"{cores} threads, quota of one core", cores, quota=True),
    ]


def spin() -> None:
    """A neighbour."""
    while True:
        pass


@contextlib.contextmanager
def quota_group() -> Iterator[Path]:
    """A control group that may use one core's time: the file that processes join by."""
    root = Path("/sys/fs/cgroup")
    old = root / "cpu"
    parent = old if (old / "cpu.cfs_quota_us").exists() else root
    group = parent / f"edgewise-crowded-{os.getpid()}"
    group.mkdir()
    try:
        if parent is old:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(PERIOD))
        else:
            (group / "cpu.max").write_text(f"{PERIOD} {PERIOD}")
        yield group / "cgroup.procs"
    finally:
        for _ in range(50):  # a process that just ended may still count as a member
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def measure(path: str, threads: int, tokens: int, written: int, join: Path | None, out: Connection) -> None:
    """Read and write once, in a process of its own; sends tokens a second of both."""
    if join is not None:
        join.write_text(str(os.getpid()))
    engine = _native.Engine.open(path, threads=threads)
    ids = [(7919 * i + 11) % engine.vocab_size for i in range(tokens)]
    speeds = []
    for _ in range(2):  # the first is for warming up
        sequence = engine.sequence()
        start = time.perf_counter()
        sequence.append(ids)
        read = time.perf_counter()
        for i in range(written):
            sequence.append([ids[i % tokens]])
            sequence.logits()
        end = time.perf_counter()
        speeds = [tokens / (read - start), written / (end - read)]
    out.send(speeds)


def run(case: Case, path: str, tokens: int, written: int, join: Path | None) -> None:
    """One round of one case."""
    context = multiprocessing.get_context("spawn")
    neighbours = [context.Process(target=spin, daemon=True) for _ in range(case.neighbours)]
    for neighbour in neighbours:
        neighbour.start()
    try:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (path, case.threads, tokens, written, join if case.quota else None, sender)
        child = context.Process(target=measure, args=arguments)
        child.start()
        sender.close()
        prefill, decode = receiver.recv()
        child.join()
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.join()
    case.prefill.append(prefill)
    case.decode.append(decode)


def rows(measured: Sequence[Case]) -> Iterator[tuple[str, float, float, float, float]]:
    """Name, medians in tokens a second of reading and writing, each with its ratio to the first case."""
    base = [statistics.median(measured[0].prefill), statistics.median(measured[0].decode)]
    for case in measured:
        prefill, decode = statistics.median(case.prefill), statistics.median(case.decode)
        yield case.name, prefill, prefill / base[0], decode, decode / base[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="0.8B", help="a size of the family, or a config.json")
    parser.add_argument("--tokens", type=int, default=512, help="tokens to read (default: 512)")
    parser.add_argument("--written", type=int, default=32, help="tokens to write (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all cases (default: 5)")
    parser.add_argument("--csv", action="store_true", help="print rows for benches/record")
    options = parser.parse_args(arguments)

    cores = len(os.sched_getaffinity(0))
    measured = cases(cores)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgewise-crowded-")))
        path = str(folder / "model.safetensors")
        config = Path(options.shapes)
        text = config.read_text() if config.suffix == ".json" else benchmark.shapes(options.shapes)
        _native.write_random(text, path)
        try:
            join = stack.enter_context(quota_group())
        except OSError as error:
            print(f"not measured, quota: {error}", file=sys.stderr)
            measured, join = [case for case in measured if not case.quota], None
        for _ in range(options.rounds):
            for case in measured:
                run(case, path, options.tokens, options.written, join)
    if options.csv:
        print("case,prefill_tokens_per_second,prefill_ratio,decode_tokens_per_second,decode_ratio")
        for name, *figures in rows(measured):
            print(json.dumps(name), *(f"{figure:.4g}" for figure in figures), sep=",")
        return
    print(f"{'':34}{'read ' + str(options.tokens):>14}{'ratio':>8}{'write':>14}{'ratio':>8}")
    for name, prefill, prefill_ratio, decode, decode_ratio in rows(measured):
        print(f"{name:34}{prefill:10.1f} t/s{prefill_ratio:8.2f}{decode:10.1f} t/s{decode_ratio:8.2f}")


if __name__ == "__main__":
    main()
