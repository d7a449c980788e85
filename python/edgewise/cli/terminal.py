"""What the commands print and how: sizes, tables, and dimmed text where a terminal shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from edgewise.results import Timings, Usage

_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


def styled(stream: TextIO) -> bool:
    """Tell whether text on `stream` may be dimmed: a terminal, and the user has not set `NO_COLOR`."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO | None = None) -> str:
    """Return `text` dimmed, if the stream (stdout) shows that."""
    return f"{_DIM}{text}{_PLAIN}" if text and styled(stream or sys.stdout) else text


def bold(text: str, stream: TextIO | None = None) -> str:
    """Return `text` in bold, if the stream (stdout) shows that."""
    return f"{_BOLD}{text}{_PLAIN}" if text and styled(stream or sys.stdout) else text


def write(text: str) -> None:
    """Print a part of a line at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def error(message: object) -> None:
    """Print one line on stderr, whatever the message looks like."""
    print(f"edgewise: {' '.join(str(message).split())}", file=sys.stderr)


def size(count: float) -> str:
    """Return a number of bytes as a person would write it: `512 B`, `49.2 kB`, `1.75 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def count(number: float) -> str:
    """Return a number of parameters as a person would write it: `752 million`."""
    for word, factor in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {word}"
    return f"{number:.0f}"


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Return rows in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def formats_table(formats: dict[str, dict[str, int]]) -> str:
    """Return how many tensors and bytes are held in each format, the largest part first."""
    ordered = sorted(formats.items(), key=lambda item: -item[1]["bytes"])
    rows = [["format", "tensors", "size"]]
    return table(rows + [[name, str(part["tensors"]), size(part["bytes"])] for name, part in ordered])


def speed(usage: Usage, timings: Timings) -> str:
    """Return in a line how much was read and written, and how fast."""
    looked = f"looked for {timings.vision_seconds:.2f} s, " if timings.vision_seconds else ""
    known = f"knew {usage.cached_tokens} tokens, " if usage.cached_tokens else ""
    computed = usage.prompt_tokens - usage.cached_tokens
    return (
        f"{looked}{known}read {computed} tokens at {timings.prefill_tokens_per_second:.0f}/s, "
        f"wrote {usage.completion_tokens} at {timings.decode_tokens_per_second:.1f}/s, "
        f"first after {timings.time_to_first_token:.2f} s"
    )
