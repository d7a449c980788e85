"""How images and videos are read: the options of a call, and those of a single part of a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from edgewise.checks import Range

MediaKind = Literal["image", "video"]

RANGES = {
    "min_pixels": Range(int, 1),
    "max_pixels": Range(int, 1),
    "fps": Range(float, 0, above=True),
    "num_frames": Range(int, 1),
    "max_frames": Range(int, 1),
    "source_fps": Range(float, 0, above=True),
}
OF_IMAGES = ("min_pixels", "max_pixels")
OF_VIDEOS = tuple(RANGES)


@dataclass(frozen=True)
class MediaOptions:
    """Sizes and frame rates; `None` leaves one to the checkpoint."""

    min_pixels: int | None = None
    """An image, or the sampled frames of a video together, are enlarged to at least so many pixels."""
    max_pixels: int | None = None
    """They are made smaller until they have at most so many."""
    fps: float | None = None
    """Frames taken of each second of a video."""
    num_frames: int | None = None
    """Frames taken of a video in all, in place of `fps`."""
    max_frames: int | None = None
    """The most frames taken of a video."""
    source_fps: float | None = None
    """Frames a second of a video that does not tell, such as a list of frames."""

    def updated(self, own: Mapping[str, Any]) -> MediaOptions:
        """Return the options of one part: its own, then these.

        A part that says `fps` or `num_frames` does not take the other one from here: only one can count.
        """
        base = self
        if "fps" in own or "num_frames" in own:
            base = replace(self, fps=None, num_frames=None)
        return replace(base, **own)

    def of(self, kind: MediaKind) -> dict[str, Any]:
        """Return those that mean something for an image or a video, by name."""
        names = OF_IMAGES if kind == "image" else OF_VIDEOS
        return {name: value for name, value in asdict(self).items() if name in names}
