"""Shows small pictures in a terminal: two pixels a character, its colour above and its background below."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TextIO

import numpy as np
from PIL import Image

from edgewise.cli import terminal

_UPPER_HALF = "\N{UPPER HALF BLOCK}"
_PLAIN = "\x1b[0m"


def shown_on(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal that says it has all colours and can print block characters."""
    if not terminal.styled(stream) or os.environ.get("COLORTERM") not in ("truecolor", "24bit"):
        return False
    try:
        _UPPER_HALF.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def render(pictures: Sequence[Image.Image], columns: int) -> str:
    """Return square pictures side by side as lines of text with colour codes, each `columns` wide."""
    blocks = [_lines(picture, columns) for picture in pictures]
    return "\n".join(" ".join(parts) for parts in zip(*blocks, strict=True))


def _lines(picture: Image.Image, columns: int) -> list[str]:
    """Return one picture, `columns / 2` lines."""
    side = columns + columns % 2
    pixels = np.asarray(picture.convert("RGB").resize((columns, side), Image.Resampling.BOX))
    rows = pixels.tolist()
    return [_line(upper, lower) for upper, lower in zip(rows[::2], rows[1::2], strict=True)]


def _line(upper: list[list[int]], lower: list[list[int]]) -> str:
    """Return two rows of pixels; colours are named where they change, which keeps a line short."""
    pairs = list(zip(upper, lower, strict=True))
    parts = [_colors(*pairs[0]), _UPPER_HALF]
    for before, pair in pairwise(pairs):
        parts += [_colors(*pair) if pair != before else "", _UPPER_HALF]
    return "".join(parts) + _PLAIN


def _colors(upper: list[int], lower: list[int]) -> str:
    front, back = (";".join(map(str, color)) for color in (upper, lower))
    return f"\x1b[38;2;{front}m\x1b[48;2;{back}m"
