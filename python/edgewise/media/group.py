"""A frame group: what the vision tower encodes at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from edgewise.media.patches import grid, to_patches
from edgewise.media.settings import PixelSettings

KEY_BYTES = 16


@dataclass(frozen=True, eq=False)
class FrameGroup:
    """One image, or two consecutive frames of a video. The arrays must not be changed afterwards.

    Raises:
        ValueError: if the frames are not uint8 [height, width, 3] of one size, in multiples of the factor.
    """

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]
    """For an image the same array as `first`, not a copy: that saves work."""
    settings: PixelSettings

    def __post_init__(self) -> None:
        grid(self.first, self.second, self.settings)

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return grid(self.first, self.second, self.settings)

    @property
    def tokens(self) -> int:
        """Tokens it takes in a prompt."""
        rows, columns = self.grid_hw
        return rows * columns // self.settings.merge_size**2

    @cached_property
    def key(self) -> bytes:
        """16 bytes that are the same for two groups exactly if their pixel values are."""
        settings = self.settings
        shape = (self.first.shape, settings.patch_size, settings.merge_size, settings.mean, settings.std)
        first = _digest(self.first)
        second = first if self.second is self.first else _digest(self.second)
        return blake2b(repr(shape).encode() + first + second, digest_size=KEY_BYTES).digest()

    def pixel_values(self) -> NDArray[np.float32]:
        """Return the patches as float32 [patches, 3 * 2 * patch_size * patch_size]; see `to_patches`."""
        return to_patches(self.first, self.second, self.settings)


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return blake2b(np.ascontiguousarray(pixels).data, digest_size=KEY_BYTES).digest()
