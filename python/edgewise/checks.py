"""Checks of arguments: each error names the argument and what was expected of it."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def integer(name: str, value: Any) -> int:
    """Return `value` as an int.

    Raises:
        TypeError: if it is not an integer of some kind; True and False are not.
    """
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None


def real(name: str, value: Any) -> float:
    """Return `value` as a float.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Range:
    """Numbers of one kind between two limits; `above` leaves the lower limit itself out."""

    kind: type[int] | type[float]
    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def check(self, name: str, value: Any) -> Any:
        """Return `value` as this kind of number.

        Raises:
            TypeError: if it is none.
            ValueError: if it lies outside.
        """
        number = integer(name, value) if self.kind is int else real(name, value)
        if not (self.low <= number <= self.high) or (self.above and number == self.low):
            raise ValueError(f"{name}: expected {self._limits()}, got {value!r}")
        return number

    def _limits(self) -> str:
        low = f"above {self.low}" if self.above else f"of at least {self.low}"
        return f"a number {low}" if self.high == math.inf else f"a number {low} and at most {self.high}"


def threads(value: Any) -> int | None:
    """Return a number of threads, `None` if it is left to the engine."""
    return None if value is None else int(Range(int, 1).check("threads", value))


def yarn_factor(value: Any) -> float | None:
    """Return a factor of YaRN, `None` if the context is left as it is."""
    return None if value is None else float(Range(float, 1, above=True).check("yarn_factor", value))


def within_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raise ValueError if one of `ids` is no token of the model."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"{name}: {token_id} is outside the vocabulary of {vocab_size}")


def positive(name: str, value: Any) -> int:
    """Return a whole number of at least 1."""
    return int(Range(int, 1).check(name, value))
