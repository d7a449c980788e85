"""What checkpoints say about images and videos, and what calls may change."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import golden_media
from edgewise import CheckpointError
from edgewise.media.errors import MediaError
from edgewise.media.settings import (
    MAX_IMAGE_PIXELS,
    MAX_VIDEO_PIXELS,
    ImageSettings,
    PixelSettings,
    VideoSettings,
)

REAL = {
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def file_of(name: str, content: Any) -> Callable[[str], bytes | None]:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return {name: data}.get


def image_settings(**entries: Any) -> ImageSettings:
    return ImageSettings.read(file_of("preprocessor_config.json", entries))


def video_settings(**entries: Any) -> VideoSettings:
    return VideoSettings.read(file_of("video_preprocessor_config.json", entries))


def test_without_files_the_family_s_settings_hold() -> None:
    assert ImageSettings.read(file_of("", {})) == ImageSettings()
    assert VideoSettings.read(file_of("", {})) == VideoSettings()
    assert ImageSettings().factor == VideoSettings().factor == 32


def test_recorded_files() -> None:
    read = golden_media.read_file("image")
    assert ImageSettings.read(read) == ImageSettings(min_pixels=4096, max_pixels=25600)
    assert VideoSettings.read(read) == VideoSettings(min_pixels=4096, max_pixels=61440)


def test_large_limits_of_a_checkpoint_are_lowered() -> None:
    assert image_settings(**REAL) == ImageSettings(min_pixels=65536, max_pixels=MAX_IMAGE_PIXELS)
    size = {"shortest_edge": 4096, "longest_edge": 25165824}
    assert video_settings(size=size) == VideoSettings(min_pixels=4096, max_pixels=MAX_VIDEO_PIXELS)


def test_lower_limit_above_the_usual_upper_one_raises_it() -> None:
    settings = image_settings(min_pixels=2 * MAX_IMAGE_PIXELS)
    assert (settings.min_pixels, settings.max_pixels) == (2 * MAX_IMAGE_PIXELS, 2 * MAX_IMAGE_PIXELS)


def test_upper_limit_below_the_usual_lower_one_lowers_it() -> None:
    settings = image_settings(size={"longest_edge": 12544})
    assert (settings.min_pixels, settings.max_pixels) == (12544, 12544)


def test_older_names_come_before_size() -> None:
    settings = image_settings(min_pixels=3136, max_pixels=12544, size=REAL["size"])
    assert (settings.min_pixels, settings.max_pixels) == (3136, 12544)


def test_null_is_the_same_as_absent() -> None:
    assert image_settings(size=None, patch_size=None, image_mean=None, resample=None) == ImageSettings()


def test_all_entries_are_read() -> None:
    settings = video_settings(
        patch_size=14,
        merge_size=1,
        min_pixels=10,
        max_pixels=20,
        image_mean=[0, 0.25, 1],
        image_std=[0.1, 0.2, 3],
        fps=1,
        min_frames=2,
        max_frames=10,
    )
    assert settings == VideoSettings(
        patch_size=14,
        merge_size=1,
        min_pixels=10,
        max_pixels=20,
        mean=(0.0, 0.25, 1.0),
        std=(0.1, 0.2, 3.0),
        fps=1.0,
        min_frames=2,
        max_frames=10,
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"patch_size": 0}, "'patch_size': a whole number from 1 to 256 is expected, got 0"),
        ({"patch_size": True}, "'patch_size'"),
        ({"patch_size": "16"}, "'patch_size'"),
        ({"patch_size": 10**9}, "'patch_size'"),
        ({"merge_size": -2}, "'merge_size'"),
        ({"merge_size": 2.0}, "'merge_size'"),
        ({"temporal_patch_size": 1}, "'temporal_patch_size': 2 is supported, got 1"),
        ({"size": [1, 2]}, "'size': an object is expected"),
        ({"size": {"shortest_edge": -1}}, "'shortest_edge'"),
        ({"size": {"longest_edge": 1e9}}, "'longest_edge'"),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "smallest size of 9 pixels is above the largest"),
        ({"min_pixels": 2**40, "max_pixels": 2**40}, "a smallest size of 1099511627776 pixels"),
        ({"max_pixels": 0}, "'max_pixels'"),
        ({"image_mean": 0.5}, "'image_mean': three numbers are expected"),
        ({"image_mean": [0.5, 0.5]}, "'image_mean': three numbers are expected"),
        ({"image_mean": [0.5, 0.5, "x" * 1000]}, "'image_mean'"),
        ({"image_mean": [0.5, 0.5, True]}, "'image_mean'"),
        ({"image_std": [0.5, 0.5, 0]}, "'image_std': a number above 0 and below 1e"),
        ({"image_std": [0.5, 0.5, 10**400]}, "'image_std'"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "'image_std'"),
        ({"image_mean": [0.5, 0.5, float("inf")]}, "'image_mean'"),
        ({"do_normalize": False}, "'do_normalize': True is supported, got False"),
        ({"resample": 2}, "'resample': 3 is supported, got 2"),
        ({"rescale_factor": 1}, "'rescale_factor': 1/255 is supported"),
    ],
)
def test_malformed_entries_are_refused(entries: dict[str, Any], message: str) -> None:
    for read, file in [
        (image_settings, "preprocessor_config.json"),
        (video_settings, "video_preprocessor_config.json"),
    ]:
        with pytest.raises(CheckpointError) as raised:
            read(**entries)
        assert str(raised.value).startswith(f"{file}: ")
        assert message in str(raised.value)
        assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"fps": 0}, "'fps'"),
        ({"fps": "2"}, "'fps'"),
        ({"min_frames": 0}, "'min_frames'"),
        ({"min_frames": 9, "max_frames": 8}, "'min_frames' 9 is above 'max_frames' 8"),
    ],
)
def test_malformed_video_entries_are_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        video_settings(**entries)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_files_that_are_no_json_object_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^preprocessor_config\.json: "):
        ImageSettings.read(file_of("preprocessor_config.json", data))


def test_usual_entries_that_change_nothing() -> None:
    settings = image_settings(
        do_resize=True, do_rescale=True, do_normalize=True, resample=3, rescale_factor=0.00392156862745098
    )
    assert settings == ImageSettings()


def limits(settings: PixelSettings) -> tuple[int, int]:
    return settings.min_pixels, settings.max_pixels


def test_a_call_may_change_the_limits() -> None:
    settings = ImageSettings()
    assert settings.with_limits() == settings
    assert limits(settings.with_limits(max_pixels=16_777_216)) == (65_536, 16_777_216)
    assert limits(settings.with_limits(min_pixels=5, max_pixels=6)) == (5, 6)
    assert limits(settings.with_limits(max_pixels=1024)) == (1024, 1024)
    assert limits(settings.with_limits(min_pixels=2_000_000)) == (2_000_000, 2_000_000)
    assert limits(VideoSettings().with_limits(max_pixels=2**28)) == (4096, 2**28)


def test_limits_of_a_call_are_checked() -> None:
    settings = ImageSettings()
    with pytest.raises(MediaError, match=r"^images\[1\]: min_pixels 6 is above max_pixels 5$"):
        settings.with_limits(6, 5, where="images[1]")
    with pytest.raises(ValueError, match=r"^image: max_pixels: expected .* at most 67108864"):
        settings.with_limits(max_pixels=2**26 + 1)
    with pytest.raises(ValueError, match=r"^image: min_pixels: "):
        settings.with_limits(min_pixels=0)
    with pytest.raises(TypeError, match=r"^image: max_pixels: expected an integer"):
        settings.with_limits(max_pixels=1e6)  # type: ignore[arg-type]
