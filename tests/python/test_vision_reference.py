"""The vision tower and prompts with images, from recorded pixel values on, against the original code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

import golden
import golden_media
from edgewise import _native
from golden import Array

Media = list[tuple[int, _native.VisualFeatures]]


@cache
def engine(case: str) -> _native.Engine:
    return _native.Engine.open(str(golden.FOLDER / case), dtype="f32", threads=2)


@dataclass(frozen=True)
class Group:
    """One image or pair of frames."""

    grid_hw: tuple[int, int]
    levels: Array
    """[patches, values] uint8"""

    @property
    def pixel_values(self) -> Array:
        return golden_media.pixel_values(self.levels)


def groups(grid_thw: Array, levels: Array) -> Iterator[Group]:
    """Cut the patches of images or videos into what is encoded at once."""
    assert int(grid_thw.prod(axis=1).sum()) == len(levels)
    done = 0
    for frames, rows, columns in grid_thw.tolist():
        for _ in range(frames):
            yield Group((rows, columns), levels[done : done + rows * columns])
            done += rows * columns


def groups_of(case: str, name: str) -> list[Group]:
    """What is recorded of `img{n}`, `vid{n}` or `p{n}`: images, then videos."""
    arrays = golden.arrays(case)
    found: list[Group] = []
    for kind, suffix in [("image", ""), ("video", "_videos")]:
        levels = arrays.get(f"{name}.pixel_levels{suffix}")
        if levels is not None:
            found += groups(arrays[f"{name}.{kind}_grid_thw"], levels)
    return found


def recordings() -> list[tuple[str, str]]:
    """Every (case, prefix) with pixel values, such as ("image", "img0")."""
    cases = [*golden_media.IMAGE_CASES, "video", "multi_image_multi_video"]
    return [
        (case, name.split(".")[0])
        for case in cases
        for name in golden.arrays(case)
        if name.endswith((".pixel_levels", ".pixel_levels_videos")) and not name.startswith("reallimits")
    ]


RECORDINGS = sorted(set(recordings()))
TOWERS = [(case, name) for case, name in RECORDINGS if f"{name}.vis.merged" in golden.arrays(case)]


def prompts() -> list[tuple[str, str, str]]:
    """Every (case, prefix of the pixels, prefix of the ids): videos stand in two kinds of prompts."""
    return [
        (case, name, ids.removesuffix(".input_ids"))
        for case, name in RECORDINGS
        for ids in golden.arrays(case)
        if ids.startswith(f"{name}.") and ids.endswith(".input_ids")
    ]


def traced(case: str, name: str) -> dict[str, Array]:
    """All stages of the tower, the groups of a video behind each other."""
    traces = [engine(case).trace_vision(group.pixel_values, group.grid_hw) for group in groups_of(case, name)]
    return {stage: np.concatenate([trace[stage] for trace in traces]) for stage in traces[0]}


def test_everything_recorded_is_compared() -> None:
    assert len(TOWERS) == 11 + 2 + 2 + 4
    assert len(RECORDINGS) == len(TOWERS) + 2
    assert len(prompts()) == 11 + 2 + 2 + 2 * 4 + 2 * 2


@pytest.mark.parametrize(("case", "name"), TOWERS)
def test_every_stage_of_the_tower(case: str, name: str) -> None:
    """Measured: at most 2.5e-5 off, 6e-6 of the largest value. Allowed: 1e-3, also of the largest value."""
    prefix = f"{name}.vis."
    recorded = {
        key.removeprefix(prefix): array
        for key, array in golden.arrays(case).items()
        if key.startswith(prefix)
    }
    found = traced(case, name)
    assert found.keys() == recorded.keys()
    tolerance = golden.tolerance(case, "hidden")
    faults = [
        golden.difference(stage, found[stage], want, min(tolerance, 1e-3 * float(np.abs(want).max())))
        for stage, want in recorded.items()
    ]
    assert not any(faults), "\n".join(filter(None, faults))


@pytest.mark.parametrize(("case", "name"), TOWERS)
def test_features_are_the_last_stages(case: str, name: str) -> None:
    for group in groups_of(case, name):
        trace = engine(case).trace_vision(group.pixel_values, group.grid_hw)
        features = engine(case).encode(group.pixel_values, group.grid_hw)
        assert features.grid_hw == group.grid_hw
        assert features.tokens == len(group.levels) // 4
        np.testing.assert_array_equal(features.embeddings, trace["merged"])
        for j, layer in enumerate(features.deepstack):
            np.testing.assert_array_equal(layer, trace[f"deepstack{j}"])
        arrays = [features.embeddings, *features.deepstack]
        assert 0 <= features.nbytes - sum(array.nbytes for array in arrays) < 200


def seen(case: str, name: str, ids: str) -> tuple[list[int], Media]:
    """A recorded prompt and its features in the order of its placeholders."""
    vision = engine(case).vision
    assert vision is not None
    tokens = golden.arrays(case)[f"{ids}.input_ids"].tolist()
    left: dict[int, list[Group]] = {vision["image_token_id"]: [], vision["video_token_id"]: []}
    for group in groups_of(case, name):
        left[_token(case, name, vision, group)].append(group)
    media: Media = []
    at = 0
    while at < len(tokens):
        if tokens[at] not in left:
            at += 1
            continue
        group = left[tokens[at]].pop(0)
        media.append((at, engine(case).encode(group.pixel_values, group.grid_hw)))
        at += media[-1][1].tokens
    assert not any(left.values())
    return tokens, media


def _token(case: str, name: str, vision: dict[str, int], group: Group) -> int:
    """The placeholder of a recorded group."""
    images = golden.arrays(case).get(f"{name}.pixel_levels")
    is_image = images is not None and np.shares_memory(images, group.levels)
    return vision["image_token_id" if is_image else "video_token_id"]


@pytest.mark.parametrize(("case", "name", "ids"), prompts())
def test_logits_and_continuations(case: str, name: str, ids: str) -> None:
    """Measured: logits at most 2.2e-4 off."""
    arrays = golden.arrays(case)
    tokens, media = seen(case, name, ids)
    logits = engine(case).logits(tokens, media)
    recorded = [key for key in (f"{ids}.logits", f"{ids}.logits_tail") if key in arrays]
    assert recorded
    for key in recorded:
        want = arrays[key]
        assert golden.difference(key, logits[-len(want) :], want, golden.tolerance(case, "logits")) is None

    sequence = engine(case).sequence()
    sequence.append(tokens, media)
    assert sequence.next_position == len(tokens) + int(arrays[f"{ids}.rope_delta"][0])
    np.testing.assert_array_equal(sequence.logits(), logits[-1])
    assert greedy(sequence, 32) == arrays[f"{ids}.greedy"].tolist()


def greedy(sequence: _native.Sequence, count: int) -> list[int]:
    found = []
    for _ in range(count):
        found.append(int(sequence.logits().argmax()))
        sequence.append(found[-1:])
    return found


@pytest.mark.parametrize(("case", "name", "ids"), prompts())
def test_positions(case: str, name: str, ids: str) -> None:
    """From the grids alone, and in two calls cut at every place outside of an image."""
    arrays = golden.arrays(case)
    _, media = seen(case, name, ids)
    spans = [(start, features.grid_hw[0] // 2, features.grid_hw[1] // 2) for start, features in media]
    want = arrays[f"{ids}.position_ids"]
    tokens = want.shape[1]
    found, following = _native.position_ids(tokens, spans)
    np.testing.assert_array_equal(found, want)
    assert following == want.max() + 1 == tokens + arrays[f"{ids}.rope_delta"][0]
    for cut in range(tokens + 1):
        if any(start < cut < start + rows * columns for start, rows, columns in spans):
            continue
        head, middle = _native.position_ids(cut, [span for span in spans if span[0] < cut])
        rest = [(start - cut, rows, columns) for start, rows, columns in spans if start >= cut]
        tail, end = _native.position_ids(tokens - cut, rest, middle)
        np.testing.assert_array_equal(np.concatenate([head, tail], axis=1), want)
        assert end == following


def test_features_stand_in_place_of_embeddings() -> None:
    case = "deepstack_qwen3_vl"
    tokens, media = seen(case, "img0", "img0")
    embedded = engine(case).trace(tokens, media)["embed"]
    expected = engine(case).trace(tokens)["embed"].copy()
    for start, features in media:
        assert len(features.deepstack) == 2
        expected[start : start + features.tokens] = features.embeddings
    np.testing.assert_array_equal(embedded, expected)
