"""Which frames of a video are looked at, and what times the prompt gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewise.checks import Range

DEFAULT_SOURCE_FPS = 24.0
"""Frames per second of a video that does not say, as in the original code."""

MAX_SAMPLED_FRAMES = 4096
"""No call may ask for more frames than this."""

MAX_SOURCE_FRAMES = 6_000_000
"""Most frames a video file may have: above 24 hours at 60 frames per second. 8 bytes are kept of each."""

MAX_DURATION = 24 * 60 * 60
"""Longest video file in seconds."""

_RATE = Range(float, 0, above=True)
_COUNT = Range(int, 1, MAX_SAMPLED_FRAMES)


def sample_frames(
    total: int,
    source_fps: float | None,
    *,
    fps: float = 2.0,
    num_frames: int | None = None,
    min_frames: int = 4,
    max_frames: int = 768,
) -> list[int]:
    """Return the indices of the frames to use: evenly spaced, with the first and the last one.

    >>> sample_frames(61, 29.97)
    [0, 20, 40, 60]

    Args:
        total: frames the video has. Without any, none is returned.
        source_fps: its frames per second; `None` means 24.
        fps: frames to take of each second.
        num_frames: how many to take instead, whatever `fps` and the limits. If the video has fewer, some
            come twice.
        min_frames: fewest to take where `fps` would give less; never more than there are.
        max_frames: most to take where `fps` would give more. It goes before `min_frames`.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if one is out of range.
    """
    total = Range(int, 0).check("total", total)
    if total == 0:
        return []
    if num_frames is None:
        source_fps = _RATE.check("source_fps", DEFAULT_SOURCE_FPS if source_fps is None else source_fps)
        wanted = int(min(total / source_fps * _RATE.check("fps", fps), total))
        at_least = max(wanted, _COUNT.check("min_frames", min_frames))
        num_frames = min(at_least, _COUNT.check("max_frames", max_frames), total)
    else:
        num_frames = _COUNT.check("num_frames", num_frames)
    return [int(index) for index in np.linspace(0, total - 1, num_frames).round()]


def timestamps(indices: Sequence[int], source_fps: float | None, temporal_patch_size: int = 2) -> list[float]:
    """Return the time of each group of frames in seconds: the mean of its first and its last frame's.

    >>> timestamps([0, 2, 4, 7, 9], source_fps=4)
    [0.25, 1.375, 2.25]

    Args:
        indices: of the frames, ascending. The last one fills up the last group.
        source_fps: frames per second of the video; `None` means 24.
        temporal_patch_size: frames in a group.

    Raises:
        TypeError: if `source_fps` is not a number.
        ValueError: if it is not above 0.
    """
    source_fps = _RATE.check("source_fps", DEFAULT_SOURCE_FPS if source_fps is None else source_fps)
    times = [index / source_fps for index in indices]
    return [
        (times[first] + times[min(first + temporal_patch_size, len(times)) - 1]) / 2
        for first in range(0, len(times), temporal_patch_size)
    ]


def timestamp_text(seconds: float) -> str:
    """Return a time as it stands in the prompt.

    >>> timestamp_text(0.25)
    '<0.2 seconds>'
    """
    return f"<{seconds:.1f} seconds>"
