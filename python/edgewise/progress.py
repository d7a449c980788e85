"""A progress bar for the terminal, and for a log file a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[int, int, str], None]
"""Called with (done, in all, name of what is being done), in bytes or tokens. May raise to stop the work."""

Amount = Callable[[int, int], str]
"""Writes how much is done, of how much."""

WIDTH = 24
REDRAW_SECONDS = 0.1
LOG_SECONDS = 10.0


def megabytes(done: int, total: int) -> str:
    """Write a number of bytes."""
    return f"{done / 1e6:.0f}/{total / 1e6:.0f} MB"


def count(things: str) -> Amount:
    """Return what writes a number of `things`."""
    return lambda done, total: f"{done}/{total} {things}"


class ProgressBar:
    """Called with (done, in all, name of what is being done), as the native side does.

    On a terminal one line is redrawn, from `delay` seconds on. Elsewhere a line is written every ten seconds.
    """

    def __init__(
        self, title: str, stream: TextIO | None = None, amount: Amount = megabytes, delay: float = 0.0
    ) -> None:
        self._title = title
        self._amount = amount
        self._stream = stream if stream is not None else sys.stderr
        self._tty = self._stream.isatty()
        self._start = time.monotonic()
        self._next = self._start + (delay if self._tty else LOG_SECONDS)
        self._drawn = 0

    def __call__(self, done: int, total: int, name: str) -> None:
        """Draw the bar or write a line, if it is time for one."""
        now = time.monotonic()
        finished = done >= total
        if now < self._next and not (finished and self._drawn):
            return
        self._next = now + (REDRAW_SECONDS if self._tty else LOG_SECONDS)
        line = self._line(done, total, name, now - self._start)
        if not self._tty:
            self._stream.write(line + "\n")
        else:
            self._stream.write("\r" + line.ljust(self._drawn) + ("\n" if finished else ""))
        self._drawn = 0 if finished else len(line)
        self._stream.flush()

    def close(self) -> None:
        """End a bar that did not reach its end, so that what follows begins on a line of its own."""
        if self._tty and self._drawn:
            self._stream.write("\n")
            self._stream.flush()
        self._drawn = 0

    def _line(self, done: int, total: int, name: str, seconds: float) -> str:
        part = min(done / total, 1.0) if total > 0 else 1.0
        filled = round(part * WIDTH)
        bar = "#" * filled + "." * (WIDTH - filled)
        amount = self._amount(done, total)
        return f"{self._title} [{bar}] {part:4.0%} {amount} {_left(part, seconds)} {name}"


@contextmanager
def shown(
    progress: Progress | bool | None, title: str, amount: Amount = megabytes, delay: float = 0.0
) -> Iterator[Progress | None]:
    """Give what to report progress to: a new bar for `True`, else `progress` itself."""
    if not isinstance(progress, bool):
        yield progress
        return
    bar = ProgressBar(title, None, amount, delay) if progress else None
    try:
        yield bar
    finally:
        if bar is not None:
            bar.close()


def _left(part: float, seconds: float) -> str:
    """Return the time still needed at the speed so far; nothing while there is too little to judge by."""
    if part >= 1:
        return f"in {duration(seconds)}"
    if seconds < 1 or part < 0.01:
        return "..."
    return f"{duration(seconds * (1 - part) / part)} left"


def duration(seconds: float) -> str:
    """Seconds as a person would write them: `0.4 s`, `42 s`, `3:05 min`, `1:02 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"
