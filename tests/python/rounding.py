"""Activations as the engine rounds them, in numpy.

A scale for each span of four groups of 32, and steps of it over the largest power of two, up to 2^15, with
which a group's largest number is still at most the span's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP, SPAN, FINEST = 32, 4, 15


def groups(x: NDArray[Any]) -> NDArray[Any]:
    """[rows, cols] as [rows, groups, 32], filled up with zeros."""
    rows, cols = x.shape
    padded = np.zeros((rows, -(-cols // GROUP) * GROUP), x.dtype)
    padded[:, :cols] = x
    return padded.reshape(rows, padded.shape[1] // GROUP, GROUP)


def rounded(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Levels [rows, groups, 32] of `x` [rows, cols], and steps [rows, groups] in its type of numbers."""
    grouped = groups(x)
    largest = np.abs(grouped).max(axis=-1)
    whole = np.empty_like(largest)
    for start in range(0, largest.shape[1], SPAN):
        span = slice(start, start + SPAN)
        whole[:, span] = largest[:, span].max(axis=-1, keepdims=True)
    # frexp: a number is a fraction in 0.5..1 times 2^exponent.
    exponent = np.frexp(whole / np.where(largest > 0, largest, 1))[1] - 1
    power = np.ldexp(np.ones_like(whole), np.clip(exponent, 0, FINEST))
    inverse = np.where(whole > 0, x.dtype.type(127) / np.where(whole > 0, whole, 1), 0) * power
    return np.rint(grouped * inverse[..., None]).astype(np.float64), whole / x.dtype.type(127) / power


def as_rounded(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the engine takes rows `x` for."""
    levels, steps = rounded(np.atleast_2d(x))
    values = (levels * steps[..., None]).reshape(len(levels), levels.shape[1] * GROUP)
    out: NDArray[np.float64] = values[:, : x.shape[-1]].reshape(x.shape)
    return out
