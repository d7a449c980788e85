"""Arguments of generate: checked, completed, and every mistake named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise import CheckpointError
from edgewise.options import GenerationOptions, checkpoint_defaults

REAL = {"do_sample": True, "temperature": 1.0, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]}
NUMBERS = [
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "logprobs", "min_pixels", "max_pixels", "fps", "num_frames", "max_frames",
    "source_fps",
]  # fmt: skip


def resolve(defaults: dict[str, Any] | None = None, **arguments: Any) -> GenerationOptions:
    return GenerationOptions.resolve(arguments, checkpoint_defaults(defaults or {}))


def is_greedy(options: GenerationOptions) -> bool:
    return options.sampling.temperature == 0


def test_the_call_comes_before_the_checkpoint_before_the_built_in_value() -> None:
    sampling = resolve(REAL, top_k=5).sampling
    assert (sampling.top_k, sampling.top_p, sampling.min_p) == (5, 0.95, 0.0)


def test_none_is_the_same_as_leaving_an_argument_out() -> None:
    assert resolve(REAL, top_k=None, seed=3) == resolve(REAL, seed=3)
    assert resolve({"top_k": None, "temperature": 0.5}, seed=3) == resolve({"temperature": 0.5}, seed=3)


@pytest.mark.parametrize(
    ("defaults", "arguments", "greedy"),
    [
        ({}, {}, True),
        ({"do_sample": False, "temperature": 0.7}, {}, True),
        ({"do_sample": True}, {}, False),
        ({"temperature": 0.7}, {}, False),
        (REAL, {}, False),
        (REAL, {"temperature": 0}, True),
        (REAL, {"do_sample": False}, True),
        (REAL, {"do_sample": False, "temperature": 0.7}, True),
        ({"do_sample": False}, {"temperature": 0.7}, False),
        ({"do_sample": False}, {"top_p": 0.7}, False),
        ({"do_sample": False}, {"do_sample": True}, False),
        ({"do_sample": False}, {"seed": 1}, True),
        ({}, {"repetition_penalty": 1.2}, True),
    ],
)
def test_who_decides_on_greedy(defaults: dict[str, Any], arguments: dict[str, Any], greedy: bool) -> None:
    assert is_greedy(resolve(defaults, **arguments)) == greedy


def test_sampling_at_temperature_zero_contradicts_itself() -> None:
    with pytest.raises(ValueError, match=r"^do_sample: True needs a temperature above 0"):
        resolve(do_sample=True, temperature=0)


def test_a_seed_left_out_is_drawn() -> None:
    assert len({resolve().sampling.seed for _ in range(20)}) > 1
    assert resolve(seed=7).sampling.seed == 7


def test_only_a_default_limit_may_be_lowered_to_the_context() -> None:
    assert resolve().clip_to_context
    assert resolve({"max_new_tokens": 9}).clip_to_context
    assert resolve({"max_new_tokens": 9}).max_new_tokens == 9
    assert not resolve(max_new_tokens=9).clip_to_context


def test_an_unknown_argument_is_named_with_the_likely_one() -> None:
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'temprature'; did you mean 'temperature'"
    ):
        resolve(temprature=1)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'xyzzy'$"):
        resolve(xyzzy=1)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", True, [1], 1j, object()])
def test_a_number_of_the_wrong_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        resolve(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0), ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("top_k", -1), ("top_p", 0), ("top_p", 1.01), ("min_p", -0.1), ("min_p", 1.01),
        ("repetition_penalty", 0), ("presence_penalty", math.nan), ("frequency_penalty", -math.inf),
        ("seed", -1), ("seed", 2**64), ("logprobs", -1), ("stop", ""), ("stop", ["a", ""]),
        ("stop_token_ids", [-1]), ("suppress_tokens", [-1]),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        resolve(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", 5), ("stop", [5]), ("stop_token_ids", 5), ("stop_token_ids", "5"), ("stop_token_ids", [1.5]),
        ("suppress_tokens", [True]), ("do_sample", 1), ("ignore_eos", "yes"), ("raw", 0),
        ("skip_special_tokens", 0), ("enable_thinking", "no"), ("chat_template_kwargs", [1]),
    ],
)  # fmt: skip
def test_an_argument_of_the_wrong_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        resolve(**{name: value})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 1e6),
            "top_k": st.integers(0, 10**6),
            "top_p": st.floats(0, 1, exclude_min=True),
            "min_p": st.floats(0, 1),
            "repetition_penalty": st.floats(0, 1e6, exclude_min=True),
            "presence_penalty": st.floats(-1e6, 1e6),
            "frequency_penalty": st.floats(-1e6, 1e6),
            "seed": st.integers(0, 2**64 - 1),
        },
    )
)
def test_every_value_in_range_reaches_the_sampler(arguments: dict[str, Any]) -> None:
    options = resolve(**arguments)
    shaping = {"temperature", "top_k", "top_p", "min_p"}
    for name, value in arguments.items():
        if not (is_greedy(options) and name in shaping):
            assert getattr(options.sampling, name) == value


def test_numbers_of_numpy_are_numbers() -> None:
    options = resolve(top_k=np.int64(3), temperature=np.float32(0.5), stop_token_ids=np.array([1, 2]))
    assert (options.sampling.top_k, options.sampling.temperature) == (3, 0.5)
    assert options.stop_token_ids == (1, 2)


def test_stop_may_be_one_string_or_several() -> None:
    assert resolve(stop="ab").stop == ("ab",)
    assert resolve(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize("entry", [{"temperature": -1}, {"top_p": "0.9"}, {"do_sample": 1}])
def test_a_bad_value_in_the_checkpoint_is_named_with_its_file(entry: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"^generation_config\.json: {next(iter(entry))}: "):
        checkpoint_defaults(entry)


def test_other_entries_of_the_checkpoint_are_not_ours() -> None:
    assert checkpoint_defaults({"bos_token_id": 1, "transformers_version": "5", "max_length": 20}) == {}
