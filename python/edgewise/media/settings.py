"""How a checkpoint wants images and videos prepared: patch sizes, size limits, normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from edgewise._native import CheckpointError
from edgewise.chat import ReadFile, read_json
from edgewise.checks import Range
from edgewise.media.errors import MediaError

MAX_IMAGE_PIXELS = 1_048_576
"""Default limit of an image after resizing: 1024 tokens at patches of 16. Checkpoints allow 16 times as much,
which takes a CPU minutes. The same on every machine, so that results are."""
MAX_VIDEO_PIXELS = 8_388_608
"""Default limit of a video after resizing, over all its sampled frames: 4096 tokens at patches of 16."""

FRAMES_PER_GROUP = 2
_SAME_FOR_ALL = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
"""Entries that have one supported value; resample 3 is bicubic."""

_MANY = 2**40
"""No number of pixels or frames comes near."""
_LARGEST = 1e6
"""No rate, mean or deviation comes near."""

Self = TypeVar("Self", bound="PixelSettings")


@dataclass(frozen=True)
class PixelSettings:
    """What images and videos have in common. Use `ImageSettings` or `VideoSettings`."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    temporal_patch_size: int = FRAMES_PER_GROUP
    """Frames in a patch, always 2."""
    merge_size: int = 2
    """Side in patches of the square that becomes one token."""
    min_pixels: int = 1
    max_pixels: int = 1
    """Height x width after resizing is kept within these limits; for a video, times frames."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of red, green and blue; pixels are in 0..1 before they are normalised."""

    PIXEL_LIMIT: ClassVar[int]
    """No call may ask for more pixels than this."""

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one token; heights and widths are multiples of it."""
        return self.patch_size * self.merge_size

    def with_limits(
        self: Self, min_pixels: int | None = None, max_pixels: int | None = None, where: str = "image"
    ) -> Self:
        """Return these settings with other size limits.

        A limit that is given alone moves the other one where they would cross.

        Args:
            min_pixels: the new lower limit; `None` keeps the one there is.
            max_pixels: the new upper limit; `None` keeps the one there is.
            where: what they are for, as named in errors.

        Raises:
            TypeError: if one is not an integer.
            ValueError: if one is outside 1..`PIXEL_LIMIT`.
            MediaError: if the lower one is above the upper one.
        """
        low = self._limit(f"{where}: min_pixels", min_pixels, self.min_pixels)
        high = self._limit(f"{where}: max_pixels", max_pixels, self.max_pixels)
        if min_pixels is None:
            low = min(low, high)
        elif max_pixels is None:
            high = max(low, high)
        elif low > high:
            raise MediaError(f"{where}: min_pixels {low} is above max_pixels {high}")
        return replace(self, min_pixels=low, max_pixels=high)

    def _limit(self, name: str, given: int | None, default: int) -> int:
        return default if given is None else int(Range(int, 1, self.PIXEL_LIMIT).check(name, given))


@dataclass(frozen=True)
class ImageSettings(PixelSettings):
    """How images are prepared. The defaults are the family's, except for `max_pixels`."""

    min_pixels: int = 65_536
    max_pixels: int = MAX_IMAGE_PIXELS

    PIXEL_LIMIT: ClassVar[int] = 2**26
    FILE: ClassVar[str] = "preprocessor_config.json"

    @classmethod
    def read(cls, read_file: ReadFile) -> ImageSettings:
        """Return a checkpoint's settings, the family's where it does not say.

        A `max_pixels` above `MAX_IMAGE_PIXELS` is lowered to that; calls may raise it with `with_limits`.

        Raises:
            CheckpointError: if `preprocessor_config.json` is malformed or asks for what is not supported.
        """
        return cls(**_Config(read_json(read_file, cls.FILE), cls.FILE).pixel_settings(cls()))


