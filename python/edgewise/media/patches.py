"""Frames to patches, the input of the vision tower."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgewise.media.settings import FRAMES_PER_GROUP, PixelSettings

CHANNELS = 3


def to_patches(
    first: NDArray[np.uint8], second: NDArray[np.uint8], settings: PixelSettings
) -> NDArray[np.float32]:
    """Return the normalised patches of two frames as float32 [patches, 3 * 2 * patch_size * patch_size].

    Patches that become one token stand together: the order is row of squares, column of squares, row in the
    square, column in the square. The values of a patch are [channel, frame, row, column].

    Args:
        first: uint8 [height, width, 3], both sides multiples of `settings.factor`.
        second: another one of that shape; for an image, the same array again.
        settings: patch sizes and normalisation.

    Raises:
        ValueError: for arrays of another shape or type.
    """
    rows, columns = grid(first, second, settings)
    patch, merge = settings.patch_size, settings.merge_size
    squares = (rows // merge, merge, patch, columns // merge, merge, patch)
    # [square row, square column, row in square, column in square, channel, frame, row, column]
    patches = np.empty(
        (rows // merge, columns // merge, merge, merge, CHANNELS, FRAMES_PER_GROUP, patch, patch), np.float32
    )
    for channel, levels in enumerate(_normalised_levels(settings.mean, settings.std)):
        for frame, pixels in enumerate((first, second)):
            values = patches[:, :, :, :, channel, frame]
            if frame == 1 and second is first:
                values[...] = patches[:, :, :, :, channel, 0]
            else:
                plane = levels[pixels[:, :, channel]]
                values[...] = plane.reshape(squares).transpose(0, 3, 1, 4, 2, 5)
    return patches.reshape(rows * columns, -1)


def grid(first: NDArray[np.uint8], second: NDArray[np.uint8], settings: PixelSettings) -> tuple[int, int]:
    """Return the rows and columns of patches of two frames.

    Raises:
        ValueError: if they are not uint8 [height, width, 3] of the same size, in multiples of the factor.
    """
    for pixels in (first, second):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != CHANNELS:
            raise ValueError(f"frame: expected uint8 [height, width, 3], got {pixels.dtype} {pixels.shape}")
    if first.shape != second.shape:
        raise ValueError(f"frames: sizes differ, {first.shape} and {second.shape}")
    height, width, _ = first.shape
    if 0 in (height, width) or height % settings.factor or width % settings.factor:
        raise ValueError(f"frame: {width} x {height} pixels are not multiples of {settings.factor}")
    return height // settings.patch_size, width // settings.patch_size


@cache
def _normalised_levels(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Return what each of the 256 levels becomes in each channel, [3, 256]; float32 steps."""
    levels = (np.arange(256) / 255).astype(np.float32)
    middle, spread = np.array(mean, np.float32), np.array(std, np.float32)
    return np.asarray((levels - middle[:, None]) / spread[:, None], np.float32)
