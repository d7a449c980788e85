"""What to measure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise import checks

MAX_SECONDS = 86_400
"""Longest video that can be measured."""


@dataclass(frozen=True)
class MediaShape:
    """The size of an image or video to measure with."""

    width: int
    height: int
    """In pixels."""
    seconds: float | None = None
    """How long a video is, `None` for an image."""

    @classmethod
    def image(cls, text: str) -> MediaShape:
        """Read the size of an image, such as `640x480`.

        Raises:
            ValueError: if `text` does not have that form.
        """
        found = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
        if found is None:
            raise ValueError(f"image: expected WIDTHxHEIGHT such as 640x480, got {text!r}")
        width, height = (checks.positive("image", int(number)) for number in found.groups())
        return cls(width, height)

    @classmethod
    def video(cls, text: str) -> MediaShape:
        """Read the size and length of a video, such as `448x448x10`.

        Raises:
            ValueError: if `text` does not have that form.
        """
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+(?:\.\d+)?)", text, re.ASCII)
        if found is None:
            raise ValueError(f"video: expected WIDTHxHEIGHTxSECONDS such as 448x448x10, got {text!r}")
        width, height = (checks.positive("video", int(number)) for number in found.groups()[:2])
        seconds = checks.Range(float, 0, MAX_SECONDS, above=True).check("video", float(found[3]))
        return cls(width, height, seconds)

    def __str__(self) -> str:
        size = f"{self.width}x{self.height}"
        return size if self.seconds is None else f"{size}x{self.seconds:g}"


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    prompt_lengths: Sequence[int] = (512,)
    depths: Sequence[int] | None = None
    """Tokens in the context where decoding is measured; `None` for after each prompt."""
    media: Sequence[MediaShape] = ()
    new_tokens: int = 64
    rounds: int = 3
    dtype: str = "auto"
    kv_dtype: str = "auto"
    threads: int | None = None
    limit_seconds: float | None = 0.2
    """How long each limit of the machine is looked for, `None` for not at all."""
    breakdown: bool = False
    """Whether to tell where the time goes, by kind of operation."""

    @property
    def decode_depths(self) -> Sequence[int]:
        """Where decoding is measured."""
        return self.prompt_lengths if self.depths is None else self.depths
