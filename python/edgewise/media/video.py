"""Videos from files, bytes, data URIs and lists of pictures, read frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from edgewise.checks import Range
from edgewise.media.file import MediaFile
from edgewise.media.image import ImageSource
from edgewise.media.sampling import DEFAULT_SOURCE_FPS
from edgewise.media.video_av import VideoStreamFile
from edgewise.media.video_frames import FrameList, pictures_of
from edgewise.media.video_pillow import Animation, reader_for

VideoSource: TypeAlias = str | os.PathLike[str] | bytes | Sequence[ImageSource] | NDArray[np.uint8]
"""A path, a `data:video/...;base64,` URI, the bytes of a file, a list of pictures, or an array of frames."""


class Video(Protocol):
    """A video that was opened and checked, but of which nothing is held but what finds its frames.

    It keeps no file open, and may be read by several threads at once.
    """

    @property
    def total_frames(self) -> int:
        """Frames it has, at least 1."""

    @property
    def fps(self) -> float:
        """Frames per second: frame i is shown at i / fps seconds."""

    @property
    def height(self) -> int:
        """Height of a frame in pixels."""

    @property
    def width(self) -> int:
        """Width of a frame in pixels."""

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Return the frames at `indices` as uint8 [height, width, 3], decoded one at a time.

        Args:
            indices: counted from 0 in the order in which frames are shown; ascending, some perhaps twice.

        Raises:
            MediaError: if the video turns out to be damaged or cut short, or its file was changed.
        """


def open_video(source: VideoSource, *, source_fps: float | None = None, where: str = "video") -> Video:
    """Open a video and check what can be checked without decoding all of it.

    GIF, WebP and PNG animations are read with Pillow, MP4, MKV, WebM, MOV, AVI and others with PyAV, which
    `pip install edgewise[video]` brings. Nothing is downloaded.

    Args:
        source: a path, a `data:video/...;base64,` URI or the bytes of a video file; a list (or tuple, deque)
            of pictures of one size (see `load_image`); or a numpy array uint8 [frames, height, width, 3].
        source_fps: frames per second. For a file, this replaces what the file says; for pictures, `None`
            means 24, as in the original code.
        where: what the video is called in errors, such as `videos[1]`.

    Raises:
        MediaError: if it cannot be read, is no video, is damaged or too large, or PyAV is missing.
        TypeError: if an argument is of the wrong type.
        ValueError: if `source_fps` is not above 0.
    """
    if source_fps is not None:
        source_fps = float(Range(float, 0, above=True).check(f"{where}: source_fps", source_fps))
    if isinstance(source, np.ndarray):
        return FrameList(pictures_of(source, where), source_fps or DEFAULT_SOURCE_FPS, where)
    if is_list(source):
        return FrameList(source, source_fps or DEFAULT_SOURCE_FPS, where)
    if not isinstance(source, str | bytes | os.PathLike):
        raise TypeError(
            f"{where}: expected a path, bytes, a list of frames or a numpy array, got {type(source).__name__}"
        )
    file = MediaFile.of(source, "video", where)
    reader = reader_for(file.head())
    return VideoStreamFile(file, source_fps) if reader is None else Animation(file, reader, source_fps)


def is_list(source: object) -> TypeGuard[Sequence[Any]]:
    """Tell a list, tuple, deque or the like from a text and from bytes, which are sequences too."""
    return isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray | memoryview)
