"""The float32 path against recordings of the original model code (see tests/golden/README.md)."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import edgewise
import golden
from golden import Array, Prompt

CONV_TAPS_KEPT = 3
"""Columns of the convolution's input that the engine keeps; the recordings hold one more, the oldest."""

every_prompt = pytest.mark.parametrize(("case", "index"), golden.prompts())


@cache
def open_model(case: str) -> edgewise.Model:
    return edgewise.Model.from_pretrained(golden.FOLDER / case, dtype="f32")


def recorded_part(name: str, got: Array, want: Array) -> tuple[Array, Array]:
    """The rows of `got` that were recorded, the columns of `want` that the engine keeps."""
    if name.endswith("_tail"):
        return got[-len(want) :], want
    if name.endswith(".conv_state"):
        return got, want[:, -CONV_TAPS_KEPT:]
    return got, want


def differences(case: str, traced: dict[str, Array], recorded: Prompt) -> list[str]:
    found: list[str | None] = []
    for name, want in sorted(recorded.trace.items()):
        key = name.removesuffix("_tail")
        if key not in traced:
            found.append(f"{key}: not in the trace")
            continue
        got, want = recorded_part(name, traced[key], want)
        found.append(golden.difference(name, got, want, golden.tolerance(case, name)))
    return [line for line in found if line is not None]


@every_prompt
def test_every_traced_array_matches(case: str, index: int) -> None:
    recorded = golden.prompt(case, index)
    found = differences(case, open_model(case).trace(recorded.ids), recorded)
    assert not found, "\n".join(found)


@every_prompt
def test_logits_match(case: str, index: int) -> None:
    recorded = golden.prompt(case, index)
    logits = open_model(case).logits(recorded.ids)
    assert logits.dtype == np.float32
    assert (
        golden.difference("logits", logits, recorded.trace["logits"], golden.tolerance(case, "logits"))
        is None
    )


@every_prompt
def test_trace_and_logits_are_the_same_numbers(case: str, index: int) -> None:
    ids = golden.prompt(case, index).ids
    model = open_model(case)
    np.testing.assert_array_equal(model.trace(ids)["logits"], model.logits(ids))


@every_prompt
def test_greedy_continuation_is_the_recorded_one(case: str, index: int) -> None:
    recorded = golden.prompt(case, index)
    result = open_model(case).generate(
        recorded.ids, temperature=0, ignore_eos=True, max_new_tokens=len(recorded.greedy)
    )
    assert list(result.token_ids) == recorded.greedy


@every_prompt
def test_recorded_continuation_read_at_once_predicts_itself(case: str, index: int) -> None:
    """The same tokens as above, but computed as a prompt: each position's best token is the next one."""
    recorded = golden.prompt(case, index)
    logits = open_model(case).logits(recorded.ids + recorded.greedy[:-1])
    assert logits[len(recorded.ids) - 1 :].argmax(axis=-1).tolist() == recorded.greedy


@every_prompt
def test_greedy_choices_are_clear(case: str, index: int) -> None:
    """Two logits may each be off by the tolerance: a smaller gap would allow another token."""
    assert golden.prompt(case, index).greedy_margin.min() > 2 * golden.tolerance(case, "logits")
