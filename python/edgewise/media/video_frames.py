"""Videos that are given as a list of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgewise.media.errors import MediaError
from edgewise.media.image import ImageSource, load_image


class FrameList:
    """A video of pictures in order, each loaded when it is needed. All must be of one size."""

    def __init__(self, pictures: Sequence[ImageSource], fps: float, where: str) -> None:
        """Load the first picture, which says how large the video is.

        Args:
            pictures: see `load_image`.
            fps: frames per second.
            where: what the video is called in errors.

        Raises:
            MediaError: if there are none, or the first one cannot be used.
            TypeError: if it is no picture.
        """
        if not pictures:
            raise MediaError(f"{where}: there are no frames")
        self._pictures = tuple(pictures)
        self._where = where
        self.total_frames = len(pictures)
        self.fps = fps
        first = self._load(0)
        self.height, self.width = first.height, first.width

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Return the frames at `indices`, one at a time."""
        for index in indices:
            picture = self._load(index)
            if picture.size != (self.width, self.height):
                raise MediaError(
                    f"{self._where}[{index}]: all frames of a video must be of one size, this one has "
                    f"{picture.width} x {picture.height} pixels, the first {self.width} x {self.height}"
                )
            yield np.asarray(picture)

    def _load(self, index: int) -> Image.Image:
        return load_image(self._pictures[index], f"{self._where}[{index}]")


def pictures_of(array: NDArray[np.generic], where: str) -> list[ImageSource]:
    """Return the frames of an array, as views of it.

    Raises:
        MediaError: if it is not uint8 [frames, height, width, 3].
    """
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
        raise MediaError(
            f"{where}: expected an array uint8 [frames, height, width, 3], got {array.dtype} {array.shape}"
        )
    return list(array)
