"""Patches, frame groups and prepared images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgewise.media.group import FrameGroup
from edgewise.media.patches import to_patches
from edgewise.media.prepared import prepare_image
from edgewise.media.resize import resize
from edgewise.media.settings import ImageSettings, PixelSettings, VideoSettings
from golden import Array

SETTINGS = ImageSettings()
UNEVEN = ImageSettings(
    patch_size=3, merge_size=3, min_pixels=1, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), max_pixels=10_000
)


def frame(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def naive_patches(first: Array, second: Array, settings: PixelSettings) -> Array:
    """One value after the other, in the order the tower's weights expect."""
    patch, merge = settings.patch_size, settings.merge_size
    rows, columns = first.shape[0] // patch, first.shape[1] // patch
    corners = [
        (square_row + row, square_column + column)
        for square_row in range(0, rows, merge)
        for square_column in range(0, columns, merge)
        for row in range(merge)
        for column in range(merge)
    ]
    return np.array(
        [
            [
                normalised(pixels[row * patch + y, column * patch + x, channel], channel, settings)
                for channel in range(3)
                for pixels in (first, second)
                for y in range(patch)
                for x in range(patch)
            ]
            for row, column in corners
        ],
        np.float32,
    )


def normalised(level: np.uint8, channel: int, settings: PixelSettings) -> np.float32:
    value = np.float32(int(level) / 255)
    return (value - np.float32(settings.mean[channel])) / np.float32(settings.std[channel])


@given(
    st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 3)]),
    st.sampled_from([(3, 3), (2, 2), (4, 1), (1, 2)]),
    st.integers(0, 99),
)
def test_patches_are_those_of_a_loop(squares: tuple[int, int], sizes: tuple[int, int], seed: int) -> None:
    settings = ImageSettings(patch_size=sizes[0], merge_size=sizes[1], mean=UNEVEN.mean, std=UNEVEN.std)
    height, width = (count * settings.factor for count in squares)
    first, second = frame(height, width, seed), frame(height, width, seed + 1)
    patches = to_patches(first, second, settings)
    assert patches.dtype == np.float32
    assert patches.flags.c_contiguous
    np.testing.assert_array_equal(patches, naive_patches(first, second, settings))
    np.testing.assert_array_equal(to_patches(first, first, settings), naive_patches(first, first, settings))


def test_patches_of_the_family_s_shape() -> None:
    first, second = frame(64, 96), frame(64, 96, 1)
    patches = to_patches(first, second, SETTINGS)
    assert patches.shape == (24, 1536)
    np.testing.assert_array_equal(patches, naive_patches(first, second, SETTINGS))


def test_frames_need_not_be_contiguous() -> None:
    turned = frame(96, 64).transpose(1, 0, 2)[:, ::-1]
    np.testing.assert_array_equal(
        to_patches(turned, turned, SETTINGS), to_patches(turned.copy(), turned.copy(), SETTINGS)
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (frame(32, 33), frame(32, 33)),
        (frame(0, 32), frame(0, 32)),
        (frame(32, 32), frame(32, 64)),
        (frame(32, 32).astype(np.float32), frame(32, 32)),
        (frame(32, 32)[:, :, 0], frame(32, 32)[:, :, 0]),
        (frame(32, 32)[:, :, :2], frame(32, 32)[:, :, :2]),
    ],
)
def test_other_frames_are_refused(first: Any, second: Any) -> None:
    with pytest.raises(ValueError, match=r"^frames?: "):
        to_patches(first, second, SETTINGS)
    with pytest.raises(ValueError, match=r"^frames?: "):
        FrameGroup(first, second, SETTINGS)


def test_frame_group() -> None:
    first, second = frame(64, 96), frame(64, 96, 1)
    group = FrameGroup(first, second, VideoSettings())
    assert group.grid_hw == (4, 6)
    assert group.tokens == 6
    np.testing.assert_array_equal(group.pixel_values(), to_patches(first, second, SETTINGS))


def test_keys_tell_pixel_values_apart() -> None:
    first, second = frame(32, 64), frame(32, 64, 1)
    one_level = first.copy()
    one_level[31, 63, 2] ^= 1
    other = ImageSettings(mean=(0.4, 0.5, 0.5))
    groups = [
        FrameGroup(first, first, SETTINGS),
        FrameGroup(first, second, SETTINGS),
        FrameGroup(second, first, SETTINGS),
        FrameGroup(first, one_level, SETTINGS),
        FrameGroup(one_level, one_level, SETTINGS),
        FrameGroup(first.reshape(64, 32, 3), first.reshape(64, 32, 3), SETTINGS),
        FrameGroup(first, first, other),
        FrameGroup(first, first, ImageSettings(merge_size=1)),
        FrameGroup(first, first, ImageSettings(patch_size=8)),
    ]
    assert len({group.key for group in groups}) == len(groups)
    assert {len(group.key) for group in groups} == {16}


def test_keys_of_the_same_pixel_values_are_the_same() -> None:
    """However the frames are held, and whatever limits they were resized to."""
    first = frame(32, 64)
    turned = np.ascontiguousarray(first.transpose(1, 0, 2)).transpose(1, 0, 2)
    groups = [
        FrameGroup(first, first, SETTINGS),
        FrameGroup(first, first.copy(), SETTINGS),
        FrameGroup(turned, first, VideoSettings()),
        FrameGroup(first, first, ImageSettings(max_pixels=5000)),
    ]
    assert len({group.key for group in groups}) == 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
def test_prepared_images_keep_their_promises(height: int, width: int, seed: int) -> None:
    settings = ImageSettings(min_pixels=4096, max_pixels=25_600)
    if max(height, width) > 200 * min(height, width):
        return
    image = prepare_image(frame(height, width, seed), settings)
    (group,) = image.groups()
    assert image.pixels.dtype == np.uint8
    assert not image.pixels.flags.writeable
    assert image.grid_thw == (1, *group.grid_hw)
    assert image.tokens == group.tokens == len(group.pixel_values()) // 4
    assert group.first is group.second


def test_limits_of_the_call() -> None:
    picture = frame(480, 640)
    assert prepare_image(picture, SETTINGS).grid_thw == (1, 30, 40)
    assert prepare_image(picture, SETTINGS, max_pixels=65_536).tokens <= 64
    assert prepare_image(picture, SETTINGS, min_pixels=2_000_000).tokens >= 2_000_000 // 1024


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (40, 90), (200, 30), (100, 60), (50, 60), (50, 30)])
def test_width_is_resized_first(size: tuple[int, int]) -> None:
    image = Image.fromarray(frame(100, 60))
    width_only = image.resize((size[1], 100), Image.Resampling.BICUBIC)
    want = np.asarray(width_only.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(image, *size), want)
