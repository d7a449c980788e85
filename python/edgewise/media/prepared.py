"""An image ready for the vision tower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.media.group import FrameGroup
from edgewise.media.image import ImageSource, load_image
from edgewise.media.resize import resize
from edgewise.media.settings import ImageSettings
from edgewise.media.sizes import smart_resize


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A resized image: uint8 [height, width, 3], both sides multiples of `settings.factor`."""

    pixels: NDArray[np.uint8]
    settings: ImageSettings

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Frame groups (always 1), rows and columns of patches."""
        height, width, _ = self.pixels.shape
        return 1, height // self.settings.patch_size, width // self.settings.patch_size

    @property
    def tokens(self) -> int:
        """Tokens it takes in a prompt."""
        _, rows, columns = self.grid_thw
        return rows * columns // self.settings.merge_size**2

    def groups(self) -> Iterator[FrameGroup]:
        """Return an iterator over its only frame group."""
        yield FrameGroup(self.pixels, self.pixels, self.settings)


def prepare_image(
    source: ImageSource,
    settings: ImageSettings,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    where: str = "image",
) -> PreparedImage:
    """Load an image and resize it to a size the vision tower can take.

    Args:
        source: see `load_image`.
        settings: those of the checkpoint.
        min_pixels: lower limit of height x width after resizing, instead of that of `settings`.
        max_pixels: upper limit of height x width after resizing, instead of that of `settings`.
        where: what the image is called in errors, such as `images[1]`.

    Raises:
        MediaError: if the image cannot be used; the message says why.
        TypeError: if an argument is of the wrong type.
        ValueError: if a limit is out of range.
    """
    settings = settings.with_limits(min_pixels, max_pixels, where)
    image = load_image(source, where)
    height, width = smart_resize(
        image.height, image.width, settings.factor, settings.min_pixels, settings.max_pixels, where=where
    )
    return PreparedImage(resize(image, height, width), settings)