@dataclass(frozen=True)
class VideoSettings(PixelSettings):
    """How videos are prepared. The defaults are the family's, except for `max_pixels`."""

    min_pixels: int = 4096
    max_pixels: int = MAX_VIDEO_PIXELS
    fps: float = 2.0
    """Frames to take of each second."""
    min_frames: int = 4
    max_frames: int = 768

    PIXEL_LIMIT: ClassVar[int] = 2**28
    FILE: ClassVar[str] = "video_preprocessor_config.json"

    @classmethod
    def read(cls, read_file: ReadFile) -> VideoSettings:
        """Return a checkpoint's settings, the family's where it does not say.

        A `max_pixels` above `MAX_VIDEO_PIXELS` is lowered to that; calls may raise it with `with_limits`.

        Raises:
            CheckpointError: if `video_preprocessor_config.json` is malformed or asks for what is not
                supported.
        """
        config, family = _Config(read_json(read_file, cls.FILE), cls.FILE), cls()
        min_frames = config.integer("min_frames", family.min_frames)
        max_frames = config.integer("max_frames", max(min_frames, family.max_frames))
        if min_frames > max_frames:
            raise CheckpointError(f"{cls.FILE}: 'min_frames' {min_frames} is above 'max_frames' {max_frames}")
        return cls(
            **config.pixel_settings(family),
            fps=config.positive("fps", family.fps),
            min_frames=min_frames,
            max_frames=max_frames,
        )


class _Config:
    """The entries of a preprocessor's JSON file; errors name the file and the entry."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self._values = values
        self._file = file

    def pixel_settings(self, family: PixelSettings) -> dict[str, Any]:
        """Return the fields of `PixelSettings`, those of `family` where the file does not say."""
        self._refuse_other_steps()
        temporal = self.integer("temporal_patch_size", family.temporal_patch_size)
        if temporal != FRAMES_PER_GROUP:
            raise self._error("temporal_patch_size", f"{FRAMES_PER_GROUP} is supported", temporal)
        low, high = self._pixel_limits(family)
        return {
            "patch_size": self.integer("patch_size", family.patch_size, high=256),
            "temporal_patch_size": temporal,
            "merge_size": self.integer("merge_size", family.merge_size, high=16),
            "min_pixels": low,
            "max_pixels": high,
            "mean": self._colour("image_mean", family.mean, -_LARGEST),
            "std": self._colour("image_std", family.std, 0),
        }

    def integer(self, name: str, default: int, high: int = _MANY) -> int:
        """Return a whole number in 1..`high`."""
        return self._checked_integer(name, self._value(name, default), high)

    def positive(self, name: str, default: float) -> float:
        """Return a finite number above 0."""
        return self._number(name, self._value(name, default), 0)

    def _value(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        return default if value is None else value

    def _pixel_limits(self, family: PixelSettings) -> tuple[int, int]:
        size = self._value("size", {})
        if not isinstance(size, Mapping):
            raise self._error("size", "an object is expected", size)
        low = self._limit("min_pixels", size, "shortest_edge")
        high = self._limit("max_pixels", size, "longest_edge")
        if low is None:
            low = family.min_pixels if high is None else min(family.min_pixels, high)
        if high is None:
            high = max(low, family.max_pixels)
        if low > high:
            raise CheckpointError(
                f"{self._file}: the smallest size of {low} pixels is above the largest of {high}"
            )
        if low > family.PIXEL_LIMIT:
            raise CheckpointError(f"{self._file}: a smallest size of {low} pixels is not supported")
        return low, max(low, min(high, family.max_pixels))

    def _limit(self, name: str, size: Mapping[str, Any], edge: str) -> int | None:
        """Return a limit in pixels, if there is one; the edges of `size` are areas too."""
        if self._values.get(name) is not None:
            return self._checked_integer(name, self._values[name], _MANY)
        value = size.get(edge)
        return None if value is None else self._checked_integer(edge, value, _MANY)

    def _checked_integer(self, name: str, value: Any, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
            raise self._error(name, f"a whole number from 1 to {high} is expected", value)
        return value

    def _number(self, name: str, value: Any, above: float) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not above < value < _LARGEST:
            raise self._error(name, f"a number above {above:g} and below {_LARGEST:g} is expected", value)
        return float(value)

    def _colour(
        self, name: str, default: tuple[float, float, float], above: float
    ) -> tuple[float, float, float]:
        value = self._value(name, default)
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise self._error(name, "three numbers are expected", value)
        red, green, blue = (self._number(name, number, above) for number in value)
        return red, green, blue

    def _refuse_other_steps(self) -> None:
        for name, supported in _SAME_FOR_ALL.items():
            if self._value(name, supported) != supported:
                raise self._error(name, f"{supported} is supported", self._values[name])
        scale = self.positive("rescale_factor", 1 / 255)
        if not math.isclose(scale, 1 / 255, rel_tol=1e-6):
            raise self._error("rescale_factor", "1/255 is supported", scale)

    def _error(self, name: str, expected: str, value: Any) -> CheckpointError:
        return CheckpointError(f"{self._file}: '{name}': {expected}, got {value!r:.80}")
