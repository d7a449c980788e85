"""How fast a checkpoint opens, reads, sees and writes on this computer, and how much memory that takes.

Speeds stand beside what the computer is capable of, measured in the same run.
"""

from __future__ import annotations

from dataclasses import replace

from edgewise import _native
from edgewise.benchmark import limits, memory, seeing, text
from edgewise.benchmark.estimates import estimate
from edgewise.benchmark.plan import MAX_SECONDS, MediaShape, Plan
from edgewise.benchmark.random_weights import SHAPES, layer_count, shapes, with_layers, write_random
from edgewise.benchmark.results import (
    Breakdown,
    Estimate,
    MachineLimits,
    Measured,
    MeasuredMedia,
    Share,
    Spent,
)

__all__ = [
    "MAX_SECONDS",
    "SHAPES",
    "Breakdown",
    "Estimate",
    "MachineLimits",
    "Measured",
    "MeasuredMedia",
    "MediaShape",
    "Plan",
    "Share",
    "Spent",
    "layer_count",
    "measure",
    "sees",
    "shapes",
    "with_layers",
    "write_random",
]


def measure(path: str, plan: Plan, layers: int | None = None) -> Measured:
    """Measure a checkpoint; random tokens and noise serve as prompts.

    Args:
        path: the checkpoint.
        plan: what to measure.
        layers: how many the whole model has, if this one is its first few and all are to be estimated.

    Raises:
        CheckpointError: if a file of the checkpoint is unusable.
        ContextError: if the context cannot hold the prompt and the new tokens.
        ValueError: if there are images or videos to measure with, and the model does not see.
    """
    measured = _measure_text(path, plan, layers)
    return replace(measured, media={str(shape): seeing.measure(path, plan, shape) for shape in plan.media})


def sees(path: str, dtype: str = "auto") -> bool:
    """Tell whether a checkpoint has a vision tower."""
    return _native.Engine.open(path, dtype).vision is not None


def _measure_text(path: str, plan: Plan, layers: int | None) -> Measured:
    machine = limits.measure(path, plan)
    memory.forget_peak()
    engine, open_seconds, first_token_seconds = text.opened(path, plan)
    speeds = text.speeds(engine, plan)
    peak = memory.peak()
    info, costs = engine.info(), engine.costs()
    prefill, decode = limits.rates(speeds)
    limit = machine[-1] if machine else None
    return Measured(
        tier=info["tier"],
        threads=info["threads"],
        weight_bytes=info["weight_bytes"],
        open_seconds=open_seconds,
        first_token_seconds=first_token_seconds,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        peak_memory_bytes=peak,
        limits=limit,
        other_limits=machine[:-1],
        prefill_shares=limits.prefill_shares(prefill, costs, limit),
        decode_shares=limits.decode_shares(speeds.writing, engine, plan.new_tokens, limit),
        breakdown=text.breakdown(engine, plan) if plan.breakdown else {},
        estimate=None
        if layers is None
        else estimate(speeds, costs, info["weight_bytes"], layer_count(engine.config), layers),
    )
