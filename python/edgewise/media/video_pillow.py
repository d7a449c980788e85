"""Animated GIF, WebP and PNG files, read with Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from edgewise.media.errors import MediaError
from edgewise.media.file import MediaFile
from edgewise.media.image import MAX_SOURCE_PIXELS, load_image
from edgewise.media.sampling import DEFAULT_SOURCE_FPS, MAX_DURATION, MAX_SOURCE_FRAMES

MAX_ANIMATION_PIXELS = 10_000_000_000
"""Most pixels of all frames together, since all are decoded: 20 minutes of full HD at 4 frames a second."""

Reader = Callable[[BinaryIO], ImageFile]


def reader_for(head: bytes) -> Reader | None:
    """Return what reads a file with these first 12 bytes, if it is of one of the three formats.

    These are called instead of `Image.open`, which warns of large pictures; they have a limit of their own.
    """
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return GifImageFile
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return PngImageFile
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile
    return None


class Animation:
    """A video in an image file. A file with one picture is a video of one frame."""

    def __init__(self, file: MediaFile, reader: Reader, source_fps: float | None) -> None:
        """Go through all frames once: how long each is shown stands with it.

        Args:
            file: where the bytes are.
            reader: what reads them, see `reader_for`.
            source_fps: frames per second, instead of frames / duration in the file (24 if that is 0).

        Raises:
            MediaError: if the file is damaged, cut short or too large.
        """
        self._file = file
        self._reader = reader
        with self._opened() as image:
            # A PNG file may have a still picture before its animation, for programs that show no animation.
            self._start = 1 if image.info.get("default_image") else 0
            self.total_frames = self._count(image)
            seconds = self._seconds(image)
            self._seek(image, 0)
            first = self._picture(image, 0)
        self.height, self.width = first.height, first.width
        self.fps = source_fps or (self.total_frames / seconds if seconds > 0 else DEFAULT_SOURCE_FPS)

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Return the frames at `indices`, which ascend, one at a time."""
        with self._opened() as image:
            for index in indices:
                self._seek(image, index)
                picture = self._picture(image, index)
                if picture.size != (self.width, self.height):
                    raise self._file.error(f"is damaged: frame {index} is of another size than the first")
                yield np.asarray(picture)

    @contextmanager
    def _opened(self) -> Iterator[ImageFile]:
        with self._file.open() as stream:
            try:
                image = self._reader(stream)
            except MemoryError:
                raise
            except Exception as error:
                raise self._file.error(f"cannot be opened: {error}") from error
            with image:
                yield image

    def _count(self, image: ImageFile) -> int:
        if image.width * image.height > MAX_SOURCE_PIXELS:
            raise self._file.error(
                f"has frames of {image.width} x {image.height} pixels, the limit is {MAX_SOURCE_PIXELS}"
            )
        try:
            count: int = getattr(image, "n_frames", 1) - self._start
        except MemoryError:
            raise
        except Exception as error:
            raise self._file.error(f"cannot be read: {error}") from error
        if not 1 <= count <= MAX_SOURCE_FRAMES:
            raise self._file.error(f"has {count} frames, there must be from 1 to {MAX_SOURCE_FRAMES}")
        if count * image.width * image.height > MAX_ANIMATION_PIXELS:
            raise self._file.error(
                f"has {count} frames of {image.width} x {image.height} pixels, the limit is "
                f"{MAX_ANIMATION_PIXELS} together"
            )
        return count

    def _seconds(self, image: ImageFile) -> float:
        milliseconds = 0.0
        for index in range(self.total_frames):
            self._seek(image, index)
            milliseconds += float(image.info.get("duration", 0))
        seconds = milliseconds / 1000
        if seconds > MAX_DURATION:
            raise self._file.error(f"lasts {seconds:.0f} seconds, the limit is {MAX_DURATION}")
        return seconds

    def _seek(self, image: ImageFile, index: int) -> None:
        try:
            image.seek(self._start + index)
            image.load()
        except MemoryError:
            raise
        except Exception as error:
            reason = f"{error}" or type(error).__name__
            raise self._file.error(f"is damaged or cut short at frame {index}: {reason}") from error

    def _picture(self, image: ImageFile, index: int) -> Image.Image:
        try:
            return load_image(image.copy(), self._file.where)
        except MediaError as error:
            raise self._file.error(f"cannot be used at frame {index}: {error}") from error
