"""The size an image or a video is resized to: all recorded rows, and what must always hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import golden
from edgewise.media.errors import MediaError
from edgewise.media.sizes import smart_resize, smart_resize_video

TABLE = golden.read_json("smart_resize/case.json")
sides = st.integers(1, 20_000)
long_sides = st.integers(100, 20_000)
"""None is more than 200 times another."""
factors = st.sampled_from([16, 28, 32])
limits = st.tuples(st.integers(1, 2**24), st.integers(1, 2**24)).map(sorted)


def image_size(row: dict[str, Any]) -> tuple[int, int]:
    return smart_resize(row["h"], row["w"], row["factor"], row["min_pixels"], row["max_pixels"])


def video_size(row: dict[str, Any]) -> tuple[int, int]:
    return smart_resize_video(
        row["num_frames"],
        row["h"],
        row["w"],
        row["factor"],
        row["temporal_factor"],
        row["min_pixels"],
        row["max_pixels"],
    )


@pytest.mark.parametrize(
    ("table", "size", "sized", "refused"), [("rows", image_size, 169, 31), ("video_rows", video_size, 88, 12)]
)
def test_recorded_rows(table: str, size: Any, sized: int, refused: int) -> None:
    rows = TABLE[table]
    with_size = [row for row in rows if "out" in row]
    with_error = [row for row in rows if "error" in row]
    assert (len(with_size), len(with_error)) == (sized, refused)
    assert not [row for row in with_size if list(size(row)) != row["out"]]
    for row in with_error:
        with pytest.raises(MediaError):
            size(row)


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(MediaError, match=r"^images\[1\]: 201 x 1 pixels: one side may be at most 200 times"):
        smart_resize(1, 201, 32, 4096, 25600, where="images[1]")
    with pytest.raises(MediaError, match=r"^image: 0 x 10 pixels: there is nothing to see$"):
        smart_resize(10, 0, 32, 4096, 25600)
    with pytest.raises(MediaError, match=r"^video: 1 frames are too few, there must be 2$"):
        smart_resize_video(1, 64, 64, 32, 2, 4096, 25600)
    with pytest.raises(MediaError, match=r"^video: 64 x 0 pixels: there is nothing to see$"):
        smart_resize_video(2, 0, 64, 32, 2, 4096, 25600)


@given(sides, sides, factors, limits)
def test_image_sizes_are_multiples_within_limits(
    height: int, width: int, factor: int, limit: list[int]
) -> None:
    low, high = limit
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(MediaError):
            smart_resize(height, width, factor, low, high)
        return
    new_height, new_width = smart_resize(height, width, factor, low, high)
    check_sides(new_height, new_width, factor)
    area = new_height * new_width
    # Rounding up to reach the lower limit may pass an upper one that is close; one factor is the least.
    if area < low:
        assert area + factor * (new_height + new_width) + factor**2 > low
    if area > high:
        assert min(new_height, new_width) == factor or area <= low + factor * (new_height + new_width)


@given(st.integers(2, 768), long_sides, long_sides, factors, limits)
def test_video_sizes_are_multiples_within_limits(
    frames: int, height: int, width: int, factor: int, limit: list[int]
) -> None:
    low, high = limit
    new_height, new_width = smart_resize_video(frames, height, width, factor, 2, low, high)
    check_sides(new_height, new_width, factor)
    area = new_height * new_width
    # Frames are counted in pairs for the comparison, so one more or less may be there.
    if (frames - 1) * area > high:
        one_more = factor * (new_height + new_width)
        assert min(new_height, new_width) == factor or frames * area <= low + frames * one_more


@given(sides, sides, factors)
def test_a_fitting_size_is_kept(rows: int, columns: int, factor: int) -> None:
    rows, columns = 1 + rows % 60, 1 + columns % 60
    height, width = rows * factor, columns * factor
    assert smart_resize(height, width, factor, height * width, height * width) == (height, width)


@given(sides, sides)
def test_turned_images_get_turned_sizes(height: int, width: int) -> None:
    if max(height, width) <= 200 * min(height, width):
        upright = smart_resize(height, width, 32, 65_536, 1_048_576)
        assert smart_resize(width, height, 32, 65_536, 1_048_576) == upright[::-1]


def check_sides(height: int, width: int, factor: int) -> None:
    assert height >= factor
    assert width >= factor
    assert height % factor == 0
    assert width % factor == 0
