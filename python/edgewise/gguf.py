"""GGUF files: how to know one, and what is said when one is opened. What they hold is read by the core."""

from __future__ import annotations

from pathlib import Path

MAGIC = b"GGUF"
KEEP = "keep"
"""The recipe that holds the blocks of a GGUF file in the formats of least loss."""


def is_gguf(path: str) -> bool:
    """Whether there is a file at `path` that calls itself GGUF."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def opening_title(path: str) -> str:
    """Say what opening takes: a GGUF file is converted in memory, others are converted or mapped."""
    return "converting GGUF in memory" if is_gguf(path) else "opening"


def cached_recipe(path: str, dtype: str, recipe: str | None) -> str | None:
    """Return the recipe by which converted weights are kept: for a GGUF file also if none is asked for."""
    return KEEP if recipe is None and dtype == "auto" and is_gguf(path) else recipe
