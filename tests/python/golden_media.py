"""The recordings of images: their settings and pixel values."""

from collections.abc import Callable
from typing import Any

import numpy as np

import golden
from golden import Array

IMAGE_CASES = ["image", "image_pos64", "deepstack_qwen3_vl"]
"""Checkpoints whose recordings have one prompt an image."""


def read_file(case: str) -> Callable[[str], bytes | None]:
    """What reads the files of a recorded checkpoint."""

    def read(name: str) -> bytes | None:
        path = golden.FOLDER / case / name
        return path.read_bytes() if path.exists() else None

    return read


def pixel_values(levels: Array) -> Array:
    """Recorded levels [patches, values] normalised as in the original code, mean and deviation 0.5."""
    return ((levels / 255).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)


def images(case: str) -> list[dict[str, Any]]:
    """What was recorded about each image of a case; `file` is its name."""
    rows: list[dict[str, Any]] = golden.read_json(f"{case}/case.json")["images"]
    return rows
