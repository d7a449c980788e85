"""Which frames are sampled and what times they get: equal to the original code."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import golden
from edgewise.media.sampling import MAX_SAMPLED_FRAMES, sample_frames, timestamp_text, timestamps

ROWS: list[dict[str, Any]] = golden.read_json("frame_sampling/case.json")["rows"]

totals = st.integers(1, 10**7)
rates = st.floats(1e-300, 1e300)


def name(row: dict[str, Any]) -> str:
    return f"{row['total_num_frames']}@{row['video_fps']}-{row['kwargs']}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_every_recorded_row(row: dict[str, Any]) -> None:
    indices = sample_frames(row["total_num_frames"], row["video_fps"], **row["kwargs"])
    if "indices" in row:
        assert indices == row["indices"]
    else:
        assert len(indices) == row["num_indices"]
        assert indices[:20] == row["indices_head"]
        compact = json.dumps(indices, separators=(",", ":"))
        assert hashlib.sha256(compact.encode()).hexdigest() == row["sha256_of_json"]
    if row["timestamps"] is not None:
        texts = [timestamp_text(seconds) for seconds in timestamps(indices, row["video_fps"])]
        assert texts == row["timestamps"]


@given(total=totals, source_fps=rates, fps=rates)
def test_indices_ascend_from_the_first_frame_to_the_last(total: int, source_fps: float, fps: float) -> None:
    indices = sample_frames(total, source_fps, fps=fps)
    assert indices == sorted(set(indices))
    assert min(4, total) <= len(indices) <= min(768, total)
    assert (indices[0], indices[-1]) == (0, total - 1)


@given(total=totals, num_frames=st.integers(1, MAX_SAMPLED_FRAMES))
def test_a_number_of_frames_is_met_whatever_the_video_has(total: int, num_frames: int) -> None:
    indices = sample_frames(total, None, num_frames=num_frames)
    assert len(indices) == num_frames
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < total


def test_most_frames_goes_before_fewest() -> None:
    assert len(sample_frames(1000, 30, fps=0.01, min_frames=10, max_frames=3)) == 3


def test_no_frames_give_no_indices_and_no_times() -> None:
    assert sample_frames(0, 30, num_frames=8) == []
    assert timestamps([], 30) == []


@given(count=st.integers(1, 40), size=st.integers(1, 4))
def test_a_group_has_the_time_between_its_first_and_its_last_frame(count: int, size: int) -> None:
    padded = list(range(count)) + [count - 1] * (-count % size)
    groups = [padded[start : start + size] for start in range(0, len(padded), size)]
    assert timestamps(range(count), 8, size) == [(group[0] + group[-1]) / 16 for group in groups]


def test_halves_of_a_tenth_go_to_the_even_digit() -> None:
    assert [timestamp_text(seconds) for seconds in (0.25, 0.75, 1.25)] == [
        "<0.2 seconds>",
        "<0.8 seconds>",
        "<1.2 seconds>",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": -1}, "total: "),
        ({"source_fps": 0}, "source_fps: "),
        ({"source_fps": float("nan")}, "source_fps: "),
        ({"fps": 0}, "fps: "),
        ({"fps": -1.0}, "fps: "),
        ({"num_frames": 0}, "num_frames: "),
        ({"num_frames": MAX_SAMPLED_FRAMES + 1}, f"num_frames: .* at most {MAX_SAMPLED_FRAMES}"),
        ({"min_frames": 0}, "min_frames: "),
        ({"max_frames": sys.maxsize}, "max_frames: "),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        sample_frames(**({"total": 100, "source_fps": 30} | arguments))


def test_arguments_of_another_type_are_named() -> None:
    with pytest.raises(TypeError, match=r"^num_frames: "):
        sample_frames(100, 30, num_frames=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^fps: "):
        sample_frames(100, 30, fps="2")  # type: ignore[arg-type]
