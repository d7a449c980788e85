"""The size an image or a video is resized to: both sides multiples of a factor, the area within limits."""

from __future__ import annotations

import math

from edgewise.media.errors import MediaError

MAX_ASPECT_RATIO = 200


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int, *, where: str = "image"
) -> tuple[int, int]:
    """Return the height and width an image is resized to.

    Each side becomes the nearest multiple of `factor` (halves go to the even one). If the area is then
    outside `min_pixels`..`max_pixels`, the sides are scaled together. No side gets below `factor`, so the
    area of a very long image may stay above `max_pixels`.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        factor: what both sides must be multiples of.
        min_pixels: smallest area.
        max_pixels: largest area.
        where: what it is, as named in errors.

    Raises:
        MediaError: if a side is zero, or one is more than 200 times the other.
    """
    _check_sides(height, width, where)
    area = _nearest(height, factor) * _nearest(width, factor)
    return _fit(height, width, area, height * width, factor, min_pixels, max_pixels)


def smart_resize_video(
    frames: int,
    height: int,
    width: int,
    factor: int,
    temporal_factor: int,
    min_pixels: int,
    max_pixels: int,
    *,
    where: str = "video",
) -> tuple[int, int]:
    """Return the height and width each frame of a video is resized to.

    As `smart_resize`, but the limits are those of all frames together, and a frame with a side below
    `factor` is first enlarged to have none.

    Args:
        frames: number of frames that are used.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        factor: what both sides must be multiples of.
        temporal_factor: frames that are encoded together.
        min_pixels: smallest number of pixels of all frames together.
        max_pixels: largest number of pixels of all frames together.
        where: what it is, as named in errors.

    Raises:
        MediaError: if there are fewer than `temporal_factor` frames, a side is zero, or one is more than 200
            times the other.
    """
    if frames < temporal_factor:
        raise MediaError(f"{where}: {frames} frames are too few, there must be {temporal_factor}")
    if 0 < min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_sides(height, width, where)
    padded_frames = round(frames / temporal_factor) * temporal_factor
    pixels = padded_frames * _nearest(height, factor) * _nearest(width, factor)
    return _fit(height, width, pixels, frames * height * width, factor, min_pixels, max_pixels)


def _fit(
    height: int, width: int, rounded_pixels: int, pixels: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Scale both sides so that `rounded_pixels`, those after rounding, come within the limits."""
    if rounded_pixels > max_pixels:
        shrink = math.sqrt(pixels / max_pixels)
        return _at_most(height / shrink, factor), _at_most(width / shrink, factor)
    if rounded_pixels < min_pixels:
        grow = math.sqrt(min_pixels / pixels)
        return _at_least(height * grow, factor), _at_least(width * grow, factor)
    return _nearest(height, factor), _nearest(width, factor)


def _check_sides(height: int, width: int, where: str) -> None:
    if height <= 0 or width <= 0:
        raise MediaError(f"{where}: {width} x {height} pixels: there is nothing to see")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(
            f"{where}: {width} x {height} pixels: one side may be at most {MAX_ASPECT_RATIO} times the other"
        )


def _nearest(side: int, factor: int) -> int:
    """Return the nearest multiple, which may be 0; Python rounds halves to even."""
    return round(side / factor) * factor


def _at_most(side: float, factor: int) -> int:
    return max(factor, math.floor(side / factor) * factor)


def _at_least(side: float, factor: int) -> int:
    return math.ceil(side / factor) * factor
