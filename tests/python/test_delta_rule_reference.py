"""The gated delta rule as an operation, against recordings of the original model code."""

from typing import Any, Literal

import numpy as np
import pytest

import edgewise
import golden
from golden import Array

CASES = {case["name"]: case for case in golden.read_json("delta_rule/case.json")["cases"]}
TOLERANCES = golden.read_json("delta_rule/case.json")["tolerances"]

every_case = pytest.mark.parametrize("name", CASES)


def inputs(name: str) -> dict[str, Any]:
    """q, k [T, Hk, Dk], v [T, Hv, Dv], g, beta [T, Hv]."""
    return {key: golden.arrays("delta_rule")[f"{name}.{key}"] for key in ["q", "k", "v", "g", "beta"]}


def initial_state(name: str) -> Array | None:
    """State before the first token [Hv, Dk, Dv]; None means zeros."""
    return golden.arrays("delta_rule").get(f"{name}.initial_state")


def assert_recorded(name: str, out: Array, state: Array) -> None:
    recorded = golden.arrays("delta_rule")
    found = [
        golden.difference("out", out, recorded[f"{name}.out"], TOLERANCES["out"]),
        golden.difference("state", state, recorded[f"{name}.state"], TOLERANCES["state"]),
    ]
    assert found == [None, None]


def plain_delta_rule(
    q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array | None, use_qk_l2norm: bool
) -> tuple[Array, Array]:
    """The rule as it is defined, token by token in float64."""
    q, k, v, g, beta = (array.astype(np.float64) for array in [q, k, v, g, beta])
    if use_qk_l2norm:
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in [q, k])
    k_dim, heads_per_key = k.shape[-1], v.shape[1] // k.shape[1]
    q, k = (np.repeat(x, heads_per_key, axis=1) for x in [q / np.sqrt(k_dim), k])
    now = np.zeros((v.shape[1], k_dim, v.shape[2])) if state is None else state.astype(np.float64)
    out = np.empty(v.shape)
    for t in range(len(v)):
        now = now * np.exp(g[t])[:, None, None]
        delta = (v[t] - np.einsum("hkv,hk->hv", now, k[t])) * beta[t][:, None]
        now = now + np.einsum("hk,hv->hkv", k[t], delta)
        out[t] = np.einsum("hkv,hk->hv", now, q[t])
    return out, now


@every_case
def test_recordings_follow_the_definition(name: str) -> None:
    """Shows that the recordings and this file's reading of them agree, engine or no engine."""
    out, state = plain_delta_rule(
        **inputs(name), state=initial_state(name), use_qk_l2norm=CASES[name]["use_qk_l2norm"]
    )
    assert_recorded(name, out, state)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@every_case
def test_both_forms_match(name: str, form: Literal["recurrent", "chunked"]) -> None:
    out, state = edgewise.ops.gated_delta_rule(
        **inputs(name), state=initial_state(name), form=form, use_qk_l2norm=CASES[name]["use_qk_l2norm"]
    )
    assert_recorded(name, out, state)


@pytest.mark.parametrize("cut", [1, 63, 64])
def test_recurrent_form_in_two_pieces_gives_the_same_bits(cut: int) -> None:
    name = "len65"
    whole = inputs(name)
    out, state = edgewise.ops.gated_delta_rule(
        **whole, state=initial_state(name), form="recurrent", use_qk_l2norm=True
    )
    head, middle = edgewise.ops.gated_delta_rule(
        **{key: array[:cut] for key, array in whole.items()},
        state=initial_state(name),
        form="recurrent",
        use_qk_l2norm=True,
    )
    tail, last = edgewise.ops.gated_delta_rule(
        **{key: array[cut:] for key, array in whole.items()},
        state=middle,
        form="recurrent",
        use_qk_l2norm=True,
    )
    np.testing.assert_array_equal(np.concatenate([head, tail]), out)
    np.testing.assert_array_equal(last, state)


def test_a_chunk_may_be_longer_than_the_text() -> None:
    whole = inputs("len63")
    once = edgewise.ops.gated_delta_rule(**whole, form="chunked", use_qk_l2norm=True, chunk_size=63)
    longer = edgewise.ops.gated_delta_rule(**whole, form="chunked", use_qk_l2norm=True, chunk_size=2**63)
    for a, b in zip(once, longer, strict=True):
        np.testing.assert_array_equal(a, b)
