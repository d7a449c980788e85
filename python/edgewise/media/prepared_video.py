"""A video ready for the vision tower, its frames decoded as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgewise.media.group import FrameGroup
from edgewise.media.resize import resize
from edgewise.media.sampling import MAX_SAMPLED_FRAMES, sample_frames, timestamps
from edgewise.media.settings import FRAMES_PER_GROUP, VideoSettings
from edgewise.media.sizes import smart_resize_video
from edgewise.media.video import Video, VideoSource, open_video


@dataclass(frozen=True, eq=False)
class PreparedVideo:
    """Which frames of a video are used, and at what size."""

    video: Video
    indices: tuple[int, ...]
    """The frames, ascending. Two make a group; if their number is odd, the last one counts twice."""
    height: int
    width: int
    """Size in pixels after resizing, multiples of `settings.factor`."""
    settings: VideoSettings

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Frame groups, rows and columns of patches."""
        groups = -(-len(self.indices) // FRAMES_PER_GROUP)
        return groups, self.height // self.settings.patch_size, self.width // self.settings.patch_size

    @property
    def tokens(self) -> int:
        """Tokens its frames take in a prompt, besides the text between them."""
        groups, rows, columns = self.grid_thw
        return groups * rows * columns // self.settings.merge_size**2

    @property
    def timestamps(self) -> list[float]:
        """The time of each frame group in seconds."""
        return timestamps(self.indices, self.video.fps, FRAMES_PER_GROUP)

    def groups(self) -> Iterator[FrameGroup]:
        """Return an iterator over the frame groups in order.

        Each call reads the video anew. Two frames are in memory at a time, however long it is.

        Raises:
            MediaError: while iterating, if the video turns out to be damaged or cut short.
        """
        frames = self._resized()
        for first in frames:
            yield FrameGroup(first, next(frames, first), self.settings)

    def _resized(self) -> Iterator[NDArray[np.uint8]]:
        for frame in self.video.frames(self.indices):
            yield resize(Image.fromarray(frame), self.height, self.width)


def prepare_video(
    source: VideoSource,
    settings: VideoSettings,
    *,
    source_fps: float | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int | None = None,
    max_frames: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    where: str = "video",
) -> PreparedVideo:
    """Open a video, choose its frames, and choose the size they are resized to.

    What is chosen is as in the original code, but for a single frame, which that refuses: here it makes a
    group of its own, as an image does.

    Args:
        source: see `open_video`.
        settings: those of the checkpoint, which hold where the arguments below are `None`.
        source_fps: frames per second of the video, instead of what its file says.
        fps: frames to take of each second.
        num_frames: how many to take instead.
        min_frames: fewest to take by `fps`.
        max_frames: most to take by `fps`.
        min_pixels: lower limit of frames x height x width after resizing.
        max_pixels: upper limit of frames x height x width after resizing.
        where: what the video is called in errors, such as `videos[1]`.

    Raises:
        MediaError: if the video cannot be used; the message says why.
        TypeError: if an argument is of the wrong type.
        ValueError: if one is out of range, or both `fps` and `num_frames` are given.
    """
    if fps is not None and num_frames is not None:
        raise ValueError(f"{where}: fps and num_frames exclude each other, give one of them")
    settings = settings.with_limits(min_pixels, max_pixels, where)
    video = open_video(source, source_fps=source_fps, where=where)
    indices = sample_frames(
        video.total_frames,
        video.fps,
        fps=settings.fps if fps is None else fps,
        num_frames=num_frames,
        min_frames=min(settings.min_frames, MAX_SAMPLED_FRAMES) if min_frames is None else min_frames,
        max_frames=min(settings.max_frames, MAX_SAMPLED_FRAMES) if max_frames is None else max_frames,
    )
    height, width = smart_resize_video(
        max(len(indices), FRAMES_PER_GROUP),
        video.height,
        video.width,
        settings.factor,
        FRAMES_PER_GROUP,
        settings.min_pixels,
        settings.max_pixels,
        where=where,
    )
    return PreparedVideo(video, tuple(indices), height, width, settings)
