"""Quantisation by what a text shows of a model's inputs, judged on another part of that text."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.checks import Range

TOKENS = 32768
"""The most tokens to calibrate on, if nobody says: more of the same text changes little."""
MOST_HELD_OUT = 8192
_LEAST = 256
"""Tokens of a text that is worth to be split."""


def split(ids: Sequence[int], most: int = TOKENS) -> tuple[Sequence[int], Sequence[int]]:
    """Return the tokens to calibrate on, and those to judge by.

    The last fifth of a text, at most 8192 tokens, is held out: calibration never sees it. What comes before
    is calibrated on, from the beginning, at most `most` tokens.

    Raises:
        ValueError: if the text has fewer than 256 tokens, or `most` is below 1.

    >>> from edgewise.calibration import split
    >>> seen, held_out = split(range(1000), most=500)
    >>> seen, held_out
    (range(0, 500), range(800, 1000))
    """
    most = int(Range(int, 1, 1 << 40).check("calibrate_tokens", most))
    if len(ids) < _LEAST:
        raise ValueError(f"the text to calibrate on has {len(ids)} tokens; at least {_LEAST} are needed")
    held_out = min(len(ids) // 5, MOST_HELD_OUT)
    before = len(ids) - held_out
    return ids[: min(before, most)], ids[before:]
