"""What this machine can do at most, and how much of that was reached."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise import _native
from edgewise.benchmark.plan import Plan
from edgewise.benchmark.results import MachineLimits, Share
from edgewise.benchmark.text import Decoded, Speeds, mean_context


def measure(path: str, plan: Plan) -> tuple[MachineLimits, ...]:
    """Measure 1, 2, 4 and so on, and last as many threads as the plan has; nothing if it wants no limits."""
    if plan.limit_seconds is None:
        return ()
    threads = plan.threads or _native.available_threads()
    file = path if Path(path).is_file() else None
    return tuple(
        MachineLimits(**limits)
        for limits in _native.machine_limits(threads, plan.limit_seconds, file)["threads"]
    )


def rates(speeds: Speeds) -> tuple[dict[int, float], dict[int, float]]:
    """Return tokens per second of reading, by length of the prompt, and of writing, by depth; medians."""
    prefill = {length: length / statistics.median(seconds) for length, seconds in speeds.reading.items()}
    decode = {
        depth: statistics.median(one.rate for one in rounds) for depth, rounds in speeds.writing.items()
    }
    return prefill, decode


def prefill_shares(
    rates: Mapping[int, float], costs: Mapping[str, Any], limits: MachineLimits | None
) -> dict[int, Share]:
    """Return what part of the INT8 limit reading reached; only products with quantised weights count."""
    operations: int = costs["prefill_operations"]["int8"]
    if limits is None or operations == 0:
        return {}
    limit = limits.int8_operations_per_second
    return {length: Share(operations, limit, operations * rate / limit) for length, rate in rates.items()}


def decode_shares(
    writing: Mapping[int, Sequence[Decoded]],
    engine: _native.Engine,
    new_tokens: int,
    limits: MachineLimits | None,
) -> dict[int, Share]:
    """Return what part of the memory's speed writing reached, counting each byte a token reads once; medians.

    Each round is held against the memory's speed beside it, or else against the machine's limit.
    """
    if limits is None:
        return {}
    info = engine.info()
    shares = {}
    for depth, rounds in writing.items():
        cache = info["kv_bytes_per_token"] * mean_context(depth, new_tokens)
        read = info["decode_bytes_per_token"] + round(cache)
        speeds = [one.memory_speed or limits.read_bytes_per_second for one in rounds]
        reached = [read * one.rate / speed for one, speed in zip(rounds, speeds, strict=True)]
        shares[depth] = Share(read, statistics.median(speeds), statistics.median(reached))
    return shares
